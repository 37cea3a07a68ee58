"""Export as Parquet: the picture as a file inside the row, which ``datasets`` decodes and every other reader takes as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.export.formats import Format
from jobs.export.select import Item
from pipeline.audit.shards import physical_columns

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_BYTES, GROUP_ROWS, GROUP_BYTES = 256 << 20, 64, 4 << 20  # small groups: a single row is read without its neighbours


def write(items: Iterator[Item], schema: pa.Schema, folder: Path) -> None:
    """Write ``data/part-00000.parquet`` and on; the same items give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "data").mkdir()
    number, writer, written = 0, None, 0
    rows: list[dict[str, Any]] = []
    pending = 0

    def flush() -> None:
        nonlocal writer, rows, pending
        if writer is None:
            # Pictures are compressed already, and a dictionary of them only costs time.
            writer = pq.ParquetWriter(
                folder / "data" / f"part-{number:05d}.parquet",
                schema,
                compression={path: "none" if path == "image.bytes" else "zstd" for path in physical_columns(schema)},
                use_dictionary=[f.name for f in schema if pa.types.is_string(f.type)],
                write_page_checksum=True,
            )
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        rows, pending = [], 0

    try:
        for item in items:
            rows.append({"image": {"bytes": item.image, "path": f"{item.sample_id}.{item.suffix}"}, **item.values})
            pending += len(item.image)
            if len(rows) == GROUP_ROWS or pending >= GROUP_BYTES:
                written += pending
                flush()
            if written >= SHARD_BYTES and writer is not None:
                writer.close()
                number, writer, written = number + 1, None, 0
        if rows or (writer is None and number == 0):  # an empty export is a file without rows
            flush()
    finally:
        if writer is not None:
            writer.close()


FORMAT = Format(name="parquet", what="Parquet, pictures inside the rows", data_files="data/*.parquet", write=write)
