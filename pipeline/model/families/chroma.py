"""Chroma: Flux's transformer without a pooled embedding, with T5's mask and with classifier-free guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.model.conditioning import Conditioning
from pipeline.model.families.defaults import Defaults
from pipeline.model.families.flux import Flux
from pipeline.model.sites import Site, parallel_sites, stream_sites

if TYPE_CHECKING:
    import torch


class Chroma(Flux):
    """A conditioning holds T5's tokens (512, D) and which of them count: the prompt's and one of padding behind them."""

    family = "chroma"
    pipeline = "ChromaPipeline"
    denoiser_class = "ChromaTransformer2DModel"
    required = ("tokenizer", "text_encoder")
    narrow = ("text_encoder",)
    usual = Defaults(steps=35, guidance=5.0, text_tokens=512, size=1024)
    distilled = False
    waits_for_host = True

    def _tokenizers(self) -> list[tuple[Any, int]]:
        return [(self._parts.tokenizer, self._text_tokens)]

    def _encode(self, prompts: list[str], negative: bool) -> Conditioning:
        tokens, _, mask, *_ = self._parts.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self._text_tokens
        )
        return Conditioning(tokens, mask=mask.bool())

    def denoise_tensor(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: Conditioning, guidance: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        torch, pipe = self._torch, self._parts
        rows, channels, height, width = latents.shape
        context = context.to(self._device, self._dtype)
        assert context.mask is not None
        image = pipe._pack_latents(latents.to(self._device, self._dtype), rows, channels, height, width)
        self.layout.image = slice(context.tokens.shape[1], None)
        # Numbers, as in diffusers, which attention adds to its logits; a bool would hide the tokens and draw another picture.
        counts = torch.cat([context.mask.to(image.dtype), image.new_ones(image.shape[:2])], dim=1)
        out = self.network(
            hidden_states=image,
            timestep=timesteps.to(self._device) / 1000,
            encoder_hidden_states=context.tokens,
            txt_ids=image.new_zeros(context.tokens.shape[1], 3),
            img_ids=self._places(height // 2, width // 2),
            attention_mask=counts,
        ).sample
        pixels = height * self._pixels_per_latent, width * self._pixels_per_latent
        return pipe._unpack_latents(out, *pixels, self._pixels_per_latent).float()  # type: ignore[no-any-return]

    def _find_sites(self) -> list[Site]:
        from diffusers.models.transformers.transformer_chroma import ChromaSingleTransformerBlock, ChromaTransformerBlock

        return stream_sites(self.network, ChromaTransformerBlock) + parallel_sites(
            self.network, ChromaSingleTransformerBlock, whole=True, layout=self.layout
        )
