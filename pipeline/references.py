"""The references in the model's latent space: clean latents, in all their colours, and their centre; each encoded once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from index.colours import hue_shares, in_hues
from pipeline.model.decoder import PICTURE_ROWS
from pipeline.model.interface import DiffusionModel
from pipeline.respond.reference_latents import LATENTS

if TYPE_CHECKING:
    import torch

    from index.store import ReferenceIndex

CENTRE_REFERENCES = 64
CACHED_BYTES = 2**30  # of latents that are kept for another use, and as many of those in other colours


class References:
    """Latents of references, kept for as long as a worker lives.

    Args:
        index: whose references; None for a run without an index, which has none.
        model: the model whose latents they are.
        hues: into how many parts the circle of hues is cut (``copies.hues``).
        size: (h, w) of the latents; None: of the model's own size. References are stretched to the size of the sample.
    """

    def __init__(
        self, index: ReferenceIndex | None, model: DiffusionModel, *, hues: int, size: tuple[int, int] | None = None
    ) -> None:
        self.index, self.model, self.hues = index, model, hues
        self.shape = (model.latent_shape[0], *(size or model.latent_shape[1:]))
        fit = max(CENTRE_REFERENCES, CACHED_BYTES // (4 * math.prod(self.shape)))
        self.latent = lru_cache(maxsize=min(fit, 4096 if size is None else LATENTS))(self._latent)
        self.recoloured = lru_cache(maxsize=max(1, min(fit // max(1, hues), LATENTS)))(self._recoloured)
        self._ahead: dict[tuple[str, float], torch.Tensor] = {}  # encoded, and not yet asked for: id and turn

    @cached_property
    def centre(self) -> torch.Tensor:
        """The mean clean latent (C, h, w) of the index's references (64 of them at most); zeros below four references.

        Which references: those with the smallest ids, so that it depends on the index alone.
        """
        import torch

        zeros = torch.zeros(self.shape)
        if self.index is None:
            return zeros
        ids = islice(self.index.ids(), CENTRE_REFERENCES)
        latents = [z for ref_id in ids if (z := self.latent(ref_id)) is not None]
        return torch.stack(latents).mean(0) if len(latents) >= 4 else zeros

    def encode_ahead(self, ref_ids: Iterable[str]) -> None:
        """Encode references as they are and in all their colours, in full calls: a latent does not depend on its company."""
        versions = ((ref_id, *version) for ref_id in ref_ids for version in self._versions(ref_id))
        while block := list(islice(versions, PICTURE_ROWS)):
            latents = self.model.encode(np.stack([shown for _, _, shown in block]))
            self._ahead |= zip([(ref_id, share) for ref_id, share, _ in block], latents, strict=True)

    def _versions(self, ref_id: str) -> Iterator[tuple[float, np.ndarray]]:
        """The reference's picture as it is and in all its colours, each with its turn; nothing where the index keeps none."""
        picture = self._picture(ref_id)
        if picture is not None:
            yield 0.0, picture
            shares = hue_shares(self.hues)
            yield from zip(shares, in_hues(picture, shares), strict=True)

    def _latent(self, ref_id: str) -> torch.Tensor | None:
        """The reference's clean latent (C, h, w), or None when the index may not keep its picture."""
        if (ref_id, 0.0) in self._ahead:
            return self._ahead.pop((ref_id, 0.0))
        picture = self._picture(ref_id)
        return None if picture is None else self.model.encode(picture[None])[0]

    def _recoloured(self, ref_id: str) -> list[torch.Tensor]:
        """Clean latents (C, h, w) of the reference with its hues turned, as the copies guard turns pictures; without itself."""
        ahead = [self._ahead.pop((ref_id, share)) for share in hue_shares(self.hues) if (ref_id, share) in self._ahead]
        picture = self._picture(ref_id) if not ahead else None
        if picture is None:
            return ahead
        turned = list(in_hues(picture, hue_shares(self.hues)))
        return list(self.model.encode(np.stack(turned))) if turned else []

    def _picture(self, ref_id: str) -> np.ndarray | None:
        """uint8 RGB at the size of these latents, or None when the index may not keep it."""
        picture = self.index.picture(ref_id) if self.index is not None else None
        if picture is None:
            return None
        from PIL import Image

        side = self.model.decode_size(self.shape[1:])
        fits = picture.shape[1::-1] == side
        return picture if fits else np.asarray(Image.fromarray(picture).resize(side, Image.Resampling.LANCZOS))
