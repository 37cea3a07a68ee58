"""FLUX.2 dev and klein: hidden states of three layers of a language model, a transformer of two streams and then one, latents
of 2×2 patches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.model.codec import PatchCodec
from pipeline.model.conditioning import Conditioning, scales_of
from pipeline.model.families.chat import as_chat, hidden_states, states_of
from pipeline.model.families.defaults import Configs, Defaults
from pipeline.model.families.flow import set_flow_steps
from pipeline.model.families.latent import LatentDiffusion
from pipeline.model.sites import Site, parallel_sites, stream_sites

if TYPE_CHECKING:
    import torch

NATIVE_PIXELS = 1024


class Flux2(LatentDiffusion):
    """FLUX.2 dev: Mistral 3's hidden states side by side (T, 3·D) behind a system message; padding is attended to.

    The network takes the guidance scale, at one row per sample. There is no negative prompt, as in diffusers.
    """

    family = "flux2_dev"
    pipeline = "Flux2Pipeline"
    denoiser = "transformer"
    denoiser_class = "Flux2Transformer2DModel"
    required = ("tokenizer", "text_encoder")
    narrow = ("text_encoder",)
    flow = True
    text_tokens = 512
    distilled = True
    usual = Defaults(steps=50, guidance=4.0, text_tokens=512, size=1024)
    codec_class = PatchCodec
    layers: ClassVar[tuple[int, ...]] = (10, 20, 30)  # of the language model

    def _native(self) -> Any:
        return NATIVE_PIXELS // self._pixels_per_latent

    def _tokenizers(self) -> list[tuple[Any, int]]:
        return [(self._parts.tokenizer.tokenizer, self._text_tokens)]  # of the processor, which reads pictures too

    def _written(self, prompt: str) -> str:
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        return str(self._parts.tokenizer.apply_chat_template(format_input([prompt])[0], tokenize=False))

    def _encode(self, prompts: list[str], negative: bool) -> Conditioning:
        from diffusers.pipelines.flux2.pipeline_flux2 import format_input

        read = self._parts.tokenizer.apply_chat_template(
            format_input(prompts), add_generation_prompt=False, tokenize=True, return_dict=True, return_tensors="pt",
            padding="max_length", truncation=True, max_length=self._text_tokens,
        )  # fmt: skip
        ids, mask = (read[name].to(self._device) for name in ("input_ids", "attention_mask"))
        return Conditioning(states_of(self._parts.text_encoder, ids, mask, self.layers))

    def _set_timesteps(self, scheduler: Any, steps: int, positions: tuple[int, int]) -> None:
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        mu = compute_empirical_mu(image_seq_len=positions[0] * positions[1], num_steps=steps)
        set_flow_steps(scheduler, steps, mu)

    def guided(self, scale: float) -> bool:
        return False

    def denoise_tensor(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: Conditioning, guidance: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        torch = self._torch
        context = context.to(self._device, self._dtype)
        rows, _, height, width = latents.shape
        scale = scales_of(guidance, rows, self._device)
        text = context.tokens.shape[1]
        self.layout.image = slice(text, None)
        # (frame, row, column, number in the text)
        image_ids = torch.zeros(height * width, 4, device=self._device)
        image_ids[:, 1] = torch.arange(height, device=self._device).repeat_interleave(width)
        image_ids[:, 2] = torch.arange(width, device=self._device).repeat(height)
        text_ids = torch.zeros(text, 4, device=self._device)
        text_ids[:, 3] = torch.arange(text, device=self._device)
        out = self.network(
            hidden_states=latents.to(self._device, self._dtype).flatten(2).transpose(1, 2),
            timestep=timesteps.to(self._device) / 1000,
            guidance=scale if self.network.config.guidance_embeds else None,
            encoder_hidden_states=context.tokens,
            img_ids=image_ids,
            txt_ids=text_ids,
        ).sample
        return out.transpose(1, 2).reshape(latents.shape).float()  # type: ignore[no-any-return]

    def _find_sites(self) -> list[Site]:
        from diffusers.models.transformers.transformer_flux2 import Flux2SingleTransformerBlock, Flux2TransformerBlock

        streams = stream_sites(self.network, Flux2TransformerBlock)
        return streams + parallel_sites(self.network, Flux2SingleTransformerBlock, whole=True, layout=self.layout)


class Flux2Klein(Flux2):
    """FLUX.2 klein: Qwen3's hidden states of three layers.

    Distilled folders (``is_distilled``) take one row per sample and no guidance. The others have classifier-free guidance.
    """

    family = "flux2"
    pipeline = "Flux2KleinPipeline"
    distilled = False
    layers = (9, 18, 27)

    @classmethod
    def defaults(cls, configs: Configs) -> Defaults:
        distilled = configs.get("", {}).get("is_distilled")
        return replace(cls.usual, steps=4, guidance=1.0) if distilled else cls.usual

    def _tokenizers(self) -> list[tuple[Any, int]]:
        return [(self._parts.tokenizer, self._text_tokens)]

    def _written(self, prompt: str) -> str:
        return as_chat(self._parts.tokenizer, prompt, thinking=False)

    def _encode(self, prompts: list[str], negative: bool) -> Conditioning:
        (tokenizer, length), texts = self._tokenizers()[0], [self._written(prompt) for prompt in prompts]
        encoder = self._parts.text_encoder
        found = hidden_states(tokenizer, encoder, texts, length=length, layers=self.layers, device=self._device)
        return Conditioning(found[0])

    def guided(self, scale: float) -> bool:
        return scale > 1 and not self._parts.config.is_distilled
