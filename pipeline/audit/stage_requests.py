"""Verify ``requests.parquet`` after an erasure: its rows against the rows of samples, since the plan's digest no longer holds.

The digest that an event names says only that the file is the one that the event left. What is in it is told by the rows of
samples, which the seal covers. Each repeats the number, key and seed of its request, its group, and the steps and the guidance
that it states; and each commits to both prompts and to the caller's columns. Only cells that events name may be empty. What no
row repeats as it was asked for (adapter, width and height) is not compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from index.errors import ClearanceError
from index.parquet import parquet_file
from index.storage import parsing, read_file
from pipeline.audit.binding import REQUESTS_FILE
from pipeline.audit.chain import canonical
from pipeline.audit.commitments import columns_commitment, prompt_commitment
from pipeline.audit.erasure import Erasures, FileNow
from pipeline.audit.stage import FILES, Findings
from pipeline.outcome import Outcome, Stated

# Columns that a table of requests may have, by whether every one has them.
ALWAYS = frozenset({"row_no", "key", "prompt", "negative_prompt", "seed", "problem_code", "problem"})
SOMETIMES = frozenset({"adapter", "columns", "group", "member", "group_size", *Stated._fields})
BOTH = ("prompt", "negative_prompt")
ALONE = "is here, and the other prompt was erased: one commitment covers both, so nothing shows that it is as it was"


class _Asked(NamedTuple):
    """What a row of samples says of its request. Texts are held as digests: a run may have a million rows.

    ``prompts`` and ``columns`` are None where they were erased of the row; ``group`` and ``columns`` where its version of the
    schema has none.
    """

    sample_id: str
    key: Any
    seed: Any
    outcome: str
    steps: Any
    guidance: Any
    group: tuple[Any, ...] | None
    prompts: bytes | None
    prompt_commit: Any
    columns: bytes | None
    columns_commit: Any
    salt: str


class Asked:
    """What the rows of samples say of the requests, by the number of the request."""

    def __init__(self) -> None:
        self._rows: dict[Any, _Asked] = {}

    def add(self, row: Mapping[str, Any], salt: str) -> None:
        """Take in a row of samples; ``salt`` (hex) is that of its commitments, empty where it is not known."""
        prompts, own, group = [row[name] for name in BOTH], row.get("columns"), row.get("group")
        whole = "columns" in row and (own is None) == (row.get("columns_commit") is None)
        self._rows[row["row_no"]] = _Asked(
            sample_id=row["sample_id"],
            key=row["request_key"],
            seed=row["base_seed"],
            outcome=str(row["outcome"]),
            steps=row["steps"],
            guidance=row["guidance"],
            group=tuple((group or {}).get(name) for name in ("id", "member", "size")) if "group" in row else None,
            prompts=None if None in prompts else _digest(prompts),
            prompt_commit=row["prompt_commit"],
            columns=_digest(own or "") if whole else None,
            columns_commit=row.get("columns_commit"),
            salt=salt,
        )

    def problems(self, rows: Iterator[Mapping[str, Any]], now: FileNow) -> Iterator[tuple[str, str]]:
        """What in the rows of requests the rows of samples contradict, as (place in the file, what).

        Each row of samples is forgotten once it was compared, so this can be asked once.
        """
        left = self._rows
        for number, row in enumerate(rows):
            one = left.pop(row["row_no"], None)
            if one is None:
                yield f"row {number}", f"belongs to no sample, or is there twice (row_no {row['row_no']})"
                continue
            erased = {column for column, samples in now.erased.items() if one.sample_id in samples}
            for column, what in (*_repeated(row, one), *_texts(row, one, erased)):
                yield f"row {number} column {column}", what
        for row_no in left:
            yield f"row_no {row_no}", "is missing: samples has a row of this request"


def check_requests(folder: Path, asked: Asked, erasures: Erasures, found: Findings) -> None:
    """Hold the rows of a file of requests that events say was changed against the rows of samples; stage files.

    A file that is not the one that the last of these events left is named elsewhere, and not looked into.
    """
    now = erasures.now(REQUESTS_FILE, "", 0)
    try:
        data = read_file(folder, REQUESTS_FILE)
        if hashlib.sha256(data).hexdigest() != now.sha256:
            return
        with parsing(REQUESTS_FILE, fix="", what="cannot be read as the requests of a run"):
            file = parquet_file(BytesIO(data))
            names = list(file.schema_arrow.names)
            if len(names) != len(set(names)) or not ALWAYS <= set(names) <= ALWAYS | SOMETIMES:
                found.problem(FILES, REQUESTS_FILE, f"has other columns than requests have: {', '.join(names)[:200]}")
                return
            found.add(FILES, ((f"{REQUESTS_FILE} {where}", what) for where, what in asked.problems(_rows(file), now)))
    except ClearanceError as error:
        found.problem(FILES, REQUESTS_FILE, error.what)


def _rows(file: Any) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(batch_size=1024, use_threads=False):
        batch.validate(full=True)
        yield from batch.to_pylist()


def _repeated(row: Mapping[str, Any], one: _Asked) -> Iterator[tuple[str, str]]:
    """What the row of samples repeats in plain text."""
    for column, value in (("key", one.key), ("seed", one.seed)):
        if row[column] != value:
            yield column, f"is not that of the sample ({str(value)[:64]})"
    if row["problem_code"] and one.outcome != Outcome.ERROR:
        yield "problem_code", f"does not go with outcome {one.outcome}"
    for column, value in (("steps", one.steps), ("guidance_scale", one.guidance)):
        if row.get(column) is not None and row[column] != value:
            yield column, f"is not that of the sample ({value})"
    group = tuple(row.get(column) or None for column in ("group", "member", "group_size"))
    if one.group is not None and group != tuple(value or None for value in one.group):
        yield "group", "is not that of the sample"


def _texts(row: Mapping[str, Any], one: _Asked, erased: set[str]) -> Iterator[tuple[str, str]]:
    """What the row of samples commits to: both prompts, and the caller's columns."""
    for column in (*BOTH, "columns"):
        empty = column in row and row[column] is None
        if empty and column not in erased:
            yield column, "is empty, and no event names it as erased"
        elif column in erased and not empty:
            yield column, "an event names it as erased, and it is here"
    prompts, own = [row[column] for column in BOTH], row.get("columns", "")
    here = [column for column in BOTH if row[column] is not None]
    if len(here) == 1:
        yield here[0], ALONE
    elif here:
        commitment = one.salt and prompt_commitment(str(prompts[0]), str(prompts[1]), one.salt)
        if not _same(prompts, one.prompts, commitment, one.prompt_commit):
            yield "prompt", "is not what the row of samples commits to"
    if own is not None:
        own_commitment = columns_commitment(str(own) or None, one.salt) if one.salt else ""
        if not _same(own, one.columns, own_commitment, one.columns_commit):
            yield "columns", "is not what the row of samples commits to"


def _same(value: Any, there: bytes | None, commitment: str | None, committed: str | None) -> bool:
    """Whether a text is the sample's; one of which neither the text nor the salt is there is not compared."""
    return _digest(value) == there if there is not None else commitment == "" or commitment == committed


def _digest(value: Any) -> bytes:
    return hashlib.sha256(canonical(value)).digest()
