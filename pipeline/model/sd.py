"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, UNet2DConditionModel, AutoencoderKL or AutoencoderTiny."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.model.latent import LatentDiffusion

if TYPE_CHECKING:
    import torch


class StableDiffusion(LatentDiffusion):
    """A conditioning is the text encoder's output (T, D)."""

    family = "sd"
    pipeline = "StableDiffusionPipeline"
    denoiser = "unet"
    required = ("tokenizer", "text_encoder")
    settings: ClassVar[dict[str, Any]] = {
        "safety_checker": None, "requires_safety_checker": False, "feature_extractor": None, "image_encoder": None,
    }  # fmt: skip

    def _encode(self, prompts: list[str]) -> torch.Tensor:
        tokenizer = self._parts.tokenizer
        ids = tokenizer(
            prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids
        return self._parts.text_encoder(ids.to(self._device))[0]  # type: ignore[no-any-return]

    def denoise_tensor(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, guidance: float = 1.0
    ) -> torch.Tensor:
        inputs = latents.to(self._device, self._dtype), timesteps.to(self._device), context.to(self._device, self._dtype)
        return self.network(*inputs).sample.float().cpu()  # type: ignore[no-any-return]

    def attention_blocks(self) -> list[tuple[str, Any]]:
        from diffusers.models.attention import BasicTransformerBlock

        return self._blocks(BasicTransformerBlock)
