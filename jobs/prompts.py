"""Read the prompts of a run: Parquet, CSV, JSONL or plain text become requests.

A file that cannot be used is refused before any work starts. A single bad row is not: it becomes a request that carries its
problem and ends as one ``error`` row of the run.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from index.errors import InputError
from pipeline.outcome import Request

SUFFIXES = (".parquet", ".csv", ".jsonl", ".txt")
COLUMNS = ("prompt", "key", "seed", "negative_prompt")  # others are ignored
MAX_SEED = 2**63 - 1  # fits Arrow's int64 and torch's generator

Problem = tuple[str, str]


def read_prompts(path: Path, *, base_seed: int = 0, samples_per_prompt: int = 1) -> list[Request]:
    """Read requests from a prompt file.

    Args:
        path: ``.parquet``, ``.csv``, ``.jsonl`` with columns ``prompt`` and optionally ``key``, ``seed``,
            ``negative_prompt`` (further columns are ignored), or ``.txt`` with one prompt a line.
        base_seed: where the seeds of rows without one are derived from.
        samples_per_prompt: requests per row; above 1 their keys end in ``#1``, ``#2``, …

    Returns:
        Requests in the order of the file; bad rows are among them, with :attr:`Request.problem` set
        (``input.empty_prompt``, ``input.bad_prompt``, ``input.empty_key``, ``input.bad_seed``).

    Raises:
        InputError: the file as a whole cannot be used.
    """
    if not path.is_file():
        raise InputError("prompt file does not exist", where=str(path), fix="Name an existing file")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"unknown kind of prompt file {suffix!r}", where=str(path), fix=f"Use one of {', '.join(SUFFIXES)}")
    reader = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl, ".txt": _text}[suffix]
    rows = list(reader(path))
    if not rows:
        raise InputError("no prompts in this file", where=str(path), fix="Write at least one row")
    if not any(isinstance(row.get("prompt"), str | None) for _, row in rows):
        kind = type(rows[0][1]["prompt"]).__name__
        raise InputError(f"column 'prompt' holds {kind}, not text", where=str(path), fix="Write the prompts as text")
    requests: list[Request] = []
    seen: dict[str, str] = {}
    for number, (place, row) in enumerate(rows):
        for request in _requests(number, row, base_seed, samples_per_prompt, first_row_no=len(requests)):
            if request.key in seen:
                raise InputError(
                    f"duplicate key {request.key!r}",
                    where=f"{path}: {seen[request.key]} and {place}",
                    fix="Give every row a key of its own",
                )
            seen[request.key] = place
            requests.append(request)
    return requests


def derived_seed(base_seed: int, key: str, repeat: int) -> int:
    """The seed of a row that has none: a hash, so that it depends on the row's key and not on its place."""
    material = json.dumps([base_seed, key, repeat]).encode()
    return int.from_bytes(hashlib.sha256(material).digest()[:8], "big") & MAX_SEED


def _requests(number: int, row: Mapping[str, Any], base_seed: int, samples: int, *, first_row_no: int) -> Iterator[Request]:
    """One input row → its requests; the first problem found is the one that is recorded."""
    prompt, prompt_problem = _prompt(row.get("prompt"))
    negative, negative_problem = _negative(row.get("negative_prompt"))
    key, key_problem = _key(row, number)
    seed, seed_problem = _seed(row.get("seed"))
    problem = prompt_problem or key_problem or seed_problem or negative_problem
    for repeat in range(samples):
        # The caller's seed is the seed of the first repeat; the others are derived from it.
        if seed is None:
            actual = derived_seed(base_seed, key, repeat)
        else:
            actual = seed if repeat == 0 else derived_seed(seed, key, repeat)
        name = f"{key}#{repeat + 1}" if samples > 1 else key
        yield Request(first_row_no + repeat, name, prompt, negative, actual, problem)


def _prompt(value: Any) -> tuple[str, Problem | None]:
    if value is None or (isinstance(value, str) and not value.strip()):
        return "", ("input.empty_prompt", "the prompt is empty")
    if not isinstance(value, str):
        return "", ("input.bad_prompt", f"the prompt is {type(value).__name__}, not text")
    return _encodable(value)


def _negative(value: Any) -> tuple[str, Problem | None]:
    if value is None:
        return "", None
    if not isinstance(value, str):
        return "", ("input.bad_prompt", f"the negative prompt is {type(value).__name__}, not text")
    return _encodable(value)


def _encodable(text: str) -> tuple[str, Problem | None]:
    """JSON can spell half a surrogate pair; such text has no bytes, so nothing could be recorded about it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode(), ("input.bad_prompt", "the prompt holds half a surrogate pair")
    return text, None


def _key(row: Mapping[str, Any], number: int) -> tuple[str, Problem | None]:
    fallback = f"row-{number:06d}"
    if "key" not in row:
        return fallback, None
    value = row["key"]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), None
    if value is None or (isinstance(value, str) and not value.strip()):
        return fallback, ("input.empty_key", f"the key is empty; recorded as {fallback}")
    if not isinstance(value, str):
        return fallback, ("input.empty_key", f"the key is {type(value).__name__}, not text; recorded as {fallback}")
    text, problem = _encodable(value)
    return (fallback, ("input.empty_key", f"the key is not valid text; recorded as {fallback}")) if problem else (text, None)


def _seed(value: Any) -> tuple[int | None, Problem | None]:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None, None
    seed: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        seed = value
    elif isinstance(value, str):
        digits = value.strip()
        seed = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
    elif isinstance(value, float):
        if value != value:  # a gap in a column that pandas wrote as float
            return None, None
        seed = int(value) if value.is_integer() and 0 <= value < 2**53 else None
    if seed is None or not 0 <= seed <= MAX_SEED:
        return None, ("input.bad_seed", f"seed {value!r} is not a whole number from 0 to 2^63-1")
    return seed, None


# One reader per kind of file: each yields (place for messages, row as a mapping).

Rows = Iterator[tuple[str, Mapping[str, Any]]]


def _require_prompt(columns: list[str], path: Path) -> None:
    if "prompt" in columns:
        repeated = [name for name in COLUMNS if columns.count(name) > 1]
        if repeated:
            raise InputError(f"column {repeated[0]!r} appears twice", where=str(path), fix="Keep one of them")
        return
    near = get_close_matches("prompt", columns, 1, cutoff=0.5)
    hint = (
        f"Rename column {near[0]!r} to 'prompt'" if near else f"Name a column 'prompt' (found: {', '.join(columns) or 'none'})"
    )
    raise InputError("column 'prompt' is missing", where=str(path), fix=hint)


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", where=str(path), fix="Save the file as UTF-8") from None


def _text(path: Path) -> Rows:
    # Splits at newlines only: str.splitlines would also break a prompt at exotic separators.
    lines = _decoded(path).replace("\r\n", "\n").rstrip("\n").split("\n")
    if lines == [""]:
        return
    for number, line in enumerate(lines, 1):
        yield f"line {number}", {"prompt": line}


def _csv(path: Path) -> Rows:
    reader = csv.reader(io.StringIO(_decoded(path), newline=""), strict=True)
    try:
        columns = next(reader, None)
        if columns is None:
            return
        columns = [name.strip() for name in columns]
        _require_prompt(columns, path)
        for values in reader:
            if not values:
                continue  # an entirely blank line is no row
            place = f"line {reader.line_num}"
            if len(values) != len(columns):
                raise InputError(
                    f"{len(values)} fields where the header has {len(columns)}",
                    where=f"{path}: {place}",
                    fix='Put prompts that hold a comma between double quotes: "a cat, sleeping"',
                )
            yield place, dict(zip(columns, values, strict=True))
    except csv.Error as error:
        raise InputError(f"not valid CSV ({error})", where=f"{path}: line {reader.line_num}", fix="Mend that line") from None


def _jsonl(path: Path) -> Rows:
    columns: dict[str, None] = {}
    rows: list[tuple[str, dict[str, Any]]] = []
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = str(error) or "nested too deeply"
            raise InputError(
                f"not valid JSON ({reason})", where=f"{path}: {place}", fix="Write one JSON object a line"
            ) from None
        if not isinstance(row, dict):
            raise InputError(f"a {type(row).__name__}, not an object", where=f"{path}: {place}", fix='Write {"prompt": "…"}')
        columns.update(dict.fromkeys(row))
        rows.append((place, row))
    if rows:
        _require_prompt(list(columns), path)
    has_keys = "key" in columns  # a row without its key is then a bad row, as it is in a table
    for place, row in rows:
        yield place, ({"key": None} | row if has_keys else row)


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"not a readable Parquet file ({error})", where=str(path), fix="Write it again") from None
    _require_prompt(list(schema.names), path)
    fits: dict[str, Callable[[Any], bool]] = {
        "prompt": _is_text,
        "negative_prompt": _is_text,
        "key": lambda kind: _is_text(kind) or pa.types.is_integer(kind),
        "seed": lambda kind: _is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind),
    }
    wanted = [name for name in COLUMNS if name in schema.names]
    for name in wanted:
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not fits[name](kind) and not pa.types.is_null(kind):
            need = {"key": "text or integers", "seed": "integers"}.get(name, "text")
            raise InputError(f"column {name!r} is {kind}, not {need}", where=str(path), fix=f"Write {name!r} as {need}")
    number = 0
    try:
        for batch in file.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                yield f"row {number}", row
                number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", where=f"{path}: row {number}", fix="Write the file again") from None


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
