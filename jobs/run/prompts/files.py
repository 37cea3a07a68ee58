"""One reader per kind of prompt file: each gives its rows, a place for messages and a mapping of column to value.

A row that cannot be read is a :class:`BadRow`, not an exception: what is wrong with one row stops no other. An
:class:`index.errors.InputError` means that the file as a whole cannot be used.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from index.errors import InputError
from index.once import Twice, once
from index.parquet import parquet_file
from pipeline.notes import Note
from pipeline.outcome import Stated

COLUMNS = ("prompt", "key", "seed", "negative_prompt", *Stated._fields)  # others are the caller's own, and travel into the rows
OWN = "none"  # in the run file, in place of a column's name: a column that is called as ours is the caller's own
USUAL = ("caption", "text", "prompts", "captions", "description", "instruction", "sentence")  # what data sets call a prompt
SLIPS = {"negative": "negative_prompt", "neg_prompt": "negative_prompt", "cfg": "guidance_scale", "cfg_scale": "guidance_scale",
         "guidance": "guidance_scale", "num_inference_steps": "steps"}  # fmt: skip  # what other programs call columns of ours
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
OTHER_KINDS = {  # by the end of the name, or by the first bytes
    ".json": ("one JSON document", "Write one JSON object a line and name the file .jsonl: jq -c '.[]' FILE > prompts.jsonl"),
    ".gz": ("compressed", "Unpack it first: gunzip --keep FILE"),
    ".zip": ("compressed", "Unpack it first: unzip FILE"),
    ".zst": ("compressed", "Unpack it first: unzstd FILE"),
    ".xz": ("compressed", "Unpack it first: unxz --keep FILE"),
    ".bz2": ("compressed", "Unpack it first: bunzip2 --keep FILE"),
    ".xlsx": ("a spreadsheet", "Save the sheet as CSV (UTF-8)"),
    ".xls": ("a spreadsheet", "Save the sheet as CSV (UTF-8)"),
    ".ods": ("a spreadsheet", "Save the sheet as CSV (UTF-8)"),
}
MAGIC = {
    b"\x1f\x8b": ".gz", b"PK\x03\x04": ".zip", b"\x28\xb5\x2f\xfd": ".zst", b"\xfd7zXZ": ".xz", b"BZh": ".bz2",
}  # fmt: skip


@dataclass(frozen=True)
class BadRow:
    """A row whose values cannot be separated. ``what`` is the reason, for people."""

    what: str


Row = Mapping[str, Any] | BadRow
Rows = Iterator[tuple[str, Row]]


@dataclass(frozen=True)
class Names:
    """What the columns of a file are called.

    Attributes:
        of: ours → the file's own name, where the run file states one (``[columns]``).
        kept: of ours, those that are the caller's own where a file has them.
    """

    of: Mapping[str, str]
    kept: frozenset[str] = frozenset()

    def __getitem__(self, column: str) -> str:
        return self.of.get(column) or column

    def renamed(self, row: Row) -> Row:
        """The row under our names. A column that another stands in for is left out."""
        if isinstance(row, BadRow) or not self.of:
            return row
        own = {name: value for name, value in row.items() if name not in COLUMNS and name not in self.of.values()}
        return own | {column: row[self[column]] for column in COLUMNS if self[column] in row}


def read_rows(path: Path, notes: list[Note], columns: Mapping[str, str] | None = None) -> list[tuple[str, Row]]:
    """All rows of a prompt file.

    Args:
        path: the file; the end of its name gives its kind.
        notes: receives the reader's own decisions (delimiter, encoding), and columns whose names may be slips.
        columns: what the file calls our columns, where it is another name.

    Returns:
        (place, row) in the order of the file, where place is "line 7" or "row 6".

    Raises:
        InputError: it is no file, of no known kind, or cannot be used as a whole.
    """
    try:
        there, folder = path.exists(), path.is_dir()
    except OSError as error:  # a name that is too long
        raise InputError(f"cannot be opened ({error.strerror})", where=str(path), fix="Name an existing file") from None
    if not there:
        raise InputError("prompt file does not exist", where=str(path), fix="Name an existing file")
    if folder:
        raise InputError("is a folder, not a prompt file", where=str(path), fix="Name one file in it")
    if not path.is_file():
        raise InputError("is not an ordinary file", where=str(path), fix="Write the prompts to a file, and name that")
    suffix = path.suffix.lower()
    if suffix not in READERS:
        kind, fix = OTHER_KINDS.get(suffix, ("", ""))
        what = f"unknown kind of prompt file {suffix!r}" + (f": it is {kind}" if kind else "")
        raise InputError(what, where=str(path), fix=fix.replace("FILE", path.name) or f"Use one of {', '.join(READERS)}")
    stated = columns or {}
    kept = kept_own(stated)
    names = Names({ours: theirs for ours, theirs in stated.items() if theirs and ours not in kept}, kept)
    return [(place, names.renamed(row)) for place, row in READERS[suffix](path, notes, names)]


def kept_own(columns: Mapping[str, str]) -> frozenset[str]:
    """Those of our columns that are the caller's own where a file has them (``columns.width = "none"``)."""
    return frozenset(ours for ours, theirs in columns.items() if theirs == OWN and ours != "prompt")


def _require_columns(columns: list[str], path: Path, notes: list[Note], names: Names) -> None:
    repeated = [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]
    if repeated:
        raise InputError(f"column {repeated[0]!r} appears twice", where=str(path), fix="Keep one of them")
    shown = ", ".join(columns[:20]) + (" …" if len(columns) > 20 else "")
    for ours, theirs in names.of.items():
        if theirs not in columns:
            near = _likely(theirs, columns)
            guess = f'write columns.{ours} = "{near}"' if near else "correct the name"
            fix = f"In the run file, {guess}; this file has: {shown or 'none'}"
            raise InputError(f"there is no column {theirs!r} (columns.{ours})", where=str(path), fix=fix)
        if ours != theirs and ours in columns:
            notes.append(Note("prompts", f"column {ours!r} is left out: columns.{ours} names {theirs!r} in its place"))
    if names["prompt"] not in columns:
        if near := _likely("prompt", columns):
            fix = f"Rename column {near!r} to 'prompt'"
            if near.strip().lower() in USUAL:  # no slip: it is called so
                fix += f', or write columns.prompt = "{near}" in the run file; found: {shown}'
        else:
            fix = f"Name a column 'prompt' (found: {shown or 'none'}), or state its name in the run file: columns.prompt"
        raise InputError("column 'prompt' is missing", where=str(path), fix=fix)
    for name in columns:
        plain = name.strip().lower().replace(" ", "_")
        meant = [SLIPS[plain]] if plain in SLIPS else get_close_matches(plain, COLUMNS, 1, cutoff=0.8)
        known = (*COLUMNS, *names.of.values(), "weight")  # which is no slip for "height"
        if name not in known and meant and meant[0] not in names.kept and names[meant[0]] not in columns:
            what = f"column {name!r} is kept as a column of your own; if it is meant as {meant[0]!r}, rename it"
            notes.append(Note("prompts", what))
    taken = [name for name in Stated._fields if name in columns and name not in names.of and name not in names.kept]
    if taken:
        what = f"{', '.join(map(repr, taken))} state{'s' if len(taken) == 1 else ''} what each picture is drawn with"
        fix = f'columns.{taken[0]} = "{OWN}" makes {"it" if len(taken) == 1 else "the first"} a column of your own'
        notes.append(Note("prompts", f"{what}; where that is not meant, {fix}"))


def _likely(wanted: str, columns: list[str]) -> str:
    """The column that is probably meant; empty: none is."""
    plain = {name.strip().lower(): name for name in reversed(columns) if name}
    near = get_close_matches(wanted.strip().lower(), plain, 1, cutoff=0.5)
    usual = [plain[name] for name in USUAL if name in plain] if wanted == "prompt" else []
    return plain[near[0]] if near else usual[0] if usual else ""


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        fix = "Make the file readable for this user, or name another"
        raise InputError(f"cannot be read ({error.strerror})", where=str(path), fix=fix) from None


def _decoded(path: Path, notes: list[Note]) -> str:
    content = _content(path)
    for magic, suffix in MAGIC.items():
        if content.startswith(magic):
            kind, fix = OTHER_KINDS[suffix]
            raise InputError(f"is not text: it is {kind}", where=str(path), fix=fix.replace("FILE", path.name))
    if content.startswith(b"PAR1"):
        raise InputError("is not text: it is a Parquet file", where=str(path), fix="Let its name end in .parquet")
    encoding = "utf-8-sig"
    for mark, name in ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if content.startswith(mark):
            encoding = name
            notes.append(Note("prompts", f"{path.name} is read as {name.upper()}, because of its first bytes"))
            break
    if encoding == "utf-8-sig" and content[:4096].count(0) * 3 > len(content[:4096]):
        fix = f"Save the file as UTF-8: iconv -f UTF-16LE -t UTF-8 {path.name} > new"
        raise InputError("not UTF-8 text: a third of its bytes are 0, so it may be UTF-16", where=str(path), fix=fix)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"not {'UTF-8' if encoding == 'utf-8-sig' else encoding.upper()} text (byte {error.start}): "
            f"line {line} holds 0x{content[error.start]:02x}",
            where=str(path),
            fix=f"Save the file as UTF-8; if it is Windows-1252 or Latin-1: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > new",
        ) from None
    return text.lstrip("\ufeff")  # files that were put together, or saved twice, have more than one mark


def _lines(text: str) -> list[str]:
    """Splits at newlines only: str.splitlines would also break a prompt at exotic separators."""
    text = text.replace("\r\n", "\n")
    return (text if "\n" in text else text.replace("\r", "\n")).split("\n")


def _text(path: Path, notes: list[Note], names: Names) -> Rows:
    if names.of:
        column, theirs = next(iter(names.of.items()))
        fix = "Name Parquet, CSV or JSONL files, or take columns out of the run file"
        raise InputError(f"text has no columns, and columns.{column} names {theirs!r}", where=str(path), fix=fix)
    lines = _lines(_decoded(path, notes))
    while lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        yield f"line {number}", {"prompt": line}


def _delimiter(text: str, prompt: str) -> tuple[str, bool]:
    """What separates the fields, and whether the first line names it (``sep=;``, which spreadsheets write)."""
    first = text[:4096].split("\n", 1)[0].split("\r", 1)[0]
    if first.lower().startswith("sep=") and len(first) == 5:
        return first[4], True
    found = {mark: [name.strip() for name in next(csv.reader([first], delimiter=mark), [])] for mark in DELIMITERS}
    with_prompt = [mark for mark, columns in found.items() if prompt in columns]
    # Without one, the message about the missing column should show the columns as they are meant.
    return (with_prompt or sorted(found, key=lambda mark: -len(found[mark])))[0], False


def _csv(path: Path, notes: list[Note], names: Names) -> Rows:
    text = _decoded(path, notes)
    mark, declared = _delimiter(text, names["prompt"])
    if declared:
        text = text.split("\n", 1)[1] if "\n" in text else ""
    name = DELIMITERS.get(mark, repr(mark))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    columns: list[str] | None = None
    rows: list[tuple[str, Row]] = []
    while True:
        began = reader.line_num + 1 + declared
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise _not_csv(error, path, began, reader.line_num + declared) from None
        if values is None:
            break
        if columns is None:
            columns = [value.strip() for value in values]
            _require_columns(columns, path, notes, names)
        elif len(columns) > 1 and [value.strip("\ufeff ") for value in values] == columns:
            what = "repeats the header: files were put together; remove the line"
            rows.append((f"line {began}", BadRow(what)))
        elif len(values) == len(columns):
            rows.append((f"line {began}", dict(zip(columns, values, strict=True))))
        elif values:  # an entirely blank line is no row
            what = f"{len(values)} field{'s' if len(values) > 1 else ''} where the header has {len(columns)}"
            fix = f'put a prompt that holds a {name} between double quotes: "a cat{mark} sleeping"'
            rows.append((f"line {began}", BadRow(f"{what}; {fix}")))
    if columns is not None and mark != ",":
        notes.append(Note("prompts", f"the fields of {path.name} are separated by {name}s"))
    yield from rows
    if columns == [names["prompt"]]:
        notes += _perhaps_fields([row[columns[0]] for _, row in rows if not isinstance(row, BadRow)])


def _perhaps_fields(prompts: list[str]) -> list[Note]:
    """A header that lacks names makes fields a part of the prompt."""
    for mark in (";", "\t", "|"):
        counts = {prompt.count(mark) for prompt in prompts}
        if len(prompts) > 1 and len(counts) == 1 and counts != {0}:
            many, name = counts.pop(), DELIMITERS[mark]
            header = mark.join(("prompt", "key", "seed")[: many + 1]).replace("\t", "<tab>")
            text = (
                f"every prompt holds {many} {name}{'s' if many > 1 else ''}; if they separate fields, name these in the header"
            )
            return [Note("prompts", f"{text}: {header}")]
    return []


def _not_csv(error: csv.Error, path: Path, began: int, line: int) -> InputError:
    if "field limit" in str(error):
        what = f"a field has more than {csv.field_size_limit():,} characters"
        fix = f"Close the double quote that opens in line {began}; or, if none does, shorten the field"
        return InputError(what, where=f"{path}: line {line}", fix=fix)
    if "unexpected end" in str(error):
        fix = f"Close the double quote that opens in line {began}"
    else:
        fix = 'Write a double quote inside a quoted field as two: "a 12"" plate"'
    return InputError(f"not valid CSV ({error})", where=f"{path}: line {line}", fix=fix)


def _jsonl(path: Path, notes: list[Note], names: Names) -> Rows:
    columns: dict[str, None] = {}
    rows: list[tuple[str, Row]] = []
    text = _decoded(path, notes)
    lines = [(number, line) for number, line in enumerate(_lines(text), 1) if line.strip()]
    decode = json.JSONDecoder(object_pairs_hook=once).decode  # json.loads would make one for each line
    for number, line in lines:
        row: Any
        try:
            row = decode(line)
        except Twice as error:
            row = BadRow(str(error))
        except (ValueError, RecursionError) as error:
            if number == lines[0][0]:
                _require_one_a_line(text, path)
            why = "a number of more than 4,300 digits" if "Exceeds the limit" in str(error) else str(error)
            row = BadRow(f"not valid JSON ({why or 'nested too deeply'})")
            if number == lines[-1][0] and not text.endswith(("\n", "\r")):
                fix = "The file may have been cut short: write it again, or remove its last line"
                raise InputError(row.what, where=f"{path}: line {number}", fix=fix) from None
        if isinstance(row, list) and len(lines) == 1 and any(isinstance(one, dict) for one in row):
            _require_one_a_line(text, path)
        if isinstance(row, dict):
            columns.update(dict.fromkeys(row))
        elif not isinstance(row, BadRow):
            row = BadRow(f'a {type(row).__name__}, not an object: write {{"prompt": "…"}}')
        rows.append((f"line {number}", row))
    if columns or any(not isinstance(row, BadRow) for _, row in rows):
        _require_columns(list(columns), path, notes, names)
    has_keys = (
        names["key"] in columns and "key" not in names.kept
    )  # a row without its key is then a bad row, as it is in a table
    for place, row in rows:
        yield place, ({names["key"]: None, **row} if has_keys and not isinstance(row, BadRow) else row)


def _require_one_a_line(text: str, path: Path) -> None:
    """Refuse a file that begins with JSON over several lines, or that is one array: its lines are no rows.

    Raises:
        InputError: it is.
    """
    try:
        found, end = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return
    what, fix = "one JSON array, not one object a line", OTHER_KINDS[".json"][1]
    if isinstance(found, dict):
        what, fix = "a JSON object over several lines, not one object a line", "Write it anew: jq -c . FILE > prompts.jsonl"
    if isinstance(found, list) or (isinstance(found, dict) and "\n" in text.lstrip()[:end]):
        raise InputError(what, where=str(path), fix=fix.replace("FILE", path.name))


def _parquet(path: Path, notes: list[Note], names: Names) -> Rows:
    import pyarrow as pa

    try:
        file = parquet_file(path)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"not a readable Parquet file ({error})", where=str(path), fix="Write the file again") from None
    _require_columns(list(schema.names), path, notes, names)
    fits: dict[str, Callable[[Any], bool]] = {
        "prompt": _is_text,
        "negative_prompt": _is_text,
        "key": lambda kind: _is_text(kind) or pa.types.is_integer(kind),
        **dict.fromkeys(
            ("seed", *Stated._fields),
            lambda kind: _is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind),
        ),
    }
    ours = [column for column in COLUMNS if column not in names.kept and names[column] in schema.names]
    for column, name in ((column, names[column]) for column in ours):
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not fits[column](kind) and not pa.types.is_null(kind):
            need = {"key": "text or integers", "seed": "integers", **dict.fromkeys(Stated._fields, "numbers")}.get(
                column, "text"
            )
            raise InputError(f"column {name!r} is {kind}, not {need}", where=str(path), fix=f"Write {name!r} as {need}")
    wanted = [name for name in schema.names if name and not _holds_bytes(schema.field(name).type)]
    for name in (name for name in schema.names if name not in wanted):
        notes.append(Note("prompts", f"column {name!r} holds bytes and is not kept; write it as text to have it in the rows"))
    number = 0
    try:
        for batch in file.iter_batches(columns=wanted):
            for row in _values(batch, f"{path}: row {number}"):
                yield f"row {number}", row
                number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", where=f"{path}: row {number}", fix="Write the file again") from None


def _values(batch: Any, where: str) -> list[dict[str, Any]]:
    """The rows of a batch; a time that Python cannot hold, or text that is none, is the fault of its column."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except (ValueError, OverflowError):  # Arrow's and Unicode's errors are ValueErrors
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column.to_pylist()
            except (ValueError, OverflowError) as error:
                what = f"column {name!r} cannot be read ({error})"
                raise InputError(what, where=where, fix=f"Write {name!r} as text (UTF-8), or leave it out") from None
        raise


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_nested(kind):
        return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    every = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in every)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


READERS: dict[str, Callable[[Path, list[Note], Names], Rows]] = {
    ".parquet": _parquet, ".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".txt": _text,
}  # fmt: skip
