"""Stable Diffusion 1.x and 2.x, and consistency models of them: one CLIP text encoder, UNet2DConditionModel, AutoencoderKL or
AutoencoderTiny."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from index.errors import ConfigError
from pipeline.model.conditioning import Conditioning
from pipeline.model.families.defaults import Configs, Defaults
from pipeline.model.families.latent import TEXT_ROWS, LatentDiffusion
from pipeline.model.families.resident import resident
from pipeline.model.libraries import quiet
from pipeline.model.sites import Site, unet_sites

if TYPE_CHECKING:
    import torch


class StableDiffusion(LatentDiffusion):
    """A conditioning is the text encoder's output."""

    family = "sd"
    pipeline = "StableDiffusionPipeline"
    denoiser = "unet"
    denoiser_class = "UNet2DConditionModel"
    required = ("tokenizer", "text_encoder")
    usual = Defaults(steps=50, guidance=7.5, text_tokens=None, size=512)
    settings: ClassVar[dict[str, Any]] = {
        "safety_checker": None, "requires_safety_checker": False, "feature_extractor": None, "image_encoder": None,
    }  # fmt: skip

    @classmethod
    def defaults(cls, configs: Configs) -> Defaults:
        side = configs.get("unet", {}).get("sample_size")  # 64 for 512 px, and 96 for the 768 px of 2.1
        return replace(cls.usual, size=8 * side) if isinstance(side, int) else cls.usual

    def _encode(self, prompts: list[str], negative: bool) -> Conditioning:
        tokenizer = self._parts.tokenizer
        ids = tokenizer(
            prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids
        return Conditioning(self._parts.text_encoder(ids.to(self._device))[0])

    @property
    def word_table(self) -> Any:
        """The text encoder's ``nn.Embedding`` (V, D)."""
        return self._parts.text_encoder.get_input_embeddings()

    def word_room(self) -> int:
        """How many tokens a prompt can have, without its beginning and its end."""
        return int(self._parts.tokenizer.model_max_length) - 2

    def word_ids(self, text: str, new: Sequence[int] = ()) -> torch.Tensor:
        """text ⊕ new words as ids (T,): where both do not fit, the text is cut, never the new words.

        Raises:
            ConfigError: the new words alone do not fit.
        """
        tokenizer, room = self._parts.tokenizer, self.word_room() - len(new)
        if room < 0:
            fix = "Use corners, a coarser grid, or fewer boxes"
            raise ConfigError(f"{len(new)} tokens do not fit the text encoder's {self.word_room()}", where="erase", fix=fix)
        words = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids[:room]
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        ids = [begin, *words, *(self.word_table.num_embeddings + number for number in new), end]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
        padding = [pad] * (tokenizer.model_max_length - len(ids))
        return self._torch.tensor(ids + padding)  # type: ignore[no-any-return]

    def encode_ids(self, ids: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Ids (N, T) → token embeddings (N, T, D); ids from V on are rows of ``vectors``. Differentiable, unpadded."""
        from pipeline.model.families.new_tokens import new_words

        with new_words(self.word_table, vectors):
            return self._parts.text_encoder(ids.to(self._device))[0]  # type: ignore[no-any-return]

    def encode_words(self, text: str, vectors: torch.Tensor) -> Conditioning:
        """The conditioning of text ⊕ new words with these vectors (n, D), in a call of the usual shape."""
        ids = self.word_ids(text, range(len(vectors)))
        with self._torch.inference_mode(), quiet(), resident(self._away, self._device):
            return Conditioning(self.encode_ids(ids.expand(TEXT_ROWS, -1), vectors)[0]).to(self._device, self._dtype)

    def denoise_tensor(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: Conditioning, guidance: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        inputs = latents.to(self._device, self._dtype), timesteps.to(self._device), context.to(self._device, self._dtype).tokens
        condition = self._timestep_condition(guidance, len(latents))
        return self.network(*inputs, timestep_cond=condition).sample.float()  # type: ignore[no-any-return]

    def _find_sites(self) -> list[Site]:
        return unet_sites(self.network)


class LatentConsistency(StableDiffusion):
    """A latent consistency model (Luo et al. 2023): Stable Diffusion distilled to few steps, with guidance as an input.

    A sample owns one row; there is no negative prompt, as in diffusers.
    """

    family = "sd_lcm"
    pipeline = "LatentConsistencyModelPipeline"
    usual = Defaults(steps=4, guidance=8.5, text_tokens=None, size=768)
    distilled = True

    def guided(self, scale: float) -> bool:
        return False
