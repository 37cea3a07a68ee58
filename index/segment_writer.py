"""Write a segment of an index: block after block, so that memory does not grow with the number of references."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from index import storage
from index.files import settle
from index.reference import Reference
from index.segment import ANN, DIGESTS, FILES, KEYS, PICTURES, TABLE, TEXTS, VECTORS, key_of, row_digest
from index.set_hash import SetHash

TOGETHER = 2**16  # rows of metadata in one part of the table


def write_segment(folder: Path, tables: Iterable[Any], dim: int, flat_limit: int | None) -> dict[str, Any]:
    """Write a segment under a name made of its files' digests.

    Args:
        folder: of the index.
        tables: Arrow tables with the columns of :data:`index.segment.TEXTS`, ``embedding`` and ``picture``; each becomes one
            group of rows. No two are in memory at once.
        dim: length of the embeddings.
        flat_limit: from how many references on the search is approximate before the exact ranking; None: as usual.

    Returns:
        Its entry in the snapshot: ``name``, ``rows``, ``files`` (name → sha256), ``set_hash``.
    """
    segments = folder / "segments"
    work = Path(tempfile.mkdtemp(dir=segments, prefix=storage.TEMPORARY))
    try:
        keys, sums = _write_rows(work, tables, dim)
        _write_keys(work / KEYS, keys)
        _write_ann(work, len(keys), dim, flat_limit)
        files = {name: _digest(work / name) for name in sorted(FILES)}
        name = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32]
        (segments / name).mkdir(exist_ok=True)
        for file in FILES:
            settle(work / file, segments / name / file)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {"name": name, "rows": len(keys), "files": files, "set_hash": sums.hex()}


def _write_rows(work: Path, tables: Iterable[Any], dim: int) -> tuple[np.ndarray, SetHash]:
    """Write everything that goes row by row; returns the keys int64 (N,) and the hash of the set of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([*((name, pa.string()) for name in TEXTS), ("kept", pa.bool_())])
    pictured = pa.schema([("picture", pa.large_binary())])
    keys, sums = [np.zeros(0, np.int64)], SetHash()
    waiting: list[Any] = []
    with (
        pa.OSFile(str(work / TABLE), "wb") as sink,
        pa.ipc.new_file(sink, schema) as rows,
        pq.ParquetWriter(work / PICTURES, pictured, compression="none", use_dictionary=False, write_page_checksum=True) as kept,
        (work / VECTORS).open("wb") as vectors,
        (work / DIGESTS).open("wb") as digests,
    ):
        for table in tables:
            plain = {name: table.column(name).to_pylist() for name in TEXTS}
            has = table.column("picture").is_valid().to_pylist()
            block = np.asarray(table.column("embedding").combine_chunks().flatten(), np.float32).reshape(-1, dim)
            found = [
                row_digest(Reference(**{name: plain[name][row] for name in TEXTS}), has[row], block[row])
                for row in range(table.num_rows)
            ]
            sums.add(found)
            digests.write(b"".join(found))
            vectors.write(block.astype("<f4").tobytes())
            keys.append(np.array([key_of(ref_id) for ref_id in plain["ref_id"]], np.int64))
            waiting.append(pa.record_batch([*(pa.array(plain[name], pa.string()) for name in TEXTS), has], schema=schema))
            if sum(batch.num_rows for batch in waiting) >= TOGETHER:
                rows.write_batch(_together(waiting))
                waiting.clear()
            pictures = pa.table([table.column("picture").cast(pa.large_binary())], schema=pictured)
            kept.write_table(pictures, row_group_size=max(1, table.num_rows))
        if waiting:
            rows.write_batch(_together(waiting))
    return np.concatenate(keys), sums


def _together(batches: list[Any]) -> Any:
    """Batches as one: a table in few parts opens and is searched faster."""
    import pyarrow as pa

    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _write_keys(path: Path, keys: np.ndarray) -> None:
    order = np.argsort(keys, kind="stable")
    path.write_bytes(np.stack([keys[order], order]).astype("<i8").tobytes())


def _write_ann(work: Path, rows: int, dim: int, flat_limit: int | None) -> None:
    from index import ann

    vectors = np.memmap(work / VECTORS, "<f4", "r", shape=(rows, dim)) if rows else np.zeros((0, dim), np.float32)
    ann.write(vectors, work / ANN, flat_limit=ann.FLAT_LIMIT if flat_limit is None else flat_limit)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
