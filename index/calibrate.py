"""From labelled comparisons to a threshold, with the uncertainty that belongs to it.

A calibration is bound to one embedder: another one has another scale. Copies are edited copies of a reference; near
misses are the hard negatives, other drawings of the same idea. The operating point is the smallest threshold at which
the share of near misses flagged stays within a limit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from index.errors import InputError, IntegrityError
from index.rate import Rate

if TYPE_CHECKING:
    from index.embed import Embedder

CURVE_POINTS = 41


NEVER = 2.0  # a second look's score that is never reached


@dataclass(frozen=True)
class OperatingPoint:
    """When a picture counts as too near a reference.

    Attributes:
        threshold: cosine at and above which it does.
        confirm_threshold: score of the second look from which it agrees.
        look_from: cosine from which the second look is taken at all; at most ``threshold``.
        alone_threshold: score from which the second look suffices although the cosine stays below ``threshold``.
        veto_below: score below which the second look clears a picture whose cosine reaches ``threshold``: laid over each
            other the two share nothing.
        recoloured_threshold: score from which the second look agrees that a picture, whose cosine reaches ``threshold`` only
            once its hues are turned, is the reference in other colours.
    """

    threshold: float
    confirm_threshold: float = 0.5
    look_from: float = NEVER
    alone_threshold: float = NEVER
    veto_below: float = 0.0
    recoloured_threshold: float = 0.8

    @property
    def own_threshold(self) -> float:
        """Score from which the second look suffices alone at a picture's own reference that the embedder finds far from it."""
        return max(self.alone_threshold, self.confirm_threshold)


@dataclass(frozen=True)
class Calibration:
    """An operating point and what it is worth.

    Attributes:
        calibration_id: digest of everything below.
        embedder_id: the embedder it holds for.
        index_id: the index it was measured with, if it was.
        threshold: cosine at and above which a picture counts as too near.
        confirm_threshold: score at and above which the second look agrees.
        recall: share of copies at or above the threshold.
        false_positive_rate: share of near misses at or above it.
        precision: share of copies among everything at or above it, in the proportions of the measured pairs.
        confirmed_recall, confirmed_false_positive_rate: the same when the second look must agree too.
        look_from, alone_threshold, veto_below: see :class:`OperatingPoint`.
        either_recall, either_false_positive_rate: of the whole rule, veto and second look alone included.
        average_precision: of the cosine, over all thresholds.
        curve: (threshold, recall, false positive rate) from strict to loose.
        max_false_positive_rate: the limit that chose the threshold.
        source: what was compared, for a reader.
    """

    calibration_id: str
    embedder_id: str
    index_id: str
    threshold: float
    confirm_threshold: float
    recall: Rate
    false_positive_rate: Rate
    precision: Rate
    confirmed_recall: Rate | None
    confirmed_false_positive_rate: Rate | None
    average_precision: float
    curve: tuple[tuple[float, float, float], ...]
    max_false_positive_rate: float
    source: str = ""
    look_from: float = NEVER
    alone_threshold: float = NEVER
    veto_below: float = 0.0
    either_recall: Rate | None = None
    either_false_positive_rate: Rate | None = None

    @property
    def point(self) -> OperatingPoint:
        look_from = min(self.look_from, self.threshold)
        return OperatingPoint(self.threshold, self.confirm_threshold, look_from, self.alone_threshold, self.veto_below)

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: not a calibration.
            IntegrityError: its numbers do not match its id.
        """
        try:
            stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            for name in RATES:
                stored[name] = None if stored[name] is None else Rate(**stored[name])
            stored["curve"] = tuple((float(a), float(b), float(c)) for a, b, c in stored["curve"])
            calibration = cls(**stored)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"is no calibration ({error})", where=str(path), fix="Calibrate again") from None
        if _identified(calibration).calibration_id != calibration.calibration_id:
            raise IntegrityError("the numbers do not match the calibration_id", where=str(path), fix="Calibrate again")
        return calibration


RATES = tuple(field.name for field in fields(Calibration) if "Rate" in str(field.type))


def calibrate(
    embedder_id: str,
    similarity: np.ndarray,
    copy: np.ndarray,
    *,
    confirm: np.ndarray | None = None,
    confirm_threshold: float = 0.5,
    max_false_positive_rate: float = 0.01,
    max_added_rate: float | None = None,
    max_vetoed_rate: float = 0.0,
    index_id: str = "",
    source: str = "",
) -> Calibration:
    """Choose the smallest threshold that keeps false positives on near misses within the limit.

    The second look may also suffice alone: it is taken from the cosine that all but one copy in a hundred reach, and
    suffices from the smallest score that adds at most ``max_added_rate`` of the near misses to those flagged. And it may
    clear a flagged picture, below the largest score that loses at most ``max_vetoed_rate`` of the copies flagged.

    Args:
        embedder_id: whose cosines these are.
        similarity: float (M,), one cosine per comparison.
        copy: bool (M,), true for a copy, false for a near miss.
        confirm: float (M,), scores of the second look, if it was taken.
        confirm_threshold: from which score the second look agrees.
        max_false_positive_rate: share of near misses that may reach the threshold.
        max_added_rate: share of near misses that the second look alone may add; None: it never suffices alone.
        max_vetoed_rate: share of the flagged copies that the second look may clear by mistake.
        index_id, source: recorded.

    Raises:
        InputError: no copies, no near misses, or numbers that are none.
    """
    similarity, copy = np.asarray(similarity, np.float64), np.asarray(copy, bool)
    if similarity.shape != copy.shape or similarity.ndim != 1 or not np.isfinite(similarity).all():
        what = f"similarities {similarity.shape} and labels {copy.shape} must be finite and of one length"
        raise InputError(what, where="calibration", fix="Give one cosine and one label per comparison")
    if not copy.any() or copy.all():
        raise InputError("needs copies and near misses", where="calibration", fix="Add the kind that is missing")
    copies, misses = np.sort(similarity[copy]), np.sort(similarity[~copy])
    allowed = int(np.floor(max_false_positive_rate * len(misses) + 1e-9))
    threshold = _above(misses, allowed)
    flagged = similarity >= threshold
    look_from, alone_threshold, veto_below, either = NEVER, NEVER, 0.0, None
    if confirm is not None and max_added_rate is not None:
        look_from = min(threshold, float(np.quantile(copies, 0.01)))
        asked = (similarity >= look_from) & ~flagged
        may_be_added = int(np.floor(max_added_rate * len(misses) + 1e-9))
        alone_threshold = _above(np.sort(np.asarray(confirm, np.float64)[asked & ~copy]), may_be_added)
        sure = np.sort(np.asarray(confirm, np.float64)[flagged & copy])
        if len(sure) and max_vetoed_rate:
            veto_below = min(float(sure[int(max_vetoed_rate * len(sure))]), confirm_threshold / 2)
        cleared = np.asarray(confirm, np.float64) < veto_below
        either = (flagged & ~cleared) | (asked & (np.asarray(confirm, np.float64) >= alone_threshold))
    agreed = None if confirm is None else flagged & (np.asarray(confirm, np.float64) >= confirm_threshold)
    ends = np.quantile(similarity, (0.0, 1.0))
    points = np.linspace(ends[1], ends[0], CURVE_POINTS)
    curve = tuple(
        (round(float(at), 6), round(float((copies >= at).mean()), 6), round(float((misses >= at).mean()), 6)) for at in points
    )
    return _identified(
        Calibration(
            calibration_id="",
            embedder_id=embedder_id,
            index_id=index_id,
            threshold=threshold,
            confirm_threshold=confirm_threshold,
            recall=Rate.of(int(flagged[copy].sum()), int(copy.sum())),
            false_positive_rate=Rate.of(int(flagged[~copy].sum()), int((~copy).sum())),
            precision=Rate.of(int(flagged[copy].sum()), int(flagged.sum())),
            confirmed_recall=None if agreed is None else Rate.of(int(agreed[copy].sum()), int(copy.sum())),
            confirmed_false_positive_rate=None if agreed is None else Rate.of(int(agreed[~copy].sum()), int((~copy).sum())),
            average_precision=average_precision(similarity, copy),
            curve=curve,
            max_false_positive_rate=max_false_positive_rate,
            source=source,
            look_from=look_from,
            alone_threshold=alone_threshold,
            veto_below=veto_below,
            either_recall=None if either is None else Rate.of(int(either[copy].sum()), int(copy.sum())),
            either_false_positive_rate=None if either is None else Rate.of(int(either[~copy].sum()), int((~copy).sum())),
        )
    )


def _above(ordered: np.ndarray, allowed: int) -> float:
    """The smallest threshold that at most ``allowed`` of the ascending scores reach: just above the next one below.

    Representable, and never below that score; half when there is nothing to keep out.
    """
    if not len(ordered):
        return 0.5
    return float(ordered[0]) if allowed >= len(ordered) else float(np.nextafter(ordered[len(ordered) - allowed - 1], np.inf))


def compare(
    embedder: Embedder,
    references: np.ndarray,
    pictures: np.ndarray,
    *,
    confirm: Callable[[np.ndarray, np.ndarray], float] | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Cosines (and second looks) of picture pairs, for :func:`calibrate`.

    Args:
        embedder: turns both into vectors.
        references, pictures: uint8 (M, H, W, 3), compared row by row.
        confirm: the second look, (picture, reference) → [0, 1]; None to skip it.

    Returns:
        Cosines float64 (M,), scores float64 (M,) or None.
    """
    cosine = np.sum(embedder.images(references).astype(np.float64) * embedder.images(pictures).astype(np.float64), axis=1)
    if confirm is None:
        return cosine, None
    return cosine, np.array([confirm(picture, reference) for picture, reference in zip(pictures, references, strict=True)])


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under precision over recall, step-wise (as scikit-learn defines it); ties are taken together."""
    order = np.argsort(-scores, kind="stable")
    hits, ranked = np.asarray(positive)[order].astype(np.float64), scores[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    found = np.cumsum(hits)[last]
    return float(np.sum(np.diff(found, prepend=0.0) / found[-1] * found / (last + 1)))


def _identified(calibration: Calibration) -> Calibration:
    said = asdict(replace(calibration, calibration_id=""))
    plain = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return replace(calibration, calibration_id="calibration-" + hashlib.sha256(plain.encode()).hexdigest()[:16])
