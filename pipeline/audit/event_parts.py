"""One part of the events: a Parquet file with the rows of the table, how it is written, and how it is read and checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from index.errors import IntegrityError
from index.padding import first_line
from index.parquet import parquet_file, rows_of
from index.storage import read_file
from pipeline.audit.chain import canonical
from pipeline.audit.schema import Column

if TYPE_CHECKING:
    import pyarrow as pa

EVENTS_FOLDER, EVENTS_HEAD_FILE = "events", "events-head.json"
RESTORE = f"Restore the folder {EVENTS_FOLDER} and {EVENTS_HEAD_FILE} from a copy"
EVENT_COLUMNS = (
    Column("seq", "long", "number of the event in the run, from 0"),
    Column("at", "time", "when it was written"),
    Column("kind", "text", "what happened: a word of the table below"),
    Column("actor", "text", "the role that did it"),
    Column("person", "text", "pseudonym of the person who did it; empty: none was given, or a program did it"),
    Column("reason", "text", "a sentence for people"),
    Column("samples", "list of text", "sample_id of every sample that it concerns; empty: the run as a whole"),
    Column("details", "text", "what else belongs to it, as canonical JSON"),
    Column("digests", "names and texts", "digests before and after, and others, by name"),
    Column("prev_sha256", "text", "record_sha256 of the event before"),
    Column("record_sha256", "text", "sha256 of the canonical JSON of the other columns"),
)
_PART = re.compile(r"\d{8,}\.parquet")


def is_part(name: str) -> bool:
    """Whether a file of that name in the folder of events is a part of them."""
    return _PART.fullmatch(name) is not None


class Part(NamedTuple):
    """Rows of one part with Python values, digest of its file, and the digest that it states of the part before."""

    rows: list[dict[str, Any]]
    sha256: str
    prev_part_sha256: str


@cache
def events_schema() -> pa.Schema:
    """Schema of the events table."""
    import pyarrow as pa

    types = {
        "text": pa.string(), "long": pa.int64(), "time": pa.timestamp("us", tz="UTC"), "list of text": pa.list_(pa.string()),
        "names and texts": pa.map_(pa.string(), pa.string()),
    }  # fmt: skip
    return pa.schema([pa.field(column.name, types[column.type], metadata={"doc": column.doc}) for column in EVENT_COLUMNS])


def part_name(first: int) -> str:
    """Path of the part that begins with an event of that number."""
    return f"{EVENTS_FOLDER}/{first:08d}.parquet"


def part_bytes(rows: list[dict[str, Any]], prev_part_sha256: str) -> bytes:
    """The file of a part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, sink = events_schema().with_metadata({"clearance_prev_part_sha256": prev_part_sha256}), BytesIO()
    table = pa.Table.from_pylist([{**row, "digests": sorted(row["digests"].items())} for row in rows], schema=schema)
    pq.write_table(table, sink, compression="zstd", use_dictionary=False, write_page_checksum=True)
    return sink.getvalue()


def read_part(folder: Path, name: str) -> Part:
    """Read a part; its chain is not checked.

    Raises:
        IntegrityError: it is missing, a link, or no part. InputError: the storage failed.
    """
    where = str(folder / name)
    data = read_file(folder, name)
    try:
        table = parquet_file(BytesIO(data), checksums=True).read(use_threads=False)
        table.validate(full=True)
        rows = rows_of(table)
        for row in rows:
            pairs = row["digests"]
            row["digests"] = dict(pairs)
            # The digest of an event is over the names and their values: of a name that is there twice it covers one alone.
            if pairs != sorted(row["digests"].items()):
                raise ValueError("digests that are there twice, or not in order of their names")
            _require_row(row)
        prev = table.schema.metadata[b"clearance_prev_part_sha256"].decode()
    except Exception as error:  # the reader of damaged bytes may raise anything
        raise IntegrityError(f"cannot be read as events ({first_line(error)})", where=where, fix=RESTORE) from None
    if not rows or not table.schema.remove_metadata().equals(events_schema().remove_metadata()):
        raise IntegrityError("cannot be read as events (other columns, or no row)", where=where, fix=RESTORE)
    return Part(rows, hashlib.sha256(data).hexdigest(), prev)


def _require_row(row: Mapping[str, Any]) -> None:
    if any(value is None for value in (*row.values(), *row["samples"], *row["digests"].values())):
        raise ValueError("an empty cell")
    if not isinstance(details := json.loads(row["details"]), dict) or canonical(details).decode() != row["details"]:
        raise ValueError("details are not canonical JSON")


def chain_problems(rows: Iterable[Mapping[str, Any]], where: str, first: int, prev: str) -> list[tuple[str, str]]:
    """What does not hold in a part that begins with event ``first``, chained to ``prev``, as (where, what)."""
    problems = []
    for number, row in enumerate(rows):
        place = f"{where} row {number}"
        if event_digest(row) != row["record_sha256"]:
            problems.append((place, "the event was changed: its digest does not match"))
        elif row["prev_sha256"] != prev or row["seq"] != first + number:
            problems.append((place, "the chain is broken: an event before it was changed, removed or added"))
        prev = str(row["record_sha256"])
    return problems


def event_digest(row: Mapping[str, Any]) -> str:
    """What ``record_sha256`` of a row has to be."""
    return hashlib.sha256(canonical({name: value for name, value in row.items() if name != "record_sha256"})).hexdigest()


def plain_event(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: time as ISO 8601 text, details as data."""
    at = row["at"].astimezone(UTC).isoformat(timespec="microseconds")
    return {**row, "at": at, "details": json.loads(row["details"]), "digests": dict(row["digests"])}
