"""What the segments of an index are together: which rows may match, what all rows hash to, which of them a merge takes in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from index import ann
from index.old_segment import OLD_FILES, OldSegment
from index.reference import MATCHING
from index.segment import Segment
from index.set_hash import SetHash

Amendments = Mapping[str, Mapping[str, str]]


def open_segment(folder: Path, entry: Mapping[str, Any], dim: int, *, afresh: bool = False) -> Segment:
    """The segment of a snapshot's entry, in whatever form it was written; raises as :class:`index.segment.Segment`."""
    kind = OldSegment if set(entry["files"]) == OLD_FILES else Segment
    return kind(folder, entry, dim, afresh=afresh)


def allowed_rows(segment: Segment, amendments: Amendments, gone: Collection[str]) -> np.ndarray | None:
    """The rows of a segment that may match, as :func:`index.ann.bits`; None: all."""
    allowed = np.ones(segment.rows, bool)
    allowed[segment.stored_inactive] = False
    for ref_id, changes in amendments.items():
        if "status" in changes and (row := segment.find(ref_id)) is not None:
            allowed[row] = changes["status"] in MATCHING
    for ref_id in gone:
        if (row := segment.find(ref_id)) is not None:
            allowed[row] = False
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
