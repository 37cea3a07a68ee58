"""Sana: Gemma's tokens behind an instruction, a transformer with linear attention on latents of 32×32 pixels."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.model.conditioning import Conditioning
from pipeline.model.families.defaults import Configs, Defaults
from pipeline.model.families.latent import LatentDiffusion
from pipeline.model.sites import Site, cross_attention_sites

if TYPE_CHECKING:
    import torch


class Sana(LatentDiffusion):
    """A conditioning holds Gemma's tokens (300, D) and which of them count.

    Before a prompt, not before a negative one, stands the instruction that diffusers' pipeline has ("Given a user prompt,
    generate an 'Enhanced prompt' …"): the encoder reads it, of its tokens the first and the last are kept. Prompts are put in
    lower case.
    """

    family = "sana"
    pipeline = "SanaPipeline"
    denoiser = "transformer"
    denoiser_class = "SanaTransformer2DModel"
    required = ("tokenizer", "text_encoder")
    narrow = ("text_encoder",)
    flow = True
    text_tokens = 300
    usual = Defaults(steps=20, guidance=4.5, text_tokens=300, size=1024)
    negatives_differ = True

    @classmethod
    def defaults(cls, configs: Configs) -> Defaults:
        side = configs.get("transformer", {}).get("sample_size")  # there are folders for 512 to 4096 pixels
        return replace(cls.usual, size=32 * side) if isinstance(side, int) else cls.usual

    def _tokenizers(self) -> list[tuple[Any, int]]:
        return [(self._parts.tokenizer, self._text_tokens)]

    def _encode(self, prompts: list[str], negative: bool) -> Conditioning:
        call = inspect.signature(type(self._parts).__call__)
        tokens, mask, *_ = self._parts.encode_prompt(
            prompts,
            do_classifier_free_guidance=False,
            max_sequence_length=self._text_tokens,
            complex_human_instruction=None if negative else call.parameters["complex_human_instruction"].default,
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
            timestep=timesteps.to(self._device) * self.network.config.timestep_scale,
        )
        return out.sample.float()  # type: ignore[no-any-return]

    def _find_sites(self) -> list[Site]:
        from diffusers.models.transformers.sana_transformer import SanaTransformerBlock

        return cross_attention_sites(self.network, SanaTransformerBlock)
