"""Events of older runs: ``events.jsonl``, one line an event. Read and checked here; nothing writes it any more.

Events that such a run gets today are parts (:mod:`pipeline.audit.events`) whose chain goes on from the file's last line.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from index.errors import ClearanceError, IntegrityError
from index.storage import entry_of, read_file
from pipeline.audit.chain import canonical

EVENT_LINES = "events.jsonl"
_KINDS = {
    "seq": int, "at": str, "kind": str, "actor": str, "reason": str, "digests": dict, "prev_sha256": str, "record_sha256": str,
}  # fmt: skip


def scan_lines(folder: Path, start: str, *, strict: bool = False) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Read ``events.jsonl`` and check its chain from ``start``: the events that can be read, and every problem (where, what).

    The events have the keys of those in parts; what the lines lack is empty. No file is no event.

    Raises:
        InputError: the storage failed, with ``strict``; otherwise that is one of the problems.
    """
    events: list[dict[str, Any]] = []
    problems: list[tuple[str, str]] = []
    try:
        there = entry_of(folder, EVENT_LINES) is not None
        lines = read_file(folder, EVENT_LINES).split(b"\n") if there else [b""]
    except ClearanceError as error:
        if strict and not isinstance(error, IntegrityError):
            raise
        return [], [(EVENT_LINES, error.what)]
    if lines.pop() != b"":
        problems.append((EVENT_LINES, "does not end with a newline: cut off, or written to by something else"))
    prev = start
    for number, line in enumerate(lines):
        where = f"{EVENT_LINES} line {number + 1}"
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
        events.append({**event, "person": "", "samples": [], "details": {}})
    return events, problems


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
