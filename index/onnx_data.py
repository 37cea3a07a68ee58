"""The files beside an ONNX file that hold its weights: without them a digest of the network says nothing of its scores."""

from __future__ import annotations

import mmap
import re
from functools import lru_cache
from pathlib import Path

# onnx.proto, StringStringEntryProto of a tensor's external_data: key (field 1) "location", value (field 2) the file's name.
_LOCATION = re.compile(rb"\n\x08location\x12([\x01-\x7f])")


def weight_files(file: Path) -> list[Path]:
    """The files that the tensors of an ONNX file name as the place of their values, each once, in order of their names.

    Raises:
        OSError: the ONNX file cannot be read.
    """
    found = file.stat()
    return [file.parent / name for name in _named(file, found.st_size, found.st_mtime_ns)]


@lru_cache(maxsize=64)
def _named(file: Path, size: int, changed: int) -> tuple[str, ...]:  # both stand for the content that is remembered
    if not size:
        return ()
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        names = {content[at.end() : at.end() + at[1][0]] for at in _LOCATION.finditer(content)}
    return tuple(sorted(name.decode("utf-8", "replace") for name in names))
