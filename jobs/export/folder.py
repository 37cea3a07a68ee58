"""Export as a folder of picture files, with ``metadata.jsonl`` beside them, which ``datasets`` reads as an image folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.export.formats import Format
from jobs.export.plain import json_line
from jobs.export.select import Item

if TYPE_CHECKING:
    import pyarrow as pa


def write(items: Iterator[Item], schema: pa.Schema, folder: Path) -> None:
    """Write ``data/metadata.jsonl`` and ``data/AB/SAMPLE.webp``, in folders by the first two digits of the id."""
    (folder / "data").mkdir()
    with (folder / "data" / "metadata.jsonl").open("wb") as lines:
        for item in items:
            name = f"{item.sample_id[:2]}/{item.sample_id}.{item.suffix}"
            path = folder / "data" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(item.image)
            lines.write(json_line({"file_name": name, **item.values}) + b"\n")


FORMAT = Format(name="folder", what="picture files and metadata.jsonl", data_files="data/**", write=write)
