"""What a run keeps of its pictures, read back without reading the rest: embeddings by the million, and chosen rows.

Only the columns asked for are read, a batch at a time, so memory does not grow with the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from index.errors import ClearanceError
from index.parquet import parquet_file
from index.storage import open_file, parsing
from pipeline.audit.layout import data_files
from pipeline.audit.requests import VERIFY, Opener, Row

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The stored embeddings of some rows.

    Attributes:
        path: the file they are in. rows: int64 (N,): their rows in it.
        ids: their sample ids. vectors: float16 (N, D).
        erased: ids of samples whose embedding was erased; their digest is still there.
        changed: ids of samples whose embedding is not the one that was committed, or has another length.
        absent: (id, outcome) of samples that never had one.
    """

    path: str
    rows: np.ndarray
    ids: pa.StringArray = field(repr=False)
    vectors: np.ndarray = field(repr=False)
    erased: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    absent: tuple[tuple[str, str], ...] = ()


def embeddings(
    folder: Path, dim: int, *, damaged: list[ClearanceError] | None = None, opener: Opener = open_file
) -> Iterator[Embeddings]:
    """The embeddings of every committed sample, in batches; each is held against the digest in its row.

    The row is what the file states: whoever rests a decision on it opens the files as they were committed.

    Args:
        folder: the run folder.
        dim: length of the embeddings.
        damaged: when given, a file that cannot be read is left out from there on and its error appended here.
        opener: opens the files; see :data:`pipeline.audit.requests.Opener`.

    Raises:
        ClearanceError: a file cannot be read (and ``damaged`` is not given).
    """
    for path in sample_files(folder, damaged=damaged):
        try:
            yield from _embeddings_in(folder, path, dim, opener)
        except ClearanceError as error:
            if damaged is None:
                raise
            damaged.append(error)


def sample_files(folder: Path, *, damaged: list[ClearanceError] | None = None) -> Iterator[str]:
    """Paths of the samples' files of every committed shard, in order; raises as :func:`embeddings`."""
    yield from data_files(folder, "samples", damaged=damaged)


def _embeddings_in(folder: Path, path: str, dim: int, opener: Opener) -> Iterator[Embeddings]:
    first = 0
    with opener(folder, path) as stream, parsing(path, fix=VERIFY):
        file = parquet_file(stream)
        columns = ["sample_id", "outcome", "embedding", "embedding_sha256"]
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False)
        for batch in batches:
            yield _batch(batch, path, first, dim)
            first += batch.num_rows


def _batch(batch: pa.RecordBatch, path: str, first: int, dim: int) -> Embeddings:
    import pyarrow as pa
    import pyarrow.compute as pc

    ids, stored, digests = batch["sample_id"], batch["embedding"], batch["embedding_sha256"]
    there = np.asarray(stored.is_valid())
    lengths = np.asarray(pc.fill_null(pc.list_value_length(stored), 0))
    fits = there & (lengths == dim)
    flat = stored.filter(pa.array(fits)).flatten()
    vectors = np.asarray(flat.to_numpy(zero_copy_only=False), np.float16).reshape(-1, dim)
    rows = np.flatnonzero(fits)
    known = digests.take(pa.array(rows)).to_pylist()
    same = np.array([hashlib.sha256(v.data).hexdigest() == d for v, d in zip(vectors, known, strict=True)], bool)
    finite = np.isfinite(vectors).all(1) if len(vectors) else same
    good, bad = rows[same & finite], [*rows[~(same & finite)], *np.flatnonzero(there & ~fits)]
    kept_digest = np.asarray(digests.is_valid())
    gone, never = np.flatnonzero(~there & kept_digest), np.flatnonzero(~there & ~kept_digest)
    return Embeddings(
        path=path,
        rows=good + first,
        ids=ids.take(pa.array(good)),
        vectors=vectors[same & finite],
        erased=tuple(ids.take(pa.array(gone, pa.int64())).to_pylist()),
        changed=tuple(ids.take(pa.array(np.sort(np.array(bad, np.int64)))).to_pylist()),
        absent=tuple(
            zip(
                ids.take(pa.array(never, pa.int64())).to_pylist(),
                batch["outcome"].take(pa.array(never, pa.int64())).to_pylist(),
                strict=True,
            )
        ),
    )


def chosen_rows(
    folder: Path, path: str, rows: Collection[int], columns: Sequence[str], *, opener: Opener = open_file
) -> Iterator[tuple[int, Row]]:
    """Some rows of one file, in order; only the row groups that hold them are read, one at a time.

    Args:
        folder: the run folder.
        path: the file, relative to it.
        rows: their numbers in the file.
        columns: what to read; columns that the file's version did not have are left out.
        opener: opens the file.

    Raises:
        IntegrityError: the file cannot be read. InputError: the storage failed.
    """
    import pyarrow as pa

    wanted, start = np.array(sorted(rows), np.int64), 0
    with opener(folder, path) as stream, parsing(path, fix=VERIFY):
        file = parquet_file(stream)
        names = set(file.schema_arrow.names)
        there = [name for name in columns if name in names]
        for group in range(file.metadata.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            mine = wanted[(wanted >= start) & (wanted < stop)]
            if len(mine):
                table = file.read_row_group(group, columns=there, use_threads=False).take(pa.array(mine - start))
                yield from zip(mine.tolist(), table.to_pylist(), strict=True)
            start = stop


class Samples(NamedTuple):
    """Who is in one file of samples, row by row: the file, sample ids, and outcomes at birth."""

    path: str
    ids: list[str]
    outcomes: list[str]


def samples_of(folder: Path, *, damaged: list[ClearanceError] | None = None, opener: Opener = open_file) -> Iterator[Samples]:
    """The samples of every committed shard, a file at a time.

    Raises:
        ClearanceError: as :func:`embeddings`.
    """
    for path in sample_files(folder, damaged=damaged):
        try:
            with opener(folder, path) as stream, parsing(path, fix=VERIFY):
                table = parquet_file(stream).read(columns=["sample_id", "outcome"], use_threads=False)
            yield Samples(path, table.column("sample_id").to_pylist(), table.column("outcome").to_pylist())
        except ClearanceError as error:
            if damaged is None:
                raise
            damaged.append(error)


def rows_of(
    folder: Path, wanted: Collection[str], columns: Sequence[str], *, opener: Opener = open_file
) -> Iterator[tuple[str, int, Row]]:
    """The rows of some samples, with file and row number, in the order of shards and rows; ``opener`` opens the files.

    Raises:
        ClearanceError: a file cannot be read.
    """
    for part in samples_of(folder, opener=opener):
        mine = [row for row, sample_id in enumerate(part.ids) if sample_id in wanted]
        read = chosen_rows(folder, part.path, mine, columns, opener=opener)
        yield from ((part.path, number, row) for number, row in read)
