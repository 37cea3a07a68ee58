"""What looking again at a run came to: plain data for events, receipts and the terminal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.reaudit.look import Looked, Seen

COLOURS = (
    "Copies in other colours were searched for through the references with their colours turned. That is nearly as good as "
    "turning those of every picture (267 of 268 were found when it was measured); --every-picture does the latter."
)
LARGE = (
    "Copies in other colours were not searched for: the index is too large to turn every reference's colours. --every-picture "
    "turns every picture's."
)
EDITS = (
    "The policy undoes edits (copies.edits). Here they were undone in the pictures that came near for another reason; "
    "--every-picture undoes them in all."
)
UNKEPT = (
    "Of some references the index keeps no picture: copies of them in other colours were not searched for, and none was "
    "confirmed or cleared by a second look."
)
LIMITS = (COLOURS, LARGE, UNKEPT, EDITS)  # said once, whatever the number of runs


@dataclass(frozen=True, kw_only=True)
class Change:
    """A sample whose outcome changes, or would.

    Attributes:
        sample_id, request_key: the sample. before: its outcome in force until now.
        ref_ids: the references that it is too near to. category: the finding's.
        similarity, confirm: by the embedder and by the second look (None: it was not taken).
        by: what was looked at, ``picture`` or ``embedding``.
    """

    sample_id: str
    request_key: str
    before: str
    ref_ids: tuple[str, ...] = ()
    category: str = ""
    similarity: float | None = None
    confirm: float | None = None
    by: str = ""

    @classmethod
    def of(cls, seen: Seen, before: str) -> Change:
        """What was seen of a sample that is too near to a reference."""
        hits = seen.hits
        worst = hits[0]
        match = seen.match(worst.ref_id)
        return cls(
            sample_id=seen.sample_id, request_key=seen.request_key, before=before,
            ref_ids=tuple(dict.fromkeys(hit.ref_id for hit in hits)), category=worst.category,
            similarity=match.similarity if match is not None else worst.score,
            confirm=match.confirm if match is not None else None, by=seen.by,
        )  # fmt: skip

    def plain(self) -> dict[str, Any]:
        return {
            "sample_id": self.sample_id, "request_key": self.request_key, "before": self.before, "ref_ids": [*self.ref_ids],
            "category": self.category, "similarity": _short(self.similarity), "confirm": _short(self.confirm), "by": self.by,
        }  # fmt: skip

    def look(self) -> dict[str, Any]:
        """What an event holds of it: how near it is to what."""
        return {name: value for name, value in self.plain().items() if name not in ("sample_id", "before")}


@dataclass(kw_only=True)
class RunResult:
    """What looking again at one run came to.

    Attributes:
        run: the folder, as it was named. run_id: the run; empty where it could not be opened.
        why_not: why the run as a whole was not reached; empty where it was.
        compared: samples whose stored embedding was compared. looked: those that deserved a look.
        hits: those that are too near. cleared: near by the embedder, cleared by the second look.
        quarantined, released: what changes.
        held_already: what was held back before and stays so: hits, and samples that a person rejected.
        by_person: hits that a person accepted, knowing the reference.
        observed: hits that the policy only observes.
        held_at_birth: samples that their run held back for what no longer holds; a person may accept them.
        unreached: what could not be looked at, with the reason. lasting: the samples among it that were erased on purpose.
        notes: what a reader must know beside the numbers.
        events: digest of the last event before and after.
    """

    run: str
    run_id: str = ""
    why_not: str = ""
    compared: int = 0
    looked: int = 0
    hits: int = 0
    cleared: int = 0
    quarantined: list[Change] = field(default_factory=list)
    released: list[Change] = field(default_factory=list)
    held_already: int = 0
    by_person: list[Change] = field(default_factory=list)
    observed: list[Change] = field(default_factory=list)
    held_at_birth: list[Change] = field(default_factory=list)
    unreached: list[tuple[str, str]] = field(default_factory=list)
    lasting: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    events: tuple[str, str] = ("", "")

    def take(self, looked: Looked) -> None:
        """Count what was looked at, and what could not be."""
        self.compared, self.looked, self.cleared = looked.compared, len(looked.seen), looked.cleared
        self.unreached += looked.unreached
        self.lasting |= looked.lasting

    @property
    def reached(self) -> bool:
        return not self.why_not

    @property
    def changed(self) -> bool:
        return self.events[0] != self.events[1]

    def gaps(self) -> list[str]:
        """Why this run was not looked at in full, one sentence each."""
        if self.why_not:
            return [f"{self.run}: {self.why_not}"]
        return [f"{self.run}: {where}: {what}" for where, what in self.unreached]

    @property
    def may_be_mended(self) -> bool:
        """Whether the same command, given again, could reach more."""
        return bool(self.why_not) or any(where not in self.lasting for where, _ in self.unreached)

    def counts(self) -> dict[str, int]:
        """For events."""
        return {
            "compared": self.compared, "looked_at": self.looked, "hits": self.hits, "cleared_by_second_look": self.cleared,
            "quarantined": len(self.quarantined), "released": len(self.released), "held_already": self.held_already,
            "accepted_by_a_person": len(self.by_person), "observed": len(self.observed),
            "held_at_birth": len(self.held_at_birth), "not_reached": len(self.unreached),
        }  # fmt: skip

    def plain(self) -> dict[str, Any]:
        """For receipts: this run's part, its digest, and the events before and after."""
        digest = {"part_sha256": self.part_sha256()}
        return self._part() | digest | {"events_before": self.events[0], "events_after": self.events[1]}

    def part_sha256(self) -> str:
        """Digest of this run's part of a receipt, which the run's own event names."""
        canonical = json.dumps(self._part(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _part(self) -> dict[str, Any]:
        lists: Mapping[str, Sequence[Change]] = {
            "quarantined": self.quarantined, "released": self.released, "accepted_by_a_person": self.by_person,
            "observed": self.observed, "held_at_birth": self.held_at_birth,
        }  # fmt: skip
        return {
            "run": self.run, "run_id": self.run_id, "reached": self.reached, "why_not": self.why_not, "counts": self.counts(),
            **{name: [change.plain() for change in changes] for name, changes in lists.items()},
            "not_reached": [{"what": where, "why": what} for where, what in self.unreached], "notes": self.notes,
        }  # fmt: skip


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
