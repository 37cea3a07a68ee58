"""The copies guard: whether a picture is too near to a protected (or memorised) reference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from guards.base import Finding, Probe, require_pictures
from index.colours import hue_shares, in_hues
from index.embed import Embedder, embed_each, fitted
from index.errors import IndexMismatch
from index.reference import Match
from index.second_look import ALIGNMENT, Look, open_look
from index.second_look import look_id as id_of_look
from index.undone import FORMS, INSET, NEGATIVE, TURNED, undone

if TYPE_CHECKING:
    from index.calibrate import OperatingPoint
    from index.store import ReferenceIndex

PROBE = "memorisation_probe"
PROTECTED, MEMORISED = "copy.protected", "copy.memorised"
AS_IT_IS = (PROTECTED, MEMORISED)  # found by the picture as it is, not by other views of it
GEOMETRY = "copy.geometry"
RECOLOURED = "copy.recoloured"
UNDONE = {TURNED: "copy.turned", NEGATIVE: "copy.negative", INSET: "copy.inset"}  # edit → category
HARMLESS = ("retired", "allowed")  # statuses of references that no longer forbid anything
LOOKS = 3  # second looks at one reference with an edit undone: the window nearest to it need not be the one that fits best
NOTHING_NEAR = -1.0  # the lowest cosine: reported when there is no reference to compare with


@dataclass(frozen=True)
class Examination:
    """The copies guard's result for one picture.

    Attributes:
        embedding: float32 (D,), unit length.
        nearest: up to k references, and the picture's own, best first; ``confirm`` is filled for those near enough for a
            second look, and for its own, where the index holds their picture.
        findings: one per category.
    """

    embedding: np.ndarray
    nearest: tuple[Match, ...]
    findings: tuple[Finding, ...]


class CopiesGuard:
    """Compares pictures with the reference index; categories ``copy.protected``, ``copy.memorised``, ``copy.geometry``,
    ``copy.recoloured``, and one for each of ``edits``: ``copy.turned``, ``copy.negative``, ``copy.inset``.

    The score of the first two is the similarity of their best reference. Among references at or above the threshold one
    that the second look confirms comes before a nearer one that it does not, and one that it clears does not count.
    ``copy.geometry`` is for what the embedder misses: its score is the best second look at the k nearest references.
    ``copy.recoloured`` is for a reference's drawing in other colours, which the embedder may place anywhere: the picture is
    searched for with its hues turned as well, and its score is the best second look at what is found so. The hues are turned
    in the size that the embedder's network takes, so that a large picture costs no more than a small one.
    The categories of ``edits`` are for a reference that was turned, inverted, or put into a larger picture: the picture is
    searched for with the edit undone as well (:func:`index.undone.undone`), and the score is the best second look at what is
    found so, with the edit undone as it was found. ``ref_id`` names the reference. A picture's *own* references, which it was
    steered away from, always get the second look: a copy in other colours may be far from its reference to the embedder, and
    steering makes such copies.

    Args:
        index: the references.
        embedder: the embedder the index was built with.
        point: from which scores on a picture counts as too near.
        k: references kept per picture.
        hues: parts of the circle of hues that a picture is turned by and searched for; 1: only as it is.
        edits: that are undone (see :data:`index.undone.EDITS`).
        confirm: the second look, (picture, reference picture) → [0, 1]; by default the one that the operating point is of.
        device: torch device of a second look that is a network.

    Raises:
        IndexMismatch: the index was built with another embedder, or the second look is not the one that was calibrated.
        ModelError: the second look cannot be opened.
    """

    name = "copies"
    categories: tuple[str, ...] = (*AS_IT_IS, GEOMETRY, RECOLOURED)

    def __init__(
        self,
        index: ReferenceIndex,
        embedder: Embedder,
        *,
        point: OperatingPoint,
        k: int = 3,
        hues: int = 1,
        edits: Sequence[str] = (),
        confirm: Look | None = None,
        device: str = "cpu",
    ) -> None:
        built_with = getattr(index, "embedder_id", embedder.embedder_id)
        if built_with != embedder.embedder_id:
            what = f"the index was built with embedder {built_with[:12]}, this one is {embedder.embedder_id[:12]}"
            raise IndexMismatch(what, where="guard copies", fix="Rebuild the index with this embedder, or use the other one")
        self.index, self.embedder = index, embedder
        self.point, self.k, self.hues, self.edits = point, k, hues, tuple(edits)
        self.categories = (*CopiesGuard.categories, *(UNDONE[edit] for edit in self.edits))
        self.version = self.probe(embedder.embedder_id, point.look_id).version
        self._confirm = open_look(point.second_look, expected=point.look_id, device=device) if confirm is None else confirm

    @classmethod
    def probe(cls, embedder_id: str, look_id: str = "") -> Probe:
        """The guard's version with an embedder and a second look (empty: alignment), without loading them."""
        second = look_id or id_of_look(ALIGNMENT)
        version = f"6+{embedder_id.rsplit('-', 1)[-1][:8]}+{second[:8]}"
        return Probe(version=version, weights={"embedder": embedder_id, "second look": second})

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        """Check uint8 RGB (N, H, W, 3); of every picture one finding per category."""
        return [list(examination.findings) for examination in self.examine(pictures)]

    def examine(
        self, pictures: np.ndarray, own: Sequence[Sequence[str]] = (), *, embeddings: np.ndarray | None = None
    ) -> list[Examination]:
        """Embed, search and confirm uint8 RGB (N, H, W, 3); one examination per picture.

        Args:
            pictures: the pictures.
            own: ids of every picture's own references; empty: no picture has any.
            embeddings: float32 (N, D), where they are known from before the pictures were marked; made when not given.
        """
        require_pictures(pictures, guard=self.name)
        if not len(pictures):
            return []
        # One list for the pictures, all their colours and edits: they share the network's padded calls.
        small = [fitted(self.embedder, picture) for picture in pictures]
        shown = [] if embeddings is not None else list(small)
        shown += [view for each in zip(pictures, small, strict=True) for view in self._views(*each)]
        vectors = embed_each(self.embedder, shown)
        if embeddings is None:
            embeddings, vectors = vectors[: len(pictures)], vectors[len(pictures) :]
        found = self.index.search(embeddings, self.k)
        views = self.index.search(vectors, self.k) if len(vectors) else []
        of_one = len(views) // len(pictures)
        return [
            self._examine(picture, embeddings[i], found[i], own[i] if own else (), views[i * of_one : (i + 1) * of_one])
            for i, picture in enumerate(pictures)
        ]

    def _views(self, picture: np.ndarray, small: np.ndarray) -> Iterator[np.ndarray]:
        """What is searched for beside the picture, in the embedder's size: ``small`` in other hues, then with edits undone."""
        if shares := hue_shares(self.hues):
            yield from in_hues(small, shares)
        for edit in self.edits:
            # A part is cut out of the whole picture: of a small one too little would be left.
            yield from (fitted(self.embedder, view) for view in undone(picture if edit == INSET else small, edit))

    def likeness(self, picture: np.ndarray, own: Sequence[str]) -> tuple[Match, float] | None:
        """The second look alone, at a picture uint8 RGB (H, W, 3) and its own references: which it is too like, and the bar.

        Far cheaper than :meth:`examine`, because nothing is embedded, and blind to every other reference: enough to stop a
        sample in mid-flight, never to accept one. The match's similarity, as its ``confirm``, is the second look's score.
        """
        found: list[Match] = []
        for ref_id in own:
            reference, entry = self.index.picture(ref_id), self.index.get(ref_id)
            if reference is None or entry is None or entry.status in HARMLESS:
                continue
            score = float(self._confirm(picture, reference))
            if score >= self.point.own_threshold:
                found.append(
                    Match(
                        ref_id=ref_id, title=entry.title, similarity=score, rights_basis=entry.rights_basis,
                        status=entry.status, confirm=score,
                    )
                )  # fmt: skip
        best = max(found, key=lambda match: match.similarity, default=None)
        return None if best is None else (best, self.point.own_threshold)

    def _near(self, views: Sequence[Sequence[Match]]) -> dict[str, list[int]]:
        """References that forbid something and that a view is too near to; of each the numbers of such views; best first."""
        found: dict[str, list[tuple[float, int]]] = {}
        for number, matches in enumerate(views):
            for match in matches:
                if match.similarity >= self.point.threshold and match.status not in HARMLESS:
                    found.setdefault(match.ref_id, []).append((-match.similarity, number))
        ranked = sorted((min(of), ref_id) for ref_id, of in found.items())
        return {ref_id: [number for _, number in sorted(found[ref_id])] for _, ref_id in ranked}

    def _examine(
        self, picture: np.ndarray, embedding: np.ndarray, matches: list[Match], own: Sequence[str], views: list[list[Match]]
    ) -> Examination:
        near = {match.ref_id for match in matches}
        further = [self.index.compare(embedding, ref_id) for ref_id in own if ref_id not in near]
        ranked = sorted([*matches, *further], key=lambda match: -match.similarity)
        nearest = tuple(self._looked_at(picture, match, match.ref_id in own) for match in ranked)
        findings = [*(self._finding(c, nearest) for c in AS_IT_IS), self._geometry(nearest)]
        # A reference found only by other views has a stricter threshold, and is not evidence for the other categories.
        for category, looked in self._by_views(picture, embedding, nearest, views):
            hit = max(looked, key=lambda match: match.confirm or 0.0, default=None)
            findings.append(self._strictly(category, hit))
            if hit is not None and findings[-1].triggered:
                kept = [match for match in nearest if match.ref_id != hit.ref_id]
                nearest = tuple(sorted([*kept, hit], key=lambda match: -match.similarity))
        return Examination(embedding, nearest, tuple(findings))

    def _by_views(
        self, picture: np.ndarray, embedding: np.ndarray, nearest: Sequence[Match], views: list[list[Match]]
    ) -> Iterator[tuple[str, list[Match]]]:
        """The second look at what the views are too near to, by category: other hues, then each edit."""
        start = len(hue_shares(self.hues))
        looked = [self._looked_at(picture, self.index.compare(embedding, ref_id), True) for ref_id in self._near(views[:start])]
        yield RECOLOURED, [match for match in looked if match.similarity < self.point.threshold]
        found = {m.ref_id for m in nearest if m.similarity >= self.point.threshold and not self._cleared(m)}
        for edit in self.edits:
            stop = start + FORMS[edit]
            near = {ref_id: numbers for ref_id, numbers in self._near(views[start:stop]).items() if ref_id not in found}
            forms = list(undone(picture, edit)) if near else []
            tried = [(forms[number], ref_id) for ref_id, numbers in near.items() for number in numbers[:LOOKS]]
            looks = [self._looked_at(form, self.index.compare(embedding, ref_id), True) for form, ref_id in tried]
            yield UNDONE[edit], looks
            start = stop

    def _looked_at(self, picture: np.ndarray, match: Match, own: bool) -> Match:
        near = own or match.similarity >= min(self.point.threshold, self.point.look_from)
        if not near or match.status in HARMLESS:
            return match
        reference = self.index.picture(match.ref_id)
        if reference is None:
            return match
        score = float(self._confirm(picture, reference))
        return match if math.isnan(score) else replace(match, confirm=score)  # it cannot judge: as without a picture

    def _finding(self, category: str, nearest: tuple[Match, ...]) -> Finding:
        probe = category == MEMORISED
        mine = [m for m in nearest if (m.rights_basis == PROBE) == probe and m.status not in HARMLESS and not self._cleared(m)]
        if not mine:
            return self._report(category, NOTHING_NEAR, self.point.threshold)

        def confirmed(match: Match) -> bool:
            return match.confirm is None or match.confirm >= self.point.confirm_threshold

        worst = max(mine, key=lambda match: (match.similarity >= self.point.threshold and confirmed(match), match.similarity))
        return self._report(category, worst.similarity, self.point.threshold, worst, confirmed=confirmed(worst))

    def _report(
        self, category: str, score: float, threshold: float, match: Match | None = None, *, confirmed: bool = True
    ) -> Finding:
        ref_id, title = (match.ref_id, match.title) if match is not None else ("", "")
        return Finding(
            guard=self.name, version=self.version, category=category, score=score, threshold=threshold, confirmed=confirmed,
            ref_id=ref_id, detail=title,
        )  # fmt: skip

    def _cleared(self, match: Match) -> bool:
        """Whether the second look found that picture and reference share nothing, whatever their cosine."""
        return match.confirm is not None and match.confirm < self.point.veto_below

    def _geometry(self, nearest: tuple[Match, ...]) -> Finding:
        looked = [(match.confirm, self._bar(match), match) for match in nearest if match.confirm is not None]
        if not looked:
            return self._report(GEOMETRY, 0.0, self.point.alone_threshold)
        score, bar, best = max(looked, key=lambda one: one[0] - one[1])
        # One look alone is enough to steer or to send to review, but not to reject.
        agreed = best.similarity >= self.point.threshold
        return self._report(GEOMETRY, score, bar, best, confirmed=agreed)

    def _bar(self, match: Match) -> float:
        """Score from which the second look suffices alone; higher for an own reference with a low cosine."""
        point = self.point
        own = match.similarity < min(point.threshold, point.look_from)
        return point.own_threshold if own else point.alone_threshold

    def _strictly(self, category: str, best: Match | None) -> Finding:
        """Two independent looks must agree: the embedder at another view of the picture, and the second look."""
        score = 0.0 if best is None else best.confirm or 0.0
        return self._report(category, score, self.point.recoloured_threshold, best)
