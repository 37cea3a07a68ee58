"""What happened to a run: a table in parts, ``events/NNNNNNNN.parquet``; each event is chained by digest to the one before.

A part is named by the number of its first event and holds one event or many. An append writes one new part and rewrites none.
The name can be given once (:func:`index.storage.create_once`): of two processes that append at the same moment the second one
finds the name taken, reads on, and chains its events behind the other's.

Beside the parts stands ``events-head.json``: the number of events, the last one's digest, the last part and its digest, so that
events that lost their end, or were removed, are found. It is written after the part. After a power cut between the two it
names an earlier event, never a later one; the next append brings it up to date *before* it writes. So parts without that file
can only be the first one. An append reads this file and the last part, whatever the number of events; the whole chain is
checked by :func:`scan_events`. Each part also names the digest of the part before, so that every byte of a part is covered.
Commits name the event that their session began with (:mod:`pipeline.audit.binding`).

Columns: :mod:`pipeline.audit.event_parts`. Kinds: :mod:`pipeline.audit.event_kinds`. What events make of a sample:
:mod:`pipeline.audit.state`. Runs of earlier versions: :mod:`pipeline.audit.event_lines`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from index.errors import ClearanceError, InputError, IntegrityError, RunStopped
from index.storage import TEMPORARY, create_once, entries, entry_of, parse_object, read_file, write_file
from pipeline.audit.chain import canonical
from pipeline.audit.event_lines import EVENT_LINES, scan_lines
from pipeline.audit.event_parts import (
    EVENTS_FOLDER,
    EVENTS_HEAD_FILE,
    RESTORE,
    chain_problems,
    event_digest,
    is_part,
    part_bytes,
    part_name,
    plain_event,
    read_part,
)

EVENTS_START = hashlib.sha256(b"clearance events\0").hexdigest()
NO_HEAD = (EVENTS_HEAD_FILE, "is missing; it names the last event")
_KIND = re.compile(r"[a-z]+(\.[a-z_]+)+")


@dataclass(frozen=True, kw_only=True)
class NewEvent:
    """An event to be appended.

    Attributes:
        kind: ``run.started``, ``review.decided``, ``payload.erased`` … actor: the role that did it.
        reason: a sentence for people. person: a pseudonym. samples: sample_id of every sample that it concerns.
        details: plain JSON data. digests: digests before and after, by name.
    """

    kind: str
    actor: str
    reason: str
    person: str = ""
    samples: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


def append_event(
    folder: Path,
    kind: str,
    actor: str,
    reason: str,
    *,
    person: str = "",
    samples: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
    **digests: str,
) -> dict[str, Any]:
    """Append one event to the run's; see :class:`NewEvent` for the arguments, :func:`append_events` for the errors.

    Returns:
        The event as it is read back: the columns by name, ``at`` as ISO 8601 text, ``details`` as plain data.
    """
    event = NewEvent(
        kind=kind, actor=actor, reason=reason, person=person, samples=samples, details=details or {}, digests=digests
    )
    return append_events(folder, [event])[0]


def append_events(folder: Path, events: Sequence[NewEvent], *, known: int | None = None) -> list[dict[str, Any]]:
    """Append events as one part: all of them are there, or none.

    Args:
        folder: the run folder.
        events: what happened.
        known: how many events the caller has read and decided on; when there are others by now, nothing is appended.

    Raises:
        InputError: an event without kind or actor, or details that are no plain JSON data.
        IntegrityError: the last part or the head file was changed or is missing (what lies before is not looked at).
        RunStopped: the part cannot be written, or there are other events than those that are ``known``.
    """
    for event in events:
        _require(event)
    if not events:
        return []
    end = _end(folder)
    while True:
        if known is not None and end.number != known:
            what = f"event {known} was appended by another process meanwhile"
            raise RunStopped(what, where=str(folder), fix="Nothing was done; give the command again")
        rows = _rows(events, end)
        data = part_bytes(rows, end.part_sha256)
        name = part_name(end.number)
        if create_once(folder, name, data):
            after = _End(end.number + len(rows), str(rows[-1]["record_sha256"]), name, hashlib.sha256(data).hexdigest())
            _settle(folder, after)
            return [plain_event(row) for row in rows]
        end = _follow(folder, end)  # another process was faster: its events come first


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Read and check all events, as :func:`append_event` returns them; none there is an empty list.

    Raises:
        IntegrityError: a byte of them changed, or events are missing; the message names the part.
        InputError: the storage failed.
    """
    events, problems = scan_events(folder, strict=True)
    if problems and not (problems == [NO_HEAD] and _is_first_version(folder)):
        where, what = problems[0]
        raise IntegrityError(what, where=f"{folder}/{where}", fix=RESTORE)
    return events


def events_head(events: Sequence[Mapping[str, Any]]) -> str:
    """Digest of the last event; where the next one is chained to."""
    return str(events[-1]["record_sha256"]) if events else EVENTS_START


def event_files(folder: Path) -> list[str]:
    """Names of the files that events are read from, the head file aside."""
    lines = [EVENT_LINES] if entry_of(folder, EVENT_LINES) is not None else []
    return lines + [f"{EVENTS_FOLDER}/{entry.name}" for entry in entries(folder, EVENTS_FOLDER) if is_part(entry.name)]


def scan_events(folder: Path, *, strict: bool = False) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Read every event and check the whole chain: the events that can be read, and every problem as (where, what).

    Raises:
        InputError: the storage failed, with ``strict``; otherwise that is one of the problems.
    """
    events, problems = scan_lines(folder, EVENTS_START, strict=strict)
    prev_part, parts = "", dict[str, str]()  # digests by name
    try:
        found = sorted(entries(folder, EVENTS_FOLDER), key=lambda entry: (len(entry.name), entry.name))
    except ClearanceError as error:
        if strict and not isinstance(error, IntegrityError):
            raise
        return events, [*problems, (EVENTS_FOLDER, error.what)]
    for entry in found:
        where = f"{EVENTS_FOLDER}/{entry.name}"
        if entry.name.startswith(TEMPORARY):
            continue  # of an append that goes on or was cut off: no event yet, and named as not covered
        if not is_part(entry.name):
            problems.append((where, f"is no part of the events (a {entry.kind})"))
            continue
        try:
            part = read_part(folder, where)
        except ClearanceError as error:
            if strict and not isinstance(error, IntegrityError):
                raise
            problems.append((where, error.what))
            continue
        count = len(events)
        if where != part_name(count):
            problems.append((where, f"should begin with event {count}: parts before it are missing, or it was renamed"))
        if part.prev_part_sha256 != prev_part:
            problems.append(
                (next(reversed(parts), where), f"is not the part that {where} was chained to: changed, removed or exchanged")
            )
        problems += chain_problems(part.rows, where, count, events_head(events))
        events += [plain_event(row) for row in part.rows]
        prev_part = part.sha256
        parts[where] = part.sha256
    return events, problems + _end_problems(folder, events, parts, strict=strict)


# --- appending -------------------------------------------------------------------------------------------------------------


class _End(NamedTuple):
    """Where the events end.

    ``number`` is that of the next event. ``part`` is empty where they end in ``events.jsonl`` or there are none.
    """

    number: int = 0
    head: str = EVENTS_START
    part: str = ""
    part_sha256: str = ""

    @property
    def line(self) -> bytes:
        """The content of ``events-head.json``."""
        stated = {"count": self.number, "head": self.head}
        part = {"part": self.part, "part_sha256": self.part_sha256} if self.part else {}
        return canonical({**stated, **part}) + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> _End:
        """Raises IntegrityError when a byte of it changed."""
        plain = parse_object(data, where=EVENTS_HEAD_FILE)
        names = ("head", "part", "part_sha256")
        if type(plain.get("count")) is int and all(isinstance(plain.get(name, ""), str) for name in names):
            end = cls(plain["count"], *(str(plain.get(name, "")) for name in names))
            if end.line == data and end.number > 0:
                return end
        raise IntegrityError("was changed: it names no event", where=EVENTS_HEAD_FILE, fix=RESTORE)


def _require(event: NewEvent) -> None:
    if not _KIND.fullmatch(event.kind) or not event.actor.strip():
        what = f"an event needs a kind such as run.started and an actor, not {event.kind!r} by {event.actor!r}"
        raise InputError(what, where="event", fix="Name the role that did it")
    try:
        canonical(dict(event.details))
    except (TypeError, ValueError) as error:
        what = f"the details of {event.kind} are not plain data ({error})"
        raise InputError(what, where="event", fix="Report this") from None


def _rows(events: Sequence[NewEvent], end: _End) -> list[dict[str, Any]]:
    rows, prev = [], end.head
    now = datetime.now(UTC)
    for number, event in enumerate(events):
        row: dict[str, Any] = {
            "seq": end.number + number,
            "at": now,
            "kind": event.kind,
            "actor": _text(event.actor),
            "person": _text(event.person),
            "reason": _text(event.reason),
            "samples": [_text(sample) for sample in event.samples],
            "details": canonical(dict(event.details)).decode(),
            "digests": {name: _text(value) for name, value in sorted(event.digests.items())},
            "prev_sha256": prev,
        }
        prev = row["record_sha256"] = event_digest(row)
        rows.append(row)
    return rows


def _text(text: str) -> str:
    """Parquet holds UTF-8; a path or message may hold half a character."""
    return text.encode("utf-8", "backslashreplace").decode()


def _end(folder: Path) -> _End:
    """Where the events end now, with the head file up to date; raises IntegrityError when that cannot be trusted."""
    if entry_of(folder, EVENTS_HEAD_FILE) is not None:
        stated = _End.parse(read_file(folder, EVENTS_HEAD_FILE))
        if stated.part:
            part = read_part(folder, stated.part)
            same = (part.rows[-1]["seq"], part.rows[-1]["record_sha256"], part.sha256) == (
                stated.number - 1, stated.head, stated.part_sha256,
            )  # fmt: skip
            if not same:
                what = f"is not the part that {EVENTS_HEAD_FILE} names: events were changed"
                raise IntegrityError(what, where=str(folder / stated.part), fix=RESTORE)
        else:
            stated = _old_end(folder)
    else:
        stated = _old_end(folder)
    now = _follow(folder, stated)
    if now != stated and now.part:
        _settle(folder, now)
    return now


def _old_end(folder: Path) -> _End:
    """Where events without a part end: in ``events.jsonl``, or before the first event."""
    parts = [name for name in event_files(folder) if name != EVENT_LINES]
    events, problems = scan_lines(folder, EVENTS_START, strict=True)
    problems += _end_problems(folder, events, dict.fromkeys(parts, ""), strict=True)
    if problems == [NO_HEAD] and _is_first_version(folder):
        problems = []
    if parts and parts[0] != part_name(len(events)):
        problems.append((parts[0], "is not the first part: parts before it are missing"))
    if problems:
        raise IntegrityError(problems[0][1], where=f"{folder}/{problems[0][0]}", fix=RESTORE)
    return _End(len(events), events_head(events))


def _is_first_version(folder: Path) -> bool:
    """Runs of the schema's first version had no file beside their events."""
    from pipeline.audit.binding import is_first_version  # both modules import this one
    from pipeline.audit.shards import committed

    return is_first_version(folder, committed(folder))


def _follow(folder: Path, end: _End) -> _End:
    """Go on from a known end through the parts that came after it."""
    while entry_of(folder, name := part_name(end.number)) is not None:
        part = read_part(folder, name)
        problems = chain_problems(part.rows, name, end.number, end.head)
        if part.prev_part_sha256 != end.part_sha256 or problems:
            what = problems[0][1] if problems else "is not chained to the part before it"
            raise IntegrityError(what, where=f"{folder}/{name}", fix=RESTORE)
        end = _End(end.number + len(part.rows), str(part.rows[-1]["record_sha256"]), name, part.sha256)
    return end


def _settle(folder: Path, end: _End) -> None:
    """Write the head file, and again while another process appended meanwhile: the last to write names the last event."""
    while True:
        write_file(folder, EVENTS_HEAD_FILE, end.line)
        now = _follow(folder, end)
        if now == end:
            return
        end = now


def _end_problems(
    folder: Path, events: Sequence[Mapping[str, Any]], parts: dict[str, str], *, strict: bool
) -> list[tuple[str, str]]:
    """Compare ``events-head.json`` with the events and parts (digests by name) that are there."""
    last = next(reversed(parts), "")
    try:
        if entry_of(folder, EVENTS_HEAD_FILE) is None:
            if len(parts) > 1:
                return [(EVENTS_HEAD_FILE, "is missing; it names the last part")]
            # A power cut may come between the very first event and this file.
            begun = not events or last == part_name(0) or (not last and len(events) == 1)
            return [] if begun else [NO_HEAD]
        end = _End.parse(read_file(folder, EVENTS_HEAD_FILE))
    except ClearanceError as error:
        if strict and not isinstance(error, IntegrityError):
            raise
        return [(EVENTS_HEAD_FILE, error.what)]
    where = end.part or (EVENTS_FOLDER if parts else EVENT_LINES)
    if len(events) < end.number:
        return [(where, f"events are missing: {EVENTS_HEAD_FILE} counts {end.number}, {len(events)} are here")]
    if events_head(events[: end.number]) != end.head or (end.part and parts.get(end.part) != end.part_sha256):
        return [(where, f"is not what {EVENTS_HEAD_FILE} names: events were changed")]
    return []
