"""A few references by themselves, searched exactly: those of one claim, whatever else an index holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from index.embed import Embedder, embed_each
from index.errors import InputError
from index.fingerprint import content_digest
from index.reference import RETIRED, Match, NewReference
from index.store import ReferenceIndex

AT_ONCE = 64  # works embedded at a time


@dataclass(frozen=True, kw_only=True)
class ChosenReferences:
    """What the copies guard needs of an index (``search``, ``compare``, ``picture``), over chosen references.

    Attributes:
        embedder_id: the embedder of the vectors.
        matches: reference id → what is known of it; its similarity means nothing.
        vectors: float32 (R, D), in the order of ``matches``.
        pictures: reference id → uint8 RGB, for those whose picture is at hand.
    """

    embedder_id: str
    matches: Mapping[str, Match]
    vectors: np.ndarray = field(repr=False)
    pictures: Mapping[str, np.ndarray] = field(repr=False, default_factory=dict)

    @classmethod
    def of_works(cls, works: Iterable[NewReference], embedder: Embedder) -> ChosenReferences:
        """Works that are, or will be, references: with the ids and vectors that an index gives them, and their pictures."""
        given: dict[str, NewReference] = {}
        for work in works:
            given.setdefault(content_digest(work.picture)[:16], work)
        pictures = {ref_id: work.picture for ref_id, work in given.items()}
        shown, vectors = [*pictures.values()], [np.zeros((0, int(embedder.dim)), np.float32)]
        vectors += [embed_each(embedder, shown[start : start + AT_ONCE]) for start in range(0, len(shown), AT_ONCE)]
        return cls(
            embedder_id=embedder.embedder_id,
            matches={ref_id: _match(ref_id, w.title, w.rights_basis, w.status) for ref_id, w in given.items()},
            vectors=np.concatenate(vectors),
            pictures=pictures,
        )

    def __len__(self) -> int:
        return len(self.matches)

    @property
    def ref_ids(self) -> list[str]:
        """Ids, in the order of the vectors."""
        return [*self.matches]

    def search(self, embeddings: np.ndarray, k: int) -> list[list[Match]]:
        """The k nearest, best first, as :meth:`index.store.ReferenceIndex.search` ranks them."""
        return [sorted(map(self._at(e), self.matches), key=lambda m: (-m.similarity, m.ref_id))[:k] for e in embeddings]

    def compare(self, embedding: np.ndarray, ref_id: str) -> Match:
        """One embedding float32 (D,) against one reference.

        Raises:
            InputError: it is not among the chosen ones.
        """
        if ref_id not in self.matches:
            raise InputError("is not among the chosen references", where=f"reference {ref_id}", fix="Choose it")
        return self._at(embedding)(ref_id)

    def picture(self, ref_id: str) -> np.ndarray | None:
        """The reference's picture uint8 RGB, or None."""
        return self.pictures.get(ref_id)

    def _at(self, embedding: np.ndarray) -> Callable[[str], Match]:
        cosines = np.sum(self.vectors.astype(np.float64) * embedding.astype(np.float64), axis=1)  # as an index computes it
        placed = dict(zip(self.matches, cosines.tolist(), strict=True))
        return lambda ref_id: replace(self.matches[ref_id], similarity=placed[ref_id])


@dataclass(frozen=True)
class IndexWithout:
    """An index as it would be without some references; for trying a retirement.

    Attributes:
        index: the index. gone: ids of the references.
    """

    index: ReferenceIndex
    gone: frozenset[str]

    @property
    def embedder_id(self) -> str:
        return self.index.embedder_id

    def search(self, embeddings: np.ndarray, k: int) -> list[list[Match]]:
        """The k nearest of the others, best first."""
        found = self.index.search(embeddings, k + len(self.gone))
        return [[match for match in matches if match.ref_id not in self.gone][:k] for matches in found]

    def compare(self, embedding: np.ndarray, ref_id: str) -> Match:
        """One embedding against one reference; one that is gone counts as retired."""
        match = self.index.compare(embedding, ref_id)
        return replace(match, status=RETIRED) if ref_id in self.gone else match

    def picture(self, ref_id: str) -> np.ndarray | None:
        """The reference's picture uint8 RGB, or None."""
        return self.index.picture(ref_id)


def _match(ref_id: str, title: str, rights_basis: str, status: str) -> Match:
    return Match(ref_id=ref_id, title=title, similarity=0.0, rights_basis=rights_basis, status=status)
