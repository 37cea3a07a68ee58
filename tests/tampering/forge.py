"""Redo digests as the owner of a run folder could: of a file, its marker, its rows' chain, the statement, the events."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.audit.chain import canonical, chain_start, record_digest, table_header
from pipeline.audit.events import append_event, read_events
from pipeline.audit.ledger import sample_rows, seal, statement_bytes, statement_digest
from pipeline.audit.shards import RUN_FILE, ShardReceipt, commit_shard, committed

Rows = list[dict[str, Any]]


def table_of(path: Path) -> pa.Table:
    return pq.ParquetFile(path).read()


def rewritten(table: pa.Table, change: Callable[[Rows], Any], *, rechain: bool) -> pa.Table:
    """A table with changed rows; with ``rechain`` their digests are redone."""
    rows = table.to_pylist()
    change(rows)
    if rechain:
        prev = chain_start(table_header(table.schema))
        for row in rows:
            row["prev_sha256"] = prev
            prev = row["record_sha256"] = record_digest(row, prev)
    return pa.Table.from_pylist(rows, schema=table.schema)


def recommit(folder: Path, shard_id: str, change: Mapping[str, Callable[[pa.Table], pa.Table]]) -> ShardReceipt:
    """Replace tables of a shard, and redo its files' digests and its marker."""
    receipt = committed(folder)[shard_id]
    tables = {file.table: table_of(folder / file.path) for file in receipt.files}
    for name in (*(file.path for file in receipt.files), f"commits/{shard_id}.json"):
        (folder / name).unlink()
    for name, do in change.items():
        tables[name] = do(tables[name])
    return commit_shard(folder, shard_id, tables["samples"], tables["attempts"], tables.get("kept"))


def restate(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the statement's predicate and redo the digest that it states of itself; no event is written."""
    statement = json.loads((folder / RUN_FILE).read_bytes())
    change(statement["predicate"])
    statement["predicate"]["statement_sha256"] = statement_digest(statement)
    (folder / RUN_FILE).write_bytes(statement_bytes(statement))


def reseal(folder: Path) -> None:
    """Seal again over what is there now, as the program does it: statement, tree, counts and an event."""
    seal(folder, json.loads((folder / RUN_FILE).read_bytes())["predicate"])


def redo_events(folder: Path, change: Callable[[Rows], Rows]) -> None:
    """Write all events anew, with a whole chain of their own and a head file that fits."""
    events = change(read_events(folder))
    for path in (folder / "events").iterdir():
        path.unlink()
    (folder / "events-head.json").unlink()
    for event in events:
        own = {"person": event["person"], "samples": event["samples"], "details": event["details"]}
        append_event(folder, event["kind"], event["actor"], event["reason"], **own, **event["digests"])


def put(folder: Path, key: str, column: str, value: Any) -> str:
    """Put a value into the row of one sample, and redo all digests up to the seal; returns its sample id."""
    found = {row["request_key"]: row for row in sample_rows(folder, ["request_key", "sample_id", "shard_id"])}[key]

    def change(rows: Rows) -> None:
        next(row for row in rows if row["request_key"] == key)[column] = value

    recommit(folder, found["shard_id"], {"samples": lambda table: rewritten(table, change, rechain=True)})
    reseal(folder)
    return str(found["sample_id"])


def everything_anew(folder: Path) -> None:
    """The owner forges the whole folder: the events up to the seal stay, everything after them is made anew.

    There is no signature and no time stamp then, and only who knows that there was one finds it.
    """
    for name in ("run.dsse.json", "run.tsr"):
        (folder / name).unlink()
    stated = json.loads((folder / RUN_FILE).read_bytes())["predicate"]
    before_the_seal(folder)
    seal(folder, stated)


def before_the_seal(folder: Path) -> None:
    """The run as it was before it was sealed: without the statement, and without all events from the seal on."""
    (folder / RUN_FILE).unlink()
    events = read_events(folder)
    sealed = next(n for n, event in enumerate(events) if event["kind"] == "run.sealed")
    parts = sorted((folder / "events").iterdir())  # the program appends one event a part
    for path in parts[sealed:]:
        path.unlink()
    last = parts[sealed - 1]
    named = {"part": f"events/{last.name}", "part_sha256": sha256(last)}
    head = {"count": sealed, "head": events[sealed - 1]["record_sha256"], **named}
    (folder / "events-head.json").write_bytes(canonical(head) + b"\n")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cover(folder: Path, path: str, change: Callable[[Rows], Any]) -> None:
    """Rewrite a data file, its rows' chain too, and append an event that explains its new digest as that of an erasure."""
    before, table = sha256(folder / path), table_of(folder / path)
    pq.write_table(rewritten(table, change, rechain=True), folder / path)
    file = {
        "path": path,
        "table": path.split("/")[0],
        "columns": {},
        "before_sha256": before,
        "after_sha256": sha256(folder / path),
        "after_bytes": (folder / path).stat().st_size,
    }
    append_event(folder, "payload.erased", "privacy", "request 5", details={"files": [file]})
