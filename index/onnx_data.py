"""What an ONNX file says of itself, read without a package for it: the files beside it that hold its weights, without which a
digest of the network says nothing of its scores; and whether it ends in a softmax or a sigmoid.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from index.errors import ModelError

# onnx.proto: which numbered fields of a message lead to tensors. "text" (StringStringEntryProto) has key and value as 1 and 2.
_LEADS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "text"},
}
_DEEPEST = 100  # messages within messages, as protobuf's own readers allow
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # how a field is stored
_MOST_TAG = 2**32 - 1  # protobuf's readers drop what is beyond, and know the field by the rest
_SHAPE_ONLY = frozenset(
    {"Identity", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze"}
)  # their numbers are those of their input
_FIX = "Export the network again, with its weights in it or in files beside it"


def weight_files(file: Path) -> list[Path]:
    """The files that the tensors of an ONNX file name as the place of their values, each once, in order of their names.

    They lie in its folder; whether they are there is not looked at.

    Raises:
        OSError: the ONNX file cannot be read.
        ModelError: it is no ONNX file, or names a file outside its folder.
    """
    found = file.stat()
    try:
        names = _named(file, found.st_size, found.st_mtime_ns)
    except ValueError as error:
        raise ModelError(f"cannot be opened (it is no whole ONNX file: {error})", where=str(file), fix=_FIX) from None
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ModelError(f"names weights outside its folder: {name!r}", where=str(file), fix=_FIX)
    return [file.parent / name for name in names]


def ends_in(file: Path, wanted: str) -> tuple[str, str]:
    """The output of an ONNX file that is called ``wanted``, or else its first; and the function that makes it: ``softmax``,
    ``sigmoid``, or empty for any other. Names of exporters' own functions count: ``aten_softmax``.

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    makes: dict[str, tuple[str, str]] = {}  # output → kind of node, its first input
    outputs: list[str] = []
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:

        def texts(start: int, stop: int) -> dict[int, list[str]]:
            found: dict[int, list[str]] = {1: [], 2: [], 4: []}
            for number, at, end in _fields(content, start, stop):
                if number in found and end >= at:
                    found[number].append(content[at:end].decode("utf-8", "replace"))
            return found

        for graph, start, stop in _fields(content, 0, len(content)):
            if graph != 7 or stop < start:
                continue
            for number, at, end in _fields(content, start, stop):
                if number == 1 and end >= at:
                    node = texts(at, end)
                    makes |= dict.fromkeys(node[2], ("".join(node[4]), (node[1] or [""])[0]))
                elif number == 12 and end >= at:
                    outputs += texts(at, end)[1][:1]
    output = wanted if wanted in outputs else (outputs or [""])[0]
    name, kind = output, ""
    for _ in range(len(makes)):
        kind, before = makes.get(name, ("", ""))
        if kind not in _SHAPE_ONLY:
            break
        name = before
    kind = kind.lower().replace("_", "")
    if "logsoftmax" in kind:
        return output, ""
    return output, next((function for function in ("softmax", "sigmoid") if function in kind), "")


@lru_cache(maxsize=64)
def _named(file: Path, size: int, changed: int) -> tuple[str, ...]:  # both stand for the content that is remembered
    if not size:
        return ()
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return tuple(sorted(set(_locations(content, 0, size, "model", 0))))


def _locations(content: mmap.mmap, at: int, end: int, kind: str, depth: int) -> Iterator[str]:
    """What the tensors of a message name as the location of their values.

    The message is read as protobuf is: its fields may come in any order, so that a search for their usual bytes misses some.

    Raises:
        ValueError: it is cut short, or stored as ONNX is not.
    """
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    text = {1: b"", 2: b""}
    for number, start, stop in _fields(content, at, end):
        if kind == "text":
            if number in text and stop >= start:
                text[number] = content[start:stop]
        elif (inner := _LEADS[kind].get(number)) is not None:
            if stop < start:
                raise ValueError(f"field {number} of a {kind} is a number")
            yield from _locations(content, start, stop, inner, depth + 1)
    if text[1] == b"location":
        yield text[2].decode()


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of every field of a message; the end of a number is −1."""
    while at < end:
        began = at
        tag, at = _number(content, at, end)
        if tag > _MOST_TAG:
            raise ValueError(f"no field begins at byte {began}")
        how = tag & 7
        if how == _BYTES:
            length, at = _number(content, at, end)
            start, at = at, at + length
            stop = at
        elif how == _VARINT:
            start, stop = at, -1
            _, at = _number(content, at, end)
        elif how in (_FIXED64, _FIXED32):
            start, stop = at, -1
            at += 8 if how == _FIXED64 else 4
        else:
            raise ValueError(f"no field begins at byte {began}")
        if at > end:
            raise ValueError(f"cut short at byte {end}")
        yield tag >> 3, start, stop


def _number(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number of variable length, and where what follows begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte, at = content[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise ValueError(f"no whole number ends at byte {at}")
