"""The interface of a diffusion model, of whatever class, to the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

    from pipeline.model.conditioning import Conditioning
    from pipeline.model.decoder import Decoder
    from pipeline.model.sites import Site
    from pipeline.outcome import PaddedRows


class DiffusionModel(Protocol):
    """A latent diffusion model as the engine sees it.

    A *conditioning* is what the denoiser is shown of a prompt (:mod:`pipeline.model.conditioning`), of fixed shapes, in the
    denoiser's number format on its device; only the model reads what is in it. Every network call has a fixed, padded number of
    rows: with a fixed shape a row's result does not depend on its neighbours (byte for byte), with a varying one it does.

    Attributes:
        family: short name of its class, as ``sdxl``.
        digest: digest of configuration and weights.
        latent_shape: (C, h, w) of one latent.
        conditioning_bytes: memory of one conditioning.
        prediction_type: ``epsilon``, ``v_prediction``, ``sample`` or ``flow_prediction``.
        scheduler_config: the folder's scheduler configuration.
        distilled: guidance is inside the network (Flux), so that a sample owns one row instead of two.
        negatives_differ: a prompt and a negative prompt of the same words have different conditionings.
        parts: the diffusers pipeline that holds the parts; denoiser: the name of the network in it.
        network: the denoiser itself, a torch module whose tensors have the call's rows first.
        decoder: its decoder, which can be sent to another process.
    """

    family: str
    digest: str
    latent_shape: tuple[int, int, int]
    conditioning_bytes: int
    prediction_type: str
    scheduler_config: Mapping[str, Any]
    distilled: bool
    negatives_differ: bool
    network: Any
    decoder: Decoder
    denoiser: ClassVar[str]

    @property
    def parts(self) -> Any: ...

    @property
    def device(self) -> torch.device:
        """Of the denoiser; what goes into it and comes out of it stays there."""
        ...

    def scheduled(self, scheduler: Any, steps: int, *, positions: tuple[int, int] | None = None, **changes: Any) -> Any:
        """A diffusers scheduler of that class, of this model's configuration (and changes), set to ``steps`` steps.

        ``positions``: (h, w) of the latents that it is for, if not of the model's own size; some schedules depend on it.

        Raises:
            ConfigError: the class cannot make so many steps.
        """
        ...

    def truncated(self, prompt: str) -> bool:
        """Whether every text encoder drops the prompt's end."""
        ...

    def encode_prompts(self, prompts: Sequence[str], *, negative: bool = False) -> Conditioning:
        """Prompts → conditionings with N rows, one by one in padded calls.

        Args:
            prompts: at least one.
            negative: they are what a picture is guided away from; some classes put instructions before the others alone.
        """
        ...

    def word_room(self) -> int:
        """How many learned tokens a prompt has room for; 0 where this class of model takes none."""
        ...

    def encode_words(self, text: str, vectors: torch.Tensor) -> Conditioning:
        """The conditioning of text ⊕ learned tokens with these vectors (n, D).

        Raises:
            ConfigError: this class of model knows no new tokens, or they do not fit its text encoder.
        """
        ...

    def denoise(
        self, latents: torch.Tensor, timesteps: torch.Tensor, context: Conditioning, guidance: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        """One call of the denoiser.

        Args:
            latents: float32 (R, C, h, w).
            timesteps: int64 or float32 (R,).
            context: conditionings, R rows.
            guidance: the scale that a network with guidance inside takes, of all rows or float32 (R,); others ignore it.

        Returns:
            Raw output float32 (R, C, h, w).
        """
        ...

    def guided(self, scale: float) -> bool:
        """Whether a sample at that guidance scale needs a negative row."""
        ...

    def combine(self, negative: torch.Tensor, conditional: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
        """Raw outputs of the negative and the conditional row → the guided one, all (C, h, w).

        Args:
            scale: a number, or one a position (h, w).
        """
        ...

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Latents float32 (N, C, h, w) → pictures uint8 RGB (N, H, W, 3).

        Raises:
            ModelError: the decoder's output is not finite.
        """
        ...

    def padded_rows(self, latent: torch.Tensor | None = None) -> PaddedRows:
        """Rows that the calls of text encoder, encoder and decoder have had so far, of latents (C, h, w) of that size or of the
        model's own; more than one after memory ran out. Of the other networks it holds nothing."""
        ...

    def shape_of(self, width: int | None = None, height: int | None = None) -> tuple[int, int, int]:
        """(C, h, w) of the latents of pictures with these sides in pixels; None: as the model was trained.

        Raises:
            ConfigError: the model cannot draw a side of so many pixels.
        """
        ...

    def decode_size(self, positions: tuple[int, int] | None = None) -> tuple[int, int]:
        """Width and height in pixels of a picture decoded from latents of (h, w) positions, or of the model's own size."""
        ...

    def encode(self, pictures: np.ndarray) -> torch.Tensor:
        """Pictures uint8 RGB (N, H, W, 3) of a size that it can draw → latents float32 (N, C, h, w)."""
        ...

    def sites(self) -> Sequence[Site]:
        """Where its image tokens can be read and changed, in the network's order.

        Raises:
            ModelError: its blocks are of a form in which that is not known.
        """
        ...
