"""Stable Diffusion XL: two CLIP text encoders, the second one's pooled embedding, and the picture's size as a condition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.model.conditioning import Conditioning
from pipeline.model.families.defaults import Defaults
from pipeline.model.families.latent import LatentDiffusion
from pipeline.model.sites import Site, unet_sites

if TYPE_CHECKING:
    import torch


class StableDiffusionXL(LatentDiffusion):
    """A conditioning holds both encoders' tokens side by side (T, D₁ + D₂) and the pooled embedding (P,).

    The size condition is the picture's own size without crop, as in diffusers. Where the folder sets
    ``force_zeros_for_empty_prompt`` (SDXL base does), the empty prompt is all zeros, as the model was trained.
    """

    family = "sdxl"
    pipeline = "StableDiffusionXLPipeline"
    denoiser = "unet"
    denoiser_class = "UNet2DConditionModel"
    required = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    usual = Defaults(steps=50, guidance=5.0, text_tokens=None, size=1024)
    settings: ClassVar[dict[str, Any]] = {"add_watermarker": False, "feature_extractor": None, "image_encoder": None}

    def _tokenizers(self) -> list[tuple[Any, int]]:
        return [(t, int(t.model_max_length)) for t in (self._parts.tokenizer, self._parts.tokenizer_2)]

    def _encode(self, prompts: list[str], negative: bool) -> Conditioning:
        empty = [i for i, prompt in enumerate(prompts) if not prompt]
        tokens, _, pooled, _ = self._parts.encode_prompt(prompts, do_classifier_free_guidance=False)
        if self._parts.config.force_zeros_for_empty_prompt:
            tokens[empty] = 0
            pooled[empty] = 0
        return Conditioning(tokens, pooled=pooled)

    def denoise_tensor(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: Conditioning, guidance: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        height, width = (side * self._pixels_per_latent for side in latents.shape[-2:])
        sizes = self._numbers(len(latents), height, width, 0, 0, height, width)  # the original, the crop's corner, the target
        context = context.to(self._device, self._dtype)
        out = self.network(
            latents.to(self._device, self._dtype),
            timesteps.to(self._device),
            context.tokens,
            timestep_cond=self._timestep_condition(guidance, len(latents)),
            added_cond_kwargs={"text_embeds": context.pooled, "time_ids": sizes},
        )
        return out.sample.float()  # type: ignore[no-any-return]

    def _find_sites(self) -> list[Site]:
        return unet_sites(self.network)
