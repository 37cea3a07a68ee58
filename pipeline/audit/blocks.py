"""Write and read data files block by block: a file of any size passes through the memory of some 64 rows."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

from index.parquet import parquet_file
from pipeline.audit.shards import ROW_GROUP_ROWS, parquet_options

if TYPE_CHECKING:
    import pyarrow as pa


class Hashed:
    """A stream that is written from front to back, with the digest and the size of what was written."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._hash, self.size, self.closed = stream, hashlib.sha256(), 0, False

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self.size += len(data)
        return self._stream.write(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self.closed = True  # the stream below is its owner's to close

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def write_blocks(stream: IO[bytes] | Hashed, blocks: Iterator[pa.Table]) -> int:
    """Write one block or more into one file, stored as shards are, in row groups of 64; returns the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = next(blocks)
    rows = int(first.num_rows)
    with pq.ParquetWriter(pa.PythonFile(stream, mode="w"), first.schema, **parquet_options(first.schema)) as writer:
        writer.write_table(first, row_group_size=ROW_GROUP_ROWS)
        for block in blocks:
            writer.write_table(block, row_group_size=ROW_GROUP_ROWS)
            rows += block.num_rows
    return rows


def read_blocks(stream: IO[bytes]) -> Iterator[pa.Table]:
    """The rows of a file, at most 64 at a time, page checksums compared; one table without rows where it has none."""
    import pyarrow as pa

    stream.seek(0)
    file = parquet_file(stream, checksums=True)
    schema, some = file.schema_arrow, False
    for batch in file.iter_batches(batch_size=ROW_GROUP_ROWS, use_threads=False):
        some = True
        yield pa.Table.from_batches([batch]).replace_schema_metadata(schema.metadata)
    if not some:
        yield schema.empty_table()


def alike(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables have the same schema and rows; where both hold not-a-number, that counts as the same."""
    if not one.schema.equals(other.schema, check_metadata=True):
        return False
    # Not-a-number equals nothing, itself included; then what is printed of the rows is compared.
    return bool(one.equals(other)) or repr(one.to_pylist()) == repr(other.to_pylist())


def emptied_alike(new: pa.Table, old: pa.Table, cells: Mapping[str, Collection[int]]) -> bool:
    """Whether a table is another one whose cells, row numbers by column, were emptied: they are null, and all else is alike.

    Every column is compared, an emptied one in all its other rows.
    """
    import pyarrow as pa

    if not new.schema.equals(old.schema, check_metadata=True) or new.num_rows != old.num_rows:
        return False
    whole = [name for name in old.schema.names if not cells.get(name)]
    if not alike(new.select(whole), old.select(whole)):
        return False
    for name, gone in cells.items():
        rest = pa.array([row for row in range(old.num_rows) if row not in gone], pa.int64())
        if new.column(name).take(pa.array(list(gone), pa.int64())).null_count < len(gone):
            return False
        if not alike(new.select([name]).take(rest), old.select([name]).take(rest)):
            return False
    return True
