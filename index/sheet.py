"""Read metadata.csv: the metadata of each picture of a folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from index.errors import InputError
from index.reference import COLUMNS

SHEET = "metadata.csv"
FILE_COLUMNS = ("file", "file_name")
KNOWN = (*COLUMNS, "keep_picture")


@dataclass(frozen=True)
class Row:
    """A line of the sheet: its number, the file it names, and the file's columns."""

    line: int
    file: str
    fields: Mapping[str, str]


def read_sheet(path: Path, columns: Mapping[str, str]) -> list[Row]:
    """The rows of a sheet; commas, semicolons or tabs stand between the columns.

    Args:
        path: the sheet.
        columns: our name of a column → the sheet's, where they differ.

    Raises:
        InputError: not CSV in UTF-8, an unknown column, or a line with too many or too few columns: then a comma is missing, or
            stands in a text without quotes, and what follows it would count for another column.
    """
    where = str(path)
    try:
        text = _text(path)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text), strict=True)
        start = 1
        header = [name.strip() for name in next(lines, [])]
        _require_header(header, columns, where)
        rows, start = [], lines.line_num + 1
        for cells in lines:
            if any(cell.strip() for cell in cells) or len(cells) == 1:  # spreadsheets leave lines of commas at the end
                rows.append(_row(header, cells, columns, f"{where}, line {start}", start))
            start = lines.line_num + 1
    except csv.Error as error:  # a quote that is not closed would take all that follows for one text
        fix = f"Close the double quote that opens in line {start}; write one that belongs to the text as two"
        raise InputError(f"cannot be read as CSV ({error})", where=f"{where}, line {start}", fix=fix) from None
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise InputError(what, where=where, fix="Make it a readable file, or move it away") from None
    return rows


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        fix = "Save it as CSV in UTF-8; spreadsheets call it CSV UTF-8"
        what = f"cannot be read as CSV (byte 0x{raw[error.start]:02x} is no UTF-8)"
        raise InputError(what, where=f"{path}, line {line}", fix=fix) from None


def delimiter_of(text: str) -> str:
    """What separates the columns of a sheet: a comma, a semicolon or a tab."""
    first = text.split("\n", 1)[0]
    return max(",;\t", key=first.count)


def _require_header(header: list[str], columns: Mapping[str, str], where: str) -> None:
    theirs = {columns.get(name, name) for name in KNOWN}
    unknown = [name for name in header if name not in theirs and name not in FILE_COLUMNS]
    twice = sorted({name for name in header if header.count(name) > 1})
    absent = [name for name in columns.values() if name not in header]
    what = ""
    if unknown:
        what = f"has unknown columns: {', '.join(unknown)}"
        if near := get_close_matches(unknown[0], [*theirs, "file"], n=1):
            what += f" (did you mean {near[0]!r}?)"
    elif sum(name in header for name in FILE_COLUMNS) != 1:
        what = "has no column 'file'" if not set(FILE_COLUMNS) & set(header) else "has both 'file' and 'file_name'"
    elif twice:
        what = f"has the column {twice[0]!r} twice"
    elif absent:
        what = f"has no column {absent[0]!r}"
    if what:
        raise InputError(what, where=where, fix=f"Columns are: file, {', '.join(sorted(theirs))}")


def _row(header: list[str], cells: list[str], columns: Mapping[str, str], where: str, line: int) -> Row:
    if len(cells) != len(header):
        fix = f'Put quotes round texts with commas ("Cat, sitting"), and write all {len(header)} columns'
        raise InputError(f"has {len(cells)} columns, the header has {len(header)}", where=where, fix=fix)
    values = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    file = next(values[name] for name in FILE_COLUMNS if name in values)
    if not file:
        raise InputError("names no file", where=where, fix="Fill the column 'file'")
    known = {name: values.get(columns.get(name, name), "") for name in KNOWN}
    return Row(line, file, {name: value for name, value in known.items() if value})
