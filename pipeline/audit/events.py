"""What happened to a run, one line each: ``events.jsonl``, every line chained by digest to the one before.

Beside it stands ``events-head.json`` with the number of events and the last one's digest, so that a file that lost its end, or
was removed, is found. It is written after the events: after a power cut between the two it may name an earlier event, never a
later one. Commits name the event that their session began with (see :mod:`pipeline.audit.binding`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from index.errors import ClearanceError, IntegrityError
from index.storage import entry_of, parse_object, read_file, write_file
from pipeline.audit.chain import canonical

EVENTS_FILE, EVENTS_HEAD_FILE = "events.jsonl", "events-head.json"
NO_HEAD = (EVENTS_HEAD_FILE, f"is missing; it names the last event of {EVENTS_FILE}")
EVENTS_START = hashlib.sha256(b"clearance events\0").hexdigest()
_KINDS = {
    "seq": int, "at": str, "kind": str, "actor": str, "reason": str, "digests": dict, "prev_sha256": str, "record_sha256": str,
}  # fmt: skip


def append_event(folder: Path, kind: str, actor: str, reason: str, **digests: str) -> dict[str, Any]:
    """Append one event to ``events.jsonl``, chained to the one before.

    Args:
        folder: the run folder.
        kind: what happened: ``run.started``, ``run.resumed``, ``run.sealed``, ``review.decided``, ``payload.erased`` …
        actor: the role that did it (no personal names needed).
        reason: short text for people.
        **digests: digests before and after, or other identifying text.

    Raises:
        IntegrityError: the events on disk were changed.
        RunStopped: the file cannot be written.
    """
    events = read_events(folder)
    event: dict[str, Any] = {
        "seq": len(events),
        "at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "kind": kind,
        "actor": actor,
        "reason": reason,
        "digests": dict(sorted(digests.items())),
        "prev_sha256": events_head(events),
    }
    event["record_sha256"] = hashlib.sha256(canonical(event)).hexdigest()
    # The file is small (people and runs, not samples): rewriting it whole means a power cut never leaves half a line.
    write_file(folder, EVENTS_FILE, b"".join(canonical(line) + b"\n" for line in [*events, event]))
    write_file(folder, EVENTS_HEAD_FILE, _head_line(len(events) + 1, event["record_sha256"]))
    return event


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Read and check ``events.jsonl``; an absent file is an empty list.

    Raises:
        IntegrityError: a byte of it changed, or events are missing; the message names the line.
    """
    events, problems = scan_events(folder)
    if problems:
        where, what = problems[0]
        raise IntegrityError(what, where=f"{folder}/{where}", fix=f"Restore {EVENTS_FILE} and {EVENTS_HEAD_FILE} from a copy")
    return events


def events_head(events: Sequence[Mapping[str, Any]]) -> str:
    """Digest of the last event; where the next one is chained to."""
    return str(events[-1]["record_sha256"]) if events else EVENTS_START


def scan_events(folder: Path) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Read ``events.jsonl`` and check its chain: the events that can be read, and every problem as (where, what)."""
    events: list[dict[str, Any]] = []
    problems: list[tuple[str, str]] = []
    try:
        there = entry_of(folder, EVENTS_FILE) is not None
        lines = read_file(folder, EVENTS_FILE).split(b"\n") if there else [b""]
    except ClearanceError as error:
        return [], [(EVENTS_FILE, error.what)]
    if lines.pop() != b"":
        problems.append((EVENTS_FILE, "does not end with a newline: cut off, or written to by something else"))
    prev = EVENTS_START
    for number, line in enumerate(lines):
        where = f"{EVENTS_FILE} line {number + 1}"
        event = _event(line)
        if event is None:
            problems.append((where, "is not an event that was written"))
            continue
        body = {key: value for key, value in event.items() if key != "record_sha256"}
        if canonical(event) != line or hashlib.sha256(canonical(body)).hexdigest() != event["record_sha256"]:
            problems.append((where, "the event was changed: its digest does not match"))
        elif event["prev_sha256"] != prev or event["seq"] != number:
            problems.append((where, "the chain is broken: an event before it was changed, removed or added"))
        prev = event["record_sha256"]
        events.append(event)
    return events, problems + _end_problems(folder, events)


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or event.keys() != _KINDS.keys():
        return None
    if not all(type(event[name]) is kind for name, kind in _KINDS.items()):
        return None
    return event if all(isinstance(value, str) for value in event["digests"].values()) else None


def _head_line(count: int, head: str) -> bytes:
    return canonical({"count": count, "head": head}) + b"\n"


def _end_problems(folder: Path, events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Compare ``events-head.json`` with the events in the file."""
    try:
        if entry_of(folder, EVENTS_HEAD_FILE) is None:
            # A power cut may come between the very first event and this file.
            return [NO_HEAD] if len(events) > 1 else []
        data = read_file(folder, EVENTS_HEAD_FILE)
        stated = parse_object(data, where=EVENTS_HEAD_FILE)
    except ClearanceError as error:
        return [(EVENTS_HEAD_FILE, error.what)]
    count, head = stated.get("count"), stated.get("head")
    if type(count) is not int or count < 1 or not isinstance(head, str) or _head_line(count, head) != data:
        return [(EVENTS_HEAD_FILE, "was changed: it names no event")]
    if len(events) < count:
        return [(EVENTS_FILE, f"events are missing: {EVENTS_HEAD_FILE} counts {count}, {len(events)} are here")]
    if events_head(events[:count]) != head:
        return [(f"{EVENTS_FILE} line {count}", f"is not the event that {EVENTS_HEAD_FILE} names: events were changed")]
    return []
