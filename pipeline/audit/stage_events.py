"""Verify the events of a run: stage events, and the plan and the statement that the events name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from index.errors import ClearanceError
from index.storage import digest_of
from pipeline.audit.binding import PLAN_FILE
from pipeline.audit.erasure import Erasures
from pipeline.audit.event_parts import EVENTS_FOLDER
from pipeline.audit.events import NO_HEAD, event_files, events_head, scan_events
from pipeline.audit.ledger import SEALED
from pipeline.audit.schema import PAYLOADS_OF
from pipeline.audit.shards import RUN_FILE
from pipeline.audit.stage import EVENTS, FILES, STATEMENT, Findings


def scan_run_events(folder: Path, found: Findings, *, first_version: bool = False) -> list[dict[str, Any]]:
    """The events that can be read; every break of their chain is a problem of stage events.

    The first version of the schema wrote no head beside the events.
    """
    events, problems = scan_events(folder)
    found.add(EVENTS, (problem for problem in problems if not (first_version and problem == NO_HEAD)))
    return events


def check_events(
    folder: Path,
    statement: Mapping[str, Any] | None,
    events: Sequence[Mapping[str, Any]],
    plan_file_sha256: str,
    found: Findings,
) -> None:
    """Hold the events against the plan and the statement that they name."""
    found.counts["events"] += len(events)
    with suppress(ClearanceError):  # the scan of the events named it
        found.counts["files"] += len(event_files(folder))
    for event in events:
        if plan_file_sha256 and event["digests"].get("plan_file_sha256", plan_file_sha256) != plan_file_sha256:
            found.problem(FILES, PLAN_FILE, f"is not the plan that event {event['seq']} names")
    if events:
        found.compared(EVENTS, f"each of {len(events):,} events follows the one before it")
    else:
        found.skipped(EVENTS, "the run has no events")
    sealed = [event for event in events if event["kind"] == SEALED]
    if statement is None:
        if sealed:
            found.problem(STATEMENT, RUN_FILE, f"the run was sealed (event {sealed[-1]['seq']}); its statement is gone")
        return
    predicate = statement.get("predicate")
    stated = predicate.get("events") if isinstance(predicate, dict) else None
    count, head = (stated.get("count"), stated.get("head")) if isinstance(stated, dict) else (None, None)
    if not isinstance(count, int) or len(events) < count or events_head(events[: max(count, 0)]) != head:
        found.problem(EVENTS, EVENTS_FOLDER, f"events that {RUN_FILE} was sealed over are missing or changed")
    if not sealed:
        found.problem(EVENTS, EVENTS_FOLDER, "holds no event of sealing")
    elif sealed[-1]["digests"].get("run_sha256") != digest_of(folder, RUN_FILE):
        found.problem(STATEMENT, RUN_FILE, "is not the statement that the last sealing event names")


def check_erasures(erasures: Erasures, tables: Mapping[str, str], found: Findings) -> None:
    """Every file that an event erased payloads from is a file of the run that has payloads, and the event names cells of it.

    Args:
        erasures: what the events name.
        tables: the files that payloads can be erased from, and what they hold rows of.
        found: takes the problems.
    """
    for file in erasures.files:
        if file.path not in tables:
            what = (
                "an event erased payloads from it, and it is no file that a commit or the plan names, or one without payloads"
            )
            found.problem(EVENTS, file.path, what)
        elif not any(file.columns.values()):
            found.problem(EVENTS, file.path, f"event {file.seq} says that payloads were erased from it, and names no cell")
        elif other := sorted(file.columns.keys() - PAYLOADS_OF[tables[file.path]]):
            what = f"event {file.seq} names as erased what is no payload of it: {', '.join(other)[:200]}"
            found.problem(EVENTS, file.path, what)
