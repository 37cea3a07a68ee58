"""Verify a run of Clearance with this one file, Python 3.11 or newer, and pyarrow: it shares no code with Clearance.

    python clearance_verify.py RUN [--salt HEX] [--head DIGEST] [--json] [--extract FOLDER]

It recomputes the digests of a run folder and prints named stages: pass, fail or skip, with the reason. Exit code 0: no stage
failed; 1: something does not match; 2: there is no such folder, or it is no run. Nobody has to trust the program that wrote the
record: this file can be read in an hour. It writes nothing, except what ``--extract`` asks for.

What it does not do, and names: it decodes no picture (stage pictures compares the stored bytes with their digests), and it has
no Ed25519 and no X.509. For those two stages it compares what needs no key, and prints the openssl commands for the rest.

Digests are SHA-256. Canonical JSON is ``json.dumps(sort_keys, separators=(",", ":"))`` in ASCII, times as ISO 8601 with
microseconds in UTC. ``record_sha256`` of a row is over the canonical JSON of [its columns without payloads and links, the
digest of the row before]; the first row follows the shard's header. Shards are leaves of an RFC 6962 tree. In a compacted run
the rows of many shards are in one part; ``parts/index.parquet`` keeps each shard's marker, header, and the place of its rows.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import mmap
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from io import BufferedReader
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

STAGES = ("files", "chains", "tree", "statement", "signature", "time stamp", "pictures", "prompts", "events")
TABLES = {
    "samples": ("image", "embedding", "prompt", "negative_prompt", "columns", "drawn_prompt"),
    "attempts": ("thumbnail",),
    "kept": ("image",),
}
PAYLOADS = {name for columns in TABLES.values() for name in columns}
# A payload is covered by a digest in its row alone. Without that column, or in another table, it is none that was written.
DIGESTS = {
    "samples": {
        "image": "file_sha256",
        "embedding": "embedding_sha256",
        "prompt": "prompt_commit",
        "negative_prompt": "prompt_commit",
        "columns": "columns_commit",
        "drawn_prompt": "drawn_commit",
    },
    "attempts": {"thumbnail": "thumbnail_sha256"},
    "kept": {"image": "kept_sha256"},
}
REQUESTS = "requests.parquet"
REQUEST_PAYLOADS = {"prompt", "negative_prompt", "columns"}
REQUEST_COLUMNS = {"row_no", "key", "prompt", "negative_prompt", "seed", "problem_code", "problem"}
MORE_COLUMNS = {"adapter", "columns", "group", "member", "group_size", "width", "height", "steps", "guidance_scale"}
SUFFIXES = {"image/webp": "webp", "image/png": "png", "image/jpeg": "jpg"}
REPORTS = ("report.html", "report.json")
REPORT_LINE = re.compile(rb"<!-- sha256 of this file without this line: ([0-9a-f]{64}) -->\n")
LINKS = {"prev_sha256", "record_sha256"}
ACCEPTED = ("accepted", "accepted_after_steering")
OUTCOMES = (*ACCEPTED, "review", "rejected", "quarantined", "error")
BOUND = ("run_id", "dataset_id", "plan_sha256", "policy_sha256", "salt_id")
REPEATED = {
    "samples": ("schema_version", "run_id", "dataset_id", "shard_id", "policy_sha256", "worker_id"),
    "attempts": ("schema_version", "run_id", "shard_id"),
    "kept": ("schema_version", "run_id", "shard_id"),
}
SAMPLE_CONTENT = ("row_no", "request_key", "base_seed", "outcome", "reason", "accepted_attempt")
# What is kept of a row of samples: to hold the tables against one another, and the requests against it.
WHOLE = ("row_no", "kept_sha256", "pixel_sha256", "outcome", "attempts", "accepted_attempt")
COMMITS = ("prompt_commit", "columns_commit")
ASKED = ("sample_id", "request_key", "base_seed", "outcome", "steps", "guidance", "group", *COMMITS)
ATTEMPT_CONTENT = ("attempt", "seed", "resumed_from_step", "pixel_sha256", "decision", "reason", "skipped_guards")
VERDICT, CHANGED = ("guard", "category", "triggered", "confirmed"), ("kind", "strength", "ref_ids", "tokens", "adapters")
EVENTS_START = hashlib.sha256(b"clearance events\0").hexdigest()
INDEX = "parts/index.parquet"  # of a run whose small files became large parts
LEFT = {"report.html": "a report", "report.json": "a report", ".lease": "the run's lock"}
# A folder is a run, however damaged, with one of these, or with such a file in one of its folders.
A_RUN = ("plan.json", "run.json", "run.dsse.json", "run.tsr", "events-head.json", "events.jsonl", REQUESTS, "commits")
OF_A_RUN = {name: r"part-.+\.parquet" for name in TABLES} | {"events": r"\d{8,}\.parquet"}
OF_A_RUN["parts"] = rf"(index|({'|'.join(TABLES)})-\d{{5,}}-[0-9a-f]{{8}})\.parquet"

Row = dict[str, Any]


class Wrong(Exception):
    """Something in the folder is not what it has to be."""


def plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    raise TypeError(type(value).__name__)


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=plain).encode()


def sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def merkle_root(digests: list[str]) -> str:
    """RFC 6962, section 2.1."""

    def subtree(level: list[bytes]) -> bytes:
        if len(level) == 1:
            return level[0]
        split = 1 << ((len(level) - 1).bit_length() - 1)
        return hashlib.sha256(b"\1" + subtree(level[:split]) + subtree(level[split:])).digest()

    leaves = [hashlib.sha256(b"\0" + bytes.fromhex(digest)).digest() for digest in digests]
    return subtree(leaves).hex() if leaves else hashlib.sha256(b"").hexdigest()


def cells(column: pa.Array) -> list[memoryview | None]:
    """The bytes of every cell of a binary column, without a copy; None where it is null."""
    if not pa.types.is_binary(column.type):
        raise Wrong(f"holds {column.type}, not binary")
    _, offsets, data = column.buffers()
    at = memoryview(offsets).cast("i")[column.offset :]
    view = memoryview(data) if data is not None else memoryview(b"")
    return [view[at[n] : at[n + 1]] if there else None for n, there in enumerate(column.is_valid().to_pylist())]


def vectors(column: pa.Array) -> list[memoryview | None]:
    """The little-endian bytes of every cell of a column of lists of half floats."""
    found: list[memoryview | None] = []
    for cell in column:
        if not cell.is_valid:
            found.append(None)
            continue
        values = cell.values
        if not pa.types.is_float16(values.type):
            raise Wrong(f"holds {column.type}, not half floats")
        buffer = memoryview(values.buffers()[1]) if len(values) else memoryview(b"")
        found.append(buffer[2 * values.offset : 2 * (values.offset + len(values))])
    return found


def parquet(source: Any, checksums: bool = False) -> pq.ParquetFile:
    """A Parquet file that is read in this thread: Arrow's own, reading ahead, may outlive the call and abort the exit."""
    return pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=checksums)


class Run:
    """A run folder that is being verified."""

    def __init__(self, folder: str, salt: str = "", head: str = "") -> None:
        self.folder, self.salt, self.head = folder, salt, head
        self.anchors: Row = {"events": 0, "head": "", "run_sha256": ""}
        # Of the requests: rows of samples by row_no, digests of both prompts and of the caller's columns, salt.
        self.asked: dict[Any, tuple[Row, str | None, str | None, bytes]] = {}
        self.problems: dict[tuple[str, str, str], None] = {}  # stage, where, what; in the order found
        self.sentence: dict[str, str] = {}
        self.skip: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.left: list[tuple[str, str]] = []
        self.samples: dict[str, tuple[str, Row, str]] = {}
        self.attempts: dict[str, dict[int, tuple[str, str, str]]] = {}
        self.kept: dict[str, tuple[str, Any, Any]] = {}
        self.outcomes: dict[str, int] = {}
        self.content: list[tuple[int, str]] = []
        self.index: Row | None = None
        self.signed: tuple[bytes, list[Row]] | None = None

    def wrong(self, stage: str, where: str, what: str) -> None:
        self.problems.setdefault((stage, where, what))

    def count(self, name: str, more: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + more

    def open(self, name: str) -> BufferedReader:
        """A regular file of the folder; no part of its path may be a link."""
        place = self.folder
        for part in name.split("/")[:-1]:
            place = os.path.join(place, part)
            if not stat.S_ISDIR(os.lstat(place).st_mode):
                raise Wrong("lies behind a link, or behind something that is no folder")
        try:
            handle = os.open(os.path.join(self.folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise Wrong(f"cannot be opened ({error.strerror})") from None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise Wrong("is not a file")
        return os.fdopen(handle, "rb")

    def read(self, name: str) -> bytes:
        with self.open(name) as stream:
            return stream.read()

    def there(self, name: str) -> bool:
        return os.path.lexists(os.path.join(self.folder, name))

    def names(self, name: str) -> list[str]:
        """What is in a folder of the run, by name; nothing when it is not there."""
        path = os.path.join(self.folder, name) if name else self.folder
        if not os.path.lexists(path):
            return []
        if name and not stat.S_ISDIR(os.lstat(path).st_mode):
            raise Wrong("is not a folder")
        return sorted(os.listdir(path))

    def verify(self) -> Run:
        """Recompute everything. What nobody foresaw in a forged folder is a problem too, and no traceback."""
        try:
            return self.steps()
        except Exception as error:
            self.wrong("files", self.folder, f"cannot be verified to the end ({type(error).__name__}: {str(error)[:120]})")
            return self

    def steps(self) -> Run:
        statement = self.read_statement()
        self.index = self.read_index()
        receipts = self.read_receipts()
        events = self.read_events()
        self.known = {event["record_sha256"] for event in events}
        self.anchors.update(events=len(events), head=events[-1]["record_sha256"] if events else "")
        if self.head and self.head not in self.known:
            self.wrong("events", "events", f"hold no event of digest {self.head}: events were removed or changed")
        predicate = (statement or {}).get("predicate")
        self.stated = predicate if isinstance(predicate, dict) else {}
        try:
            self.plan = sha256(self.read("plan.json")) if self.there("plan.json") else ""
        except Wrong:
            self.plan = ""
        erased = Erasures(events)
        self.hold_requests = REQUESTS in erased.files
        if self.index is None:
            for shard_id, receipt in receipts.items():
                for file in receipt["files"]:
                    self.check_file(shard_id, file, erased)
        else:
            self.check_parts(receipts, erased, last(events, "run.compacted"))
        self.check_whole(receipts)
        self.check_folders(receipts)
        files = self.check_statement(statement, receipts, events)
        tables = {file["path"]: file["table"] for one in receipts.values() for file in one["files"]}
        tables.update({part["path"]: part["table"] for part in self.index["parts"]} if self.index is not None else {})
        payloads = {path: set(TABLES[table]) for path, table in tables.items()}
        self.check_erasures(erased, payloads | ({REQUESTS: REQUEST_PAYLOADS} if REQUESTS in files else {}))
        self.check_requests(erased)
        self.check_events(statement, events)
        self.check_signature(events)
        self.check_time_stamp(events)
        self.check_reports(events)
        self.check_uncovered(files)
        return self

    def stages(self) -> Iterator[tuple[str, str, str]]:
        for name in STAGES:
            found = [(where, what) for stage, where, what in self.problems if stage == name]
            if found:
                yield name, "fail", f"{len(found)} problems, the first in {found[0][0]}"
            elif name in self.skip or name not in self.sentence:
                yield name, "skip", self.skip.get(name, "nothing in the folder belongs to this stage")
            else:
                yield name, "pass", self.sentence[name]

    # --- statement, markers and events ---------------------------------------------------------------------------------------

    def read_statement(self) -> Row | None:
        if not self.there("run.json"):
            self.wrong("statement", "run.json", "is missing: the run was never sealed, or the file was removed")
            return None
        try:
            data = self.read("run.json")
            statement: Row = json.loads(data)
            body = {**statement, "predicate": {**statement["predicate"]}}
            stated = body["predicate"].pop("statement_sha256")
            written = json.dumps(json.loads(canonical(statement)), sort_keys=True, indent=1).encode() + b"\n"
            whole = stated == sha256(canonical(body)) and written == data
            kind = (statement["_type"], statement["predicateType"])
        except (Wrong, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.wrong("statement", "run.json", f"cannot be read as a statement ({error})")
            return None
        self.anchors["run_sha256"] = sha256(data)
        self.count("files")
        if not whole:
            self.wrong("statement", "run.json", "was changed: its digest does not match its content")
        elif kind != ("https://in-toto.io/Statement/v1", "https://clearance.dev/run/v1"):
            self.wrong("statement", "run.json", f"is another kind of statement: {kind[1]}")
        return statement

    def read_index(self) -> Row | None:
        """Where the rows of a compacted run are; None when it is not compacted."""
        if not self.there(INDEX):
            return None
        try:
            self.count("files")
            data = self.read(INDEX)
            table = parquet(pa.BufferReader(data), checksums=True).read(use_threads=False)
            table.validate(full=True)
            parts = json.loads(table.schema.metadata[b"clearance_parts"])
            for part in parts:
                if not re.fullmatch(rf"parts/{part['table']}-\d{{5,}}-[0-9a-f]{{8}}\.parquet", part["path"]):
                    raise Wrong(f"names {part['path']}, which is no part")
            shards = {row["shard_id"]: row for row in table.to_pylist()}
            if len(shards) != table.num_rows or len({part["path"] for part in parts}) != len(parts):
                raise Wrong("names a shard or a part twice")
            return {"parts": parts, "shards": shards, "sha256": sha256(data)}
        except Exception as error:  # the reader of damaged bytes may raise anything
            self.wrong("files", INDEX, f"cannot be read as the index of parts ({str(error)[:120]})")
            return None

    def read_receipts(self) -> dict[str, Any]:
        receipts: dict[str, Any] = {}
        for shard_id, row in self.index["shards"].items() if self.index is not None else ():
            try:
                receipts[shard_id] = self.receipt(shard_id, row["marker"])
                self.count("shards")
            except (Wrong, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                self.wrong("files", INDEX, f"holds another marker of shard {shard_id} than was written ({error})")
        if self.index is not None:
            return receipts
        try:
            names = [name[:-5] for name in self.names("commits") if name.endswith(".json") and not name.startswith(".")]
        except Wrong as error:
            self.wrong("files", "commits", str(error))
            return {}
        for shard_id in names:
            self.count("files")
            try:
                receipts[shard_id] = self.receipt(shard_id, self.read(f"commits/{shard_id}.json"))
                self.count("shards")
            except (Wrong, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                self.wrong("files", f"commits/{shard_id}.json", f"is not the commit marker that was written ({error})")
        return receipts

    def receipt(self, shard_id: str, data: bytes) -> Row:
        marker = json.loads(data)
        digest = marker.pop("digest")
        kinds = {"table": str, "path": str, "sha256": str, "bytes": int, "rows": int, "chain_head": str}
        for file in marker["files"]:
            path = rf"{file['table']}/part-{re.escape(shard_id)}-[0-9a-f]{{16}}(-[0-9a-f]+)?\.parquet"
            if {name: type(value) for name, value in file.items()} != kinds or not re.fullmatch(path, file["path"]):
                raise Wrong("names a file that is not its own")
        shape = {"shard_id": str, "rows": int, "attempts": int, "files": list, "outcomes": dict}
        tables, some = [file["table"] for file in marker["files"]], ["samples", "attempts"]
        if {name: type(value) for name, value in marker.items()} != shape or tables not in (some, [*some, "kept"]):
            raise Wrong("has other keys or files")
        if json.dumps({**marker, "digest": digest}, sort_keys=True, indent=1).encode() + b"\n" != data:
            raise Wrong("has other bytes")
        if digest != sha256(canonical(marker)) or marker["shard_id"] != shard_id:
            raise Wrong("does not match its digest, or is another shard's")
        return {**marker, "digest": digest, "marker_sha256": sha256(data)}

    def read_events(self) -> list[Row]:
        """All events that can be read; every break of their chain is a problem."""
        events, prev, prev_part, parts = list[Row](), EVENTS_START, "", dict[str, str]()

        def chain(rows: list[Row], where: str) -> None:
            nonlocal prev
            for event in rows:
                body = {name: value for name, value in event.items() if name != "record_sha256"}
                if sha256(canonical(body)) != event["record_sha256"]:
                    self.wrong("events", where, f"event {event['seq']} was changed")
                elif event["prev_sha256"] != prev or event["seq"] != len(events):
                    self.wrong("events", where, f"the chain is broken at event {len(events)}")
                prev = event["record_sha256"]
                events.append(event)

        try:
            if self.there("events.jsonl"):
                self.count("files")
                data = self.read("events.jsonl")
                rows = [json.loads(line) for line in data.split(b"\n")[:-1]]
                chain(rows, "events.jsonl")
                if b"".join(canonical(row) + b"\n" for row in rows) != data:
                    self.wrong("events", "events.jsonl", "has other bytes than were written")
        except (Wrong, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.wrong("events", "events.jsonl", f"cannot be read ({error})")
        try:
            names = sorted(self.names("events"), key=lambda name: (len(name), name))
        except Wrong as error:
            self.wrong("events", "events", str(error))
            names = []
        for name in names:
            where = f"events/{name}"
            if name.startswith(".tmp-"):
                self.left.append((where, "a leftover of an unfinished write"))
                continue
            try:
                data = self.read(where)
                self.count("files")
                table = parquet(pa.BufferReader(data), checksums=True).read(use_threads=False)
                table.validate(full=True)
                rows = table.to_pylist()
                if any(row["digests"] != sorted(dict(row["digests"]).items()) for row in rows):
                    raise Wrong("digests that are there twice, or not in order of their names")
                rows = [{**row, "digests": dict(row["digests"])} for row in rows]
                if not rows or not re.fullmatch(r"\d{8,}\.parquet", name) or name != f"{len(events):08d}.parquet":
                    self.wrong("events", where, "is not the part that has to be here: parts are missing, or it was renamed")
                if table.schema.metadata[b"clearance_prev_part_sha256"].decode() != prev_part:
                    self.wrong("events", where, "the part before it was changed, removed or exchanged")
                if any(canonical(json.loads(row["details"])).decode() != row["details"] for row in rows):
                    self.wrong("events", where, "holds details that no writer writes")
                chain(rows, where)
                prev_part = sha256(data)
                parts[where] = prev_part
            except Exception as error:  # the reader of damaged bytes may raise anything
                self.wrong("events", where, f"cannot be read as events ({str(error)[:120]})")
        self.check_events_head(events, parts)
        return events

    def check_events_head(self, events: list[Row], parts: dict[str, str]) -> None:
        where = "events-head.json"
        if not self.there(where):
            if len(parts) > 1 or (len(events) > 1 and "events/00000000.parquet" not in parts and not self.old()):
                self.wrong("events", where, "is missing; it names the last event")
            return
        try:
            self.count("files")
            data = self.read(where)
            head = json.loads(data)
            count, part = head["count"], head.get("part", "")
            whole = type(count) is int and canonical(head) + b"\n" == data
            if not whole or not head.keys() <= {"count", "head", "part", "part_sha256"} or count < 1:
                self.wrong("events", where, "was changed: it names no event")
            elif len(events) < count:
                self.wrong("events", part or where, f"events are missing: {where} counts {count}, {len(events)} are here")
            elif events[count - 1]["record_sha256"] != head["head"]:
                self.wrong("events", part or where, f"is not what {where} names: events were changed")
            elif part and parts.get(part) != head["part_sha256"]:
                self.wrong("events", part, f"is not what {where} names: events were changed")
        except (Wrong, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.wrong("events", where, f"cannot be read ({error})")

    def old(self) -> bool:
        """Runs of the schema's first version had no file beside their events."""
        versions = set()
        if self.index is not None:
            return {json.loads(row["samples_header"]).get("schema_version") for row in self.index["shards"].values()} == {1}
        for table in ("samples", "attempts"):
            for name in self.names(table):
                try:
                    with self.open(f"{table}/{name}") as stream:
                        versions.add(json.loads(parquet(stream).schema_arrow.metadata[b"clearance"]).get("schema_version"))
                except Exception:  # the reader of damaged bytes may raise anything
                    versions.add(None)
        return versions == {1}

    # --- the rows ------------------------------------------------------------------------------------------------------------

    def check_file(self, shard_id: str, file: dict[str, Any], erased: Erasures) -> None:
        where = file["path"]
        now = erased.now(where, file["sha256"], file["bytes"])
        try:
            with self.open(where) as stream:
                self.check_rows(shard_id, file, parquet(pa.BufferReader(self.mapped(stream, where, now))), now)
        except Wrong as error:
            self.wrong("files", where, f"{error}; shard {shard_id} committed it")
        except Exception as error:  # the reader of damaged bytes may raise anything
            self.wrong("files", where, f"cannot be read ({str(error)[:120]})")

    def check_parts(self, receipts: dict[str, Any], erased: Erasures, event: Row | None) -> None:
        """The parts of a compacted run: every shard's chain in them, from the header that the index keeps."""
        assert self.index is not None
        if event is None or event["digests"].get("index_sha256") != self.index["sha256"]:
            self.wrong("files", INDEX, "is not the index that the last event of a compaction names")
        checked: set[tuple[str, str]] = set()
        for number, part in enumerate(self.index["parts"]):
            where, table, now = part["path"], part["table"], erased.now(part["path"], part["sha256"], part["bytes"])
            shards = [(row[f"{table}_first"], name, row) for name, row in self.index["shards"].items()]
            shards = sorted((one for one in shards if one[2][f"{table}_part"] == number), key=lambda one: one[0])
            try:
                with self.open(where) as stream:
                    rows = self.rows_of(table, parquet(pa.BufferReader(self.mapped(stream, where, now))))
                    at = 0
                    for first, name, row in shards:
                        file = next(file for file in receipts[name]["files"] if file["table"] == table)
                        before = erased.now(file["path"], file["sha256"], file["bytes"])
                        columns = {*now.erased, *before.erased}
                        cells = {c: now.erased.get(c, set()) | before.erased.get(c, set()) for c in columns}
                        if first != at or before.broken:
                            self.wrong("chains", where, before.broken or f"shard {name} does not begin at row {at}")
                        header = json.loads(row[f"{table}_header"])
                        self.check_header(name, table, where, header)
                        mine = islice(rows, row[f"{table}_rows"])
                        self.check_chain(mine, {**file, "path": where, "first": at}, header, now._replace(erased=cells))
                        at += row[f"{table}_rows"]
                        checked.add((name, table))
                    if at != part["rows"] or next(rows, None) is not None:
                        self.wrong("chains", where, f"holds other rows than the {part['rows']} that the index states")
            except Wrong as error:
                self.wrong("files", where, f"{error}; {INDEX} names it")
            except Exception as error:  # the reader of damaged bytes may raise anything
                self.wrong("files", where, f"cannot be read ({str(error)[:120]})")
        for name, receipt in receipts.items():
            for file in receipt["files"]:
                if (name, file["table"]) not in checked:
                    self.wrong("files", INDEX, f"leads to no rows of {file['path']}")

    def mapped(self, stream: BufferedReader, where: str, now: Now) -> Any:
        """A file's bytes, mapped, so that neither the digest nor the reader of Parquet copies the pictures."""
        self.count("files")
        size = os.fstat(stream.fileno()).st_size
        self.count("bytes", size)
        data = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) if size else b""
        if now.broken:
            self.wrong("events", where, now.broken)
        if sha256(data) != now.sha256 or size != now.bytes:
            self.wrong("files", where, "the file was changed: its digest is not the one that is stated, erasures followed")
        return pa.py_buffer(data)

    def check_rows(self, shard_id: str, file: dict[str, Any], parquet: pq.ParquetFile, now: Now) -> None:
        header = json.loads(parquet.schema_arrow.metadata[b"clearance"])
        self.check_header(shard_id, file["table"], file["path"], header)
        self.check_chain(self.rows_of(file["table"], parquet), file, header, now)

    def check_header(self, shard_id: str, table: str, where: str, header: Row) -> None:
        wanted = {**{name: self.stated[name] for name in BOUND if name in self.stated}, "shard_id": shard_id, "table": table}
        for name, value in wanted.items():
            if header.get(name) != value:
                what = f"is not this run's: its {name} is {str(header.get(name))[:64]}, not {str(value)[:64]}"
                self.wrong("chains", where, what)
        if self.plan and header.get("plan_file_sha256", "") not in ("", self.plan):
            self.wrong("chains", "plan.json", f"is not the plan that shard {shard_id} was written under")
        if header.get("events_head", "") and header["events_head"] not in self.known:
            self.wrong("chains", "events", f"lack the event that shard {shard_id} was written under")

    def rows_of(self, table: str, parquet: pq.ParquetFile) -> Iterator[tuple[Row, Row]]:
        """The rows of a file: what is committed of each, and its payloads."""
        names = parquet.schema_arrow.names
        if len(set(names)) < len(names):
            raise Wrong("has a column twice")
        committed = [name for name in names if name not in PAYLOADS]
        bare = [name for name in names if name in PAYLOADS and DIGESTS[table].get(name) not in names]
        if bare:
            raise Wrong(f"has columns that no writer writes: {', '.join(bare)}")
        pictures = [name for name in ("image", "thumbnail") if name in names]
        for name in pictures:
            kind = parquet.schema_arrow.field(name).type
            if not pa.types.is_struct(kind) or [kind.field(n).name for n in range(kind.num_fields)] != ["bytes", "path"]:
                raise Wrong(f"column {name} has other members")
        for batch in parquet.iter_batches(batch_size=64, use_threads=False):
            batch.validate(full=True)
            payloads = {name: self.payload(batch, name) for name in TABLES[table] if name in names}
            paths = {name: pc.struct_field(batch.column(name), "path").to_pylist() for name in pictures}
            for n, row in enumerate(batch.select(committed).to_pylist()):
                mine = {name: values[n] for name, values in payloads.items()}
                for name, values in paths.items():
                    self.check_path(table, row, values[n], mine[name] is not None)
                yield row, mine

    def check_path(self, table: str, row: Row, path: Any, there: bool) -> None:
        """The name beside a picture is in no digest: it has to be the one that the writer gives it."""
        sample, kind = row["sample_id"], SUFFIXES.get(str(row.get("media_type")), "")
        written = f"{sample}-{row['attempt']}.webp" if table == "attempts" else f"{sample}.{kind}"
        if path != (written if there else None):
            what = f"the path of its picture is {str(path)[:64]!r}, not {written!r}"
            self.wrong("pictures", f"{table}, sample {sample}", what)

    def check_chain(self, rows: Iterable[tuple[Row, Row]], file: Row, header: Row, now: Now) -> None:
        """A shard's chain in one table; ``first`` of the file is the number of the shard's first row in it."""
        where, table, first = file["path"], file["table"], file.get("first", 0)
        prev, number = sha256(canonical(header)), first - 1
        for row, mine in rows:
            number += 1
            place = f"{where} row {number}"
            self.count(table)
            body = {name: value for name, value in row.items() if name not in LINKS}
            if row["prev_sha256"] != prev:
                self.wrong("chains", place, "the chain is broken: a row before was changed or removed")
            if sha256(canonical([body, str(row["prev_sha256"])])) != row["record_sha256"]:
                self.wrong("chains", place, "a committed column of this row was changed")
            prev = str(row["record_sha256"])
            for column in REPEATED[table]:
                stated = header.get("writer" if column == "worker_id" else column, row[column])
                if row[column] != stated:
                    self.wrong("chains", f"{place} column {column}", "is not what the shard's header states")
            gone = {name for name in mine if row["sample_id"] in now.erased.get(name, ())}
            self.count("erased", len(gone))
            for name in gone:
                if mine[name] is not None:
                    self.wrong("pictures", f"{place} column {name}", "an event names it as erased, and it is here")
            getattr(self, f"row_of_{table}")(row, mine, gone, place, header)
        if number + 1 - first != file["rows"]:
            self.wrong("chains", where, f"holds {number + 1 - first} rows; the commit marker states {file['rows']}")
        if prev != file["chain_head"]:
            self.wrong("chains", where, "the chain does not end where the commit marker states")

    def payload(self, batch: pa.RecordBatch, name: str) -> list[Any]:
        column = batch.column(name)
        if pa.types.is_struct(column.type):
            return cells(pc.struct_field(column, "bytes"))
        return vectors(column) if name == "embedding" else column.to_pylist()

    def match(self, what: str, data: Any, digest: str | None, place: str) -> None:
        if (data is None) != (digest is None):
            self.wrong("pictures", place, "is missing" if data is None else "has no digest")
        elif data is not None:
            self.count(what)
            if sha256(data) != digest:
                self.wrong("pictures", place, "the stored bytes do not match their digest")

    def row_of_samples(self, row: Row, mine: Row, gone: set[str], place: str, header: Row) -> None:
        if row["sample_id"] in self.samples:
            self.wrong("chains", place, f"the sample has a row already: {self.samples[row['sample_id']][0]}")
        content = sha256(canonical({name: row[name] for name in SAMPLE_CONTENT}))
        self.samples[row["sample_id"]] = (place, {name: row[name] for name in WHOLE if name in row}, content)
        self.outcomes[str(row["outcome"])] = self.outcomes.get(str(row["outcome"]), 0) + 1
        if "image" not in gone:
            self.match("pictures", mine.get("image"), row["file_sha256"], f"{place} column image")
        if "embedding" not in gone:
            self.match("embeddings", mine.get("embedding"), row["embedding_sha256"], f"{place} column embedding")
        default = sha256(b"clearance prompt commitment\0" + str(header.get("dataset_id", "")).encode())
        ids = {sha256(b"clearance salt id\0" + bytes.fromhex(salt))[:16]: salt for salt in (default, self.salt) if salt}
        half = gone & {"prompt", "negative_prompt"}
        for column in ("prompt", "negative_prompt") if half else ():
            if mine[column] is not None or column not in half:
                what = "one commitment covers both prompts: the other was erased, and this one was not, or no event names it"
                self.wrong("prompts", f"{place} column {column}", what)
        if self.hold_requests:
            # A run may have a million rows: of each only what is compared, and of the texts their digests.
            both, own = [mine["prompt"], mine["negative_prompt"]], mine.get("columns")
            whole = "columns" in mine and (own is None) == (row.get("columns_commit") is None)
            texts = (None if None in both else sha256(canonical(both)), sha256(canonical(own or "")) if whole else None)
            part = {name: row[name] for name in ASKED if name in row}
            self.asked[row["row_no"]] = (part, *texts, bytes.fromhex(ids.get(str(header.get("salt_id")), "")))
        if header.get("salt_id") not in ids:
            self.count("prompts_unchecked")
            return
        salt = bytes.fromhex(ids[header["salt_id"]])
        if not half:
            both = [mine["prompt"], mine["negative_prompt"]]
            self.count("prompts")
            if None in both or commitment(salt, both) != row["prompt_commit"]:
                self.wrong("prompts", f"{place} column prompt", "does not match its commitment")
        more = (("columns", "columns", "columns_commit"), ("drawn_prompt", "drawn prompt", "drawn_commit"))
        for column, label, stated in more:
            if column not in gone and commitment(salt, mine.get(column), label) != row.get(stated):
                self.wrong("prompts", f"{place} column {column}", "does not match its commitment")

    def row_of_attempts(self, row: Row, mine: Row, gone: set[str], place: str, header: Row) -> None:
        numbers = self.attempts.setdefault(row["sample_id"], {})
        if row["attempt"] in numbers:
            self.wrong("chains", place, f"the attempt has a row already: {numbers[row['attempt']][0]}")
        done = row["intervention"]
        content = {
            **{name: row[name] for name in ATTEMPT_CONTENT},
            "findings": [[finding[name] for name in VERDICT] for finding in row["findings"]],
            "intervention": None if done is None else {name: done[name] for name in CHANGED},
        }
        numbers[row["attempt"]] = (place, row["pixel_sha256"], sha256(canonical(content)))
        if "thumbnail" not in gone:
            self.match("thumbnails", mine.get("thumbnail"), row["thumbnail_sha256"], f"{place} column thumbnail")

    def row_of_kept(self, row: Row, mine: Row, gone: set[str], place: str, header: Row) -> None:
        if row["sample_id"] in self.kept:
            self.wrong("chains", place, f"a picture of this sample is kept already: {self.kept[row['sample_id']][0]}")
        self.kept[row["sample_id"]] = (place, row["kept_sha256"], row["pixel_sha256"])
        if "image" not in gone:
            self.match("kept_pictures", mine.get("image"), row["kept_sha256"], f"{place} column image")

    def check_whole(self, receipts: dict[str, Any]) -> None:
        """Hold the tables against one another."""
        for sample_id, (where, row, content) in self.samples.items():
            made = self.attempts.pop(sample_id, {})
            if type(row["row_no"]) is int:
                self.content.append((row["row_no"], sha256(canonical([content, [made[n][2] for n in sorted(made)]]))))
            place, kept, pixels = self.kept.pop(sample_id, ("", None, None))
            if kept != row.get("kept_sha256"):
                self.wrong("chains", f"{where} column kept_sha256", f"is not that of {place or 'a picture that is kept'}")
            elif kept is not None and (pixels != row["pixel_sha256"] or row["outcome"] in ACCEPTED):
                self.wrong("chains", f"{where} column kept_sha256", "does not go with its pixels or its outcome")
            if len(made) != row["attempts"] or sorted(made) != list(range(len(made))):
                self.wrong("chains", f"{where} column attempts", f"is {row['attempts']}; the attempts table has {sorted(made)}")
            accepted = row["accepted_attempt"]
            if (accepted is not None) != (row["outcome"] in ACCEPTED):
                self.wrong("chains", f"{where} column accepted_attempt", f"does not go with outcome {row['outcome']}")
            final = accepted if accepted is not None else max(made, default=None)
            if final in made and made[final][1] != row["pixel_sha256"]:
                self.wrong("chains", f"{where} column pixel_sha256", f"is not that of attempt {final}")
        rest = [place for place, *_ in self.kept.values()] + [p for made in self.attempts.values() for p, *_ in made.values()]
        for place in rest:
            self.wrong("chains", place, "belongs to no sample")
        self.say_rows(receipts)

    def say_rows(self, receipts: dict[str, Any]) -> None:
        count = self.counts.get
        if not receipts:
            self.skip.update(dict.fromkeys(("chains", "pictures", "prompts"), "no shard was committed"))
            return
        rows = f"{count('samples', 0)} samples, {count('attempts', 0)} attempts, {count('kept', 0)} kept pictures"
        self.sentence["chains"] = f"{rows}: every row has the digest stated in it and follows the row before"
        kinds = [f"{count(name)} {name}" for name in ("pictures", "kept_pictures", "thumbnails", "embeddings") if count(name)]
        erased = f"; {count('erased')} payloads are erased, as events name them" if count("erased") else ""
        self.sentence["pictures"] = f"{', '.join(kinds) or 'nothing'}: the bytes match their digests; not decoded here{erased}"
        self.sentence["prompts"] = f"{count('prompts', 0)} prompts match their commitments"
        if count("prompts_unchecked"):
            why = "that was not given (--salt)" if not self.salt else "that is not the one that was given"
            self.skip["prompts"] = f"{count('prompts_unchecked')} prompts are under a secret salt {why}"

    # --- the whole -----------------------------------------------------------------------------------------------------------

    def check_folders(self, receipts: dict[str, Any]) -> None:
        known, parts = {file["path"] for receipt in receipts.values() for file in receipt["files"]}, self.index is not None
        if self.index is not None:  # nothing else is left of the small files
            known = {INDEX, *(part["path"] for part in self.index["parts"])}
        for folder in (*TABLES, "commits", *(["parts"] if parts else [])):
            try:
                for name in self.names(folder):
                    where = f"{folder}/{name}"
                    marker = folder == "commits" and not parts and name.endswith(".json") and not name.startswith(".")
                    if not marker and where not in known:
                        self.wrong("files", where, "belongs to no committed shard")
            except Wrong as error:
                self.wrong("files", folder, str(error))

    def check_statement(self, statement: Row | None, receipts: dict[str, Any], events: list[Row]) -> set[str]:
        """Hold the statement against shards and plan; returns the names of the plan's files."""
        if statement is None:
            self.skip["tree"] = "the run was not sealed"
            return set()
        try:
            stated = {one["name"]: (one["digest"]["sha256"], one["annotations"]["rows"]) for one in statement["subject"]}
            predicate = statement["predicate"]
            counts, root, shards = predicate["counts"], predicate["merkle_root"], predicate["shards"]
            numbers = (counts["samples"], counts["attempts"], counts["outcomes"])
            over = predicate["events"]["count"]
        except (KeyError, TypeError, AttributeError):
            self.wrong("statement", "run.json", "lacks subjects, counts, events or the Merkle root")
            return set()
        erased = Erasures(events[:over] if type(over) is int and over >= 0 else [])
        here: dict[str, tuple[str, int]] = {}
        for shard_id, receipt in receipts.items():
            here[f"commits/{shard_id}.json"] = (receipt["marker_sha256"], receipt["rows"])
            for file in receipt["files"]:
                here[file["path"]] = (erased.now(file["path"], file["sha256"], file["bytes"]).sha256, file["rows"])
        for name in sorted(here.keys() | stated.keys()):
            if here.get(name) != stated.get(name):
                self.wrong("statement", name, "is not as run.json states it: added, removed or changed after sealing")
        digests = {shard_id: receipt["digest"] for shard_id, receipt in receipts.items()}
        if root != merkle_root(list(digests.values())) or shards != digests:
            self.wrong("tree", "run.json", "the Merkle root or the shards' digests do not match the commit markers")
        content = merkle_root([digest for _, digest in sorted(self.content, key=lambda one: one[0])])
        if predicate.get("content_root") not in (None, content):
            self.wrong("tree", "run.json", "the content root does not match the rows")
        self.sentence["tree"] = f"the Merkle root over {len(receipts)} shards is the one in run.json: {root}"
        recount = (self.counts.get("samples", 0), self.counts.get("attempts", 0), dict(sorted(self.outcomes.items())))
        if recount != numbers or predicate.get("requested", len(self.samples)) != len(self.samples):
            self.wrong("statement", "run.json", f"{numbers} are stated, {recount} are found")
        self.sentence["statement"] = f"run.json has its own digest, and its {len(stated)} files and its counts are those found"
        plan = predicate.get("plan")
        files = plan.get("files") if isinstance(plan, dict) else None
        return self.check_plan(files, events) if isinstance(files, dict) else set()

    def check_plan(self, files: Row, events: list[Row]) -> set[str]:
        for name, digest in files.items():
            self.count("files")
            now = Erasures(events).now(name, digest, 0)
            try:
                if sha256(self.read(name)) != now.sha256:
                    self.wrong("files", name, "the file was changed: its digest does not match run.json and erasures")
                if now.broken:
                    self.wrong("events", name, now.broken)
            except Wrong as error:
                self.wrong("files", name, f"{error}; the plan names it")
        return set(files)

    def check_erasures(self, erased: Erasures, payloads: dict[str, set[str]]) -> None:
        """Events name files of the run that have payloads, and cells of them."""
        for path, files in erased.files.items():
            for number, file in files:
                if path not in payloads:
                    self.wrong("events", path, "an event erased payloads from it, and it is no file of the run with payloads")
                elif not any(file["columns"].values()):
                    self.wrong("events", path, f"event {number} says that payloads were erased from it, and names no cell")
                elif file["columns"].keys() - payloads[path]:
                    self.wrong("events", path, f"event {number} names as erased what is no payload of it")

    def check_requests(self, erased: Erasures) -> None:
        """After an erasure the digest of the requests is the last event's; what is in them, the rows of samples tell."""
        now = erased.now(REQUESTS, "", 0)
        if not self.hold_requests or not self.there(REQUESTS):
            return
        try:
            data = self.read(REQUESTS)
            if sha256(data) != now.sha256:
                return  # that is a problem already
            file = parquet(pa.BufferReader(data))
            names = file.schema_arrow.names
            if len(set(names)) != len(names) or not REQUEST_COLUMNS <= set(names) <= REQUEST_COLUMNS | MORE_COLUMNS:
                raise Wrong("has other columns than requests have")
            number, left = 0, self.asked
            for batch in file.iter_batches(batch_size=1024, use_threads=False):
                batch.validate(full=True)
                for row in batch.to_pylist():
                    one = left.pop(row["row_no"], None)
                    nobody = [f"belongs to no sample, or is there twice: {row['row_no']}"]
                    for what in self.request(row, one, now) if one else nobody:
                        self.wrong("files", f"{REQUESTS} row {number}", what)
                    number += 1
            for row_no in left:
                self.wrong("files", f"{REQUESTS} row_no {row_no}", "is missing: samples has a row of this request")
        except Wrong as error:
            self.wrong("files", REQUESTS, str(error))
        except Exception as error:  # the reader of damaged bytes may raise anything
            self.wrong("files", REQUESTS, f"cannot be read as requests ({str(error)[:120]})")

    def request(self, row: Row, asked: tuple[Row, str | None, str | None, bytes], now: Now) -> Iterator[str]:
        """What of a request the row of its sample contradicts."""
        sample, prompts, columns, salt = asked
        if (row["key"], row["seed"]) != (sample["request_key"], sample["base_seed"]):
            yield "has another key or seed than its sample"
        if row["problem_code"] and sample["outcome"] != "error":
            yield f"column problem_code does not go with outcome {sample['outcome']}"
        for column, stated in (("steps", "steps"), ("guidance_scale", "guidance")):
            if row.get(column) is not None and row[column] != sample[stated]:
                yield f"column {column} is not that of its sample"
        group = sample.get("group") or {}
        grouped = [row.get(name) or None for name in ("group", "member", "group_size")]
        if "group" in sample and grouped != [group.get(name) or None for name in ("id", "member", "size")]:
            yield "column group is not that of its sample"
        gone = {column for column, samples in now.erased.items() if sample["sample_id"] in samples}
        for column in REQUEST_PAYLOADS & row.keys():
            if (row[column] is None) != (column in gone):
                yield f"column {column} is empty, or an event names it as erased; not both"
        both = [row["prompt"], row["negative_prompt"]]
        if None in both:
            if both != [None, None]:
                yield "holds one prompt, and the other was erased: one commitment covers both"
        elif (sha256(canonical(both)) != prompts) if prompts else (salt and commitment(salt, both) != sample["prompt_commit"]):
            yield "column prompt is not what the row of samples commits to"
        own = row.get("columns", "")
        if own is None:
            return
        text = commitment(salt, own or None, "columns") if salt and not columns else None
        if (sha256(canonical(own)) != columns) if columns else (salt and text != sample.get("columns_commit")):
            yield "column columns is not what the row of samples commits to"

    def check_reports(self, events: list[Row]) -> None:
        """A report is no part of the record; the last event of writing one names the digests of both files."""
        reported = [event for event in events if event["kind"] == "run.reported"]
        for name in REPORTS:
            path = os.path.join(self.folder, name)
            if not os.path.lexists(path) or not stat.S_ISREG(os.lstat(path).st_mode):
                continue
            key = name.replace(".", "_") + "_sha256"
            try:
                data = self.read(name)
            except Wrong as error:
                self.wrong("files", name, str(error))
                continue
            stated = {event["digests"].get(key): event["seq"] for event in reported}
            if reported and sha256(data) == reported[-1]["digests"].get(key):
                continue
            if sha256(data) in stated:
                self.wrong("files", name, f"an earlier report; event {reported[-1]['seq']} names the present one")
            elif reported:
                self.wrong("files", name, "no event names this report's digest: it was changed or exchanged")
            elif name == "report.html" and b"sha256 of this file without this line" in data:
                start = data.rstrip(b"\n").rfind(b"\n") + 1
                line = REPORT_LINE.fullmatch(data[start:])
                if line is None or line[1].decode() != sha256(data[:start]):
                    self.wrong("files", name, "the report was changed: its last line is not the digest of the rest")

    def check_events(self, statement: Row | None, events: list[Row]) -> None:
        if events:
            self.sentence["events"] = f"each of {len(events)} events follows the one before it"
        for event in events:
            if self.plan and event["digests"].get("plan_file_sha256", self.plan) != self.plan:
                self.wrong("files", "plan.json", f"is not the plan that event {event['seq']} names")
            if why := unfit(event):
                self.wrong("events", f"event {event['seq']}", f"({event['kind']}) {why}")
        sealed = [event for event in events if event["kind"] == "run.sealed"]
        self.sentence["files"] = f"{self.counts.get('files', 0)} files are there, with the digests stated of them"
        if statement is None:
            if sealed:
                self.wrong("statement", "run.json", "the run was sealed; its statement is gone")
            return
        stated = self.stated.get("events")
        count, head = (stated.get("count"), stated.get("head")) if isinstance(stated, dict) else (None, None)
        before = events[: count if type(count) is int and count >= 0 else 0]
        if type(count) is not int or len(before) < count or (before[-1]["record_sha256"] if before else EVENTS_START) != head:
            self.wrong("events", "events", "events that run.json was sealed over are missing or changed")
        if not sealed:
            self.wrong("events", "events", "hold no event of sealing")
        elif sealed[-1]["digests"].get("run_sha256") != sha256(self.read("run.json")):
            self.wrong("statement", "run.json", "is not the statement that the last sealing event names")

    def check_signature(self, events: list[Row]) -> None:
        where, event = "run.dsse.json", last(events, "run.signed")
        if not self.there(where):
            if event:
                self.wrong("signature", where, f"is missing; event {event['seq']} names a signature")
            self.skip["signature"] = "the run was not signed"
            return
        try:
            data = self.read(where)
            envelope = json.loads(data)
            kind, payload, signatures = envelope["payloadType"], base64.b64decode(envelope["payload"]), envelope["signatures"]
            keys = ", ".join(one["keyid"] for one in signatures)
            if kind != "application/vnd.in-toto+json" or not keys:
                self.wrong("signature", where, "holds no in-toto statement, or no signature")
            if payload != self.read("run.json"):
                sealed = last(events, "run.sealed")
                kept = sealed is not None and sealed["digests"].get("run_sha256") == sha256(payload)
                since = "run.json was changed since the last seal; the envelope's payload holds the bytes that were sealed"
                self.wrong("signature", where, since if kept else "signs another statement than run.json")
            if not event or event["digests"].get("envelope_sha256") != sha256(data):
                self.wrong("signature", where, "is not the envelope that the last event of signing names")
            self.signed = (b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload), signatures)
        except (Wrong, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.wrong("signature", where, f"cannot be read as an envelope ({error})")
            return
        openssl = "openssl pkeyutl -verify -pubin -inkey statement.pub -rawin -in DIR/signed -sigfile DIR/signature-0"
        self.skip["signature"] = f"made with key {keys}; no Ed25519 here: --extract DIR, then {openssl}"

    def check_time_stamp(self, events: list[Row]) -> None:
        where, event = "run.tsr", last(events, "run.stamped")
        if not self.there(where):
            if event:
                self.wrong("time stamp", where, f"is missing; event {event['seq']} names a time stamp")
            self.skip["time stamp"] = "the run has no time stamp"
            return
        try:
            data = self.read(where)
            if not event or event["digests"].get("tsr_sha256") != sha256(data):
                self.wrong("time stamp", where, "is not the time stamp that the last event of stamping names")
            files = [name for name in ("run.dsse.json", "run.json") if self.there(name)]
            over = [name for name in files if hashlib.sha256(self.read(name)).digest() in data]
            if not over:
                self.wrong("time stamp", where, "does not hold the digest of run.dsse.json or run.json as they are now")
            openssl = f"openssl ts -verify -in run.tsr -data {(over or files or ['run.json'])[0]} -CAfile ROOTS.pem"
            self.skip["time stamp"] = f"no X.509 here: {openssl} (-attime SECONDS, where a certificate has ended since)"
        except Wrong as error:
            self.wrong("time stamp", where, str(error))

    def check_uncovered(self, files: set[str]) -> None:
        unnamed = {"plan.json", REQUESTS, *(["parts"] if self.index is None else [])}
        ours = {*A_RUN, *OF_A_RUN} - unnamed | files
        for name in self.names(""):
            path = os.path.join(self.folder, name)
            if name not in ours and not (name == ".lease" and not os.path.islink(path) and os.lstat(path).st_size == 0):
                self.left.append((name, LEFT.get(name, "not a file of the run, or one that no statement names")))


def commitment(salt: bytes, value: Any, label: str = "") -> str | None:
    """HMAC-SHA256 over both prompts, or over a text of its own under a label; None where there is none."""
    if value is None:
        return None
    if label:
        text = f"clearance {label}\0".encode() + value.encode("utf-8", "surrogatepass")
    else:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return hmac.new(salt, text, "sha256").hexdigest()


def last(events: list[Row], kind: str) -> Row | None:
    return next((event for event in reversed(events) if event["kind"] == kind), None)


def details_of(event: Row) -> Row:
    found = event.get("details") or {}
    return json.loads(found) if isinstance(found, str) else found  # type: ignore[no-any-return]


def unfit(event: Row) -> str:
    """Why an event that decides about samples cannot be followed; empty when it can, or decides nothing."""
    details, decides = details_of(event), event["kind"] in ("review.decided", "sample.released")
    if (decides or event["kind"] in ("review.exported", "sample.quarantined")) and not event.get("samples"):
        return "names no sample"
    outcome, needed = details.get("outcome"), event["kind"] == "review.decided"
    if decides and outcome not in OUTCOMES and (needed or outcome is not None):
        return f"names no outcome, but {str(outcome)[:40]!r}"
    try:
        until = datetime.fromisoformat(details["retain_until"]) if decides and "retain_until" in details else datetime.now(UTC)
        until.replace(tzinfo=until.tzinfo or UTC).astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        return f"names no time, but {str(details['retain_until'])[:40]!r}"
    return ""


class Now(NamedTuple):
    """What a file has to be now, and the cells in it that events name as emptied: sample ids by column."""

    sha256: str
    bytes: int
    erased: dict[str, set[str]]
    broken: str


class Erasures:
    """The files from which events name payloads as erased."""

    def __init__(self, events: list[Row]) -> None:
        self.files: dict[str, list[tuple[int, Row]]] = {}
        for event in events:
            files = details_of(event).get("files") if event["kind"] == "payload.erased" else None
            for file in files if isinstance(files, list) else ():
                if self.whole(file):  # an event that names no file in full erases nothing, so what it emptied is found
                    self.files.setdefault(file["path"], []).append((event["seq"], file))

    @staticmethod
    def whole(file: Any) -> bool:
        texts = ("path", "table", "before_sha256", "after_sha256")
        if not isinstance(file, dict) or not all(isinstance(file.get(name), str) for name in texts):
            return False
        columns = file.get("columns")
        if not isinstance(columns, dict) or type(file.get("after_bytes")) is not int:
            return False
        return all(isinstance(ids, list) and all(isinstance(one, str) for one in ids) for ids in columns.values())

    def now(self, path: str, digest: str, size: int) -> Now:
        known, erased, broken = {digest}, dict[str, set[str]](), ""
        for number, file in self.files.get(path, ()):
            if file["before_sha256"] not in known and not broken:
                broken = f"event {number} erased payloads from a file of another digest than this ever had"
            digest, size = file["after_sha256"], file["after_bytes"]
            known.add(digest)
            for column, samples in file["columns"].items():
                erased.setdefault(column, set()).update(samples)
        return Now(digest, size, erased, broken)


def extract(run: Run, folder: str) -> None:
    """Write what was signed and its signatures, for openssl."""
    if run.signed is None:
        return
    os.makedirs(folder, exist_ok=True)
    signed, signatures = run.signed
    for name, data in [("signed", signed)] + [(f"signature-{n}", base64.b64decode(s["sig"])) for n, s in enumerate(signatures)]:
        with open(os.path.join(folder, name), "wb") as stream:
            stream.write(data)


def holds_run(folder: str) -> bool:
    there = list(os.scandir(folder))
    if any(one.name in A_RUN or (one.name in OF_A_RUN and one.is_symlink()) for one in there):
        return True
    for one in (one for one in there if one.name in OF_A_RUN and one.is_dir()):
        inside = list(os.scandir(one.path))
        names = [file.name for file in inside if file.is_file(follow_symlinks=False)]
        if "plan.json" not in names and any(re.fullmatch(rf"\.tmp-.*|{OF_A_RUN[one.name]}", name) for name in names):
            return True
    return False


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Verify a run of Clearance with Python and pyarrow alone.")
    parser.add_argument("run", help="the run folder")
    parser.add_argument("--salt", default="", metavar="HEX", help="the secret salt of the prompts' commitments")
    parser.add_argument("--head", default="", metavar="DIGEST", help="digest of an event that was kept: it must be here")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--extract", default="", metavar="FOLDER", help="write what was signed, and the signatures, for openssl"
    )
    options = parser.parse_args(arguments)
    if not os.path.isdir(options.run) or not holds_run(options.run):
        why = "not a run folder (no plan.json)" if os.path.isdir(options.run) else "there is no such run folder"
        print(f"{why}: {options.run}", file=sys.stderr)
        return 2
    run = Run(options.run, options.salt, options.head.strip().lower()).verify()
    if options.extract:
        extract(run, options.extract)
    stages = list(run.stages())
    if options.json:
        problems = [{"stage": stage, "where": where, "what": what} for stage, where, what in run.problems]
        named = [{"name": name, "state": state, "sentence": sentence} for name, state, sentence in stages]
        left = [{"where": where, "what": what} for where, what in run.left]
        found = {"ok": not problems, "stages": named, "problems": problems, "counts": run.counts, "not_covered": left}
        print(json.dumps({**found, "anchors": run.anchors}))
        return 1 if problems else 0
    for name, state, sentence in stages:
        print(ascii(f"{state}  {name:<10}  {sentence}")[1:-1])
    for _, where, what in list(run.problems)[:200]:
        print(ascii(f"{where}: {what}")[1:-1])
    for where, what in run.left:
        print(ascii(f"not covered: {where} ({what})")[1:-1])
    head, events, run_sha256 = run.anchors["head"], run.anchors["events"], run.anchors["run_sha256"]
    print(f"anchors: head {head or '(none)'} of {events} events; run.json sha256 {run_sha256 or '(none)'}")
    print("NOT INTACT" if run.problems else "intact")
    return 1 if run.problems else 0


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read stdout has seen enough (| head -1); that is not damage, which is 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)
