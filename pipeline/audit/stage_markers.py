"""Verify what says where the rows of a run are: the commit markers, and the index of a compacted run's parts. Stage files."""

from __future__ import annotations

from pathlib import Path

from index.errors import ClearanceError
from pipeline.audit.compacted import PARTS_INDEX, PartsIndex, parts_index
from pipeline.audit.shards import COMMITS, ShardReceipt, markers, receipt_in, receipt_of
from pipeline.audit.stage import FILES, Findings


def read_index(folder: Path, found: Findings) -> PartsIndex | None:
    """The index of a compacted run's parts; None where there is none that can be read. Stage files."""
    try:
        index = parts_index(folder)
    except ClearanceError as error:
        found.problem(FILES, PARTS_INDEX, error.what)
        return None
    found.counts["files"] += index is not None
    return index


def read_receipts(folder: Path, found: Findings, index: PartsIndex | None = None) -> dict[str, ShardReceipt]:
    """The commit markers that can be read, by shard id; stage files."""
    receipts: dict[str, ShardReceipt] = {}
    if index is not None:
        for shard_id in index.markers:
            try:
                receipts[shard_id] = receipt_in(index, shard_id)
                found.counts["shards"] += 1
            except ClearanceError as error:
                found.problem(FILES, PARTS_INDEX, f"{error.what}: shard {shard_id}")
        return receipts
    try:
        names = markers(folder)
    except ClearanceError as error:
        found.problem(FILES, COMMITS, error.what)
        return {}
    for shard_id in names:
        found.counts["files"] += 1
        try:
            receipts[shard_id] = receipt_of(folder, shard_id)
            found.counts["shards"] += 1
        except ClearanceError as error:
            found.problem(FILES, f"{COMMITS}/{shard_id}.json", error.what)
    return receipts
