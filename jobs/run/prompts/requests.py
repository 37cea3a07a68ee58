"""Read the prompts of a run: Parquet, CSV, JSONL or plain text become requests.

A file that cannot be used is refused before any work starts. A single bad row is not: it becomes a request that carries its
problem and ends as one ``error`` row of the run.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from index.errors import ConfigError, InputError
from index.places.cache import named_as
from jobs.run.prompts.files import COLUMNS, OWN, BadRow, Row, kept_own, read_rows
from jobs.run.prompts.sources import Source
from jobs.run.prompts.stated import GAPS, Rule, stated_of
from jobs.run.prompts.unseen import look_alikes, unseen
from pipeline.config import AdapterConfig
from pipeline.notes import Note
from pipeline.outcome import Request, Stated
from pipeline.row_adapters import row_adapters

MAX_SEED = 2**63 - 1  # fits Arrow's int64 and torch's generator
MOST_PROMPT = 1_000_000  # characters: a longer one is a file in the wrong place, and it would stand in every report
MOST_COLUMNS = 16_384  # bytes of a row's own columns, as JSON
EXACT = 2**53  # below it every whole number is a float of its own
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
SHOWN = 1000  # characters that are recorded of one that is longer
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
PLAIN = frozenset({"prompt", "key", "seed"})

Problem = tuple[str, str]


class AdapterColumn(NamedTuple):
    """The column in which rows name adapters.

    Attributes:
        known: names of the run file's adapters with ``rows = "named"``; none: the column is the caller's own.
        name: the column's.
        stated: the run file names it, so that it has to be there.
    """

    known: tuple[str, ...] = ()
    name: str = "adapter"
    stated: bool = False


NO_ADAPTERS = AdapterColumn()


def adapter_column(adapters: Sequence[AdapterConfig], stated: str) -> AdapterColumn:
    """The column in which a run's rows name adapters.

    Args:
        adapters: of the run file. stated: `columns.adapter` there; empty: the usual name.

    Raises:
        ConfigError: a column is stated, and no adapter is for rows that name it.
    """
    if stated == OWN:
        return NO_ADAPTERS
    known = tuple(adapter.called for adapter in adapters if adapter.rows == "named")
    if stated and not known:
        fix = 'Set rows = "named" at an adapter, or remove the key'
        raise ConfigError(f"names {stated!r}, and no adapter is for rows that name it", where="columns.adapter", fix=fix)
    return AdapterColumn(known, stated or "adapter", bool(stated))


OTHER_MEANING = (
    f'Correct the field, or leave it empty; where the column means something else, set columns.{{}} = "{OWN}" in the run file'
)
ADVICE = {
    "input.bad_row": "Write as many fields in each row as the header has",
    "jsonl.bad_row": 'Write one JSON object a line, as in {"prompt": "a cat"}',
    "input.empty_prompt": "Write a prompt in the row, or remove the row",
    "input.bad_prompt": "Write the prompt as text",
    "input.empty_key": "Give the row a key of its own, or remove the column 'key'",
    "input.bad_key": "Remove what cannot be seen at the ends of the key",
    "input.bad_column": "Shorten the row's own columns, or remove the one that is named",
    "input.bad_adapter": 'Name adapters of the run file that have rows = "named", or leave the field empty',
    "input.bad_seed": "Write a whole number from 0 to 2^63-1, or leave the field empty",
    "input.bad_width": OTHER_MEANING.format("width"),
    "input.bad_height": OTHER_MEANING.format("height"),
    "input.bad_steps": OTHER_MEANING.format("steps"),
    "input.bad_guidance_scale": OTHER_MEANING.format("guidance_scale"),
}


def read_prompts(
    path: Path, *, base_seed: int = 0, samples_per_prompt: int = 1, notes: list[Note] | None = None
) -> list[Request]:
    """Read requests from one prompt file; see :func:`read_sources`."""
    return read_sources([Source(path)], base_seed=base_seed, samples_per_prompt=samples_per_prompt, notes=notes)


def read_sources(
    sources: Sequence[Source],
    *,
    columns: Mapping[str, str] | None = None,
    base_seed: int = 0,
    samples_per_prompt: int = 1,
    notes: list[Note] | None = None,
    adapters: AdapterColumn = NO_ADAPTERS,
    sides: Rule = lambda: None,
    places: dict[str, str] | None = None,
) -> list[Request]:
    """Read requests from prompt files, one after the other; rows are numbered through all of them.

    Args:
        sources: ``.parquet``, ``.csv``, ``.tsv``, ``.jsonl`` with columns ``prompt`` and optionally ``key``, ``seed``,
            ``negative_prompt``, ``width``, ``height``, ``steps``, ``guidance_scale``; or ``.txt`` with one prompt a line.
            Further columns are the caller's own and travel into the rows. The fields of a CSV may be separated by commas,
            semicolons, tabs or vertical bars.
        columns: what the files call these columns, where it is another name; "none": one that is called so is the caller's own.
        base_seed: where the seeds of rows without one are derived from.
        samples_per_prompt: requests per row; above 1 their keys end in ``#1``, ``#2``, …
        notes: receives the reader's own decisions (delimiter, encoding) and possible slips.
        adapters: the column in which rows name adapters of their own.
        sides: gives the rule for widths and heights; asked only where a row states one.
        places: receives where each request's row stands, by the request's key; for messages.

    Returns:
        Requests in the order of the files; bad rows are among them, with :attr:`Request.problem` set
        (``input.bad_row``, ``input.empty_prompt``, ``input.bad_prompt``, ``input.empty_key``, ``input.bad_key``,
        ``input.bad_seed``, ``input.bad_column``, ``input.bad_adapter``, ``input.bad_width``, ``input.bad_height``,
        ``input.bad_steps``, ``input.bad_guidance_scale``).

    Raises:
        InputError: a file as a whole cannot be used, or none of its rows can; two rows have one key.
    """
    notes = [] if notes is None else notes
    requests: list[Request] = []
    seen: dict[str, str] = {} if places is None else places
    number, kept = 0, kept_own(columns or {})
    for source in sources:
        with named_as(source.origin or source.path, source.path):
            rows = read_rows(source.path, notes, columns)
            _require_prompts(rows, source.path)
            _require_adapters(rows, source.path, adapters)
            began = len(requests)
            usual = samples_per_prompt == 1 and not kept and not adapters.known
            for place, row in rows:
                where = f"{source.label}: {place}" if source.label else place
                made: Iterable[Request]
                if not (usual and (made := _plain(row, number, len(requests), base_seed))):
                    own = _Row(number=number, place=where, row=row, first_row_no=len(requests), kept=kept)
                    made = _requests(own, base_seed, samples_per_prompt, sides, adapters)
                for request in made:
                    if request.key in seen:
                        at = f"{seen[request.key]} and {where}"
                        fix = "Give every row a key of its own"
                        raise InputError(f"duplicate key {request.key!r}", where=f"{source.path}: {at}", fix=fix)
                    seen[request.key] = where
                    requests.append(request)
                number += 1
            mine = requests[began:]
            if all(request.problem for request in mine):
                code, what = mine[0].problem or ("", "")
                many = f"none of its {len(rows)} rows can be drawn; the first: " if len(rows) > 1 else ""
                jsonl = code == "input.bad_row" and source.path.suffix.lower() == ".jsonl"
                raise InputError(f"{many}{what}", where=str(source.path), fix=ADVICE["jsonl.bad_row" if jsonl else code])
    notes += look_alikes(seen)
    notes[:] = dict.fromkeys(notes)  # files of one kind give the same note
    return requests


def _require_prompts(rows: Sequence[tuple[str, Row]], path: Path) -> None:
    if not rows:
        raise InputError("no prompts in this file", where=str(path), fix="Write at least one row")
    values = [row.get("prompt") for _, row in rows if not isinstance(row, BadRow)]
    if values and not any(isinstance(value, str | None) for value in values):
        kind = type(values[0]).__name__
        raise InputError(f"column 'prompt' holds {kind}, not text", where=str(path), fix="Write the prompts as text")


def _require_adapters(rows: Sequence[tuple[str, Row]], path: Path, adapters: AdapterColumn) -> None:
    if adapters.stated and not any(adapters.name in row for _, row in rows if not isinstance(row, BadRow)):
        fix = "In the run file, correct columns.adapter, or remove it"
        raise InputError(f"there is no column {adapters.name!r} (columns.adapter)", where=str(path), fix=fix)


def derived_seed(base_seed: int, key: str, repeat: int) -> int:
    """The seed of a row that has none: a hash, so that it depends on the row's key and not on its place."""
    material = (
        f"[{base_seed}, {encode_basestring_ascii(key)}, {repeat}]".encode()
    )  # json.dumps of the three, in a third of the time
    return int.from_bytes(hashlib.sha256(material).digest()[:8], "big") & MAX_SEED


def _plain(row: Row | BadRow, number: int, row_no: int, base_seed: int) -> tuple[Request, ...]:
    """The request of a row that has a prompt, a key and a seed at most, with nothing wrong in them; none for any other.

    What :func:`_requests` makes of such a row, in a third of the time: a run may have a million of them.
    """
    if isinstance(row, BadRow) or not row.keys() <= PLAIN:
        return ()
    prompt: Any = row.get("prompt")
    key: Any = row["key"] if "key" in row else _fallback(number)
    seed: Any = row.get("seed")
    for text in (prompt, key):
        if type(text) is not str or not text or text.isspace() or len(text) > MOST_PROMPT or UNSTORABLE.search(text):
            return ()
    if unseen(key[0]) or unseen(key[-1]):
        return ()
    if seed is None:
        seed = derived_seed(base_seed, key, 0)
    elif type(seed) is not int or not 0 <= seed <= MAX_SEED:
        return ()
    return (Request(row_no=row_no, key=key, prompt=prompt, seed=seed),)


class _Row(NamedTuple):
    """An input row: its number, its place for messages, its values, the number of its first request, and those of our columns
    that are the caller's own in it."""

    number: int
    place: str
    row: Row
    first_row_no: int
    kept: frozenset[str]


def _requests(own: _Row, base_seed: int, samples: int, sides: Rule, adapters: AdapterColumn) -> Iterator[Request]:
    """One input row → its requests; the first problem found is the one that is recorded, with the row's place."""
    number, place, row, first_row_no, kept = own
    problem: Problem | None
    stated = Stated()
    if isinstance(row, BadRow):
        prompt, negative, key, seed, columns, problem = "", "", _fallback(number), None, "", ("input.bad_row", row.what)
        adapter = ""
    else:
        row, adapter, adapter_problem = _adapter(row, adapters)
        columns, columns_problem = _own_columns(row, kept)
        row = {name: value for name, value in row.items() if name not in kept} if kept else row
        prompt, prompt_problem = _prompt(row.get("prompt"))
        negative, negative_problem = _negative(row.get("negative_prompt"))
        key, key_problem = _key(row, number)
        seed, seed_problem = _seed(row.get("seed"))
        stated, stated_problem = stated_of(row, sides)
        own_problem = adapter_problem or columns_problem or stated_problem
        problem = prompt_problem or key_problem or seed_problem or negative_problem or own_problem
    if problem is not None:
        problem = problem[0], f"{place}: {problem[1]}"
    for repeat in range(samples):
        # The caller's seed is the seed of the first repeat; the others are derived from it.
        if seed is None:
            actual = derived_seed(base_seed, key, repeat)
        else:
            actual = seed if repeat == 0 else derived_seed(seed, key, repeat)
        name = f"{key}#{repeat + 1}" if samples > 1 else key
        yield Request(
            row_no=first_row_no + repeat,
            key=name,
            prompt=prompt,
            negative_prompt=negative,
            seed=actual,
            adapter=adapter,
            columns=columns,
            stated=stated,
            problem=problem,
        )


def _fallback(number: int) -> str:
    return f"row-{number:06d}"


def _prompt(value: Any) -> tuple[str, Problem | None]:
    if value is None or (isinstance(value, str) and not value.strip()):
        return "", ("input.empty_prompt", "the prompt is empty")
    if not isinstance(value, str):
        return "", ("input.bad_prompt", f"the prompt is {type(value).__name__}, not text")
    return _encodable(value) if len(value) <= MOST_PROMPT else _too_long(value, "prompt")


def _negative(value: Any) -> tuple[str, Problem | None]:
    if value is None:
        return "", None
    if not isinstance(value, str):
        return "", ("input.bad_prompt", f"the negative prompt is {type(value).__name__}, not text")
    return _encodable(value) if len(value) <= MOST_PROMPT else _too_long(value, "negative prompt")


def _too_long(text: str, called: str) -> tuple[str, Problem]:
    """The beginning of a text that is likely a whole file, and what is wrong with it."""
    what = f"the {called} has {len(text):,} characters, more than {MOST_PROMPT:,}; its beginning is recorded"
    return _encodable(text[:SHOWN])[0], ("input.bad_prompt", what)


def _encodable(text: str) -> tuple[str, Problem | None]:
    """JSON can spell half a surrogate pair; such text has no bytes, so nothing could be recorded about it. NUL ends strings."""
    found = UNSTORABLE.search(text)
    if found is None:
        return text, None
    what = "a NUL character" if found[0] == "\0" else "half a surrogate pair"
    return UNSTORABLE.sub("\ufffd", text), ("input.bad_prompt", f"the prompt holds {what} (character {found.start() + 1})")


def _adapter(row: Mapping[str, Any], adapters: AdapterColumn) -> tuple[Mapping[str, Any], str, Problem | None]:
    """The row without the column in which it names adapters, what it names, and what is wrong with that."""
    if not adapters.known or adapters.name not in row:
        return row, "", None
    value, others = row[adapters.name], {name: value for name, value in row.items() if name != adapters.name}
    if value is None or (isinstance(value, float) and value != value):
        return others, "", None
    if not isinstance(value, str):
        return others, "", ("input.bad_adapter", f"the adapter is {type(value).__name__}, not text")
    try:
        return others, ", ".join(map(str, row_adapters(value, adapters.known))), None
    except InputError as error:
        return others, "", ("input.bad_adapter", f"{error.what}; {error.fix[:1].lower()}{error.fix[1:]}")


def _key(row: Mapping[str, Any], number: int) -> tuple[str, Problem | None]:
    fallback = _fallback(number)
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
    if problem:
        return fallback, ("input.empty_key", f"the key is not valid text; recorded as {fallback}")
    for end, of in (("begins", text[0]), ("ends", text[-1])):
        if unseen(of):
            named = f"{unicodedata.name(of, 'a control character').lower()} (U+{ord(of):04X})"
            shown = text.strip()[:60] if of.isspace() else text[:60]
            what = f"the key {shown!r} {end} with {named}, so that it looks like another; recorded as {fallback}"
            return fallback, ("input.bad_key", what)
    return text, None


def _own_columns(row: Mapping[str, Any], kept: frozenset[str]) -> tuple[str, Problem | None]:
    """The caller's own columns as one JSON object; "" where there are none."""
    own = {name: value for name, value in row.items() if name and (name not in COLUMNS or name in kept)}
    if not own:
        return "", None
    parts = {}
    for name, value in own.items():
        try:
            parts[name] = f"{_json(name)}:{_json(value)}"
        except (TypeError, ValueError, RecursionError) as error:
            return "", ("input.bad_column", f"column {name[:60]!r} holds what JSON cannot write ({error})")
    text = "{" + ",".join(parts.values()) + "}"
    size = len(text.encode())
    if size > MOST_COLUMNS:
        largest = max(parts, key=lambda name: len(parts[name]))
        what = f"the row's own columns are {size:,} bytes as JSON, more than {MOST_COLUMNS:,}; the largest is {largest[:60]!r}"
        return "", ("input.bad_column", what)
    return text, None


def _json(value: Any) -> str:
    """Compact JSON; a gap (NaN) is null, times are ISO 8601, decimals are text. Half a surrogate pair stays an escape."""
    plain = None if isinstance(value, float) and value != value else value
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_as_text)
    return json.dumps(plain, allow_nan=False, separators=(",", ":"), default=_as_text) if UNSTORABLE.search(text) else text


def _as_text(value: Any) -> str:
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal | UUID | timedelta):
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__}")


def _seed(value: Any) -> tuple[int | None, Problem | None]:
    """The same number is the same seed in every kind of file: 7, 7.0, "7" and "7.0" are 7; a gap is no seed."""
    if value is None or (isinstance(value, float) and value != value):
        return None, None
    if isinstance(value, str) and value.strip().lower() in GAPS:
        return None, None
    number = value.strip() if isinstance(value, str) else value
    if isinstance(number, str) and NUMBER.fullmatch(number):
        whole = number.lstrip("+-").isdigit()
        number = (int(number) if len(number) <= 20 else -1) if whole else float(number)
    if isinstance(number, float):  # pandas makes floats of whole numbers in a column with gaps
        number = int(number) if number.is_integer() and number < EXACT else None
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= MAX_SEED:
        shown = repr(value) if len(str(value)) <= 40 else f"{str(value)[:40]}…"
        return None, ("input.bad_seed", f"seed {shown} is not a whole number from 0 to 2^63-1")
    return number, None
