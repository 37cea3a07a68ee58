"""Export as WebDataset: tar files in which a sample's members stand together: picture, ``json``, and the prompt as ``txt``."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.export.formats import Format
from jobs.export.plain import json_line
from jobs.export.select import Item

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_BYTES = 256 << 20


def write(items: Iterator[Item], schema: pa.Schema, folder: Path) -> None:
    """Write ``data/00000.tar`` and on; the same items give the same bytes (USTAR, no times, no owners)."""
    (folder / "data").mkdir()
    number, tar, written = 0, _open(folder, 0), 0
    try:
        for item in items:
            if written >= SHARD_BYTES:
                tar.close()
                number, written = number + 1, 0
                tar = _open(folder, number)
            members = {item.suffix: item.image, "json": json_line(item.values)}
            caption = item.values.get("drawn_prompt") or item.values.get("prompt")  # what the picture shows
            if isinstance(caption, str):
                members["txt"] = caption.encode("utf-8", "backslashreplace")
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{item.sample_id}.{suffix}")
                member.size, member.mtime, member.mode = len(data), 0, 0o644
                tar.addfile(member, io.BytesIO(data))
                written += len(data)
            # The header of every member would be kept until the file is closed.
            tar.members = []  # type: ignore[attr-defined]
    finally:
        tar.close()


def _open(folder: Path, number: int) -> tarfile.TarFile:
    return tarfile.open(folder / "data" / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT)


FORMAT = Format(name="webdataset", what="WebDataset: tar files", data_files="data/*.tar", write=write)
