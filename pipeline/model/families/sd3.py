"""Stable Diffusion 3 and 3.5: two CLIP text encoders and (where the folder has it) T5, a joint-attention transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.model.conditioning import Conditioning
from pipeline.model.families.defaults import Defaults
from pipeline.model.families.flow import shift_of
from pipeline.model.families.latent import LatentDiffusion
from pipeline.model.sites import Site, stream_sites

if TYPE_CHECKING:
    import torch


class StableDiffusion3(LatentDiffusion):
    """A conditioning holds CLIP's and T5's tokens (77 + 256, D) and the CLIPs' pooled embeddings side by side.

    Without T5 its tokens are zeros, as in diffusers.
    """

    family = "sd3"
    pipeline = "StableDiffusion3Pipeline"
    denoiser = "transformer"
    denoiser_class = "SD3Transformer2DModel"
    required = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    narrow = ("text_encoder_3",)
    settings: ClassVar[dict[str, Any]] = {"feature_extractor": None, "image_encoder": None}
    patch = 2
    flow = True
    usual = Defaults(steps=28, guidance=7.0, text_tokens=256, size=1024)

    def _tokenizers(self) -> list[tuple[Any, int]]:
        kept = [(t, int(t.model_max_length)) for t in (self._parts.tokenizer, self._parts.tokenizer_2)]
        return kept if self._parts.text_encoder_3 is None else [*kept, (self._parts.tokenizer_3, self._text_tokens)]

    def _encode(self, prompts: list[str], negative: bool) -> Conditioning:
        tokens, _, pooled, _ = self._parts.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=self._text_tokens
        )
        return Conditioning(tokens, pooled=pooled)

    def _set_timesteps(self, scheduler: Any, steps: int, positions: tuple[int, int]) -> None:
        if not scheduler.config.get("use_dynamic_shifting"):
            return super()._set_timesteps(scheduler, steps, positions)
        height, width = positions
        side = int(self.network.config.patch_size)
        scheduler.set_timesteps(steps, mu=shift_of(scheduler.config, (height // side) * (width // side), 1.16))

    def denoise_tensor(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: Conditioning, guidance: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        context = context.to(self._device, self._dtype)
        out = self.network(
            hidden_states=latents.to(self._device, self._dtype),
            timestep=timesteps.to(self._device),
            encoder_hidden_states=context.tokens,
            pooled_projections=context.pooled,
        )
        return out.sample.float()  # type: ignore[no-any-return]

    def _find_sites(self) -> list[Site]:
        from diffusers.models.attention import JointTransformerBlock

        return stream_sites(self.network, JointTransformerBlock)
