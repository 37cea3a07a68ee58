"""What is kept until when: the rows' own dates, and what events have changed about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pipeline.audit.requests import Row

KINDS = ("hold.set", "hold.lifted", "retention.applied", "payload.erased")


class RetentionTable:
    """How many samples are kept without an end, and when the others' time ends."""

    COLUMNS = ("retain_until", "legal_hold")

    def __init__(self) -> None:
        self._without_end, self._held, self._total = 0, 0, 0
        self._first: datetime | None = None
        self._last: datetime | None = None

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        self._total += 1
        self._held += bool(sample["legal_hold"])
        until = sample["retain_until"]
        if until is None:
            self._without_end += 1
            return
        self._first = min(until, self._first or until)
        self._last = max(until, self._last or until)

    def rows(self, events: Sequence[Mapping[str, Any]], holds: int) -> dict[str, Any]:
        """The counts; ``holds``: samples under a hold now."""
        kinds = Counter(str(event["kind"]) for event in events if event["kind"] in KINDS)
        return {
            "samples": self._total,
            "without_end": self._without_end,
            "first_end": self._first.isoformat(timespec="seconds") if self._first else None,
            "last_end": self._last.isoformat(timespec="seconds") if self._last else None,
            "held_at_birth": self._held,
            "holds": holds,
            "events": dict(sorted(kinds.items())),
            "history": [event for event in events if event["kind"] in KINDS],
        }
