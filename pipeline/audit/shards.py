"""Commit a shard: its files beside their places, then in their places, and last of all the commit marker.

A shard exists when ``commits/<shard_id>.json`` exists; everything else is a leftover. Two workers that finish the same shard
never touch each other's files, and the first marker wins.

A worker may outlive its run for a moment and commit while the next run sweeps. In a local folder the order of steps keeps a
marker from ever standing without its files (:mod:`index.places.local`). An object store has no temporary names: there the sweep
takes nothing until every shard of the run is committed, and a late marker finds its name taken.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from index import storage
from index.errors import ClearanceError, IntegrityError, RunStopped
from index.parquet import parquet_file
from index.storage import TEMPORARY, Part, Stored, cannot_write
from pipeline.audit.compacted import PARTS_INDEX, PartsIndex, parts_index
from pipeline.audit.event_parts import EVENTS_FOLDER
from pipeline.audit.schema import KEPT, Store, stored_as

if TYPE_CHECKING:
    import pyarrow as pa

RUN_FILE = "run.json"  # the statement of a sealed run
COMMITS, TABLES = "commits", ("samples", "attempts")
EVERY_TABLE = (*TABLES, KEPT)  # the last where a shard has such pictures
_DIGEST = re.compile(r"[0-9a-f]{16}(-[0-9a-f]+)?\.parquet")  # how the name of a shard's file ends
ROW_GROUP_ROWS = 64  # about 16 MB of pictures; readers fetch one group at a time


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One data file of a shard.

    Attributes:
        table: ``samples``, ``attempts`` or ``kept``.
        path: relative to the run folder.
        sha256: digest of the file. bytes: its size. rows: rows in it.
        chain_head: ``record_sha256`` of its last row (the chain's start when it has none).
    """

    table: str
    path: str
    sha256: str
    bytes: int
    rows: int
    chain_head: str


@dataclass(frozen=True, kw_only=True)
class ShardReceipt:
    """What one commit made: the content of the commit marker.

    Attributes:
        shard_id: the shard. rows: its samples. attempts: its attempts.
        files: its data files, samples first.
        outcomes: number of samples by outcome.
    """

    shard_id: str
    rows: int
    attempts: int
    files: tuple[ShardFile, ...]
    outcomes: Mapping[str, int]

    @property
    def digest(self) -> str:
        """sha256 over everything in the receipt: this shard's leaf in the run's Merkle tree."""
        return hashlib.sha256(_canonical(self._plain())).hexdigest()

    @property
    def marker(self) -> bytes:
        """The bytes of the commit marker; a marker with any other bytes was changed."""
        return json.dumps({**self._plain(), "digest": self.digest}, sort_keys=True, indent=1).encode() + b"\n"

    def _plain(self) -> dict[str, Any]:
        return {
            "shard_id": self.shard_id,
            "rows": self.rows,
            "attempts": self.attempts,
            "files": [dict(vars(file)) for file in self.files],
            "outcomes": dict(self.outcomes),
        }

    @classmethod
    def parse(cls, data: bytes, *, where: str) -> ShardReceipt:
        """Read a commit marker.

        Raises:
            IntegrityError: it is not one, or a byte of it changed.
        """
        try:
            plain = json.loads(data)
            receipt = cls(
                shard_id=_typed(plain["shard_id"], str),
                rows=_typed(plain["rows"], int),
                attempts=_typed(plain["attempts"], int),
                files=tuple(_file(file, plain["shard_id"]) for file in plain["files"]),
                outcomes={_typed(name, str): _typed(count, int) for name, count in plain["outcomes"].items()},
            )
            whole = receipt.marker == data and tuple(file.table for file in receipt.files) in (TABLES, EVERY_TABLE)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise IntegrityError(
                "is not the commit marker that was written",
                where=where,
                fix="Restore it from a copy; or, in a run that is not sealed, delete it and continue with --resume",
            )
        return receipt


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _file(plain: Mapping[str, Any], shard_id: str) -> ShardFile:
    kinds = {"table": str, "path": str, "sha256": str, "bytes": int, "rows": int, "chain_head": str}
    if plain.keys() != kinds.keys():
        raise ValueError("other keys")
    file = ShardFile(**{name: _typed(plain[name], kind) for name, kind in kinds.items()})
    # A marker that names a file elsewhere would make readers follow it there. One pattern for all shards: compiling one for
    # each was four fifths of the time that reading a marker took.
    own = f"{file.table}/part-{shard_id}-"
    if not file.path.startswith(own) or not _DIGEST.fullmatch(file.path, len(own)):
        raise ValueError("not a file of this shard")
    return file


def commit_shard(
    folder: Path, shard_id: str, samples: pa.Table, attempts: pa.Table, kept: pa.Table | None = None
) -> ShardReceipt:
    """Write a shard's tables and commit them; only a committed shard is visible.

    A second commit of the same shard replaces nothing and returns the first one's receipt.

    Args:
        folder: the run folder; made when missing.
        shard_id: letters, digits, ``.``, ``_`` and ``-``.
        samples: from :func:`pipeline.audit.records.sample_table`.
        attempts: from :func:`pipeline.audit.records.attempt_table`.
        kept: from :func:`pipeline.audit.kept.kept_table`; without rows no file is written.

    Raises:
        RunStopped: the folder cannot be written (disk full, permissions), or another session of the run swept it meanwhile;
            nothing of the shard is visible then.
        IntegrityError: a folder on the way is a link, or the marker that is there was changed.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", shard_id):
        raise ClearanceError(f"shard id {shard_id!r} is not a file name", where="shard_id", fix="Use letters, digits, . _ -")
    marker = f"{COMMITS}/{shard_id}.json"
    storage.make(folder, COMMITS)
    if storage.entry_of(folder, marker) is not None:
        return receipt_of(folder, shard_id)
    # A worker that was cut off for long: the next session has sealed and compacted the run. An object store's fence refuses it.
    if not storage.is_remote(folder) and (index := parts_index(folder)) is not None:
        return receipt_in(index, shard_id)
    tables = {
        name: table
        for name, table in zip(EVERY_TABLE, (samples, attempts, kept), strict=True)
        if table is not None and (name != KEPT or table.num_rows)
    }

    def receipt(stored: Sequence[Stored]) -> ShardReceipt:
        return ShardReceipt(
            shard_id=shard_id,
            rows=samples.num_rows,
            attempts=attempts.num_rows,
            files=tuple(_shard_file(*one, part) for one, part in zip(tables.items(), stored, strict=True)),
            outcomes=dict(sorted(Counter(samples.column("outcome").to_pylist()).items())),
        )

    made: list[ShardReceipt] = []

    def content(stored: Sequence[Stored]) -> bytes:
        made.append(receipt(stored))
        return made[0].marker

    try:
        ours = storage.commit(folder, [_part(name, shard_id, table) for name, table in tables.items()], marker, content)
    except FileNotFoundError as error:
        raise RunStopped(
            f"shard {shard_id} was not committed: its temporary files were removed meanwhile",
            where=str(folder),
            fix="Another session of this run took over, or the folder was deleted; see `clearance status`",
        ) from error
    except OSError as error:
        raise cannot_write(error, folder) from error
    return made[0] if ours else receipt_of(folder, shard_id)  # False: somebody else committed this shard meanwhile


def committed(folder: Path) -> dict[str, ShardReceipt]:
    """Receipts of every committed shard, by shard id, in order.

    Raises:
        IntegrityError: a commit marker was changed, or something else stands in its place.
    """
    return receipts_of(folder, markers(folder))


def receipts_of(folder: Path, names: Sequence[str]) -> dict[str, ShardReceipt]:
    """Receipts of some committed shards; raises as :func:`committed`."""
    index = parts_index(folder)
    if index is not None:
        return {name: receipt_in(index, name) for name in names}
    return dict(zip(names, storage.each(folder, lambda name: receipt_of(folder, name), names), strict=True))


def markers(folder: Path) -> list[str]:
    """Shard ids of the commit markers there are, whatever is in them."""
    index = parts_index(folder)
    if index is not None:
        return list(index.markers)
    names = [entry.name for entry in storage.entries(folder, COMMITS)]
    return [name.removesuffix(".json") for name in names if name.endswith(".json") and not name.startswith(".")]


def lost(folder: Path, there: Collection[str]) -> list[str]:
    """Shards with which a run was sealed and whose commit markers are gone. Whatever reads the rest would leave them out.

    Empty for a run that is not sealed, or whose statement cannot be read, which `verify` says.
    """
    try:
        stated = storage.parse_object(storage.read_file(folder, RUN_FILE), where=RUN_FILE)["predicate"]["shards"]
        return sorted(set(map(str, stated)) - set(there))
    except (ClearanceError, LookupError, TypeError):
        return []


def lost_marker(folder: Path, shard_id: str) -> IntegrityError:
    """The refusal of a sealed run without this shard."""
    where = str(folder / f"{COMMITS}/{shard_id}.json")
    return IntegrityError("is missing; the run was sealed with it", where=where, fix="Restore it from a copy")


def sweep(folder: Path, *, complete: bool = False, known: Mapping[str, ShardReceipt] | None = None) -> list[Path]:
    """Remove what unfinished commits left behind. Only for the session that holds the folder's lease.

    Args:
        folder: the run folder.
        complete: every shard of the run is committed. Until then nothing is swept on an object store: a worker that is cut off
            from its driver may still put a marker for data that it has stored, and cannot once the name is taken.
        known: receipts that were read already. A marker is never replaced; those that came since are read.

    Returns:
        The files removed.

    Raises:
        IntegrityError: a commit marker was changed, or a folder of the run is a link.
    """
    if storage.is_remote(folder) and not complete:
        return []
    # In this order: see index.places.local.
    noted = [f"{name}/{leaf}" for name in EVERY_TABLE for leaf in _leftovers(folder, name)]
    removed = [path for leaf in _leftovers(folder, COMMITS) if storage.remove(folder, path := f"{COMMITS}/{leaf}")]
    seen, names = known or {}, markers(folder)
    there = {name: seen[name] for name in names if name in seen} | receipts_of(folder, [n for n in names if n not in seen])
    kept = {file.path for receipt in there.values() for file in receipt.files}
    # An append of an event that goes on meanwhile writes its part again.
    noted += [*_leftovers(folder, ""), *(f"{EVENTS_FOLDER}/{leaf}" for leaf in _leftovers(folder, EVENTS_FOLDER))]
    removed += [path for path in noted if path not in kept and storage.remove(folder, path)]
    return [folder / path for path in removed]


def is_leftover(folder: str, name: str) -> bool:
    """Whether a file of that name, in that folder of a run, may be removed when no commit names it: only we write such."""
    if not folder:
        return re.fullmatch(rf"{re.escape(TEMPORARY)}.+-[0-9a-f]{{12}}", name) is not None
    return name.startswith(TEMPORARY) or (folder in EVERY_TABLE and re.fullmatch(r"part-.+\.parquet", name) is not None)


def _leftovers(folder: Path, name: str) -> list[str]:
    return [e.name for e in storage.entries(folder, name) if e.kind == "file" and is_leftover(name, e.name)]


def write_parquet(table: pa.Table, stream: IO[bytes], *, group: int = ROW_GROUP_ROWS) -> None:
    """Write a table the way all shards are written; the same table gives the same bytes.

    How each column is stored stands beside it in the schema; all have page checksums.

    Args:
        table, stream: what, and where to.
        group: rows of a row group. Those with pictures are small, so that few are in memory at once.
    """
    import pyarrow.parquet as pq

    pq.write_table(table, stream, row_group_size=group, **parquet_options(table.schema))


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """How each column of a table is stored: the arguments of ``pyarrow.parquet.ParquetWriter``."""
    plain, few, keys = (stored_as(how) for how in (Store.PLAIN, Store.DICTIONARY, Store.STATISTICS))
    leaves = {path: path.split(".") for path in physical_columns(schema)}
    return {
        "compression": {path: "none" if parts[-1] in plain else "zstd" for path, parts in leaves.items()},
        "use_dictionary": [path for path, parts in leaves.items() if parts[-1] in few],
        "write_statistics": [path for path, parts in leaves.items() if len(parts) == 1 and parts[0] in keys],
        "write_page_checksum": True,
        "write_page_index": True,
        "store_schema": True,
    }


def physical_columns(schema: pa.Schema) -> tuple[str, ...]:
    """The paths of a schema's physical columns, as a writer's settings name them."""
    return _physical_columns(schema.remove_metadata())


@lru_cache(maxsize=16)  # the few schemas of a run are written for every shard
def _physical_columns(schema: pa.Schema) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    physical = parquet_file(pa.BufferReader(sink.getvalue())).schema
    return tuple(physical.column(i).path for i in range(len(physical)))


def _part(name: str, shard_id: str, table: pa.Table) -> Part:
    def path(sha256: str) -> str:
        # The digest tells what is in it; the rest is this writer's alone, so that nobody else removes it by mistake.
        return f"{name}/part-{shard_id}-{sha256[:16]}-{secrets.token_hex(4)}.parquet"

    return Part(f"{name}/part-{shard_id}", lambda stream: write_parquet(table, stream), path)


def _shard_file(name: str, table: pa.Table, stored: Stored) -> ShardFile:
    from pipeline.audit.chain import chain_start, table_header

    head = table.column("record_sha256")[-1].as_py() if table.num_rows else chain_start(table_header(table.schema))
    return ShardFile(
        table=name, path=stored.path, sha256=stored.sha256, bytes=stored.bytes, rows=table.num_rows, chain_head=head
    )


def receipt_of(folder: Path, shard_id: str) -> ShardReceipt:
    """The receipt of one committed shard; raises as :func:`committed`."""
    where = f"{COMMITS}/{shard_id}.json"
    return _own(ShardReceipt.parse(storage.read_file(folder, where), where=str(folder / where)), shard_id, str(folder / where))


def receipt_in(index: PartsIndex, shard_id: str) -> ShardReceipt:
    """The receipt of one shard of a compacted run; raises as :func:`committed`."""
    if shard_id not in index.markers:
        raise IntegrityError(f"names no shard {shard_id!r}", where=PARTS_INDEX, fix="Run `clearance verify`")
    return _own(ShardReceipt.parse(index.markers[shard_id], where=PARTS_INDEX), shard_id, PARTS_INDEX)


def _own(receipt: ShardReceipt, shard_id: str, where: str) -> ShardReceipt:
    if receipt.shard_id != shard_id:
        raise IntegrityError(f"is the marker of shard {receipt.shard_id!r}", where=where, fix="Rename it back")
    return receipt


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
