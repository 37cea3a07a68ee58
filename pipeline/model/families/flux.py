"""Flux: CLIP's pooled embedding and T5's tokens, a transformer over 2×2 patches of the latent, guidance inside the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.model.conditioning import Conditioning, scales_of
from pipeline.model.families.defaults import Configs, Defaults
from pipeline.model.families.flow import set_flow_steps, shift_of
from pipeline.model.families.latent import LatentDiffusion
from pipeline.model.sites import Site, flux_sites

if TYPE_CHECKING:
    import torch

NATIVE_PIXELS = 1024


class Flux(LatentDiffusion):
    """A conditioning holds T5's tokens (512, D) and CLIP's pooled embedding.

    Flux dev takes the guidance scale, Flux schnell has none; both take one row per sample. A negative prompt works only
    with ``generation.true_guidance_scale`` above 1, which is classifier-free guidance on top, at two rows per sample.
    """

    family = "flux"
    pipeline = "FluxPipeline"
    denoiser = "transformer"
    denoiser_class = "FluxTransformer2DModel"
    required: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    narrow = ("text_encoder_2",)
    settings: ClassVar[dict[str, Any]] = {"feature_extractor": None, "image_encoder": None}
    patch = 2
    flow = True
    text_tokens = 512
    usual = Defaults(steps=28, guidance=3.5, text_tokens=512, size=1024)
    distilled = True

    @classmethod
    def defaults(cls, configs: Configs) -> Defaults:
        dev = configs.get("transformer", {}).get("guidance_embeds", True)
        return cls.usual if dev else Defaults(steps=4, guidance=0.0, text_tokens=256, size=1024)  # schnell

    def _channels(self) -> int:
        return int(self.network.config.in_channels) // 4  # the network sees 2×2 positions as one token

    def _native(self) -> Any:
        return NATIVE_PIXELS // self._pixels_per_latent

    def _tokenizers(self) -> list[tuple[Any, int]]:
        return [(self._parts.tokenizer_2, self._text_tokens)]

    def _encode(self, prompts: list[str], negative: bool) -> Conditioning:
        tokens, pooled, _ = self._parts.encode_prompt(prompts, None, max_sequence_length=self._text_tokens)
        return Conditioning(tokens, pooled=pooled)

    def _set_timesteps(self, scheduler: Any, steps: int, positions: tuple[int, int]) -> None:
        height, width = positions
        mu = shift_of(scheduler.config, (height // 2) * (width // 2), 1.15)
        set_flow_steps(scheduler, steps, mu)

    def denoise_tensor(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: Conditioning, guidance: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        torch, pipe = self._torch, self._parts
        rows, channels, height, width = latents.shape
        scale = scales_of(guidance, rows, self._device)
        context = context.to(self._device, self._dtype)
        self.layout.image = slice(context.tokens.shape[1], None)
        out = self.network(
            hidden_states=pipe._pack_latents(latents.to(self._device, self._dtype), rows, channels, height, width),
            timestep=timesteps.to(self._device) / 1000,
            guidance=scale if self.network.config.guidance_embeds else None,
            pooled_projections=context.pooled,
            encoder_hidden_states=context.tokens,
            txt_ids=torch.zeros(context.tokens.shape[1], 3, device=self._device, dtype=self._dtype),
            img_ids=self._places(height // 2, width // 2),
        ).sample
        pixels = height * self._pixels_per_latent, width * self._pixels_per_latent
        return pipe._unpack_latents(out, *pixels, self._pixels_per_latent).float()  # type: ignore[no-any-return]

    def _places(self, height: int, width: int) -> torch.Tensor:
        """Every token's row and column behind a 0, (height · width, 3), made on the device."""
        torch, device = self._torch, self._device
        places = torch.zeros(height, width, 3, device=device)
        places[..., 1] = torch.arange(height, device=device)[:, None]
        places[..., 2] = torch.arange(width, device=device)
        return places.view(-1, 3).to(self._dtype)  # type: ignore[no-any-return]

    def _find_sites(self) -> list[Site]:
        return flux_sites(self.network, self.layout)
