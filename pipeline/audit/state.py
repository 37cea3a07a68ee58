"""State is events folded over samples: the outcome in force, review, holds, retention, and which payloads were erased.

Rows never change. What shows or exports an outcome takes ``state_of(folder).of(sample_id).outcome``, or the row's where that is
None. The fold is a pure function of the events in their order; an event changes what :data:`EFFECTS` names for its kind, and
nothing else. What the events must hold:

* ``review.decided``: ``samples``; ``details["outcome"]``, an outcome of :class:`pipeline.outcome.Outcome`. The last decision is
  in force; one that says another thing than a decision before it is listed as a contradiction.
* ``sample.quarantined``, ``sample.released``: ``samples``; ``details["claim"]``, why. A sample is held back while a claim holds
  it; a release that names no claim ends all. A release may name the ``outcome`` that is then in force.
* ``hold.set``, ``hold.lifted``: ``samples``, none meaning the whole run; ``details["matter"]``, what for. A hold ends when the
  same matter is lifted where it was set: one of the run's by lifting the run's, one of a sample's by lifting the sample's.
* ``payload.erased``: ``details["files"]``, see :class:`pipeline.audit.erasure.ErasedFile`.
* ``review.decided`` and ``sample.released`` may state ``details["retain_until"]`` (ISO 8601), a new end of retention.

An event that lacks what its kind must hold lets nothing out: a release does nothing, and a decision that cannot be read leaves
its samples to a person (outcome ``review``), unless the outcome that it names holds them back. ``verify`` calls it a problem,
but for a ``payload.erased`` that names no file: it changes nothing, and is listed as not covered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.audit.erasure import ERASED, erased_files
from pipeline.audit.event_kinds import KINDS
from pipeline.audit.events import read_events
from pipeline.outcome import ACCEPTED, Outcome

EXPORTED, DECIDED = "exported", "decided"
DECISION, RELEASE = "review.decided", "sample.released"
_OUTCOMES = frozenset(str(outcome) for outcome in Outcome)
_OUT = frozenset(str(outcome) for outcome in ACCEPTED)


@dataclass(frozen=True, kw_only=True)
class SampleState:
    """What events made of one sample.

    Attributes:
        decided: the outcome that a person or a release gave it; None: the row's stands.
        claims: why it is held back; while there is one, its outcome is ``quarantined``.
        review_state: ``exported`` or ``decided``; None: the row's stands.
        settled: a person decided about it, and nothing has held it back or released it since, but that decision's own release.
        holds: the matters for which nothing of it may be erased, the run's own among them.
        retain_until: a new end of its retention; None: the row's stands.
        erased: names of the columns whose payloads were erased.
        events: numbers of the events that made this state, in order.
    """

    decided: str | None = None
    claims: tuple[str, ...] = ()
    review_state: str | None = None
    settled: bool = False
    holds: tuple[str, ...] = ()
    retain_until: datetime | None = None
    erased: frozenset[str] = frozenset()
    events: tuple[int, ...] = ()

    @property
    def outcome(self) -> str | None:
        """The outcome in force; None: the row's stands."""
        return str(Outcome.QUARANTINED) if self.claims else self.decided

    @property
    def hold(self) -> bool:
        return bool(self.holds)


class Contradiction(NamedTuple):
    """Two events that decided differently about one sample; the later one is in force."""

    sample_id: str
    earlier: int
    later: int


@dataclass(frozen=True, kw_only=True)
class State:
    """What events made of a run.

    Attributes:
        samples: the samples that events concern, by sample_id.
        holds: the matters for which nothing of the whole run may be erased.
        contradictions: decisions that an earlier one contradicts.
        ignored: number of an event whose kind is unknown, or that says something was erased and names no file: it changed
            nothing; and why.
        unfit: number of an event that lacks what its kind must hold, and what.
    """

    samples: Mapping[str, SampleState] = field(default_factory=dict)
    holds: tuple[str, ...] = ()
    contradictions: tuple[Contradiction, ...] = ()
    ignored: tuple[tuple[int, str], ...] = ()
    unfit: tuple[tuple[int, str], ...] = ()

    def of(self, sample_id: str) -> SampleState:
        """The state of one sample; one that no event concerns has the state of its row, and the holds of the run."""
        own = self.samples.get(sample_id, _UNTOUCHED)
        return replace(own, holds=_with(self.holds, own.holds)) if self.holds else own

    def outcome(self, row: Mapping[str, Any]) -> str:
        """The outcome in force of a row of the samples table (``sample_id`` and ``outcome``)."""
        own = self.samples.get(row["sample_id"], _UNTOUCHED).outcome
        return str(row["outcome"]) if own is None else own

    def waits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row's sample waits for a person: it is in review, or held back since and not decided about."""
        now = self.outcome(row)
        held = now == Outcome.QUARANTINED and not self.samples.get(row["sample_id"], _UNTOUCHED).settled
        return now == Outcome.REVIEW or held


_UNTOUCHED = SampleState()


def state_of(folder: Path) -> State:
    """Fold a run's events.

    Raises:
        IntegrityError: the events were changed.
    """
    return fold(read_events(folder))


def fold(events: Sequence[Mapping[str, Any]]) -> State:
    """Fold events in their order; a pure function."""
    samples: dict[str, SampleState] = {}
    holds: tuple[str, ...] = ()
    contradictions: list[Contradiction] = []
    decisions: dict[str, tuple[int, str]] = {}
    ignored: list[tuple[int, str]] = []
    odd: list[tuple[int, str]] = []
    for event in events:
        kind, seq = str(event["kind"]), int(event["seq"])
        if kind not in KINDS:
            ignored.append((seq, f"is of kind {kind!r}, which this version does not know"))
            continue
        if kind not in EFFECTS:
            continue
        if why := unfit(event):
            (ignored if kind == ERASED else odd).append((seq, f"({kind}) {why}"))
            if kind != DECISION:
                continue
            event = {**event, "details": {"outcome": outcome_of(event)}}
        if kind in _HOLDS and not event["samples"]:
            holds = _HOLDS[kind](holds, _matter(event))
        for sample_id, columns in _concerned(event).items():
            before = samples.get(sample_id, _UNTOUCHED)
            samples[sample_id] = replace(EFFECTS[kind](before, event, columns), events=(*before.events, seq))
            if kind == DECISION:
                outcome = event["details"]["outcome"]
                if sample_id in decisions and decisions[sample_id][1] != outcome:
                    contradictions.append(Contradiction(sample_id, decisions[sample_id][0], seq))
                decisions[sample_id] = (seq, outcome)
    return State(samples=samples, holds=holds, contradictions=tuple(contradictions), ignored=tuple(ignored), unfit=tuple(odd))


def outcome_of(decision: Mapping[str, Any]) -> str:
    """The outcome that an event ``review.decided`` gives its samples; one that cannot be read as meant lets nothing out."""
    outcome = decision["details"].get("outcome")
    named = isinstance(outcome, str) and outcome in (_OUTCOMES - _OUT if unfit(decision) else _OUTCOMES)
    return str(outcome) if named else str(Outcome.REVIEW)


def _with(some: tuple[str, ...], more: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*some, *more)))


def _without(some: tuple[str, ...], one: str) -> tuple[str, ...]:
    return tuple(other for other in some if other != one)


def unfit(event: Mapping[str, Any]) -> str:
    """Why an event of a kind in :data:`EFFECTS` cannot be followed; empty when it can."""
    details, kind = event["details"], event["kind"]
    if kind == ERASED:
        return "" if any(True for _ in erased_files(event)) else "names no file"
    if kind not in _HOLDS and not event["samples"]:
        return "names no sample"
    if kind not in (DECISION, RELEASE):
        return ""
    outcome = details.get("outcome")
    known = isinstance(outcome, str) and outcome in _OUTCOMES  # details are anybody's: a list cannot be looked up
    if not known and (kind == DECISION or outcome is not None):
        return f"names no outcome, but {str(outcome)[:40]!r}"
    if "retain_until" in details and _until(event) is None:
        return f"names no time, but {str(details['retain_until'])[:40]!r}"
    return ""


def _concerned(event: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """The samples that an event concerns, with the columns that it names as erased."""
    if event["kind"] != ERASED:
        return dict.fromkeys(event["samples"], frozenset())
    columns: dict[str, set[str]] = {}
    for column, samples in (item for file in erased_files(event) for item in file.columns.items()):
        for sample_id in samples:
            columns.setdefault(sample_id, set()).add(column)
    return {sample_id: frozenset(names) for sample_id, names in columns.items()}


def _matter(event: Mapping[str, Any]) -> str:
    return str(event["details"].get("matter", ""))


def _until(event: Mapping[str, Any]) -> datetime | None:
    try:
        found = datetime.fromisoformat(event["details"]["retain_until"])
        return found.astimezone(UTC) if found.tzinfo is not None else found.replace(tzinfo=UTC)
    except (KeyError, ValueError, TypeError, OverflowError):  # the last: before the year 1 or after 9999 in UTC
        return None


# --- what an event of each kind changes ------------------------------------------------------------------------------------

# state before, event, columns that it names as erased → state after
Effect = Callable[[SampleState, Mapping[str, Any], frozenset[str]], SampleState]


def _exported(state: SampleState, event: Mapping[str, Any], columns: frozenset[str]) -> SampleState:
    return state if state.review_state == DECIDED else replace(state, review_state=EXPORTED)


def _decided(state: SampleState, event: Mapping[str, Any], columns: frozenset[str]) -> SampleState:
    until, outcome = _until(event) or state.retain_until, event["details"]["outcome"]
    settled = outcome != Outcome.REVIEW  # a person is still to decide, also where a claim holds the sample
    return replace(state, decided=outcome, review_state=DECIDED, settled=settled, retain_until=until)


def _quarantined(state: SampleState, event: Mapping[str, Any], columns: frozenset[str]) -> SampleState:
    return replace(state, claims=_with(state.claims, [str(event["details"].get("claim", ""))]), settled=False)


def _released(state: SampleState, event: Mapping[str, Any], columns: frozenset[str]) -> SampleState:
    details = event["details"]
    claims = _without(state.claims, str(details["claim"])) if "claim" in details else ()
    until = _until(event) or state.retain_until
    settled = state.settled and details.get("because_of") == "review"
    return replace(state, claims=claims, decided=details.get("outcome") or state.decided, settled=settled, retain_until=until)


def _held(state: SampleState, event: Mapping[str, Any], columns: frozenset[str]) -> SampleState:
    return replace(state, holds=_HOLDS[event["kind"]](state.holds, _matter(event)))


def _erased(state: SampleState, event: Mapping[str, Any], columns: frozenset[str]) -> SampleState:
    return replace(state, erased=state.erased | columns)


_HOLDS: dict[str, Callable[[tuple[str, ...], str], tuple[str, ...]]] = {
    "hold.set": lambda holds, matter: _with(holds, [matter]),
    "hold.lifted": _without,
}
EFFECTS: dict[str, Effect] = {
    "review.exported": _exported,
    DECISION: _decided,
    "sample.quarantined": _quarantined,
    RELEASE: _released,
    "hold.set": _held,
    "hold.lifted": _held,
    ERASED: _erased,
}
