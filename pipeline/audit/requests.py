"""Read a run's rows back, one request with its attempts at a time: memory holds a shard's rows, never the run's."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from index.errors import ClearanceError, IntegrityError
from index.padding import first_line
from index.storage import open_file
from pipeline.audit.schema import attempts_schema, samples_schema
from pipeline.audit.shards import markers, receipt_of

if TYPE_CHECKING:
    import pyarrow as pa

VERIFY = "Run `clearance verify`, and restore the file from a copy"
Row = dict[str, Any]


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
    damaged: list[ClearanceError] | None = None,
) -> Iterator[Ended]:
    """Every request of a run's committed shards, in the order of shards and rows; those of an unfinished run too.

    Args:
        folder: the run folder.
        sample_columns: of the samples table, to read beside ``sample_id``.
        attempt_columns: of the attempts table, to read beside ``sample_id`` and ``attempt``.
        damaged: when given, a shard that cannot be read is left out as a whole and its error appended here.

    Raises:
        IntegrityError: a file is missing, cannot be read, or a column in it is not of its type (and ``damaged`` is not given).
    """
    for shard_id in markers(folder):
        try:
            ended = _ended(folder, shard_id, {"sample_id", *sample_columns}, {"sample_id", "attempt", *attempt_columns})
        except ClearanceError as error:
            if damaged is None:
                raise
            damaged.append(error)
        else:
            yield from ended


def _ended(folder: Path, shard_id: str, sample_columns: set[str], attempt_columns: set[str]) -> list[Ended]:
    paths = {file.table: file.path for file in receipt_of(folder, shard_id).files}
    attempts: dict[str, list[Row]] = {}
    for _, row in rows_in(folder, paths["attempts"], "attempts", attempt_columns):
        attempts.setdefault(row["sample_id"], []).append(row)
    ended = []
    for number, row in rows_in(folder, paths["samples"], "samples", sample_columns):
        mine = sorted(attempts.pop(row["sample_id"], []), key=lambda one: int(one["attempt"]))
        ended.append(Ended(row, mine, f"{paths['samples']} row {number}"))
    return ended


def rows_in(folder: Path, path: str, table: str, columns: Collection[str] | None = None) -> Iterator[tuple[int, Row]]:
    """Rows of one data file, with their numbers; at most 64 of them are in memory.

    Args:
        folder: the run folder.
        path: the file, relative to it.
        table: ``samples`` or ``attempts``.
        columns: what to read; every column of the schema when not given.

    Raises:
        IntegrityError: the file is missing or a link, cannot be read, or a column in it is not of its type.
    """
    import pyarrow.parquet as pq

    expected = samples_schema() if table == "samples" else attempts_schema()
    names = sorted(columns) if columns is not None else expected.names
    number = 0
    with open_file(folder, path) as stream:
        try:
            file = pq.ParquetFile(stream)
            for name in names:
                _require(file.schema_arrow, expected.field(name), path)
            batches = file.iter_batches(batch_size=64, columns=names)
        except IntegrityError:
            raise
        except Exception as error:  # the reader of damaged bytes may raise anything
            raise _unreadable(error, path) from None
        while rows := _next_rows(batches, path):
            for row in rows:
                if not isinstance(row.get("sample_id", ""), str) or not isinstance(row.get("attempt", 0), int):
                    raise IntegrityError("names no sample", where=f"{path} row {number}", fix=VERIFY)
                yield number, row
                number += 1


def _next_rows(batches: Iterator[pa.RecordBatch], path: str) -> list[Row]:
    try:
        for batch in batches:
            if batch.num_rows:
                rows: list[Row] = batch.to_pylist()
                return rows
        return []
    except Exception as error:  # as above
        raise _unreadable(error, path) from None


def _unreadable(error: Exception, path: str) -> IntegrityError:
    return IntegrityError(f"cannot be read ({first_line(error)})", where=path, fix=VERIFY)


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
