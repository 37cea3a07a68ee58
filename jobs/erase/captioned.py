"""Captioned pictures of a user: a folder, Parquet files, or the tar files of WebDataset."""

from __future__ import annotations

import csv
import io
import itertools
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from index.collect import PICTURES, read_picture
from index.errors import InputError

CAPTION_COLUMNS = ("caption", "text", "prompt", "title")
FILE_COLUMNS = ("file_name", "file")


@dataclass(frozen=True)
class Captioned:
    """One clean picture.

    Attributes:
        name: the file, or the drawing.
        caption: what it shows.
        picture: uint8 RGB (H, W, 3).
        hint: the kind of mark its subject tends to carry, where the source knows; else empty.
    """

    name: str
    caption: str
    picture: np.ndarray
    hint: str = ""


def read_source(path: Path) -> Iterator[Captioned]:
    """Captioned pictures of a folder or a file.

    * A folder with ``metadata.jsonl`` or ``metadata.csv`` (``file_name`` and ``caption``, ``text``, ``prompt`` or ``title``).
    * A folder with a ``.txt`` beside each picture.
    * Parquet with an image column (struct of ``bytes`` and ``path``, or binary) and a caption column; a folder of such files.
    * A ``.tar`` of WebDataset, read front to back: members of the same name but for their ending are a sample; the caption is
      in its ``.txt``, or in its ``.json`` under one of the names above. A folder of such files.

    Raises:
        InputError: nothing there; pictures without captions (they are named); a picture that cannot be read.
    """
    if not path.exists():
        fix = "Name a folder of pictures with captions, a Parquet file or a .tar"
        raise InputError("does not exist", where=str(path), fix=fix)
    if path.is_file():
        if path.suffix not in STORED:
            fix = "Name a folder, a Parquet file or a .tar"
            raise InputError(f"{path.suffix or 'a file'} is no source", where=str(path), fix=fix)
        return STORED[path.suffix]([path])
    sheets = [path / name for name in ("metadata.jsonl", "metadata.csv") if (path / name).is_file()]
    if sheets:
        return _pictures(path, _sheet(sheets[0]), sheets[0])
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
    if files:
        without = [p for p in files if not p.with_suffix(".txt").is_file()]
        if without:
            raise _uncaptioned([str(p.relative_to(path)) for p in without], len(files), path)
        captions = {str(p.relative_to(path)): _words(p.with_suffix(".txt")) for p in files}
        return _pictures(path, captions, path)
    for suffix, read in STORED.items():
        if stored := sorted(path.rglob(f"*{suffix}")):
            return read(stored)
    raise InputError("holds no pictures", where=str(path), fix=f"Put pictures there ({', '.join(PICTURES)}) with captions")


def _uncaptioned(names: list[str], of: int, where: Path) -> InputError:
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    fix = "Write a .txt beside each picture, or list them in metadata.jsonl with file_name and caption"
    return InputError(f"{len(names)} of {of} pictures have no caption ({shown})", where=str(where), fix=fix)


def _words(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", where=str(path), fix="Save it as UTF-8") from None


def _sheet(path: Path) -> dict[str, Any]:
    """File → caption, as a metadata file lists them."""
    rows: list[Mapping[str, Any]]
    text = _words(path)
    try:
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except (ValueError, csv.Error) as error:
        raise InputError(f"cannot be read ({error})", where=str(path), fix="Write one picture a line") from None
    columns = {name for row in rows if isinstance(row, dict) for name in row}
    file = next((name for name in FILE_COLUMNS if name in columns), None)
    caption = _caption_column(columns, str(path))
    if file is None:
        raise InputError("no column names the pictures", where=str(path), fix="Name one 'file_name'")
    return {str(row.get(file) or ""): row.get(caption) for row in rows}


def _caption_column(columns: set[str] | list[str], where: str) -> str:
    for name in CAPTION_COLUMNS:
        if name in columns:
            return name
    found = ", ".join(sorted(columns)) or "none"
    raise InputError(f"no column holds captions (found: {found})", where=where, fix=f"Name one {CAPTION_COLUMNS[0]!r}")


def _pictures(folder: Path, captions: Mapping[str, Any], where: Path) -> Iterator[Captioned]:
    if not captions:
        raise InputError("lists no pictures", where=str(where), fix="Write at least one")
    without = [name for name, text in captions.items() if not isinstance(text, str) or not text.strip()]
    if without:
        raise _uncaptioned(without, len(captions), where)
    for name, text in captions.items():
        try:
            yield Captioned(name, text.strip(), read_picture(folder / name))
        except (OSError, ValueError, SyntaxError) as error:
            what = f"cannot be read ({error or type(error).__name__})"
            raise InputError(what, where=str(folder / name), fix="Mend it or take it off the list") from None


def _parquet(paths: list[Path]) -> Iterator[Captioned]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        try:
            file = pq.ParquetFile(path)
            image = _image_column(file.schema_arrow, path)
            caption = _caption_column(file.schema_arrow.names, str(path))
            number = 0
            for batch in file.iter_batches(64, columns=[image, caption]):
                for row in batch.to_pylist():
                    stored, text = row[image], row[caption]
                    data = stored.get("bytes") if isinstance(stored, dict) else stored
                    place = f"{path}: row {number}"
                    if not isinstance(text, str) or not text.strip():
                        raise _uncaptioned([f"row {number}"], file.metadata.num_rows, path)
                    if not data:
                        raise InputError("holds no picture", where=place, fix="Store the file's bytes in it")
                    picture = _decoded(data, place)
                    name = (stored.get("path") if isinstance(stored, dict) else None) or f"{path.stem}-{number:06d}"
                    yield Captioned(name, text.strip(), picture)
                    number += 1
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"not a readable Parquet file ({error})", where=str(path), fix="Write it again") from None


def _decoded(data: bytes, place: str) -> np.ndarray:
    try:
        return read_picture(io.BytesIO(data))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"cannot be read ({error})", where=place, fix="Mend it") from None


def _image_column(schema: Any, path: Path) -> str:
    """The column that the Image feature names, else one called image, else the only binary one."""
    import pyarrow as pa

    def holds(kind: Any) -> bool:
        kind = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    fits = [field.name for field in schema if holds(field.type)]
    noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    declared = (noted.get("info") or {}).get("features") or {}
    named = [name for name in fits if (declared.get(name) or {}).get("_type") == "Image" or name == "image"]
    if not (named or fits):
        fix = "Name one 'image' and store struct<bytes, path> or the file's bytes in it"
        raise InputError("no column holds pictures", where=str(path), fix=fix)
    return str((named or fits)[0])


def _tars(paths: list[Path]) -> Iterator[Captioned]:
    for path in paths:
        number = 0
        try:
            with tarfile.open(path, "r|*") as file:
                for key, sample in itertools.groupby(_members(file), key=lambda member: member[0]):
                    parts = {ending: data for _, ending, data in sample}
                    pictures = [data for ending, data in parts.items() if ending in PICTURES]
                    place = f"{path}: {key}"
                    if not pictures and parts.keys() <= {".txt", ".json"}:  # a file about the whole
                        continue
                    if not pictures:
                        what = f"no picture among {', '.join(sorted(parts))}"
                        raise InputError(what, where=place, fix=f"Write it again with one of {', '.join(PICTURES)}")
                    if not (caption := _told(parts, place)):
                        raise _uncaptioned([key], 1, path)
                    yield Captioned(key, caption, _decoded(pictures[0], place))
                    number += 1
        except (tarfile.TarError, EOFError, OSError) as error:
            what = f"not a readable tar file, after {number} pictures ({error})"
            raise InputError(what, where=str(path), fix="Fetch or write it again") from None
        if not number:
            raise InputError("holds no pictures", where=str(path), fix=f"Name a tar with {', '.join(PICTURES)} in it")


def _members(file: tarfile.TarFile) -> Iterator[tuple[str, str, bytes]]:
    """Key, ending (of several, the last) and content of every file: a sample's key ends at the first dot of its file's name."""
    for member in file:
        stream = file.extractfile(member) if member.isfile() else None
        if stream is not None:
            path = PurePosixPath(member.name)
            yield str(path.with_name(path.name.split(".")[0] or path.name)), path.suffix.lower(), stream.read()


def _told(parts: Mapping[str, bytes], place: str) -> str:
    """The caption among a sample's files."""
    try:
        if ".txt" in parts:
            return parts[".txt"].decode("utf-8-sig").strip()
        row = json.loads(parts.get(".json", b"{}"))
    except ValueError as error:
        raise InputError(f"its caption cannot be read ({error})", where=place, fix="Save it as UTF-8") from None
    told = row.get(_caption_column(list(row), place)) if isinstance(row, dict) and row else ""
    return told.strip() if isinstance(told, str) else ""


STORED = {".parquet": _parquet, ".tar": _tars}  # pictures inside other files
