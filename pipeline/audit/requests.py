"""Read a run's rows back, one request with its attempts at a time: memory holds a shard's rows, never the run's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from index.errors import ClearanceError, IntegrityError
from index.parquet import parquet_file, rows_of
from index.storage import open_file, parsing
from pipeline.audit.chain import table_header
from pipeline.audit.layout import Unit, units
from pipeline.audit.schema import SCHEMA_VERSION, is_readable, schema_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

VERIFY = "Run `clearance verify`, and restore the file from a copy"
Row = dict[str, Any]
# How a reader of rows opens a file of a run folder: as it is, or held against what was committed
# (:meth:`pipeline.audit.committed_files.CommittedFiles.open`).
Opener = Callable[[Path, str], IO[bytes]]


class Ended(NamedTuple):
    """A request that has ended: its row in ``samples``, its rows in ``attempts`` in order, and where it stands."""

    sample: Row
    attempts: list[Row]
    where: str


def ended_requests(
    folder: Path,
    sample_columns: Collection[str],
    attempt_columns: Collection[str],
    *,
    shards: Collection[str] | None = None,
    damaged: list[ClearanceError] | None = None,
    opener: Opener = open_file,
) -> Iterator[Ended]:
    """Every request of a run's committed shards, in the order of shards and rows; those of an unfinished run too.

    Args:
        folder: the run folder.
        sample_columns: of the samples table, to read beside ``sample_id``.
        attempt_columns: of the attempts table, to read beside ``sample_id`` and ``attempt``.
        shards: only those; all when not given.
        damaged: when given, a shard that cannot be read is left out as a whole and its error appended here.
        opener: opens the files.

    Raises:
        IntegrityError: a file is missing, cannot be read, or a column in it is not of its type (and ``damaged`` is not given).
        InputError: the storage failed (and ``damaged`` is not given).
    """
    for unit in units(folder, shards, damaged=damaged):
        try:
            wanted = {"sample_id", *sample_columns}, {"sample_id", "attempt", *attempt_columns}
            ended = _ended(folder, unit, *wanted, opener)
        except ClearanceError as error:
            if damaged is None:
                raise
            damaged.append(error)
        else:
            yield from ended


def _ended(folder: Path, unit: Unit, sample_columns: set[str], attempt_columns: set[str], opener: Opener) -> list[Ended]:
    attempts: dict[str, list[Row]] = {}
    for _, row in rows_of_unit(folder, unit, "attempts", attempt_columns, opener=opener):
        attempts.setdefault(row["sample_id"], []).append(row)
    ended = []
    for number, row in rows_of_unit(folder, unit, "samples", sample_columns, opener=opener):
        mine = sorted(attempts.pop(row["sample_id"], []), key=lambda one: int(one["attempt"]))
        ended.append(Ended(row, mine, f"{unit.tables['samples'].path} row {number}"))
    return ended


def rows_of_unit(
    folder: Path, unit: Unit, table: str, columns: Collection[str] | None = None, *, opener: Opener = open_file
) -> Iterator[tuple[int, Row]]:
    """The rows of a table in a unit, with their numbers in their file; none where it has no such table."""
    if (own := unit.tables.get(table)) is not None:
        yield from rows_in(folder, own.path, table, columns, first=own.first, count=own.rows, opener=opener)


def rows_in(
    folder: Path,
    path: str,
    table: str,
    columns: Collection[str] | None = None,
    *,
    first: int = 0,
    count: int | None = None,
    opener: Opener = open_file,
) -> Iterator[tuple[int, Row]]:
    """Rows of one data file, with their numbers; at most 64 of them are in memory.

    A file of an earlier version of the schema gives rows of the present one: what it lacks is None.

    Args:
        folder: the run folder.
        path: the file, relative to it.
        table: ``samples`` or ``attempts``.
        columns: what to read; every column of the schema when not given.
        first, count: from which row on, and how many; all when not given. Only row groups that hold them are read.
        opener: opens the file.

    Raises:
        IntegrityError: the file is missing or a link, ends before, cannot be read, or a column in it is not of its type.
        InputError: the storage failed.
    """
    now = schema_of(table)
    names = sorted(columns) if columns is not None else now.names
    number = first
    with opener(folder, path) as stream:
        with parsing(path, fix=VERIFY):
            file = parquet_file(stream)
            schema = file.schema_arrow  # made anew each time it is asked for
            expected = schema_of(table, written_version(schema))
            then, today = set(expected.names), set(now.names)
            there = [name for name in names if name in then or name not in today]
            for name in there:
                _require(schema, expected.field(name), path)
            absent = dict.fromkeys(name for name in names if name not in there)
            complete = {name: fill for name in there if (fill := _filling(schema.field(name).type, now.field(name).type))}
            batches = _batches(file, there, first, count)
        while rows := _next_rows(batches, path):
            for row in rows:
                if not isinstance(row.get("sample_id", ""), str) or not isinstance(row.get("attempt", 0), int):
                    raise IntegrityError("names no sample", where=f"{path} row {number}", fix=VERIFY)
                row.update(absent)
                for name, fill in complete.items():
                    row[name] = fill(row[name])
                yield number, row
                number += 1


def _batches(file: pq.ParquetFile, columns: list[str], first: int, count: int | None) -> Iterator[pa.RecordBatch]:
    """Batches of at most 64 rows: those of some consecutive rows, or all."""
    if not first and count is None:
        yield from file.iter_batches(batch_size=64, columns=columns, use_threads=False)
        return
    stop = file.metadata.num_rows if count is None else first + count
    if stop > file.metadata.num_rows:
        raise ValueError(f"it ends at row {file.metadata.num_rows}, before row {stop}")
    groups, start, at = list[int](), 0, 0
    for group in range(file.metadata.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        if end > first and start < stop:
            at = at if groups else start
            groups.append(group)
        start = end
    for batch in file.iter_batches(batch_size=64, row_groups=groups, columns=columns, use_threads=False) if groups else ():
        yield batch.slice(max(0, first - at), max(0, min(stop, at + batch.num_rows) - max(first, at)))
        at += batch.num_rows


def written_version(schema: pa.Schema) -> int:
    """The version of the schema that a data file states; the present one where it states none that is known."""
    try:
        version = table_header(schema).get("schema_version")
    except IntegrityError:
        return SCHEMA_VERSION
    return int(version) if version is not None and is_readable(version) else SCHEMA_VERSION


def _filling(found: pa.DataType, now: pa.DataType) -> Callable[[Any], Any] | None:
    """What gives a value the struct members that its version lacks; None where it lacks none."""
    import pyarrow as pa

    if pa.types.is_list(now) and pa.types.is_list(found):
        each = _filling(found.value_type, now.value_type)
        return None if each is None else lambda value: None if value is None else [each(one) for one in value]
    if not (pa.types.is_struct(now) and pa.types.is_struct(found)):
        return None
    members = {member.name: member.type for member in found}
    absent = dict.fromkeys(member.name for member in now if member.name not in members)
    return (lambda value: None if value is None else {**absent, **value}) if absent else None


def _next_rows(batches: Iterator[pa.RecordBatch], path: str) -> list[Row]:
    with parsing(path, fix=VERIFY):
        for batch in batches:
            if batch.num_rows:
                rows: list[Row] = rows_of(batch)
                return rows
    return []


def _require(found: pa.Schema, expected: pa.Field, path: str) -> None:
    place = found.get_field_index(expected.name)
    if place < 0:
        raise IntegrityError(f"has no column {expected.name!r}", where=path, fix=VERIFY)
    if not fits(found.field(place).type, expected.type):
        what = f"column {expected.name!r} holds {found.field(place).type}, not {expected.type}"
        raise IntegrityError(what, where=path, fix=VERIFY)


def fits(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a column can be read as the one expected; a struct of another schema may have members more and fewer."""
    import pyarrow as pa

    if pa.types.is_struct(expected):
        members = {member.name: member.type for member in expected}
        shared = [member for member in found if member.name in members] if pa.types.is_struct(found) else []
        return bool(shared) and all(fits(member.type, members[member.name]) for member in shared)
    if pa.types.is_list(expected):
        lists = pa.types.is_list(found) or pa.types.is_fixed_size_list(found)  # embeddings may be of fixed length
        return bool(lists and fits(found.value_type, expected.value_type))
    return bool(found == expected)
