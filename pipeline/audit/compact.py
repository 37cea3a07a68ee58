"""Compact a sealed run: write the rows of its many small files into few large parts, and take the small files away.

Nothing of a row changes: its columns, its payloads, its digest, its place in its shard's chain. Markers, Merkle tree,
statement, signature and time stamp stay valid as they are: see :mod:`pipeline.audit.compacted`.

**The order of writes.** A stop between any two of these steps leaves a run that verifies and that every reader reads whole;
compacting again finishes it.

1. The parts are written, each whole, and read back against the files that they are made of. Nobody reads them yet.
2. The event ``run.compacted`` names the digest of the index. It is refused if another event came meanwhile.
3. The index ``parts/index.parquet`` is written. From here on readers go by it, and the small files count no more.
4. The small files are removed. While some are left, a verifier names them: a reader of the plain folder would read rows twice.

Memory holds some blocks of 64 rows, however large shards and parts are.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from index.errors import IntegrityError
from index.parquet import parquet_file
from index.storage import TEMPORARY, digest_of, entries, open_file, parsing, remove_all, require_held, write_file, write_from
from pipeline.audit.blocks import Hashed, alike, read_blocks, write_blocks
from pipeline.audit.chain import canonical, chain_start, table_header
from pipeline.audit.compacted import (
    COMPACTED,
    PARTS,
    PARTS_INDEX,
    LargePart,
    PartsIndex,
    Slice,
    header_of,
    index_bytes,
    index_named,
    index_problems,
    is_part_file,
    parts_index,
)
from pipeline.audit.erasure import Erasures, FileNow
from pipeline.audit.events import NewEvent, append_events, read_events
from pipeline.audit.shards import (
    COMMITS,
    EVERY_TABLE,
    ROW_GROUP_ROWS,
    ShardFile,
    ShardReceipt,
    committed,
)

if TYPE_CHECKING:
    import pyarrow as pa

PART_BYTES = 256 * 10**6  # parts come to .67 to 1.5 times that, where there is as much
_RESTORE = "Run `clearance verify`, and restore the file from a copy"
_COMMON = ("table", "schema_version", "run_id", "dataset_id", "plan_sha256", "policy_sha256", "salt_id")


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """What a compaction did.

    Attributes:
        parts: the parts that the run has now. shards: of the run.
        removed: how many small files were removed. event: number of the event; None where only files were removed.
    """

    parts: tuple[LargePart, ...]
    shards: int
    removed: int
    event: int | None

    def plain(self) -> dict[str, Any]:
        return {
            "parts": [{"path": part.path, "bytes": part.bytes, "rows": part.rows} for part in self.parts],
            "shards": self.shards,
            "removed": self.removed,
            "event": self.event,
        }


class _Source(NamedTuple):
    """A file of a shard that goes into a part, its digest and size now, the header of its rows, and what its columns are."""

    shard_id: str
    file: ShardFile
    now: FileNow
    header: str
    kind: tuple[Any, ...]


def ignore(done: int, total: int) -> None:
    """A listener that does nothing."""


def compact(
    folder: Path,
    event: NewEvent,
    *,
    part_bytes: int = PART_BYTES,
    listen: Callable[[int, int], None] = ignore,
    known: int | None = None,
) -> PartsIndex:
    """Write parts, event and index (steps 1 to 3). The caller holds the run's lease, has verified the run, and removes after.

    Args:
        folder: the run folder, sealed and not compacted.
        event: who compacts, and why; kind, details and digests are filled in.
        part_bytes: what a part should come to.
        listen: called with the number of shards' files that are in parts, and of all of them.
        known: how many events the caller has read; with others by now nothing is switched.

    Raises:
        IntegrityError: a file of the run is not the one that was committed, or a part is not what was written.
        RunStopped: another event came meanwhile, or a file cannot be written.
    """
    receipts, erasures = committed(folder), Erasures.of(read_events(folder))
    plans = [plan for table in EVERY_TABLE for plan in _planned(folder, table, receipts, erasures, part_bytes)]
    parts: list[LargePart] = []
    slices: dict[str, dict[str, Slice]] = {shard_id: {} for shard_id in receipts}
    done, total, session = 0, sum(len(plan) for plan in plans), secrets.token_hex(4)
    for plan in plans:
        table = plan[0].file.table
        number = sum(part.table == table for part in parts)
        part = _written(folder, f"{PARTS}/{table}-{number:05d}-{session}.parquet", plan)
        _require_same(folder, part, plan)
        parts.append(part)
        first = 0
        for source in plan:
            slices[source.shard_id][table] = Slice(part.path, first, source.file.rows, source.header)
            first += source.file.rows
        done += len(plan)
        listen(done, total)
    data = index_bytes(parts, {shard_id: receipt.marker for shard_id, receipt in receipts.items()}, slices)
    made = NewEvent(
        kind=COMPACTED,
        actor=event.actor,
        person=event.person,
        reason=event.reason,
        details={"parts": len(parts), "files": total, "shards": len(receipts)},
        digests={"index_sha256": hashlib.sha256(data).hexdigest()},
    )
    require_held(folder)
    append_events(folder, [made], known=known)
    write_file(folder, PARTS_INDEX, data)
    index = parts_index(folder)
    assert index is not None  # it was written just now
    return index


def tidy(folder: Path) -> int:
    """Remove what a compaction replaced, and what one that was stopped left (step 4). Only under the run's lease.

    Of a run that is not compacted these are parts that no index names. Of a compacted one they are the small files, once every
    part is the one that was written.

    Returns:
        How many files were removed.

    Raises:
        IntegrityError: the index, or a part, is not the one that the events name; nothing was removed.
        RunStopped: some cannot be removed; it names them.
    """
    index = parts_index(folder)
    there = [entry.name for entry in entries(folder, PARTS) if entry.kind == "file"]
    keep = {PARTS_INDEX, *(part.path for part in index.parts)} if index is not None else set()
    left = [f"{PARTS}/{name}" for name in there if is_part_file(name) or name.startswith(TEMPORARY)]
    gone = [path for path in left if path not in keep]
    small = list(superseded(folder, index)) if index is not None else []
    if index is not None and small:
        _require_parts(folder, index)
    fix = "Give this user the right to delete there, then run the same command again"
    return len(remove_all(folder, (*gone, *small), fix=fix))


def superseded(folder: Path, index: PartsIndex) -> Iterator[str]:
    """The small files of a compacted run that are still there: the rows of all of them are in the parts."""
    names: dict[str, set[str]] = {table: set() for table in EVERY_TABLE}
    for receipt in committed(folder).values():
        for file in receipt.files:
            names[file.table].add(file.path)
    for table, paths in names.items():
        yield from (path for entry in entries(folder, table) if (path := f"{table}/{entry.name}") in paths)
    # Last: while a marker is there, what its shard had is found by whoever looks for what became of it.
    yield from (
        f"{COMMITS}/{entry.name}" for entry in entries(folder, COMMITS) if entry.name.removesuffix(".json") in index.markers
    )


def _require_parts(folder: Path, index: PartsIndex) -> None:
    events = read_events(folder)
    for where, what in index_problems(index, index_named(events)):
        raise IntegrityError(what, where=f"{folder}/{where}", fix=_RESTORE)
    erasures = Erasures.of(events)
    for part in index.parts:
        if digest_of(folder, part.path) != erasures.now(part.path, part.sha256, part.bytes).sha256:
            raise IntegrityError("is not the part that was written", where=f"{folder}/{part.path}", fix=_RESTORE)


# --- which file goes into which part ---------------------------------------------------------------------------------------


def _planned(
    folder: Path, table: str, receipts: Mapping[str, ShardReceipt], erasures: Erasures, part_bytes: int
) -> list[list[_Source]]:
    """The files of a table, part by part, all of about one size; each shard in one part, each part of one schema."""
    sources = [
        _source(folder, shard_id, file, erasures.now(file.path, file.sha256, file.bytes))
        for shard_id, receipt in receipts.items()
        for file in receipt.files
        if file.table == table
    ]
    sizes = [source.now.bytes for source in sources]
    each = sum(sizes) / max(1, round(sum(sizes) / part_bytes))
    plans: list[list[_Source]] = []
    before, so_far = None, 0
    for source, size in zip(sources, sizes, strict=True):
        number = int((so_far + size / 2) / each) if each else 0  # where the middle of the file would lie
        if (number, source.kind) != before:
            plans.append([])
        plans[-1].append(source)
        before, so_far = (number, source.kind), so_far + size
    return plans


def _source(folder: Path, shard_id: str, file: ShardFile, now: FileNow) -> _Source:
    with open_file(folder, file.path) as stream, parsing(folder / file.path, fix=_RESTORE):
        schema = parquet_file(stream).schema_arrow
    found = table_header(schema)
    rest = {key: value for key, value in (schema.metadata or {}).items() if key != b"clearance"}
    kind = (*((f.name, str(f.type), f.nullable) for f in schema), *sorted(rest.items()), found.get("schema_version"))
    return _Source(shard_id, file, now, canonical(found).decode(), kind)


# --- writing ---------------------------------------------------------------------------------------------------------------


def _written(folder: Path, path: str, plan: Sequence[_Source]) -> LargePart:
    made: dict[str, Any] = {}

    def fill(stream: IO[bytes]) -> None:
        hashed = Hashed(stream)
        made["rows"] = write_blocks(hashed, _blocks(folder, plan))
        made.update(sha256=hashed.sha256, bytes=hashed.size)

    write_from(folder, path, fill)
    return LargePart(table=plan[0].file.table, path=path, **made)


def _blocks(folder: Path, plan: Sequence[_Source]) -> Iterator[pa.Table]:
    """The rows of some files one after the other, 64 at a time; at least one block, which may be empty."""
    import pyarrow as pa

    part_header = {name: value for name, value in header_of(plan[0].header).items() if name in _COMMON}
    held: list[pa.Table] = []
    schema: pa.Schema | None = None
    yielded = False
    for source in plan:
        for table in _tables(folder, source):
            if schema is None:
                metadata = {**(table.schema.metadata or {}), b"clearance": canonical(part_header)}
                schema = table.schema.with_metadata(metadata)
            held.append(table.replace_schema_metadata(schema.metadata))
            while (whole := sum(one.num_rows for one in held)) >= ROW_GROUP_ROWS:
                joined = pa.concat_tables(held)
                yield joined.slice(0, ROW_GROUP_ROWS)
                yielded, held = True, [joined.slice(ROW_GROUP_ROWS)] if whole > ROW_GROUP_ROWS else []
    if held and (sum(one.num_rows for one in held) or not yielded):
        yield pa.concat_tables(held)


def _tables(folder: Path, source: _Source) -> Iterator[pa.Table]:
    """The rows of one file, in tables of at most 64 rows; one without rows where it has none.

    Raises:
        IntegrityError: it cannot be read, or is not the file that was committed, or that its last erasure left.
    """
    where, rows, head = str(folder / source.file.path), 0, ""
    other = IntegrityError("is not the file that was committed", where=where, fix=_RESTORE)
    with open_file(folder, source.file.path) as stream, parsing(where, fix=_RESTORE):
        # The run was verified, but that is a while ago: what changed since would go into the part, and its source be removed.
        if hashlib.file_digest(stream, "sha256").hexdigest() != source.now.sha256:
            raise other
        for table in read_blocks(stream):
            rows += table.num_rows
            head = table.column("record_sha256")[-1].as_py() if table.num_rows else head
            yield table
    if rows != source.file.rows or (head or chain_start(header_of(source.header))) != source.file.chain_head:
        raise other


def _require_same(folder: Path, part: LargePart, plan: Sequence[_Source]) -> None:
    """What was written is read back: the digest of the file, and every row against the file that it came from."""
    where, fix = str(folder / part.path), "Check the storage; nothing of the run was changed"
    wrong = IntegrityError("is not what was written to it", where=where, fix=fix)
    with open_file(folder, part.path) as stream, parsing(where, fix=fix, what="is not what was written to it"):
        if hashlib.file_digest(stream, "sha256").hexdigest() != part.sha256:
            raise wrong
        for there, block in zip_longest(read_blocks(stream), _blocks(folder, plan)):
            if there is None or block is None or not alike(there, block):
                raise wrong
