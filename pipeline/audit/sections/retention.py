"""What is kept until when: the rows' own dates, and what events have changed about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pipeline.audit.erasure import ERASED
from pipeline.audit.requests import Row
from pipeline.audit.sections.people import listed

if TYPE_CHECKING:
    from pipeline.audit.sections.in_force import InForce

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

    def rows(self, events: Sequence[Mapping[str, Any]], now: InForce) -> dict[str, Any]:
        """The counts, and what was done.

        Args:
            events: of the run. now: what counted holds and erasures that are in force.
        """
        kinds = Counter(str(event["kind"]) for event in events if event["kind"] in KINDS)
        return {
            "samples": self._total,
            "without_end": self._without_end,
            "first_end": self._first.isoformat(timespec="seconds") if self._first else None,
            "last_end": self._last.isoformat(timespec="seconds") if self._last else None,
            "held_at_birth": self._held,
            "holds": now.holds,
            "erased": {"requests": now.erased_requests, "payloads": dict(sorted(now.erased.items()))},
            "old_versions": old_versions(events),
            "events": dict(sorted(kinds.items())),
            "history": history(events),
        }


def old_versions(events: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """How many erasures left older versions in their bucket; of how many nobody stated when the bucket deletes those; and the
    longest time, in days, that was stated."""
    left = [event["details"] for event in events if event["kind"] == ERASED and event["details"].get("old_versions") is True]
    days = [stated["old_versions_days"] for stated in left if type(stated.get("old_versions_days")) is int]
    return {"erasures": len(left), "no_end_stated": len(left) - len(days), "days": max(days, default=None)}


def history(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Holds, retention and erasures as the report lists them; the events of one erasure, one for every shard, are one line."""
    found: list[dict[str, Any]] = []
    for _, same in groupby((event for event in events if event["kind"] in KINDS), key=_command):
        these = list(same)
        samples = {sample_id for event in these for sample_id in event["samples"]}
        found.append(listed(these[:1])[0] | {"samples": len(samples), "events": [int(event["seq"]) for event in these]})
    return found


def _command(event: Mapping[str, Any]) -> tuple[str, ...]:
    """What the events of one command share; every event but an erasure is a command of its own."""
    own = str(event["at"])[:10] if event["kind"] == ERASED else str(event["seq"])
    return str(event["kind"]), str(event["actor"]), str(event.get("person") or ""), str(event["reason"]), own
