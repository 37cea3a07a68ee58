"""Qwen-Image: a two-stream transformer over 2×2 patches of the latent, with Qwen2.5-VL as text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.model.codec import VideoCodec
from pipeline.model.combine import classifier_free
from pipeline.model.conditioning import Conditioning
from pipeline.model.families.chat import hidden_states, own_first
from pipeline.model.families.defaults import Defaults
from pipeline.model.families.flow import set_flow_steps, shift_of
from pipeline.model.families.latent import LatentDiffusion
from pipeline.model.sites import Site, stream_sites

if TYPE_CHECKING:
    import torch

NATIVE_PIXELS = 1024


class QwenImage(LatentDiffusion):
    """A conditioning holds Qwen2.5-VL's last hidden states without those of the instruction, and their mask.

    diffusers pads a call to its longest prompt; here every prompt is masked within the full length, so that no row depends on
    its mates.
    """

    family = "qwen_image"
    pipeline = "QwenImagePipeline"
    denoiser = "transformer"
    denoiser_class = "QwenImageTransformer2DModel"
    required = ("tokenizer", "text_encoder")
    narrow = ("text_encoder",)
    patch = 2
    flow = True
    text_tokens = 512
    usual = Defaults(steps=50, guidance=4.0, text_tokens=512, size=1024)
    waits_for_host = True
    codec_class = VideoCodec

    @classmethod
    def multiple_of(cls, autoencoder: Mapping[str, Any]) -> int | None:
        halvings = autoencoder.get("temperal_downsample")  # diffusers' spelling
        return 2 ** len(halvings) * cls.patch if isinstance(halvings, list) else None

    def _channels(self) -> int:
        return int(self.network.config.in_channels) // 4  # the network sees 2×2 positions as one token

    def _native(self) -> Any:
        return NATIVE_PIXELS // self._pixels_per_latent

    def _tokenizers(self) -> list[tuple[Any, int]]:
        return [(self._parts.tokenizer, self._text_tokens + int(self._parts.prompt_template_encode_start_idx))]

    def _written(self, prompt: str) -> str:
        return str(self._parts.prompt_template_encode.format(prompt))

    def _encode(self, prompts: list[str], negative: bool) -> Conditioning:
        (tokenizer, length), texts = self._tokenizers()[0], [self._written(prompt) for prompt in prompts]
        encoder = self._parts.text_encoder
        found = hidden_states(tokenizer, encoder, texts, length=length, layers=(-1,), device=self._device)
        tokens, mask = own_first(*found)
        instruction = length - self._text_tokens
        return Conditioning(tokens[:, instruction:], mask[:, instruction:])

    def _set_timesteps(self, scheduler: Any, steps: int, positions: tuple[int, int]) -> None:
        height, width = positions
        mu = shift_of(scheduler.config, (height // 2) * (width // 2), 1.15)
        set_flow_steps(scheduler, steps, mu)

    def combine(self, negative: torch.Tensor, conditional: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
        """Classifier-free guidance, of which every token (2×2 positions) keeps the length that the conditional one has."""
        guided = classifier_free(negative, conditional, scale)
        before, after = (self._torch.nn.functional.pixel_unshuffle(x, 2).norm(dim=-3) for x in (conditional, guided))
        ratio = (before / after.clamp(min=1e-12)).repeat_interleave(2, -1).repeat_interleave(2, -2)
        return guided * ratio.unsqueeze(-3)  # type: ignore[no-any-return]

    def denoise_tensor(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: Conditioning, guidance: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        context = context.to(self._device, self._dtype)
        rows, channels, height, width = latents.shape
        h, w = height // 2, width // 2
        packed = latents.to(self._device, self._dtype).view(rows, channels, h, 2, w, 2).permute(0, 2, 4, 1, 3, 5)
        out = self.network(
            hidden_states=packed.reshape(rows, h * w, 4 * channels),
            timestep=timesteps.to(self._device) / 1000,
            encoder_hidden_states=context.tokens,
            encoder_hidden_states_mask=context.mask,
            img_shapes=[[(1, h, w)]] * rows,
        ).sample
        out = out.view(rows, h, w, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return out.reshape(latents.shape).float()  # type: ignore[no-any-return]

    def _find_sites(self) -> list[Site]:
        from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformerBlock

        return stream_sites(self.network, QwenImageTransformerBlock, "img_norm2")
