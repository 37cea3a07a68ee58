"""Erase payloads of samples: pictures, prompts, embeddings, user columns, thumbnails. Every chain stays intact.

Payloads enter the chain of the rows as digests alone, so that a row whose payload is gone has the digest that it had. The
digest of its *file* changes, and what explains that is an event (:mod:`pipeline.audit.erasure`).

**The order of writes**, for one shard after the other, and for the file of the plan's requests:

1. The new content of every file is made beside it, read back and compared: nothing but the cells to be emptied differs.
2. The event ``payload.erased`` is appended, with the digests before and after. It is refused if any other event came since
   the events were read: a legal hold that is set in that moment is seen.
3. Each file is replaced, whole.

A stop before 2 has changed nothing. A stop after 2 leaves files that still hold what an event names as erased: the
verifier finds the digest from before the event, and names the file and the event. :func:`unfinished` finds them the same way,
and erasing again finishes it with an event of its own, which begins at the digest that the file has. The other order would
leave files that nobody can tell from damaged ones. Reports show thumbnails and prompts; they are removed first, because they
can be written again.

What this does not reach: copies, exports and backups of the run; blocks that a disk or a snapshot keeps of the old files; the
older versions that a bucket keeps of them (:func:`keeps_versions`: the event and the command say so); and what the rows keep by
design: request keys, reasons, findings with the text that a guard read or the phrase of the policy that a prompt held,
fingerprints of the picture, and commitments to the prompt. Under the default salt whoever guesses a prompt can check the guess
against its commitment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from shutil import copyfileobj
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING

from index.errors import IntegrityError, RunStopped
from index.parquet import parquet_file
from index.storage import (
    digest_of,
    entries,
    entry_of,
    filling_temporary,
    open_file,
    parsing,
    read_object,
    remove_all,
    write_from,
)
from pipeline.audit.binding import REQUESTS_FILE
from pipeline.audit.blocks import Hashed, emptied_alike, read_blocks, write_blocks
from pipeline.audit.compact import tidy
from pipeline.audit.compacted import parts_index
from pipeline.audit.coverage import LEASE_FILE, PAGES
from pipeline.audit.erasure import ERASED, ErasedFile, Erasures
from pipeline.audit.events import NewEvent, append_events, read_events
from pipeline.audit.ledger import sample_rows
from pipeline.audit.report_digest import REPORT_HTML, REPORT_JSON
from pipeline.audit.requests import rows_in
from pipeline.audit.schema import PAYLOADS, REQUESTS
from pipeline.audit.shards import RUN_FILE, ShardReceipt, committed

if TYPE_CHECKING:
    import pyarrow as pa

# What people ask to have erased, and the columns that hold it, of whatever table has them.
PICTURE, PROMPT, EMBEDDING, COLUMNS = "picture", "prompt", "embedding", "columns"
KINDS: dict[str, frozenset[str]] = {
    PICTURE: frozenset({"image", "thumbnail"}),
    PROMPT: frozenset({"prompt", "negative_prompt", "drawn_prompt"}),
    EMBEDDING: frozenset({"embedding"}),
    COLUMNS: frozenset({"columns"}),
}
_RESTORE = "Run `clearance verify`, and restore the file from a copy"


@dataclass(frozen=True, kw_only=True)
class Erased:
    """What was erased, or would be.

    Attributes:
        cells: number of payloads, by column. samples: how many samples they belong to. files: the files that changed.
        events: numbers of the events that were written. removed: reports that were removed.
        old_versions: the bucket keeps older versions, which still hold it.
        old_versions_days: after how many days the bucket deletes them, as the caller says; None: nobody said.
    """

    cells: Mapping[str, int]
    samples: int
    files: tuple[str, ...]
    events: tuple[int, ...] = ()
    removed: tuple[str, ...] = ()
    old_versions: bool = False
    old_versions_days: int | None = None


def erase_payloads(
    folder: Path,
    wanted: Mapping[str, Collection[str]],
    event: NewEvent,
    *,
    known: int,
    dry_run: bool = False,
    old_versions_days: int | None = None,
) -> Erased:
    """Erase payloads of samples.

    The caller holds the run's lease, and has found no hold on the samples in the events that it counts in ``known``.

    Args:
        folder: the run folder.
        wanted: columns by sample_id.
        event: who erases, and why; kind, samples and files are filled in.
        known: how many events the caller has read.
        dry_run: change nothing, and return what would be erased.
        old_versions_days: after how many days the bucket deletes older versions, if it keeps any: the caller's word, which the
            events repeat.

    Raises:
        IntegrityError: a file is not the one that was committed, or cannot be read.
        RunStopped: another event came meanwhile, or a file cannot be written or removed; what was begun is finished by erasing
            again.
    """
    if not dry_run:
        tidy(folder)  # a compaction that was stopped may have left a second copy of what is erased
    old_versions = bool(wanted) and keeps_versions(folder)
    days = old_versions_days if old_versions else None
    if old_versions:
        stated = {} if days is None else {"old_versions_days": days}
        event = replace(event, details={**event.details, "old_versions": True, **stated})
    erasures = Erasures.of(read_events(folder))
    cells: dict[str, int] = {}
    samples: set[str] = set()
    files: list[str] = []
    numbers: list[int] = []
    removed: tuple[str, ...] = ()
    for changes in _every_change(folder, wanted, erasures):
        with ExitStack() as contents:
            for _, content in changes:
                contents.callback(content.close)
            if not dry_run and not removed and not files:
                removed = _remove_reports(folder)
            for file, _ in changes:
                files.append(file.path)
                for column, ids in file.columns.items():
                    cells[column] = cells.get(column, 0) + len(ids)
                    samples |= set(ids)
            if not dry_run:
                numbers.append(_carry_out(folder, changes, event, known=known + len(numbers)))
    return Erased(
        cells=cells,
        samples=len(samples),
        files=tuple(files),
        events=tuple(numbers),
        removed=removed,
        old_versions=old_versions,
        old_versions_days=days,
    )


def _carry_out(folder: Path, changes: Sequence[Change], event: NewEvent, *, known: int) -> int:
    """Append the event that names the changes, then write the files; returns the event's number."""
    made = NewEvent(
        kind=ERASED,
        actor=event.actor,
        person=event.person,
        reason=event.reason,
        samples=sorted({one for file, _ in changes for ids in file.columns.values() for one in ids}),
        details={**event.details, "files": [file.plain() for file, _ in changes]},
    )
    number = int(append_events(folder, [made], known=known)[0]["seq"])
    for file, content in changes:
        try:
            content.seek(0)
            write_from(folder, file.path, partial(copyfileobj, content))
        except RunStopped as error:
            fix = "Mend the storage, then give the command again: it finishes the erasure that its event names"
            raise RunStopped(error.what, where=error.where, fix=fix) from error
    return number


def keeps_versions(folder: Path) -> bool:
    """Whether the run lies in a bucket that keeps older versions of its objects. A store tells it of objects that were written
    since it keeps them: the lease is the youngest."""
    entry = entry_of(folder, LEASE_FILE) or entry_of(folder, RUN_FILE)
    return entry is not None and entry.versioned


def unfinished(folder: Path) -> dict[str, set[str]]:
    """Columns by sample_id that events name as erased and that are still in their files, or in them again.

    Raises:
        IntegrityError: the events were changed.
    """
    erasures = Erasures.of(read_events(folder))
    there = {file.path: (file.sha256, file.bytes) for receipt in committed(folder).values() for file in receipt.files}
    if (index := parts_index(folder)) is not None:
        there = {part.path: (part.sha256, part.bytes) for part in index.parts}
    there[REQUESTS_FILE] = (_requests_sha256(folder), 0)
    wanted: dict[str, set[str]] = {}
    for path in erasures.paths:
        if path in there and (now := erasures.now(path, *there[path])).earlier and digest_of(folder, path) in now.earlier:
            for column, samples in now.erased.items():
                for sample_id in samples:
                    wanted.setdefault(sample_id, set()).add(column)
    return wanted


# --- what changes ----------------------------------------------------------------------------------------------------------

Change = tuple[ErasedFile, IO[bytes]]  # and its new content, which who takes it closes
_IN_MEMORY = 32 * 2**20  # of a file's new content; what is larger waits on the disk of this machine


def _every_change(folder: Path, wanted: Mapping[str, Collection[str]], erasures: Erasures) -> Iterator[list[Change]]:
    """The files that change with their new content, shard by shard or part by part, and last the plan's requests."""
    index = parts_index(folder)
    for part in index.parts if index is not None else ():
        now = erasures.now(part.path, part.sha256, part.bytes)
        change = _change(folder, part.path, part.table, {now.sha256, *now.earlier}, wanted)
        if change is not None:
            yield [change]
    for receipt in committed(folder).values() if index is None else ():
        mine = _samples_of(folder, receipt) & wanted.keys()
        if not mine:
            continue
        changes: list[Change] = []
        try:
            for file in receipt.files:
                now = erasures.now(file.path, file.sha256, file.bytes)
                known = {now.sha256, *now.earlier}
                change = _change(folder, file.path, file.table, known, {one: wanted[one] for one in mine})
                if change is not None:
                    changes.append(change)
        except BaseException:
            for _, content in changes:
                content.close()
            raise
        if changes:
            yield changes
    if any("prompt" in columns or "columns" in columns for columns in wanted.values()):
        keys = {row["request_key"]: row["sample_id"] for row in sample_rows(folder, ["request_key", "sample_id"])}
        now = erasures.now(REQUESTS_FILE, _requests_sha256(folder), 0)
        if now.sha256 and entry_of(folder, REQUESTS_FILE) is not None:
            change = _change(folder, REQUESTS_FILE, REQUESTS, {now.sha256, *now.earlier}, wanted, keys)
            if change is not None:
                yield [change]


def _samples_of(folder: Path, receipt: ShardReceipt) -> set[str]:
    path = next(file.path for file in receipt.files if file.table == "samples")
    return {row["sample_id"] for _, row in rows_in(folder, path, "samples", ["sample_id"])}


def _change(
    folder: Path,
    path: str,
    table: str,
    known: Collection[str],
    wanted: Mapping[str, Collection[str]],
    keys: Mapping[str, str] | None = None,
) -> Change | None:
    """One file without the payloads; None when it holds none of them. ``keys``: sample ids by key, where rows have no other."""
    with open_file(folder, path) as stream:
        before = hashlib.file_digest(stream, "sha256").hexdigest()
        if before not in known:
            raise IntegrityError("is not the file that was committed", where=str(folder / path), fix=_RESTORE)
        with parsing(folder / path, fix=_RESTORE):
            return _emptied(stream, path, table, (before, wanted, keys))


_What = tuple[str, Mapping[str, Collection[str]], Mapping[str, str] | None]  # digest before, columns by sample_id, ids by key


def _emptied(stream: IO[bytes], path: str, table: str, what: _What) -> Change | None:
    before, wanted, keys = what
    name = "sample_id" if keys is None else "key"
    stream.seek(0)
    there = parquet_file(stream).read(columns=[name], use_threads=False).column(name).to_pylist()
    if not any((one if keys is None else keys.get(one, "")) in wanted for one in there):
        return None
    emptied: dict[str, dict[str, None]] = {}

    def blocks() -> Iterator[pa.Table]:
        for block in read_blocks(stream):
            yield _without_payloads(block, _cells(block, name, wanted, keys), emptied)

    content: IO[bytes] = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 (see Change)
    with filling_temporary():  # closing it writes as well
        try:
            hashed = Hashed(content)
            write_blocks(hashed, blocks())
            if emptied:
                _require_same(stream, content, partial(_cells, name=name, wanted=wanted, keys=keys), path)
        except BaseException:
            content.close()
            raise
    if not emptied:
        content.close()
        return None
    about = ErasedFile(
        seq=-1,
        path=path,
        table=table,
        columns={column: tuple(ids) for column, ids in emptied.items()},
        before_sha256=before,
        after_sha256=hashed.sha256,
        after_bytes=hashed.size,
    )
    return about, content


Cells = dict[str, dict[int, str]]  # row number → sample_id, by column


def _cells(block: pa.Table, name: str, wanted: Mapping[str, Collection[str]], keys: Mapping[str, str] | None) -> Cells:
    """The cells of a block that are to be emptied: payloads that are wanted, and there."""
    names = block.column(name).to_pylist()
    ids = names if keys is None else [keys.get(one, "") for one in names]
    cells: Cells = {}
    for column in (one for one in block.schema.names if one in PAYLOADS):
        there = _present(block, column)
        rows = {n: one for n, one in enumerate(ids) if there[n] and column in wanted.get(one, ())}
        if rows:
            cells[column] = rows
    return cells


def _without_payloads(block: pa.Table, cells: Cells, emptied: dict[str, dict[str, None]]) -> pa.Table:
    """A block without the payloads to be emptied; they are noted in ``emptied``."""
    new = block
    for column, rows in cells.items():
        emptied.setdefault(column, {}).update(dict.fromkeys(rows.values()))
        new = _without(new, column, rows)
    return new


def _present(table: pa.Table, column: str) -> list[bool]:
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = table.column(column)
    if pa.types.is_struct(cells.type):
        cells = pc.struct_field(cells, "bytes")
    there: list[bool] = pc.is_valid(cells).to_pylist()
    return there


def _without(table: pa.Table, column: str, rows: Collection[int]) -> pa.Table:
    """The table with null in those rows of a column."""
    import pyarrow as pa

    gone, place, first, chunks = set(rows), table.schema.get_field_index(column), 0, []
    for chunk in table.column(column).chunks:
        numbers = [None if first + n in gone else n for n in range(len(chunk))]
        chunks.append(chunk.take(pa.array(numbers, pa.int64())))
        first += len(chunk)
    return table.set_column(place, table.schema.field(place), pa.chunked_array(chunks, type=table.schema.field(place).type))


def _require_same(old: IO[bytes], new: IO[bytes], cells: Callable[[pa.Table], Cells], where: str) -> None:
    """Nothing but the cells that were to be emptied differs in what was written, and they are empty."""
    for before, after in zip_longest(read_blocks(old), read_blocks(new)):
        if before is None or after is None or not emptied_alike(after, before, cells(before)):
            what = "would change in more than its payloads"
            raise IntegrityError(what, where=where, fix="Nothing was erased of it; report this")


def _requests_sha256(folder: Path) -> str:
    """The digest that the sealed statement names for the plan's requests; empty when it names none.

    Raises:
        IntegrityError, InputError: the statement is missing or cannot be read: then what it names would be left as it is.
    """
    plan = (read_object(folder, RUN_FILE).get("predicate") or {}).get("plan") or {}
    return str((plan.get("files") or {}).get(REQUESTS_FILE, "")) if isinstance(plan, dict) else ""


def _remove_reports(folder: Path) -> tuple[str, ...]:
    """Reports show thumbnails and prompts; `clearance report` writes them again without what was erased.

    Raises:
        RunStopped: one is still there.
    """
    pages = [
        f"{PAGES}/{entry.name}" for entry in entries(folder, PAGES) if entry.kind == "file" and entry.name.endswith(".html")
    ]
    fix = "Give this user the right to delete there, then run the same command again; nothing was erased yet"
    there = [name for name in (REPORT_HTML, REPORT_JSON, *pages) if entry_of(folder, name) is not None]
    return tuple(remove_all(folder, there, fix=fix))
