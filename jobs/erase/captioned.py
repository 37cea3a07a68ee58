"""Captioned pictures of a user: a folder, Parquet files, or the tar files of WebDataset."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import InputError
from index.once import once
from index.picture import read_picture, why_no_picture
from index.records import Record, holds_records, records_in
from index.walk import files_below

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
        kind = holds_records(path)
        if kind is None:
            fix = "Name a folder, a Parquet file or a .tar"
            raise InputError(f"{path.suffix or 'a file'} is not a source", where=str(path), fix=fix)
        return _recorded([(path, kind)])
    sheets = [path / name for name in ("metadata.jsonl", "metadata.csv") if (path / name).is_file()]
    if sheets:
        return _pictures(path, _sheet(sheets[0]), sheets[0])
    below = list(files_below(path))
    stored = [(p, kind) for p in sorted(below) if p.suffix in STORED and (kind := holds_records(p)) is not None]
    files = sorted(p for p in below if p.suffix not in (*STORED, ".txt") and why_no_picture(p) is None)
    if files:
        without = [p for p in files if not p.with_suffix(".txt").is_file()]
        if without:
            raise _uncaptioned([str(p.relative_to(path)) for p in without], len(files), path)
        captions = {str(p.relative_to(path)): _words(p.with_suffix(".txt")) for p in files}
        return _pictures(path, captions, path)
    if stored:
        return _recorded(stored)
    raise InputError("holds no pictures", where=str(path), fix="Put pictures there (PNG or JPEG, for example) with captions")


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
            rows = [json.loads(line, object_pairs_hook=once) for line in text.split("\n") if line.strip()]
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
        yield Captioned(name, text.strip(), read_picture(folder / name, where=str(folder / name)))


def _recorded(stored: Iterable[tuple[Path, str]]) -> Iterator[Captioned]:
    """The pictures of Parquet and tar files; of a sample with several the first."""
    for path, kind in stored:
        column = ""
        if kind == "parquet":
            column = _caption_column(_column_names(path), str(path))
        for record in records_in(path, kind, wanted=[column]):
            if record.further:
                continue
            if record.problem:
                raise InputError(record.problem, where=record.place, fix="Write it again, or take it out")
            caption = _caption_of(record, column)
            if not caption:
                raise _uncaptioned([record.place.removeprefix(f"{path}: ")], 1, path)
            yield Captioned(record.name, caption, read_picture(record.content, where=record.place))


def _column_names(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"not a readable Parquet file ({error})", where=str(path), fix="Write it again") from None


def _caption_of(record: Record, column: str) -> str:
    """The caption of a row, or among a sample's files: its .txt, else its JSON's."""
    fields = record.fields
    if not column and "txt" in fields:
        column = "txt"
    elif not column and fields:
        column = _caption_column(list(fields), record.place)
    caption = fields.get(column)
    return caption.strip() if isinstance(caption, str) else ""


STORED = (".parquet", ".tar")  # endings of pictures inside other files
