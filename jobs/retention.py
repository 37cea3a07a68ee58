"""Retention: what of a run was kept as long as its run file says, and is due to be erased; and erasing on request.

Rows stay: they are the record. What is erased are payloads, by :mod:`pipeline.audit.erase`, each time with an event. Three
rules say when a sample's payloads are due:

* **A released sample**: all of them at ``retain_until`` (``retention_days`` after it ended; 0: no limit).
* **A sample that was not released**: its pictures (the full one in ``kept``, the thumbnails of its attempts) after the shorter
  ``retention_days_held`` (0: as ``retention_days``), the rest of it at ``retain_until``. What counts is the outcome in force.
* **While it waits for a person**, in review or held back by a claim, the sample's pictures are not due: the person needs them.

What is under a legal hold is never due, and is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from index.errors import InputError
from jobs.by import By
from jobs.reaudit.standing import Standing
from jobs.review.queue import waiting
from pipeline.audit.by_key import samples_by_key
from pipeline.audit.erase import COLUMNS, EMBEDDING, KINDS, PICTURE, PROMPT, Erased, erase_payloads, unfinished
from pipeline.audit.events import NewEvent, append_events, events_head, read_events
from pipeline.audit.ledger import SEALED, scan_statement
from pipeline.audit.requests import ended_requests
from pipeline.audit.state import fold
from pipeline.outcome import ACCEPTED

RELEASED, HELD_BACK = "released", "not released"
# What stands in for a payload in the chain: where it is null, there never was one.
_DIGESTS = {
    "image": "file_sha256", "embedding": "embedding_sha256", "prompt": "prompt_commit", "columns": "columns_commit",
    "drawn_prompt": "drawn_commit",
}  # fmt: skip
_ROW = ["sample_id", "request_key", "outcome", "finished_at", "retain_until", "kept_sha256", *_DIGESTS.values()]
Clock = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


class Item(NamedTuple):
    """Payloads of one sample that are still there and have one end of retention.

    ``until`` is None where nothing limits it; ``holds`` are the matters that it is held for; ``waits``: for a person.
    """

    sample_id: str
    key: str
    table: str
    what: tuple[str, ...]
    columns: frozenset[str]
    until: datetime | None
    holds: tuple[str, ...]
    waits: bool

    def due(self, now: datetime) -> bool:
        return self.until is not None and self.until <= now and not self.holds and not self.waits


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What was due and erased, or would be.

    Attributes:
        now: the time that ends of retention were compared with. dry_run: nothing was changed.
        due: number of samples, by kind and payloads. held: keys that would be due and are under a hold.
        waiting: keys that would be due and wait for a person.
        unfinished: number of samples of which an earlier erasure was interrupted.
        erased: what was erased, or would be.
    """

    now: datetime
    dry_run: bool
    due: Mapping[str, int]
    held: tuple[str, ...]
    waiting: tuple[str, ...]
    unfinished: int
    erased: Erased

    def plain(self) -> dict[str, Any]:
        return {
            "now": self.now.isoformat(timespec="seconds"),
            "dry_run": self.dry_run,
            "due": dict(self.due),
            "held": list(self.held),
            "waiting_for_review": list(self.waiting),
            "unfinished": self.unfinished,
            **plain(self.erased),
        }


def plain(erased: Erased) -> dict[str, Any]:
    """What was erased, as plain data."""
    return {
        "payloads": dict(sorted(erased.cells.items())),
        "samples": erased.samples,
        "files": list(erased.files),
        "events": list(erased.events),
        "removed": list(erased.removed),
        "old_versions": erased.old_versions,
        "old_versions_days": erased.old_versions_days,
    }


def items_of(folder: Path, standing: Standing, days_held: int) -> Iterator[Item]:
    """What of every sample is still there, and until when it is kept.

    Args:
        folder: the run folder. standing: what events made of its samples.
        days_held: ``retention_days_held`` of the run file.
    """
    state, needed = standing.state, {one.sample_id for one in waiting(folder, standing)}
    rest = (EMBEDDING, PROMPT, COLUMNS)
    alike: dict[frozenset[str], frozenset[str]] = {}  # a run of a million samples has few sets of columns
    for ended in ended_requests(folder, _ROW, ["thumbnail_sha256"]):
        row = ended.sample
        own, outcome = state.of(row["sample_id"]), state.outcome(row)
        until = own.retain_until or row["retain_until"]
        there = _there(row, ended.attempts) - own.erased
        short = row["finished_at"] + timedelta(days=days_held) if days_held else None
        first = min((end for end in (short, until) if end is not None), default=None)
        rules: list[tuple[str, tuple[str, ...], datetime | None, bool]] = [(RELEASED, (PICTURE, *rest), until, False)]
        if outcome not in ACCEPTED:
            rules = [(HELD_BACK, (PICTURE,), first, row["sample_id"] in needed), (HELD_BACK, rest, until, False)]
        for table, what, end, waits in rules:
            columns = there & frozenset[str]().union(*(KINDS[kind] for kind in what))
            if columns:
                columns = alike.setdefault(columns, columns)
                yield Item(row["sample_id"], row["request_key"], table, what, columns, end, own.holds, waits)


def _there(row: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The payload columns that the row had when it was written."""
    there = {column for column, digest in _DIGESTS.items() if row[digest] is not None}
    there |= {"negative_prompt"} if "prompt" in there else set()
    there |= {"image"} if row["kept_sha256"] is not None else set()
    there |= {"thumbnail"} if any(attempt["thumbnail_sha256"] is not None for attempt in attempts) else set()
    return frozenset(there)


def days_held_of(folder: Path) -> int:
    """``retention_days_held`` of a run, from its statement, else from its plan; 0 for runs from before there was this key.

    Raises:
        InputError, IntegrityError: a run without a statement whose plan cannot be read.
    """
    from jobs.run.planning.stored_plan import stored_plan

    statement, _ = scan_statement(folder)
    predicate = statement.get("predicate") if statement is not None else stored_plan(folder)
    config = predicate.get("config") if isinstance(predicate, dict) else None
    days = config.get("retention_days_held", 0) if isinstance(config, dict) else 0
    return days if type(days) is int and days >= 0 else 0


def show_retention(folder: Path, *, clock: Clock = utc_now) -> list[dict[str, Any]]:
    """One entry for each kind of samples and payloads: how many, how many due, held, waiting, and the next end.

    Raises:
        ClearanceError: the folder is no run, or a file in it cannot be read.
    """
    now, standing = clock(), Standing.of(folder)
    groups: dict[tuple[str, tuple[str, ...]], list[Item]] = {}
    for item in items_of(folder, standing, days_held_of(folder)):
        groups.setdefault((item.table, item.what), []).append(item)
    shown = []
    for (table, what), items in groups.items():
        ends = [item.until for item in items if item.until is not None and item.until > now]
        passed = [item for item in items if item.until is not None and item.until <= now]
        shown.append(
            {
                "samples": table,
                "payloads": list(what),
                "number": len(items),
                "due": sum(item.due(now) for item in passed),
                "held": sum(bool(item.holds) for item in items),
                "waiting_for_review": sum(item.waits for item in items),
                "no_limit": sum(item.until is None for item in items),
                "next": min(ends).isoformat(timespec="seconds") if ends else None,
            }
        )
    return shown


def apply_retention(
    folder: Path, by: By, *, dry_run: bool = False, old_versions_days: int | None = None, clock: Clock = utc_now
) -> Applied:
    """Erase what is due, and what an interrupted erasure left; write the event when anything was erased.

    Args:
        folder: the run folder.
        by: who applies it, and why.
        dry_run: change nothing, and say what would be erased.
        old_versions_days: as :func:`pipeline.audit.erase.erase_payloads` has it.
        clock: what time it is.

    Raises:
        InputError: the run is not finished.
        RunStopped: another process holds the folder, an event came meanwhile, or a file cannot be written.
        IntegrityError: a file or the events were changed.
    """
    with _held(folder, dry_run=dry_run):
        standing, now = Standing.of(folder), clock()
        events, state = standing.events, standing.state
        wanted: dict[str, frozenset[str]] = {}
        due: Counter[str] = Counter()
        held: dict[str, None] = {}
        needed: dict[str, None] = {}
        for item in items_of(folder, standing, days_held_of(folder)):
            if item.due(now):
                wanted[item.sample_id] = wanted[item.sample_id] | item.columns if item.sample_id in wanted else item.columns
                due[f"{item.table}: {', '.join(item.what)}"] += 1
            elif item.until is not None and item.until <= now:
                (held if item.holds else needed)[item.key] = None
        begun = {one: columns for one, columns in unfinished(folder).items() if not state.of(one).holds}
        for sample_id, columns in begun.items():
            wanted[sample_id] = wanted.get(sample_id, frozenset()) | columns
        event = NewEvent(kind="payload.erased", actor=by.role, person=by.person, reason=by.reason, details={"why": "retention"})
        erased = erase_payloads(folder, wanted, event, known=len(events), dry_run=dry_run, old_versions_days=old_versions_days)
        found = Applied(
            now=now, dry_run=dry_run, due=due, held=tuple(held), waiting=tuple(needed), unfinished=len(begun), erased=erased
        )
        if erased.events:
            _record(folder, by, found, sorted(wanted), events_head(events))
    return found


def erase_keys(
    folder: Path,
    keys: Sequence[str],
    what: Sequence[str],
    by: By,
    *,
    dry_run: bool = False,
    old_versions_days: int | None = None,
) -> Erased:
    """Erase payloads of samples on request.

    Args:
        folder: the run folder.
        keys: request keys. what: kinds of :data:`pipeline.audit.erase.KINDS`; none: all.
        by: who erases, and why. dry_run: change nothing.
        old_versions_days: as :func:`pipeline.audit.erase.erase_payloads` has it.

    Raises:
        InputError: the run is not finished, a key is unknown, or a sample is under a legal hold.
        RunStopped, IntegrityError: as :func:`apply_retention`.
    """
    unknown = [name for name in what if name not in KINDS]
    if unknown:
        raise InputError(f"{unknown[0]!r} is no kind of payload", where="--what", fix=f"Name some of {', '.join(KINDS)}")
    columns = frozenset[str]().union(*(KINDS[name] for name in what or KINDS))
    with _held(folder, dry_run=dry_run):
        events = read_events(folder)
        state, chosen = fold(events), samples_by_key(folder, keys)
        for key, sample_id in chosen.items():
            if matters := state.of(sample_id).holds:
                fix = "Lift the hold first, if that is right: see `clearance hold show`"
                raise InputError(
                    f"is under a legal hold ({', '.join(matters)}); nothing was erased", where=f"key {key!r}", fix=fix
                )
        event = NewEvent(kind="payload.erased", actor=by.role, person=by.person, reason=by.reason, details={"why": "request"})
        wanted = dict.fromkeys(chosen.values(), columns)
        return erase_payloads(folder, wanted, event, known=len(events), dry_run=dry_run, old_versions_days=old_versions_days)


def _record(folder: Path, by: By, found: Applied, samples: Sequence[str], before: str) -> None:
    events = read_events(folder)
    # Of older versions the event has a word only where there are some.
    left_out = {"dry_run", "files", "removed"} | ({"old_versions"} if not found.erased.old_versions else set())
    left_out |= {"old_versions_days"} if found.erased.old_versions_days is None else set()
    details = {name: value for name, value in found.plain().items() if name not in left_out}
    event = NewEvent(
        kind="retention.applied",
        actor=by.role,
        person=by.person,
        reason=by.reason,
        samples=samples,
        details=details,
        digests={"events_before_sha256": before, "events_after_sha256": events_head(events)},
    )
    append_events(folder, [event])


@contextmanager
def _held(folder: Path, *, dry_run: bool) -> Iterator[None]:
    """Hold a finished run's folder, so that nobody else changes its files; a dry run writes nothing, the lock included.

    Raises:
        InputError: the run is not sealed.
    """
    from jobs.run.lease.lock import lease

    if not any(event["kind"] == SEALED for event in read_events(folder)):
        fix = "Finish the run with --resume first, or end it as it is (clearance end); or remove the whole folder"
        raise InputError("the run is not sealed; payloads are erased from finished runs", where=str(folder), fix=fix)
    with nullcontext() if dry_run else lease(folder):
        yield
