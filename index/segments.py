"""What the segments of an index are together: which rows may match, what all rows hash to, which of them a merge takes in.

And the folder that they lie in, and how rows are amended.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from index import ann
from index.errors import InputError
from index.old_segment import OLD_FILES, OldSegment
from index.reference import COLUMNS, MATCHING, NewReference, Reference, amended
from index.segment import Segment
from index.set_hash import SetHash

OWN = {"CURRENT", "snapshots", "segments", "journal", "building", "calibration.json"}  # what a folder may hold beforehand
Amendments = Mapping[str, Mapping[str, str]]


def open_segment(folder: Path, entry: Mapping[str, Any], dim: int, *, afresh: bool = False) -> Segment:
    """The segment of a snapshot's entry, in whatever form it was written; raises as :class:`index.segment.Segment`."""
    kind = OldSegment if set(entry["files"]) == OLD_FILES else Segment
    return kind(folder, entry, dim, afresh=afresh)


def allowed_rows(segment: Segment, amendments: Amendments, gone: Collection[str]) -> np.ndarray | None:
    """The rows of a segment that may match, as :func:`index.ann.bits`; None: all."""
    changed = {ref_id: changes["status"] in MATCHING for ref_id, changes in amendments.items() if "status" in changes}
    changed |= dict.fromkeys(gone, False)
    rows = segment.rows_of([*changed])
    if not len(segment.stored_inactive) and not (rows >= 0).any():
        return None
    allowed = np.ones(segment.rows, bool)
    allowed[segment.stored_inactive] = False
    allowed[rows[rows >= 0]] = np.fromiter(changed.values(), bool, len(changed))[rows >= 0]
    return None if allowed.all() else ann.bits(allowed)


def hash_of_rows(segments: Sequence[Segment], entries: Sequence[Mapping[str, Any]], amendments: Amendments) -> SetHash:
    """The hash of the set of all rows as amended. Only rows that changed are read: a segment's own hash is in its entry."""
    sums = SetHash()
    for segment, entry in zip(segments, entries, strict=True):
        if "set_hash" in entry:
            sums.join(SetHash(entry["set_hash"]))
        else:
            sums.add(segment.digest(row, {}) for row in range(segment.rows))
    for ref_id, changes in amendments.items():
        for segment in segments:
            if (row := segment.find(ref_id)) is not None:
                sums.remove([segment.digest(row, {})]).add([segment.digest(row, changes)])
    return sums


def to_merge(segments: Sequence[Segment]) -> Sequence[Segment]:
    """The segments that the next one takes in: those that are not large, so that a large one is not written again for a few
    additions; all of them when all are large."""
    small = [segment for segment in segments if segment.rows <= ann.FLAT_LIMIT]
    return small or segments


def amended_by(
    works: Mapping[str, NewReference], stored: Mapping[str, Reference], before: Amendments
) -> dict[str, dict[str, str]]:
    """The amendments once works with stricter statuses are in.

    Args:
        works: id → the work. stored: id → the reference as its segment has it. before: the amendments so far.
    """
    amendments = {ref_id: dict(changes) for ref_id, changes in before.items()}
    for ref_id, work in works.items():
        if work.status != amended(stored[ref_id], amendments.get(ref_id, {})).status:  # the same status again is no news
            amendments[ref_id] = differences(stored[ref_id], {name: getattr(work, name) for name in COLUMNS})
    return amendments


def differences(stored: Reference, now: Mapping[str, str]) -> dict[str, str]:
    """The columns of a work that differ from the stored ones."""
    return {name: value for name, value in now.items() if value != getattr(stored, name)}


def make_folder(folder: Path) -> None:
    """Make the folder of a new index, or take one that holds nothing but a build that was stopped.

    Raises:
        InputError: it holds an index or something else, or cannot be made.
    """
    if os.path.exists(folder / "CURRENT"):
        raise InputError("already holds an index", where=str(folder), fix="Add to it, or name a new folder")
    try:
        other = sorted(path.name for path in folder.iterdir() if path.name not in OWN) if folder.exists() else []
        if other:
            what = f"is not empty ({', '.join(other[:3])}{' …' if len(other) > 3 else ''})"
            raise InputError(what, where=str(folder), fix="Name a new folder with --out")
        (folder / "snapshots").mkdir(parents=True, exist_ok=True)
        (folder / "segments").mkdir(exist_ok=True)
    except OSError as error:
        what = f"cannot become an index ({error.strerror or error})"
        raise InputError(what, where=str(folder), fix="Name a folder that may be written to") from None
