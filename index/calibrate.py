"""Choose the copy threshold from labelled comparisons, with the uncertainty of its rates.

A calibration is bound to one embedder: another one has another scale. Copies are edited copies of a reference; near
misses are the hard negatives, other drawings of the same idea. The operating point is the smallest threshold at which
the share of near misses flagged stays within a limit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from index.errors import InputError, IntegrityError
from index.files import write_whole
from index.precision import average_precision
from index.rate import Rate, percent
from index.second_look import ALIGNMENT, LookWorth, look_id

CURVE_POINTS = 41
ENOUGH = 100  # copies; more of them hardly narrow the interval


NEVER = 2.0  # a second look's score that is never reached
RECOLOURED = 0.8  # of alignment; other looks have it from their calibration
MIN_RECALL = 0.5  # the least share of copies, by the lower end of its interval, that an operating point must flag


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """When a picture counts as too near a reference.

    Attributes:
        threshold: cosine at and above which a picture counts as too near.
        confirm_threshold: score of the second look from which it agrees.
        look_from: cosine from which the second look is taken at all; at most ``threshold``.
        alone_threshold: score from which the second look suffices although the cosine stays below ``threshold``.
        veto_below: score below which the second look clears a picture whose cosine reaches ``threshold``: laid over each
            other the two share nothing.
        recoloured_threshold: score from which the second look agrees that a picture, whose cosine reaches ``threshold`` only
            once its hues are turned or an edit is undone, is the reference in other colours or behind the edit.
        second_look: which look these scores are of (see :mod:`index.second_look`).
        look_id: the digest that it was measured with; empty: any.
    """

    threshold: float
    confirm_threshold: float = 0.5
    look_from: float = NEVER
    alone_threshold: float = NEVER
    veto_below: float = 0.0
    recoloured_threshold: float = RECOLOURED
    second_look: str = ALIGNMENT
    look_id: str = ""

    @property
    def own_threshold(self) -> float:
        """Score from which the second look suffices alone at a picture's own reference that the embedder finds far from it."""
        return max(self.alone_threshold, self.confirm_threshold)

    def at(self, threshold: float) -> OperatingPoint:
        """The point with another copy threshold; its second look is taken from there on at the latest."""
        return replace(self, threshold=threshold, look_from=min(self.look_from, threshold))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """An operating point with its measured rates.

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
        min_recall: the recall that the lower end of the interval had to reach; 0 where none was required.
        forced: the interval does not reach ``min_recall``, and the calibration was written anyway.
        second_look: which look was taken. second_look_id: its digest; empty in older files, which knew alignment alone.
        recoloured_threshold: see :class:`OperatingPoint`.
        looks: every look that was compared: name, average precision with its interval, gain over the first with its interval.
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
    min_recall: float = 0.0
    forced: bool = False
    second_look: str = ALIGNMENT
    second_look_id: str = ""
    recoloured_threshold: float = RECOLOURED
    looks: tuple[tuple[str, float, float, float, float, float, float], ...] = ()

    @property
    def point(self) -> OperatingPoint:
        look_from = min(self.look_from, self.threshold)
        return OperatingPoint(
            threshold=self.threshold,
            confirm_threshold=self.confirm_threshold,
            look_from=look_from,
            alone_threshold=self.alone_threshold,
            veto_below=self.veto_below,
            recoloured_threshold=self.recoloured_threshold,
            second_look=self.second_look,
            look_id=self.second_look_id,
        )

    def summary(self) -> dict[str, Any]:
        """The operating point and its rates as plain data for JSON, tables and reports: everything but the curve."""
        return {name: value for name, value in asdict(self).items() if name != "curve"}

    def looked_by(self, look: str, scores: np.ndarray, copy: np.ndarray, worth: Sequence[LookWorth] = ()) -> Calibration:
        """The same calibration with the look on record that its scores are of.

        Args:
            look: its name; see :func:`index.second_look.named`.
            scores: float (M,), its scores, NaN where there was none. copy: bool (M,).
            worth: every look that was compared.
        """
        recoloured = RECOLOURED
        if look != ALIGNMENT:  # above every measured other picture, since hues are turned to find something near
            recoloured = max(self.confirm_threshold, _above(np.sort(scores[~copy & ~np.isnan(scores)]), 0))
        looks = tuple(one.plain() for one in worth)
        return _identified(
            replace(self, second_look=look, second_look_id=look_id(look), recoloured_threshold=recoloured, looks=looks)
        )

    def held_to(self, min_recall: float, *, force: bool = False) -> Calibration:
        """The same calibration with the required recall recorded.

        Args:
            min_recall: the lower end of the recall's interval must reach it.
            force: keep an operating point that does not, marked as forced.

        Raises:
            InputError: it flags too few copies, or too few were compared to know, and it is not forced.
        """
        enough = self.recall.low >= min_recall
        if not enough and not force:
            raise InputError(
                f"of the copies the threshold flags {self.recall}; the interval's lower end must reach {percent(min_recall)}",
                where=f"calibration of {self.embedder_id}", fix=self._how_to_flag_more(min_recall),
            )  # fmt: skip
        return _identified(replace(self, min_recall=min_recall, forced=not enough))

    def _how_to_flag_more(self, min_recall: float) -> str:
        n, advice = self.recall.n, []
        if self.recall.value >= min_recall and n < ENOUGH:
            advice.append(f"compare more than {n} copies (--copies, or more works or pairs)")
        for _, recall, false_alarms in self.curve:
            found = Rate.of(round(recall * n), n)
            if found.low >= min_recall and self.max_false_positive_rate < false_alarms <= 0.2:
                share = math.ceil(1000 * false_alarms) / 1000
                advice.append(f"allow more false alarms (--false-alarms {share:g}, which flags {percent(found.value)})")
                break
        advice += ["check that no harmless picture is a copy of a work", "use an embedder that knows such pictures"]
        first = "; ".join(advice)
        return f"{first[0].upper()}{first[1:]}. --force writes it anyway; runs then release the copies that it does not flag"

    def save(self, path: Path) -> None:
        """Write JSON.

        Raises:
            InputError: the file cannot be written.
        """
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        try:
            write_whole(path, text.encode())
        except OSError as error:
            fix = "Name a file in an existing folder that may be written to"
            raise InputError(f"cannot be written ({error.strerror or error})", where=str(path), fix=fix) from None

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
                stored[name] = None if stored[name] is None else _rate(stored[name], name)
            stored["looks"] = tuple((str(one[0]), *(_number(v, "looks") for v in one[1:])) for one in stored.get("looks", ()))
            stored["curve"] = tuple(tuple(_number(value, "curve") for value in point) for point in stored["curve"])
            calibration = cls(**stored)
            _require_types(calibration)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            what = f"is not a calibration ({type(error).__name__}: {error})"
            raise InputError(what, where=str(path), fix="Run clearance index calibrate again") from None
        if _identified(calibration).calibration_id != calibration.calibration_id:
            fix = "Run clearance index calibrate again"
            raise IntegrityError("the numbers do not match the calibration_id", where=str(path), fix=fix)
        return calibration


RATES = tuple(field.name for field in fields(Calibration) if "Rate" in str(field.type))
_SCORES = {  # what each number may be; a cosine of two equal vectors may lie a rounding above 1
    "threshold": (-1.001, 1.001), "confirm_threshold": (0, NEVER), "look_from": (-1.001, NEVER),
    "alone_threshold": (0, NEVER), "veto_below": (0, 1), "average_precision": (0, 1.001),
    "max_false_positive_rate": (0, 1), "min_recall": (0, 1), "recoloured_threshold": (0, NEVER),
}  # fmt: skip
_LATER = {
    "min_recall": 0.0,
    "forced": False,
    "second_look": ALIGNMENT,
    "second_look_id": "",
    "recoloured_threshold": RECOLOURED,
    "looks": (),
}  # left out of the digest at these values: older files have no such fields


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ValueError(f"{name} is {value!r}, not a finite number")
    return float(value)


def _rate(stored: Any, name: str) -> Rate:
    rate = Rate(**stored)
    numbers = [_number(value, name) for value in (rate.value, rate.low, rate.high, rate.hits, rate.n)]
    if not 0 <= numbers[1] <= numbers[2] <= 1 or not 0 <= numbers[0] <= 1 or not 0 <= rate.hits <= rate.n:
        raise ValueError(f"{name} is not a share with its interval")
    return rate


def _require_types(calibration: Calibration) -> None:
    """Refuse values that are not numbers or out of range, even under a matching digest: such a threshold would flag nothing."""
    for name, (low, high) in _SCORES.items():
        if not low <= _number(getattr(calibration, name), name) <= high:
            raise ValueError(f"{name} is {getattr(calibration, name)}, not within {low} to {high}")
    for name in ("calibration_id", "embedder_id", "index_id", "source", "second_look", "second_look_id"):
        if not isinstance(getattr(calibration, name), str):
            raise ValueError(f"{name} is not text")
    if not isinstance(calibration.forced, bool):
        raise ValueError("forced is neither true nor false")
    if None in (calibration.recall, calibration.false_positive_rate, calibration.precision):
        raise ValueError("a rate is missing")
    if any(len(look) != 7 for look in calibration.looks):
        raise ValueError("a compared look is not a name and six numbers")
    if any(len(point) != 3 for point in calibration.curve):
        raise ValueError("the curve's points are not three numbers each")


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
        confirm: float (M,), scores of the second look, if it was taken; NaN where it could not be, because the index keeps no
            picture: there it neither clears nor suffices, and counts as agreeing, as in a run.
        confirm_threshold: from which score the second look agrees.
        max_false_positive_rate: share of near misses that may reach the threshold.
        max_added_rate: share of near misses that the second look alone may add; None: it never suffices alone.
        max_vetoed_rate: share of the flagged copies that the second look may clear by mistake.
        index_id, source: recorded.

    Raises:
        InputError: no copies, no near misses, or values that are not finite numbers.
    """
    similarity, copy = np.asarray(similarity, np.float64), np.asarray(copy, bool)
    _require_both(similarity, copy)
    copies, misses = np.sort(similarity[copy]), np.sort(similarity[~copy])
    threshold = _above(misses, _so_many(max_false_positive_rate, len(misses)))
    flagged = similarity >= threshold
    looked = None if confirm is None else np.asarray(confirm, np.float64)
    if looked is not None and np.isnan(looked).all():
        looked = None
    agreed = None if looked is None else flagged & ~(looked < confirm_threshold)
    alone = _Alone()
    if looked is not None and max_added_rate is not None:
        alone = _alone(similarity, copy, looked, threshold, confirm_threshold, max_added_rate, max_vetoed_rate)
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
            recall=_share(flagged, copy),
            false_positive_rate=_share(flagged, ~copy),
            precision=_share(copy, flagged),
            confirmed_recall=None if agreed is None else _share(agreed, copy),
            confirmed_false_positive_rate=None if agreed is None else _share(agreed, ~copy),
            average_precision=average_precision(similarity, copy),
            curve=curve,
            max_false_positive_rate=max_false_positive_rate,
            source=source,
            look_from=alone.look_from,
            alone_threshold=alone.threshold,
            veto_below=alone.veto_below,
            either_recall=None if alone.either is None else _share(alone.either, copy),
            either_false_positive_rate=None if alone.either is None else _share(alone.either, ~copy),
        )
    )


def _require_both(similarity: np.ndarray, copy: np.ndarray) -> None:
    """Refuse comparisons without copies, without near misses, or with values that are not finite."""
    if similarity.shape != copy.shape or similarity.ndim != 1 or not np.isfinite(similarity).all():
        what = f"similarities {similarity.shape} and labels {copy.shape} must be finite and of one length"
        raise InputError(what, where="calibration", fix="Give one cosine and one label per comparison")
    if not copy.any() or copy.all():
        ways = ("copies", "Keep pictures in the index, name --works, or label some as copy") if not copy.any() else (
            "pictures that are no copies", "Name --harmless PICTURES, or label some as near-miss or other"
        )  # fmt: skip
        raise InputError(f"needs {ways[0]} to compare with, and has none", where="calibration", fix=ways[1])


class _Alone(NamedTuple):
    """What the second look may do alone: from which cosine it is taken, from which score it suffices, below which it clears;
    and what the whole rule flags, bool (M,). By default nothing."""

    look_from: float = NEVER
    threshold: float = NEVER
    veto_below: float = 0.0
    either: np.ndarray | None = None


def _alone(
    similarity: np.ndarray, copy: np.ndarray, looked: np.ndarray, threshold: float, confirm_threshold: float,
    max_added_rate: float, max_vetoed_rate: float,
) -> _Alone:  # fmt: skip
    """The bars of the second look alone; arguments as of :func:`calibrate`."""
    flagged, seen = similarity >= threshold, ~np.isnan(looked)
    look_from = min(threshold, float(np.quantile(similarity[copy], 0.01)))
    looked_at = (similarity >= look_from) & ~flagged & seen
    suffices = _above(np.sort(looked[looked_at & ~copy]), _so_many(max_added_rate, int((~copy).sum())))
    sure, veto_below = np.sort(looked[flagged & copy & seen]), 0.0
    if len(sure) and max_vetoed_rate:
        veto_below = min(float(sure[int(max_vetoed_rate * len(sure))]), confirm_threshold / 2)
    either = (flagged & ~(looked < veto_below)) | (looked_at & (looked >= suffices))
    return _Alone(look_from, suffices, veto_below, either)


def _share(marked: np.ndarray, among: np.ndarray) -> Rate:
    """How many of some comparisons are marked; both bool (M,)."""
    return Rate.of(int(marked[among].sum()), int(among.sum()))


def _so_many(rate: float, n: int) -> int:
    """The most of ``n`` that a rate allows: of 100 a rate of 0.29 allows 29, although 0.29 · 100 is a rounding below it."""
    return int(np.floor(rate * n + 1e-9))


def _above(ordered: np.ndarray, allowed: int) -> float:
    """The smallest threshold that at most ``allowed`` of the ascending scores reach: just above the next one below.

    Representable, and never below that score; half when there is nothing to keep out.
    """
    if not len(ordered):
        return 0.5
    return float(ordered[0]) if allowed >= len(ordered) else float(np.nextafter(ordered[len(ordered) - allowed - 1], np.inf))


def agrees_from(look: str, scores: np.ndarray, copy: np.ndarray, *, at_most: float) -> float:
    """Score from which a look agrees: alignment's own half, or what at most that share of the other pictures reaches."""
    if look == ALIGNMENT:
        return 0.5
    misses = np.sort(scores[~copy & ~np.isnan(scores)])
    return _above(misses, _so_many(at_most, len(misses)))


def _identified(calibration: Calibration) -> Calibration:
    content = asdict(replace(calibration, calibration_id=""))
    content = {name: value for name, value in content.items() if name not in _LATER or value != _LATER[name]}
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return replace(calibration, calibration_id="calibration-" + hashlib.sha256(plain.encode()).hexdigest()[:16])
