"""Parquet files opened so that they are read in the caller's own thread.

Arrow reads ahead in threads of its own unless ``pre_buffer=False`` says otherwise; ``use_threads=False`` alone does not keep it
from that. Such a thread takes the interpreter's lock to read a Python stream and to let go of its bytes, also after the call
that wanted them has returned or failed. Of 40 processes that called ``pq.read_table`` over bytes and ended, three were aborted
(pyarrow 26).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def parquet_file(source: Path | IO[bytes] | Any, *, checksums: bool = False, mapped: bool = False) -> pq.ParquetFile:
    """A Parquet file. Read it with ``use_threads=False`` where the source is a Python stream.

    Args:
        source: a path, a stream or an Arrow source.
        checksums: compare the checksum of each page that is read.
        mapped: map a path into memory.

    Raises:
        pyarrow.ArrowException, OSError: it is no Parquet file.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(source, memory_map=mapped, pre_buffer=False, page_checksum_verification=checksums)


def rows_of(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows, as pyarrow's ``to_pylist`` gives them, which imports pandas, where it is installed, for the first time in UTC.

    That took a fifth of `clearance status`, and no time of a run is finer than what Python's own hold.
    """
    import pyarrow as pa

    time, names = pa.timestamp("us", tz="UTC"), table.schema.names
    if time not in table.schema.types:
        return list(table.to_pylist())
    columns = [_times(column) if column.type == time else column.to_pylist() for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _times(column: pa.Array | pa.ChunkedArray) -> list[datetime | None]:
    begin = datetime(1970, 1, 1, tzinfo=ZoneInfo("UTC"))
    return [None if at is None else begin + timedelta(microseconds=at) for at in column.cast("int64").to_pylist()]
