"""Files of a run folder that no commit names: a problem among the shards, and named elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from index.counted import counted
from index.errors import IntegrityError
from index.storage import TEMPORARY, Entry, entries
from pipeline.audit.binding import PLAN_FILE, REQUESTS_FILE
from pipeline.audit.compacted import PARTS, PARTS_INDEX, PartsIndex
from pipeline.audit.event_parts import EVENTS_FOLDER
from pipeline.audit.report_digest import REPORT_HTML, REPORT_JSON
from pipeline.audit.shards import COMMITS, EVERY_TABLE

PAGES = "pages"
CARD_FILE = "README.md"  # by which readers of data sets find the samples
LEASE_FILE = ".lease"


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
