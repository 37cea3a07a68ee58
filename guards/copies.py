"""The copies guard: whether a picture is too near to a protected (or memorised) reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from guards.base import Finding, Probe, require_pictures
from index.colours import hue_shares, in_hues
from index.embed import Embedder, embed_each, fitted
from index.reference import Match
from index.second_look import ALIGNMENT, Look, open_look
from index.second_look import look_id as id_of_look

if TYPE_CHECKING:
    from index.calibrate import OperatingPoint
    from index.store import ReferenceIndex

PROBE = "memorisation_probe"
GEOMETRY = "copy.geometry"
RECOLOURED = "copy.recoloured"
HARMLESS = ("retired", "allowed")  # statuses of references that no longer forbid anything
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
    """Compares pictures with the reference index; categories ``copy.protected``, ``copy.memorised``, ``copy.geometry`` and
    ``copy.recoloured``.

    The score of the first two is the similarity of their best reference. Among references at or above the threshold one
    that the second look confirms comes before a nearer one that it does not, and one that it clears does not count.
    ``copy.geometry`` is for what the embedder misses: its score is the best second look at the k nearest references.
    ``copy.recoloured`` is for a reference's drawing in other colours, which the embedder may place anywhere: the picture is
    searched for with its hues turned as well, and its score is the best second look at what is found so. The hues are turned
    in the size that the embedder's network takes, so that a large picture costs no more than a small one.
    ``ref_id`` names the reference. A picture's *own* references, which it was steered away from, always get the second look:
    a copy in other colours may be far from its reference to the embedder, and steering makes such copies.

    Args:
        index: the references.
        embedder: the embedder the index was built with.
        point: from which scores on a picture counts as too near.
        k: references kept per picture.
        hues: parts of the circle of hues that a picture is turned by and searched for; 1: only as it is.
        confirm: the second look, (picture, reference picture) → [0, 1]; by default the one that the operating point is of.
        device: torch device of a second look that is a network.

    Raises:
        IndexMismatch: the index was built with another embedder, or the second look is not the one that was calibrated.
        ModelError: the second look cannot be opened.
    """

    name = "copies"
    categories: tuple[str, ...] = ("copy.protected", "copy.memorised", GEOMETRY, RECOLOURED)

    def __init__(
        self,
        index: ReferenceIndex,
        embedder: Embedder,
        *,
        point: OperatingPoint,
        k: int = 3,
        hues: int = 1,
        confirm: Look | None = None,
        device: str = "cpu",
    ) -> None:
        built_with = getattr(index, "embedder_id", embedder.embedder_id)
        if built_with != embedder.embedder_id:
            from index.errors import IndexMismatch

            what = f"the index was built with embedder {built_with[:12]}, this one is {embedder.embedder_id[:12]}"
            raise IndexMismatch(what, where="guard copies", fix="Rebuild the index with this embedder, or use the other one")
        self.index, self.embedder = index, embedder
        self.point, self.k, self.hues = point, k, hues
        self.version = self.probe(embedder.embedder_id, point.look_id).version
        self._confirm = open_look(point.second_look, expected=point.look_id, device=device) if confirm is None else confirm

    @classmethod
    def probe(cls, embedder_id: str, look_id: str = "") -> Probe:
        """The guard's version with an embedder and a second look (empty: alignment), without loading them."""
        second = look_id or id_of_look(ALIGNMENT)
        version = f"5+{embedder_id.rsplit('-', 1)[-1][:8]}+{second[:8]}"
        return Probe(version=version, weights={"embedder": embedder_id, "second look": second})

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        """Check uint8 RGB (N, H, W, 3): two findings per picture, one per category."""
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
        small = [fitted(self.embedder, picture) for picture in pictures]
        # One list for the pictures and all their colours: they share the network's padded calls.
        shares = hue_shares(self.hues)
        shown = [] if embeddings is not None else list(small)
        shown += [turned for picture in small for turned in in_hues(picture, shares)] if shares else []
        vectors = embed_each(self.embedder, shown)
        if embeddings is None:
            embeddings, vectors = vectors[: len(pictures)], vectors[len(pictures) :]
        found = self.index.search(embeddings, self.k)
        rows = zip(
            pictures,
            embeddings,
            found,
            own or [()] * len(pictures),
            self._in_other_colours(len(pictures), vectors),
            strict=True,
        )
        return [self._examine(*row) for row in rows]

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

    def _in_other_colours(self, count: int, turned: np.ndarray) -> list[list[str]]:
        """Ids of the references that each of ``count`` pictures is too near to once its hues are turned, best first.

        Args:
            count: pictures.
            turned: float32 (count × turns, D), the embeddings of the first one's turns, then of the second one's, and so on.
        """
        best: list[dict[str, float]] = [{} for _ in range(count)]
        for row, matches in enumerate(self.index.search(turned, self.k) if len(turned) else ()):
            scores = best[row * count // len(turned)]
            for match in matches:
                if match.similarity >= self.point.threshold and match.status not in HARMLESS:
                    scores[match.ref_id] = max(match.similarity, scores.get(match.ref_id, NOTHING_NEAR))
        return [sorted(scores, key=lambda ref_id: (-scores[ref_id], ref_id)) for scores in best]

    def _examine(
        self, picture: np.ndarray, embedding: np.ndarray, matches: list[Match], own: Sequence[str], recoloured: Sequence[str]
    ) -> Examination:
        near = {match.ref_id for match in matches}
        further = [self.index.compare(embedding, ref_id) for ref_id in own if ref_id not in near]
        ranked = sorted([*matches, *further], key=lambda match: -match.similarity)
        nearest = tuple(self._looked_at(picture, match, match.ref_id in own) for match in ranked)
        findings = [self._finding(c, nearest) for c in self.categories if c not in (GEOMETRY, RECOLOURED)]
        geometry = self._geometry(nearest)
        # A reference found only by turned hues has a stricter threshold, and is not evidence for the other categories.
        looked = [self._looked_at(picture, self.index.compare(embedding, ref_id), True) for ref_id in recoloured]
        other = self._recoloured([match for match in looked if match.similarity < self.point.threshold])
        if other.triggered:
            kept = [match for match in nearest if match.ref_id != other.ref_id]
            hit = next(match for match in looked if match.ref_id == other.ref_id)
            nearest = tuple(sorted([*kept, hit], key=lambda match: -match.similarity))
        return Examination(embedding, nearest, (*findings, geometry, other))

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
        probe = category == "copy.memorised"
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

    def _recoloured(self, looked: Sequence[Match]) -> Finding:
        """Two independent looks: the embedder at the picture with its hues turned, the second look at the unchanged picture."""
        best = max(looked, key=lambda match: match.confirm or 0.0, default=None)
        score = 0.0 if best is None else best.confirm or 0.0
        return self._report(RECOLOURED, score, self.point.recoloured_threshold, best)
