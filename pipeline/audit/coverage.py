"""What lies in a folder: whether it is a run's, and which files of a run folder no commit names.

Those are a problem among the shards, and named elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from index.counted import counted
from index.errors import IntegrityError
from index.storage import TEMPORARY, Entry, entries, entry_of
from pipeline.audit.binding import PLAN_FILE, REQUESTS_FILE
from pipeline.audit.compacted import PARTS, PARTS_INDEX, PartsIndex, is_part_file
from pipeline.audit.envelope import ENVELOPE_FILE
from pipeline.audit.event_lines import EVENT_LINES
from pipeline.audit.event_parts import EVENTS_FOLDER, EVENTS_HEAD_FILE, is_part
from pipeline.audit.report_digest import REPORT_HTML, REPORT_JSON
from pipeline.audit.shards import COMMITS, EVERY_TABLE, RUN_FILE, is_leftover
from pipeline.audit.timestamp import STAMP_FILE

PAGES = "pages"
CARD_FILE = "README.md"  # by which readers of data sets find the samples
LEASE_FILE = ".lease"

_FILES = {PLAN_FILE, RUN_FILE, ENVELOPE_FILE, STAMP_FILE, EVENTS_HEAD_FILE, EVENT_LINES}
_FOLDERS = {COMMITS, PARTS, EVENTS_FOLDER, *EVERY_TABLE}


def holds_run(folder: Path) -> bool:
    """Whether a folder is a run folder, however damaged: one file of those that a run writes from its plan on is enough.

    A run that begins writes ``.lease`` and ``requests.parquet`` before ``plan.json``. A folder with no more than these is none
    yet.

    Raises:
        InputError: it cannot be read.
    """
    if entry_of(folder, PLAN_FILE) is not None:
        return True
    there = entries(folder)
    if any(entry.name in _FILES or (entry.name in _FOLDERS and entry.kind == "link") for entry in there):
        return True
    for name in (entry.name for entry in there if entry.name in _FOLDERS and entry.kind == "folder"):
        inside = [entry.name for entry in entries(folder, name) if entry.kind == "file"]
        # A run may be called "commits" itself, in a folder of runs.
        if PLAN_FILE not in inside and any(of_a_run(name, leaf) for leaf in inside):
            return True
    return False


def of_a_run(folder: str, name: str) -> bool:
    """Whether a run writes files of that name into that folder of it, under way or for good."""
    if folder == EVENTS_FOLDER:
        return is_part(name) or name.startswith(TEMPORARY)
    if folder == PARTS:
        return is_part_file(name) or name.startswith(TEMPORARY)
    return is_leftover(folder, name) or (folder == COMMITS and name.endswith(".json") and not name.startswith("."))


def strangers(folder: Path, known: Collection[str], index: PartsIndex | None = None) -> Iterator[tuple[str, str]]:
    """What lies among the shards and no commit names, as (where, what). A reader of such a folder would read it too.

    In a compacted run that is also what its parts took the place of.
    """
    if index is not None:
        parts = {PARTS_INDEX, *(part.path for part in index.parts)}
        for entry in _found(folder, PARTS):
            if (where := f"{PARTS}/{entry.name}") not in parts or entry.kind != "file":
                yield where, "is no part that the index of parts names; `clearance compact` removes leftovers"
    for name in (*EVERY_TABLE, COMMITS):
        try:
            found = entries(folder, name)
        except IntegrityError as error:
            yield name, error.what
            continue
        for entry in found:
            where = f"{name}/{entry.name}"
            if entry.name.startswith(TEMPORARY) and entry.kind == "file":
                yield where, "is a leftover of an unfinished write; resuming the run sweeps it away"
            elif index is not None and (where in known or (name == COMMITS and entry.name[:-5] in index.markers)):
                yield where, "is in the parts too: compacting goes on, or was stopped; `clearance compact` removes it"
            elif name == COMMITS:
                if not entry.name.endswith(".json") or entry.name.startswith("."):
                    yield where, "is no commit marker"
            elif where not in known:
                yield (
                    where,
                    "belongs to no committed shard" + (f" (a {entry.kind})" if entry.kind in ("folder", "link") else ""),
                )


def _found(folder: Path, name: str) -> list[Entry]:
    try:
        return entries(folder, name)
    except IntegrityError:  # a link in the folder's place: the index that was read is not there any more
        return []


def uncovered(folder: Path, covered: Collection[str]) -> Iterator[tuple[str, str]]:
    """What lies directly in the run folder and was not looked at, and why, as (where, what)."""
    for entry in entries(folder):
        # A link or a folder in the place of a file of the run is a problem, and named as one.
        if entry.name not in covered and (why := _why(folder, entry)):
            yield entry.name, why
        elif entry.name == EVENTS_FOLDER and entry.kind == "folder":
            for inner in entries(folder, EVENTS_FOLDER):
                if inner.name.startswith(TEMPORARY):
                    yield (
                        f"{EVENTS_FOLDER}/{inner.name}",
                        "a leftover of an unfinished write, or an event that is being written",
                    )


def _why(folder: Path, entry: Entry) -> str:
    if entry.kind == "link":
        return "a link; nothing behind it was looked at"
    if entry.kind == "folder" and entry.name == PAGES:
        return f"pages of {counted(len(entries(folder, PAGES)), 'request')}; `clearance report --pages` writes them again"
    if entry.kind == "folder" and entry.name == PARTS:
        return "parts of a compaction that goes on or was stopped; no reader uses them yet, `clearance compact` finishes it"
    if entry.kind == "folder":
        inside = len(entries(folder, entry.name))
        return f"a folder that is not the run's, with {inside} {'entry' if inside == 1 else 'entries'}"
    if entry.kind == "other":
        return "neither a file nor a folder"
    if entry.name in (REPORT_HTML, REPORT_JSON):
        return "a report; `clearance report` writes it again"
    if entry.name == CARD_FILE:
        return "a card for readers of data sets; it states nothing that is checked"
    if entry.name in (PLAN_FILE, REQUESTS_FILE):
        return "a file of the plan; no statement names its digest"
    if entry.name == LEASE_FILE:
        return "the run's lock" if entry.size else ""
    if entry.name.startswith(TEMPORARY):
        return "a leftover of an unfinished write"
    return "not a file of the run"
