"""Compact a finished run: its many small files become few large parts, and every digest and proof stays as it is.

The work is in :mod:`pipeline.audit.compact`. Here is what goes before and after: the run's lease, the verification without
which nothing is touched, and the card by which ``datasets`` finds the samples.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from index.errors import InputError, IntegrityError
from index.storage import entry_of, fenced, read_file, require_held, write_file
from jobs.by import By
from jobs.run.lease.lock import lease
from jobs.run.verdict import verify_run
from pipeline.audit.compact import PART_BYTES, Compacted, compact, ignore, tidy
from pipeline.audit.compacted import COMPACTED, PARTS, parts_index
from pipeline.audit.coverage import CARD_FILE, LEASE_FILE
from pipeline.audit.events import NewEvent, read_events
from pipeline.audit.ledger import SEALED

_SMALL, _LARGE = "samples/*.parquet", f"{PARTS}/samples-*.parquet"


def compact_run(
    folder: Path,
    by: By,
    *,
    part_bytes: int = PART_BYTES,
    salt: str | None = None,
    listen: Callable[[int, int], None] = ignore,
) -> Compacted:
    """Compact a sealed run, or finish a compaction that was stopped; a run that is compacted stays as it is.

    Args:
        folder: the run folder.
        by: who compacts, and why.
        part_bytes: what a part should come to.
        salt: the run's secret prompt salt (hex), if it has one, so that its prompts are verified too.
        listen: called with the number of shards' files that are in parts, and of all of them.

    Raises:
        InputError: the run is not sealed.
        IntegrityError: the run does not verify; nothing was changed.
        RunStopped: another process holds the folder, an event came meanwhile, or a file cannot be written; what was begun is
            finished by compacting again.
    """
    if not any(event["kind"] == SEALED for event in read_events(folder)):
        fix = "Finish the run with --resume first; only finished runs are compacted"
        raise InputError("the run is not sealed", where=str(folder), fix=fix)
    folder = fenced(folder, LEASE_FILE, secrets.token_hex(8))
    with lease(folder):
        event = None
        if parts_index(folder) is None:
            tidy(folder)
            _require_whole(folder, salt)
            events = read_events(folder)
            about = NewEvent(kind=COMPACTED, actor=by.role, person=by.person, reason=by.reason)
            compact(folder, about, part_bytes=part_bytes, listen=listen, known=len(events))
            event = len(events)
        index = parts_index(folder)
        assert index is not None  # it was there, or was written just now
        require_held(folder)  # on an object store another session may hold the run by now
        _point_card(folder)
        removed = tidy(folder)
    return Compacted(parts=index.parts, shards=len(index.markers), removed=removed, event=event)


def _require_whole(folder: Path, salt: str | None) -> None:
    problems = verify_run(folder, salt, reports=False).problems
    if problems:
        more = f", and {len(problems) - 1} problems more" if len(problems) > 1 else ""
        what = f"does not verify ({problems[0].what}{more}); nothing was changed"
        where = f"{folder}/{problems[0].where}"
        raise IntegrityError(what, where=where, fix="Run `clearance verify`, and restore what it names from a copy")


def _point_card(folder: Path) -> None:
    """Make the card, by which ``datasets`` finds the samples, name the parts; it changes at once, as the index did."""
    if entry_of(folder, CARD_FILE) is None:
        return
    card = read_file(folder, CARD_FILE)
    if _SMALL.encode() in card:
        write_file(folder, CARD_FILE, card.replace(_SMALL.encode(), _LARGE.encode()))
