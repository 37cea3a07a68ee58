"""Where the rows of a run are: in the files of its shards, or, after a compaction, in large parts.

Every reader of rows asks here. :func:`data_files` gives whole files; :func:`units` gives what belongs together (the samples of
some shards, their attempts and their kept pictures), little enough to be held in memory.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from index.errors import ClearanceError, IntegrityError
from pipeline.audit.compacted import Slice, parts_index
from pipeline.audit.shards import lost, lost_marker, markers, receipt_of

UNIT_ROWS = 256  # samples of shards in the same parts that are read in one go, at most 64 MB or so of pictures


class Stretch(NamedTuple):
    """Consecutive rows of a data file; ``rows`` is None for all of them."""

    path: str
    first: int = 0
    rows: int | None = None


class Unit(NamedTuple):
    """Shards that are read together: their ids, and their rows by table."""

    shards: tuple[str, ...]
    tables: Mapping[str, Stretch]


def data_files(folder: Path, table: str, *, damaged: list[ClearanceError] | None = None) -> Iterator[str]:
    """Paths of the files that hold a table, in the order of shards and rows.

    Args:
        folder: the run folder.
        table: ``samples``, ``attempts`` or ``kept``.
        damaged: when given, a shard whose marker cannot be read is left out and its error appended here.

    Raises:
        ClearanceError: a marker, or the index of the parts, cannot be read (the marker: if ``damaged`` is not given).
    """
    index = parts_index(folder)
    if index is not None:
        yield from (part.path for part in index.parts if part.table == table)
        return
    for unit in _shards(folder, None, damaged):
        if table in unit.tables:
            yield unit.tables[table].path


def units(
    folder: Path, shards: Collection[str] | None = None, *, damaged: list[ClearanceError] | None = None
) -> Iterator[Unit]:
    """What belongs together, in the order of the shards; every committed shard is in one unit.

    Args:
        folder: the run folder.
        shards: only those; all when not given.
        damaged: as for :func:`data_files`.

    Raises:
        ClearanceError: as :func:`data_files`.
    """
    index = parts_index(folder)
    if index is None:
        yield from _shards(folder, shards, damaged)
        return
    yield from _merged((shard, own) for shard, own in index.slices.items() if shards is None or shard in shards)


def unit_of(folder: Path, path: str, rows: Collection[int]) -> Iterator[Unit]:
    """The shards that hold some rows of a samples file, with what belongs to them.

    Raises:
        IntegrityError: the file is of no committed shard.
    """
    index = parts_index(folder)
    if index is not None:
        ordered = sorted(rows)
        mine = [
            (shard, own)
            for shard, own in index.slices.items()
            if "samples" in own and own["samples"].path == path and _holds(own["samples"], ordered)
        ]
        if mine or not rows:
            yield from _merged(iter(mine))
            return
    elif found := re.fullmatch(r"samples/part-(.+)-[0-9a-f]{16}(-[0-9a-f]+)?\.parquet", path):
        unit = next(_shards(folder, {found[1]}, None), None)
        if unit is not None and unit.tables["samples"].path == path:
            yield unit
            return
    raise IntegrityError("is no file of a committed shard", where=path, fix="Run `clearance verify`")


def _holds(own: Slice, rows: Sequence[int]) -> bool:
    """Whether a slice holds one of some rows, given in their order."""
    at = bisect_left(rows, own.first)
    return at < len(rows) and rows[at] < own.first + own.rows


def _shards(folder: Path, shards: Collection[str] | None, damaged: list[ClearanceError] | None) -> Iterator[Unit]:
    there = markers(folder)
    # Whoever names shards knows them: run.json of a large run is looked into once a pass, not once a file.
    gone = [lost_marker(folder, shard_id) for shard_id in lost(folder, there)] if shards is None else []
    if damaged is not None:
        damaged += gone
    elif gone:
        raise gone[0]
    for shard_id in there:
        if shards is not None and shard_id not in shards:
            continue
        try:
            receipt = receipt_of(folder, shard_id)
        except ClearanceError as error:
            if damaged is None:
                raise
            damaged.append(error)
        else:
            yield Unit((shard_id,), {file.table: Stretch(file.path) for file in receipt.files})


def _merged(slices: Iterator[tuple[str, Mapping[str, Slice]]]) -> Iterator[Unit]:
    """Shards whose rows follow one another in every table, joined while they are few."""
    ids: list[str] = []
    tables: dict[str, Stretch] = {}
    for shard, own in slices:
        joined = _joined(tables, own) if ids else None
        if joined is None:
            if ids:
                yield Unit(tuple(ids), tables)
            ids, joined = [], {name: Stretch(one.path, one.first, one.rows) for name, one in own.items()}
        ids.append(shard)
        tables = joined
    if ids:
        yield Unit(tuple(ids), tables)


def _joined(tables: Mapping[str, Stretch], own: Mapping[str, Slice]) -> dict[str, Stretch] | None:
    joined = dict(tables)
    for name, one in own.items():
        before = tables.get(name)
        if before is None:
            joined[name] = Stretch(one.path, one.first, one.rows)
            continue
        assert before.rows is not None  # of a slice
        if before.path != one.path or before.first + before.rows != one.first:
            return None
        joined[name] = Stretch(one.path, before.first, before.rows + one.rows)
    samples = joined.get("samples")
    return None if samples is not None and (samples.rows or 0) > UNIT_ROWS else joined
