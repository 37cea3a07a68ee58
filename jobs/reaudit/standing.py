"""What events made of a run's samples, as far as looking again must respect it: claims that hold them, people's decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.audit.events import events_head, read_events
from pipeline.audit.state import State, fold, outcome_of, unfit
from pipeline.outcome import ACCEPTED, Outcome

QUARANTINED, RELEASED, DECIDED = "sample.quarantined", "sample.released", "review.decided"
OUT = frozenset(str(outcome) for outcome in ACCEPTED)  # outcomes with which a picture is out in the world


@dataclass(kw_only=True)
class _History:
    """Of one sample: claim → references it is held for; all references named so far; those of them that a person knew who
    accepted it."""

    held_for: dict[str, set[str]] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)
    settled: set[str] | None = None
    decision: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """The state of a run's samples.

    Attributes:
        events: all of them. state: folded from them.
    """

    events: Sequence[Mapping[str, Any]] = field(repr=False)
    state: State = field(repr=False)
    _samples: Mapping[str, _History] = field(repr=False)

    @classmethod
    def of(cls, folder: Path) -> Standing:
        """Read a run's events.

        Raises:
            IntegrityError: the events were changed.
        """
        events = read_events(folder)
        samples: dict[str, _History] = {}
        for event in events:
            if event["kind"] in (QUARANTINED, RELEASED, DECIDED) and not (event["kind"] == RELEASED and unfit(event)):
                for sample_id in event["samples"]:
                    _take(samples.setdefault(sample_id, _History()), event, sample_id)
        return cls(events=events, state=fold(events), _samples=samples)

    @property
    def head(self) -> str:
        """Digest of the last event."""
        return events_head(self.events)

    def outcome(self, sample_id: str, born: str) -> str:
        """The outcome in force of a sample that was born with another."""
        return self.state.outcome({"sample_id": sample_id, "outcome": born})

    def is_out(self, sample_id: str, born: str) -> bool:
        """Whether its picture is out: accepted, and not held back since."""
        return self.outcome(sample_id, born) in OUT

    def goes_out(self, sample_id: str, born: str) -> bool:
        """Whether its picture is out once no claim holds it: nobody has rejected it, or left it for a person."""
        return (self.state.of(sample_id).decided or born) in OUT

    def held_for(self, sample_id: str) -> Mapping[str, set[str]]:
        """The claims that hold a sample, and the references that each names."""
        return self._samples[sample_id].held_for if sample_id in self._samples else {}

    def settled_by_person(self, sample_id: str) -> set[str] | None:
        """References that events had named and that a person knew who accepted it; None where no person did, or one rejected it
        since."""
        return self._samples[sample_id].settled if sample_id in self._samples else None

    def named(self, sample_id: str) -> set[str]:
        """All references that events have named for a sample."""
        return self._samples[sample_id].named if sample_id in self._samples else set()

    def decision(self, sample_id: str) -> Mapping[str, Any] | None:
        """The decision of a person about a sample that stands: nothing has held the sample back or let it go since, but the
        release that came with it. One that leaves the sample to a person, or cannot be read, is none."""
        return self._samples[sample_id].decision if sample_id in self._samples else None

    def held(self) -> list[str]:
        """Ids of the samples that a claim holds."""
        return [sample_id for sample_id, found in self._samples.items() if found.held_for]


def _take(history: _History, event: Mapping[str, Any], sample_id: str) -> None:
    details = event["details"]
    claim = str(details.get("claim", ""))
    if event["kind"] == QUARANTINED:
        named = set(references_of(details, sample_id))
        history.held_for.setdefault(claim, set()).update(named)
        history.named |= named
        history.decision = None
    elif event["kind"] == RELEASED:
        if "claim" in details:
            history.held_for.pop(claim, None)
        else:
            history.held_for.clear()
        if details.get("because_of") != "review":
            history.decision = None
    else:
        outcome = outcome_of(event)
        history.decision = event if outcome != Outcome.REVIEW else None
        shown = details.get("references")  # an event of another program may lack it
        knew = history.named & {*map(str, shown)} if isinstance(shown, list) else set(history.named)
        history.settled = knew | (history.settled or set()) if outcome in OUT else None


def references_of(details: Mapping[str, Any], sample_id: str) -> list[str]:
    """The references that an event ``sample.quarantined`` names for a sample; none where its details say nothing of it."""
    looks = details.get("looks")
    look = looks.get(sample_id) if isinstance(looks, Mapping) else None
    named = look.get("ref_ids") if isinstance(look, Mapping) else None
    return [str(ref_id) for ref_id in named] if isinstance(named, list) else []
