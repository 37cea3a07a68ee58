"""What people did about a run, out of its events: reviews and what they overturned, claims and takedowns, other changes.

The keys of an event's ``details`` are those that the commands of :mod:`jobs.review` and :mod:`jobs.takedown` write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any

from pipeline.audit.numbers import rate
from pipeline.audit.requests import Row
from pipeline.audit.state import State, fold
from pipeline.outcome import ACCEPTED, Outcome

LISTED = 40
CLAIMS = ("takedown.applied", "reaudit.done", "sample.quarantined", "sample.released")
CHANGES = ("policy.changed", "index.changed")
Event = Mapping[str, Any]


class Waiting:
    """Which requests were sent to a person, which wait for one today, and when they ended, from which decisions are timed.

    It holds one entry a decision or open review, never one a picture.
    """

    def __init__(self, decided: Sequence[Event], state: State) -> None:
        self._state = state
        self.open: dict[str, str] = {}  # the keys of those that wait today, by sample_id
        self.held_since = 0  # of them, held back after the run
        self._about = {str(sample_id) for event in decided for sample_id in event.get("samples") or ()}
        self.keys: dict[str, str] = {}
        self.ended: dict[str, datetime] = {}
        self.born: dict[str, str] = {}
        self.reviews: set[str] = set()

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        review = sample["outcome"] == Outcome.REVIEW
        if self._state.waits(sample):
            self.open[str(sample["sample_id"])] = str(sample["request_key"])
            self.held_since += self._state.outcome(sample) == Outcome.QUARANTINED
        if review:
            self.reviews.add(str(sample["sample_id"]))
        if review or sample["sample_id"] in self._about:
            self.keys[str(sample["sample_id"])] = str(sample["request_key"])
            self.ended[str(sample["sample_id"])] = sample["finished_at"]
            self.born[str(sample["sample_id"])] = str(sample["outcome"])


def people(events: Sequence[Event], waiting: Waiting, contradictions: int = 0) -> dict[str, Any]:
    """Reviews: how many wait, every decision, which of them overturned what the run had decided, and how long they took."""
    decisions = [row for event in events if event["kind"] == "review.decided" for row in _decisions(event, waiting)]
    newest = {row["sample_id"]: row for row in decisions}
    last = {sample_id: row for sample_id, row in newest.items() if row["decision"] != Outcome.REVIEW}  # such a one still waits
    asked = [row for row in last.values() if row["born"] == Outcome.REVIEW]
    audited = [row for row in last.values() if row["born"] in ACCEPTED]
    accepted = sum(row["decision"] in ACCEPTED for row in asked)
    hours = sorted(row["hours"] for row in decisions if row["hours"] is not None and row["decision"] != Outcome.REVIEW)
    return {
        "queue": {
            "open": len(waiting.open),
            "held_since": waiting.held_since,
            "asked": len(waiting.reviews),
            "keys": sorted(waiting.open.values())[:LISTED],
        },
        "decided": len(last),
        "accepted": rate(accepted, len(asked), "count(last review.decided of samples born as review: accepted) / decided"),
        "overturned": rate(
            sum(row["overturned"] for row in last.values()),
            len(last),
            "count(last review.decided that goes against the outcome at birth) / decided",
        ),
        "audited": rate(
            sum(row["decision"] not in ACCEPTED for row in audited),
            len(audited),
            "count(last review.decided of samples born as accepted: not accepted) / those looked at",
        ),
        "hours": {"median": median(hours) if hours else None, "most": hours[-1] if hours else None, "n": len(hours)},
        "seconds": _seconds(events),
        "roles": dict(sorted(Counter(row["actor"] for row in decisions).items())),
        "contradictions": contradictions,
        "decisions": decisions[-LISTED:],
        "decisions_total": len(decisions),
        "exports": [_event(event) for event in events if event["kind"] == "review.exported"],
    }  # fmt: skip


def _seconds(events: Sequence[Event]) -> dict[str, Any]:
    """How long people looked at what they decided about, where the queue page measured it."""
    found = [(event.get("details") or {}).get("seconds") for event in events if event["kind"] == "review.decided"]
    known = sorted(float(value) for value in found if isinstance(value, int | float))
    return {"median": median(known) if known else None, "n": len(known)}


def _decisions(event: Event, waiting: Waiting) -> list[dict[str, Any]]:
    details = event.get("details") or {}
    given = fold([event])  # what it puts in force; of one that cannot be followed not what it says
    rows = []
    for sample_id in event.get("samples") or ():
        decision = str(given.of(sample_id).decided)
        born, ended = waiting.born.get(sample_id, ""), waiting.ended.get(sample_id)
        at = _decided_at(event)
        rows.append(
            {
                **_event(event),
                "sample_id": sample_id,
                "request_key": waiting.keys.get(sample_id, str(details.get("request_key") or sample_id)),
                "decision": decision,
                "born": born,
                "overturned": _overturned(born, decision),
                "hours": max(0.0, (at - ended).total_seconds() / 3600) if ended is not None else None,
            }
        )
    return rows


def _decided_at(event: Event) -> datetime:
    """When the person decided; decisions that were imported state it, and were written into the events later."""
    try:
        stated = datetime.fromisoformat(str((event.get("details") or {}).get("decided_at")))
        return stated if stated.tzinfo is not None else stated.replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromisoformat(str(event["at"]))


def _overturned(born: str, decision: str) -> bool:
    """Whether a decision goes against the outcome at birth. A review asked for one: no decision of it goes against it."""
    if born in ACCEPTED:
        return decision not in ACCEPTED
    return born in (Outcome.REJECTED, Outcome.QUARANTINED) and decision in ACCEPTED


def claims(events: Sequence[Event], contact: str) -> dict[str, Any]:
    """Claims and takedowns with what was done and the digests of their receipts, and where a claim is filed."""
    history = [_event(event) for event in events if event["kind"] in CLAIMS]
    counts = Counter(event["kind"] for event in history)
    left = _not_reached(history)
    return {
        "contact": contact,
        "takedowns": counts["takedown.applied"],
        "reaudits": counts["reaudit.done"],
        "quarantined": sum(event["samples"] for event in history if event["kind"] == "sample.quarantined"),
        "released": sum(event["samples"] for event in history if event["kind"] == "sample.released"),
        "not_reached": sum(not where.endswith(".parquet") for where in left),
        "files_not_reached": sum(where.endswith(".parquet") for where in left),
        "history": history[-LISTED:],
        "history_total": len(history),
    }


def _not_reached(history: Sequence[Event]) -> list[str]:
    """What could not be looked at, a sample or a file with all its rows, each time by the last of the same commands: a later
    one may have reached it."""
    last: dict[str, list[str]] = {}
    for event in history:
        details, left = event["details"], event["details"].get("not_reached")
        if event["kind"] in ("takedown.applied", "reaudit.done"):
            same = [event["kind"], *(details.get(name) for name in ("claim", "action", "references", "rules"))]
            named = left if isinstance(left, list) else []
            last[str(same)] = [str(one[0]) if isinstance(one, list) and one else str(one) for one in named]
    return [where for one in last.values() for where in one]


def changes(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Changes of policy and index that were written into the run's events."""
    return [_event(event) for event in events if event["kind"] in CHANGES]


def _event(event: Event) -> dict[str, Any]:
    """An event as the report lists it: its samples by number, and no details of single samples and files."""
    return {
        "seq": int(event["seq"]),
        "at": str(event["at"]),
        "kind": str(event["kind"]),
        "actor": str(event["actor"]),
        "person": str(event.get("person") or ""),
        "reason": str(event["reason"]),
        "samples": len(event.get("samples") or ()),
        "details": {str(key): value for key, value in (event.get("details") or {}).items() if key not in ("looks", "files")},
        "digests": dict(event.get("digests") or {}),
    }


def listed(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Every event as the report lists it."""
    return [_event(event) for event in events]
