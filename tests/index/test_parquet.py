"""Parquet files are read in the caller's own thread, whatever the call."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.parquet import parquet_file, rows_of
from pipeline.audit.verifier import clearance_verify


class Watched(io.BytesIO):
    """A stream that knows which threads read it."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.threads: set[int] = set()

    def read(self, size: int | None = -1, /) -> bytes:
        self.threads.add(threading.get_ident())
        return super().read(size)


@pytest.fixture(scope="module")
def content() -> bytes:
    sink = io.BytesIO()
    table = pa.table({f"column{number}": ["text"] * 300 for number in range(8)})
    pq.write_table(table, sink, row_group_size=100, write_page_checksum=True)
    return sink.getvalue()


WAYS: dict[str, Callable[[pq.ParquetFile], Any]] = {
    "read": lambda file: file.read(use_threads=False),
    "some columns": lambda file: file.read(columns=["column1"], use_threads=False),
    "batches": lambda file: list(file.iter_batches(batch_size=64, use_threads=False)),
    "one batch": lambda file: next(file.iter_batches(batch_size=64, use_threads=False)),
    "a row group": lambda file: file.read_row_group(1, use_threads=False),
}


@pytest.mark.parametrize("open_file", [parquet_file, clearance_verify.parquet])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("checksums", [False, True])
def test_a_stream_is_read_in_this_thread(content: bytes, open_file: Callable[..., Any], way: str, checksums: bool) -> None:
    stream = Watched(content)
    WAYS[way](open_file(stream, checksums=checksums))
    assert stream.threads == {threading.get_ident()}


def test_by_default_arrow_reads_in_others(content: bytes) -> None:
    """What :mod:`index.parquet` is there for; where this fails, it may go."""
    stream = Watched(content)
    pq.ParquetFile(stream).read(use_threads=False)
    assert stream.threads - {threading.get_ident()}


def test_checksums_are_compared(content: bytes) -> None:
    at = content.index(b"text") + 1
    damaged = content[:at] + b"E" + content[at + 1 :]
    with pytest.raises(OSError, match="CRC"):
        parquet_file(io.BytesIO(damaged), checksums=True).read(use_threads=False)


def test_a_path_may_be_mapped(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    assert parquet_file(path, mapped=True).read().equals(parquet_file(path).read())


def test_arrow_need_not_be_loaded_to_import_it() -> None:
    code = "import sys, index.parquet; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("make", [pa.table, pa.record_batch])
def test_rows_with_times_are_those_of_pyarrow(make: Callable[..., Any]) -> None:
    first, last = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    times = pa.array([first, None, datetime(2026, 12, 1, 4, 5, 6, 789, UTC), last], pa.timestamp("us", tz="UTC"))
    there = make({"key": ["a", "b", "c", "d"], "at": times, "then": times.cast(pa.timestamp("us"))})
    assert rows_of(there) == there.to_pylist()
    assert [repr(row) for row in rows_of(there)] == [repr(row) for row in there.to_pylist()]
    assert rows_of(there.slice(4)) == [] and rows_of(there.select(["key"])) == there.select(["key"]).to_pylist()


def test_a_time_outside_of_pythons_is_refused_as_by_pyarrow() -> None:
    there = pa.table({"at": pa.array([2**62], pa.int64()).cast(pa.timestamp("us", tz="UTC"))})
    for rows in (rows_of, pa.Table.to_pylist):
        with pytest.raises(OverflowError, match="date value out of range"):
            rows(there)


def test_rows_with_times_are_read_without_pandas(tmp_path: Path) -> None:
    pq.write_table(pa.table({"at": pa.array([0], pa.timestamp("us", tz="UTC"))}), tmp_path / "times.parquet")
    code = "import sys; from pathlib import Path; from index.parquet import parquet_file, rows_of\n"
    code += f"rows_of(parquet_file(Path({str(tmp_path / 'times.parquet')!r})).read())\nsys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
