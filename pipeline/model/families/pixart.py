"""PixArt-Σ and PixArt-α: T5's tokens and their mask, a transformer with cross-attention that also predicts a variance."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.model.conditioning import Conditioning
from pipeline.model.families.defaults import Configs, Defaults
from pipeline.model.families.latent import LatentDiffusion
from pipeline.model.sites import Site, cross_attention_sites

if TYPE_CHECKING:
    import torch


class PixArtSigma(LatentDiffusion):
    """A conditioning holds T5's tokens (300, D) and which of them are the prompt's.

    Prompts are put in lower case, as in training. diffusers cleans them of web addresses and the like as well, where two more
    packages are installed; here they stay as they are.
    """

    family = "pixart_sigma"
    pipeline = "PixArtSigmaPipeline"
    denoiser = "transformer"
    denoiser_class = "PixArtTransformer2DModel"
    required = ("tokenizer", "text_encoder")
    narrow = ("text_encoder",)
    patch = 2
    text_tokens: ClassVar[int] = 300
    usual: ClassVar[Defaults] = Defaults(steps=20, guidance=4.5, text_tokens=300, size=1024)

    @classmethod
    def defaults(cls, configs: Configs) -> Defaults:
        side = configs.get("transformer", {}).get("sample_size")  # there are folders for 256, 512, 1024 and 2048 pixels
        return replace(cls.usual, size=8 * side) if isinstance(side, int) else cls.usual

    def _tokenizers(self) -> list[tuple[Any, int]]:
        return [(self._parts.tokenizer, self._text_tokens)]

    def _encode(self, prompts: list[str], negative: bool) -> Conditioning:
        tokens, mask, *_ = self._parts.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self._text_tokens
        )
        return Conditioning(tokens, mask=mask.bool())

    def denoise_tensor(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: Conditioning, guidance: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        context = context.to(self._device, self._dtype)
        out = self.network(
            latents.to(self._device, self._dtype),
            encoder_hidden_states=context.tokens,
            encoder_attention_mask=context.mask,
            timestep=timesteps.to(self._device),
            added_cond_kwargs=self._size_conditions(latents),
        ).sample
        return out[:, : latents.shape[1]].float()  # type: ignore[no-any-return]  # behind them the variance's

    def _size_conditions(self, latents: torch.Tensor) -> dict[str, Any]:
        """The picture's size in pixels and its height by its width, of networks of PixArt-α for 1024 px."""
        if not self.network.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (side * self._pixels_per_latent for side in latents.shape[-2:])
        rows = len(latents)
        size, ratio = self._numbers(rows, height, width), self._numbers(rows, height / width)
        return {"resolution": size.to(self._dtype), "aspect_ratio": ratio.to(self._dtype)}

    def _find_sites(self) -> list[Site]:
        from diffusers.models.attention import BasicTransformerBlock

        return cross_attention_sites(self.network, BasicTransformerBlock)


class PixArtAlpha(PixArtSigma):
    """PixArt-Σ's forerunner, with shorter prompts."""

    family = "pixart_alpha"
    pipeline = "PixArtAlphaPipeline"
    text_tokens = 120
    usual = Defaults(steps=20, guidance=4.5, text_tokens=120, size=1024)
