"""The references' clean latents, kept at hand: which of them a predicted latent x̂0 comes near to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from guards.copies import HARMLESS
from index.colours import hue_shares, in_hues
from index.errors import InputError
from index.reference import Match
from pipeline.model.interface import DiffusionModel

if TYPE_CHECKING:
    import torch

    from index.reference import Reference
    from index.store import ReferenceIndex

LATENTS = 512  # references whose latents are kept at hand; a larger index is searched in the embedder's space
LATENT_BYTES = 2**30  # of these latents as they are compared, eight a number; 512 of FLUX at 1024 × 1024 take all of it
ENCODED = 64  # references that are encoded together


@dataclass(frozen=True)
class Near:
    """A reference that an x̂0 is near to, and whether in other colours than its own."""

    match: Match
    turned: bool = False


class ReferenceLatents:
    """The references' clean latents, and which of them an x̂0 comes near to: cosines of the deviations from their mean.

    Args:
        index: the references; those whose picture it holds take part.
        latent_of: reference id → clean latent (C, h, w), or None.
        centre: what deviations are taken from (C, h, w).
        colours_of: reference id → clean latents of its drawing in other colours, to be searched for as well.
        encode_ahead: is given the ids of some references before their latents are asked for.
    """

    def __init__(
        self,
        index: ReferenceIndex,
        latent_of: Callable[[str], torch.Tensor | None],
        centre: Callable[[], torch.Tensor],
        colours_of: Callable[[str], Sequence[torch.Tensor]] = lambda ref_id: (),
        encode_ahead: Callable[[list[str]], None] = lambda ref_ids: None,
    ) -> None:
        self._encode_ahead = encode_ahead
        self._index, self._latent_of, self._centre, self._colours_of = index, latent_of, centre, colours_of
        self._ready: tuple[list[tuple[Reference, bool]], torch.Tensor] | None = None

    @staticmethod
    def possible(index: ReferenceIndex, numbers: int = 0) -> bool:
        """Whether latents can stand for the index: not too many references, and each with its picture.

        Args:
            index: the references.
            numbers: in a latent; 0: not known.
        """
        return index.matching > 0 and not ReferenceLatents.obstacle(index, numbers)

    @staticmethod
    def obstacle(index: ReferenceIndex, numbers: int = 0) -> str:
        """Why latents cannot stand for an index that has references; empty: they can. Arguments as :meth:`possible`."""
        matching = index.matching
        if matching > LATENTS:
            return f"{matching:,} references can match, and latents are compared with {LATENTS} at most"
        if not fits(matching, numbers):
            return f"latents of the {matching:,} references that can match would take {8 * matching * numbers / 2**30:.1f} GiB"
        if bare := sum(not index.keeps(r.ref_id) for r in index.in_force() if r.status not in HARMLESS):
            return f"the index has no picture of {bare:,} of the {matching:,} references that can match"
        return ""

    @classmethod
    def encoded(cls, index: ReferenceIndex, model: DiffusionModel, hues: int) -> ReferenceLatents:
        """Of an index all of whose pictures are there, at the model's size: encoded now, a picture in memory at a time.

        Raises:
            InputError: the index is too large for that.
        """
        import torch

        cls.require_few(index)
        plain, turned = {}, {}
        for ref_id in index.ids():
            if (picture := index.picture(ref_id)) is not None:
                plain[ref_id] = model.encode(picture[None])[0]
                turned[ref_id] = list(model.encode(np.stack(list(in_hues(picture, hue_shares(hues)))))) if hues > 1 else []
        return cls(index, plain.get, lambda: torch.stack(list(plain.values())).mean(0), turned.__getitem__)

    @staticmethod
    def require_few(index: ReferenceIndex) -> None:
        """Refuse an index with more references than latents are compared with; raises InputError."""
        if len(index) > LATENTS:
            what = f"has {len(index):,} references, and latents are compared with all of them, which are {LATENTS} at most"
            fix = 'Name a smaller index, or compare in the embedder\'s space: early.signal = "head" or "decode" in the policy'
            raise InputError(what, where=str(index.folder), fix=fix)

    def search(self, cleans: Sequence[torch.Tensor], k: int) -> list[list[Near]]:
        """N predicted clean latents (C, h, w) → the k nearest references of each, best first, by their nearest colours."""
        import torch

        if self._ready is None:
            active = sorted((r for r in self._index.in_force() if r.status not in HARMLESS), key=lambda r: r.ref_id)
            found: list[tuple[Reference, bool]] = []
            parts = []
            for block in (active[at : at + ENCODED] for at in range(0, len(active), ENCODED)):
                self._encode_ahead([r.ref_id for r in block])
                versions = [(r, turned, z) for r in block for turned, z in self._versions(r.ref_id)]
                found += [(r, turned) for r, turned, _ in versions]
                parts += [(z - self._centre()).flatten().double() for _, _, z in versions]
            self._ready = found, torch.nn.functional.normalize(torch.stack(parts), dim=1)
        references, rows = self._ready
        out = []
        for clean in cleans:  # one by one: a row must not depend on its neighbours
            own = torch.nn.functional.normalize((clean - self._centre()).flatten().double(), dim=0)
            cosines = (rows * own).sum(1)
            best: dict[str, Near] = {}
            for i in torch.argsort(cosines, descending=True, stable=True).tolist():
                r, turned = references[i]
                if r.ref_id not in best:
                    best[r.ref_id] = Near(
                        Match(
                            ref_id=r.ref_id,
                            title=r.title,
                            similarity=float(cosines[i]),
                            rights_basis=r.rights_basis,
                            status=r.status,
                        ),
                        turned,
                    )
                if len(best) == k:
                    break
            out.append(list(best.values()))
        return out

    def _versions(self, ref_id: str) -> list[tuple[bool, torch.Tensor]]:
        plain = self._latent_of(ref_id)
        return [] if plain is None else [(False, plain), *((True, z) for z in self._colours_of(ref_id))]


def fits(latents: int, numbers: int) -> bool:
    """Whether so many latents of so many numbers may be compared: they are all in memory, eight bytes a number."""
    return 8 * latents * numbers <= LATENT_BYTES
