"""The record of the copy check in force: its threshold, the threshold's origin, and the recall that its calibration measured.

A count of copies means little without the recall: a check that misses every copy counts 0. The record is made with the plan,
bound by its digest and sealed in ``run.json``, so that a report can show it without the index.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.at_uri import beside
from index.errors import ConfigError, IntegrityError
from index.rate import Rate, percent
from index.second_look import ALIGNMENT, AUTO, named, require
from index.shipped import STICKERS
from index.storage import place
from index.undone import INSET, NEGATIVE, TURNED
from pipeline.config import RunConfig
from pipeline.policy import Policy

if TYPE_CHECKING:
    from index.calibrate import Calibration

CALIBRATION, POLICY = "calibration", "policy"
WHERE = "policy: copies.second_look"


def calibration_in_force(config: RunConfig, policy: Policy, embedder_id: str, *, base: Path) -> Calibration | None:
    """The calibration that sets the copy threshold, or None where the policy sets it.

    It is the one beside the index, else the one shipped with the embedded world.

    Raises:
        ConfigError: there is none for this embedder, and no threshold in the policy; or it is of another second look than the
            policy asks for, or than would be taken beside a threshold of the policy's own.
        IndexMismatch: the second look here is not the one that it was measured with.
        InputError: it cannot be read.
        IntegrityError: its numbers are not those it was written with.
    """
    from index.calibrate import Calibration

    asked = named(policy.copies.second_look, base=base, where=WHERE)
    own = beside(place(config.index, base), "calibration.json") if config.index else None
    if policy.copies.threshold is not None:
        if asked == AUTO and own is not None and own.exists() and (found := Calibration.load(own)).embedder_id == embedder_id:
            _require_alignment(found.second_look)
        if asked in (AUTO, ALIGNMENT):
            return None
        what = f"the second look {asked!r} has no operating point: with copies.threshold no calibration is in force"
        fix = f"Remove copies.threshold, and run: clearance index calibrate {config.index} --second-look {asked}"
        raise ConfigError(what, where=WHERE, fix=fix)
    for path in (own, STICKERS / "calibration.json"):
        if path is not None and path.exists() and (found := Calibration.load(path)).embedder_id == embedder_id:
            return _with_look(found, asked, config.index)
    raise ConfigError(
        "there is no calibrated threshold for this embedder",
        where=f"policy {policy.name}: copies.threshold",
        fix=f"Measure it: clearance index calibrate {config.index or 'INDEX'} --works WORKS --harmless PICTURES; or set it",
    )


def _require_alignment(look: str) -> None:
    """Refuse a threshold of the policy's own where the index was calibrated for another look than would then be taken."""
    if look != ALIGNMENT:
        what = f"copies.threshold sets the calibration aside, and with it the second look {look!r} that it was made for"
        fix = f'Remove copies.threshold; or set copies.second_look = "{ALIGNMENT}", so that near pictures are compared by it'
        raise ConfigError(what, where=WHERE, fix=fix)


def _with_look(found: Calibration, asked: str, index: str) -> Calibration:
    """The calibration with the place of its second look, where a policy states it.

    Raises:
        ConfigError: the policy asks for a look that the calibration is not of.
        ModelError: a descriptor's file cannot be read.
        IndexMismatch: the look is not the one that was measured.
    """
    kind, measured = (look.partition(":")[0] for look in (asked, found.second_look))
    if asked != AUTO and kind != measured:
        what = f"the policy asks for the second look {asked!r}, and the index was calibrated for {found.second_look!r}"
        fix = f'Run: clearance index calibrate {index} --second-look {asked}; or set copies.second_look = "auto"'
        raise ConfigError(what, where=WHERE, fix=fix)
    look = found.second_look if asked == AUTO else asked
    require(look, found.second_look_id)
    return replace(found, second_look=look)


def copy_check_record(config: RunConfig, policy: Policy, embedder_id: str, *, base: Path) -> dict[str, Any]:
    """The record as plain data: the calibration without its curve, or the policy's threshold; empty for a run without index.

    Raises:
        ClearanceError: see :func:`calibration_in_force`.
    """
    if not config.index:
        return {}
    found = calibration_in_force(config, policy, embedder_id, base=base)
    if found is None:
        return {"set_by": POLICY, "threshold": policy.copies.threshold}
    from index.calibrate import MIN_RECALL

    return {"set_by": CALIBRATION, **found.summary(), "least_recall": found.min_recall or MIN_RECALL}


@dataclass(frozen=True, kw_only=True)
class CopyCheck:
    """A record, read back.

    Attributes:
        set_by: ``calibration`` or ``policy``.
        threshold: cosine from which the embedder finds a picture near.
        veto_below: score below which the second look clears it; None where it clears nothing.
        calibration_id: which calibration.
        recall: share of the measured copies that reach the threshold. false_alarms: the same of harmless pictures.
        whole_recall, whole_false_alarms: of both looks together, where the index keeps the reference's picture.
        least_recall: what the lower end of the recall's interval must reach. forced: it was accepted although it does not.
        second_look: how near pictures are compared once more.
        measured_on: what was compared, for a reader. measured_index_id: the state of the index, if it was measured with one.
    """

    set_by: str
    threshold: float
    veto_below: float | None = None
    calibration_id: str = ""
    recall: Rate | None = None
    false_alarms: Rate | None = None
    whole_recall: Rate | None = None
    whole_false_alarms: Rate | None = None
    least_recall: float = 0.0
    forced: bool = False
    second_look: str = ALIGNMENT
    measured_on: str = ""
    measured_index_id: str = ""

    @classmethod
    def read(cls, record: Any, where: str) -> CopyCheck | None:
        """The record of a run; None where there is none: a run without index, or of a version that kept none.

        Raises:
            IntegrityError: it is no such record.
        """
        if not record:
            return None
        try:
            if record["set_by"] == POLICY:
                return cls(set_by=POLICY, threshold=_number(record["threshold"]))
            if record["set_by"] != CALIBRATION:
                raise ValueError(f"set_by is {record['set_by']!r}")
            return cls(
                set_by=CALIBRATION,
                threshold=_number(record["threshold"]),
                veto_below=_number(record["veto_below"]) or None,
                calibration_id=str(record["calibration_id"]),
                recall=_rate(record["recall"]),
                false_alarms=_rate(record["false_positive_rate"]),
                whole_recall=_rate(record["either_recall"]),
                whole_false_alarms=_rate(record["either_false_positive_rate"]),
                least_recall=_number(record["least_recall"]),
                forced=record["forced"] is True,
                second_look=str(record.get("second_look", ALIGNMENT)),
                measured_on=str(record["source"]),
                measured_index_id=str(record["index_id"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"the record of the copy check cannot be read ({type(error).__name__}: {error})"
            raise IntegrityError(what, where=where, fix="Restore the file from a copy") from None

    @property
    def found(self) -> Rate | None:
        """The recall to state: the lower one of the embedder's alone and of both looks together."""
        rates = [rate for rate in (self.recall, self.whole_recall) if rate is not None]
        return min(rates, key=lambda rate: rate.value, default=None)

    @property
    def flagged_harmless(self) -> Rate | None:
        """The false-alarm rate to state: the higher one."""
        rates = [rate for rate in (self.false_alarms, self.whole_false_alarms) if rate is not None]
        return max(rates, key=lambda rate: rate.value, default=None)

    def plain(self) -> dict[str, Any]:
        """For JSON: every attribute, with the rates to state as ``found`` and ``flagged_harmless``."""
        stated = {"found": self.found, "flagged_harmless": self.flagged_harmless}
        return asdict(self) | {name: None if rate is None else asdict(rate) for name, rate in stated.items()}

    @property
    def sentence(self) -> str:
        """What the check finds and what it misses, as a sentence for the reader of a report."""
        if self.found is None or not self.found.n:
            text = f"Threshold set by the policy ({self.threshold:.3f}): recall not measured."
            return f"{text} Nobody knows how many copies this check misses."
        text = f"This check finds {_share(self.found)} of edited copies ({_measured(self.found)}); it misses the rest."
        if self.flagged_harmless is not None:
            text += f" It also flags {_share(self.flagged_harmless)} of harmless pictures ({_measured(self.flagged_harmless)})."
        return text

    @property
    def warning(self) -> str:
        """Why a count of copies must not be relied on; empty where nothing is known against it."""
        rate = self.recall
        if rate is None or (rate.low >= self.least_recall and not self.forced):
            return ""
        forced = ", and the calibration was forced" if self.forced else ""
        return (
            f"The copy check misses too much to be relied on: it finds {_share(rate)} of edited copies ({_measured(rate)}), "
            f"where at least {percent(self.least_recall, 0)} must be shown{forced}. A count of 0 copies means little here."
        )


OTHER_COLOURS = "in other colours"
BEHIND = {  # an edit of copies.edits → the copy, in words
    TURNED: "turned by a quarter or upside down",
    NEGATIVE: "inverted",
    INSET: "in a frame, on a page or in a scene",
}


def looked_for(copies: Mapping[str, Any]) -> dict[str, list[str]]:
    """What a policy's table ``copies`` looks for beside copies as they are, in words: ``looked_for`` and ``not_looked_for``."""
    edits = copies.get("edits") or ()
    asked = {OTHER_COLOURS: copies.get("hues", 1) != 1} | {words: edit in edits for edit, words in BEHIND.items()}
    return {
        "looked_for": [words for words, yes in asked.items() if yes],
        "not_looked_for": [words for words, yes in asked.items() if not yes],
    }


PERCENT = "\u00a0%"
UNKNOWN = "The record of this run does not hold how many copies its check finds."


def _share(rate: Rate) -> str:
    return percent(rate.value, 0)


def _measured(rate: Rate) -> str:
    low, high = (percent(value, 0) for value in (rate.low, rate.high))
    return f"{low.removesuffix(PERCENT)}–{high}, {rate.n} measured"


def _rate(stored: Any) -> Rate | None:
    if stored is None:
        return None
    rate = Rate.of(int(stored["hits"]), int(stored["n"]))
    if not 0 <= rate.hits <= rate.n:
        raise ValueError(f"{rate.hits} of {rate.n} is not a share")
    return rate


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)
