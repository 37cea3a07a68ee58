"""Commit a shard: temporary file, fsync, rename, and last of all the commit marker.

A shard exists when ``commits/<shard_id>.json`` exists; everything else is a leftover. Data files are named by their own
digest, so two workers that finish the same shard never touch each other's bytes, and the first marker wins. The file
operations of a run folder live here and nowhere else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from io import BufferedRandom
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from index.errors import ClearanceError, IntegrityError

if TYPE_CHECKING:
    import pyarrow as pa

ROW_GROUP_ROWS = 64  # about 16 MB of pictures; readers fetch one group at a time
TEMPORARY = ".tmp-"
# Columns with few distinct values; dictionary encoding elsewhere only costs time.
_FEW_VALUES = """
    run_id dataset_id shard_id outcome reason media_type model_id model_revision model_digest model_licence scheduler dtype
    device_kind index_id embedder_id calibration_id policy_id policy_sha256 policy_name digital_source_type watermark_scheme
    review_state error_class worker_id software_version prompt_ref decision guard version category kind rights_basis status
    ref_id title"""
_KEYS = "row_no sample_id request_key outcome reason attempt finished_at retain_until"
_DICTIONARY, _STATISTICS = frozenset(_FEW_VALUES.split()), frozenset(_KEYS.split())
_BLOBS = frozenset({"bytes"})  # already compressed


@dataclass(frozen=True)
class ShardFile:
    """One data file of a shard.

    Attributes:
        table: ``samples`` or ``attempts``.
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


@dataclass(frozen=True)
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
            "files": [asdict(file) for file in self.files],
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
                shard_id=plain["shard_id"],
                rows=plain["rows"],
                attempts=plain["attempts"],
                files=tuple(ShardFile(**file) for file in plain["files"]),
                outcomes=dict(plain["outcomes"]),
            )
            whole = receipt.marker == data
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise IntegrityError(
                "is not the commit marker that was written", where=where, fix="Restore it from a copy, or delete it and resume"
            )
        return receipt


def commit_shard(folder: Path, shard_id: str, samples: pa.Table, attempts: pa.Table) -> ShardReceipt:
    """Write a shard's tables and commit them; only a committed shard is visible.

    A second commit of the same shard replaces nothing and returns the first one's receipt.

    Args:
        folder: the run folder; made when missing.
        shard_id: letters, digits, ``.``, ``_`` and ``-``.
        samples: from :func:`pipeline.audit.records.sample_table`.
        attempts: from :func:`pipeline.audit.records.attempt_table`.

    Raises:
        ClearanceError: the folder cannot be written (disk full, permissions); nothing of the shard is visible then.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", shard_id):
        raise ClearanceError(f"shard id {shard_id!r} is not a file name", where="shard_id", fix="Use letters, digits, . _ -")
    marker = folder / "commits" / f"{shard_id}.json"
    if marker.exists():
        return _receipt(marker)
    written: list[Path] = []
    try:
        files = []
        for name, table in (("samples", samples), ("attempts", attempts)):
            file, path = _write_part(folder, name, shard_id, table)
            if path is not None:
                written.append(path)
            files.append(file)
        outcomes = Counter(samples.column("outcome").to_pylist())
        receipt = ShardReceipt(shard_id, samples.num_rows, attempts.num_rows, tuple(files), dict(sorted(outcomes.items())))
        if write_once(marker, receipt.marker):
            return receipt
        first = _receipt(marker)  # somebody else committed this shard meanwhile
    except BaseException as error:
        # A marker that did land commits the shard, whatever failed after it (the fsync of its folder, say).
        if not marker.exists():
            _remove(written)
        if isinstance(error, OSError):
            raise _cannot_write(error, folder) from error
        raise
    kept = {folder / file.path for file in first.files}
    _remove([path for path in written if path not in kept])
    return first


def committed(folder: Path) -> dict[str, ShardReceipt]:
    """Receipts of every committed shard, by shard id, in order.

    Raises:
        IntegrityError: a commit marker was changed.
    """
    return {path.stem: _receipt(path) for path in sorted((folder / "commits").glob("[!.]*.json"))}


def sweep(folder: Path) -> list[Path]:
    """Remove what unfinished commits left behind; call it before workers start, never beside them.

    Returns:
        The files removed.
    """
    kept = {folder / file.path for receipt in committed(folder).values() for file in receipt.files}
    leftovers = [path for path in _inside(folder) if path.name.startswith(TEMPORARY)]
    for name in ("samples", "attempts"):
        leftovers += [path for path in (folder / name).glob("part-*.parquet") if path not in kept]
    _remove(leftovers)
    return leftovers


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, and a power cut loses neither.

    Raises:
        ClearanceError: it cannot be written.
    """
    try:
        _place(path, lambda stream: stream.write(data), os.replace)
    except OSError as error:
        raise _cannot_write(error, path) from error


def write_once(path: Path, data: bytes) -> bool:
    """Write a file that must not exist yet; False (and nothing written) when it does. Raises OSError."""
    try:
        _place(path, lambda stream: stream.write(data), _link)
    except FileExistsError:
        return False
    return True


def digest_file(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_parquet(table: pa.Table, stream: IO[bytes]) -> None:
    """Write a table the way all shards are written; the same table gives the same bytes.

    Pictures are stored as they are, text under zstd, dictionaries only for columns with few values, statistics only for
    keys, with page checksums.
    """
    import pyarrow.parquet as pq

    leaves = {path: path.split(".") for path in _leaves(table.schema)}
    pq.write_table(
        table,
        stream,
        row_group_size=ROW_GROUP_ROWS,
        compression={path: "none" if parts[-1] in _BLOBS else "zstd" for path, parts in leaves.items()},
        use_dictionary=[path for path, parts in leaves.items() if parts[-1] in _DICTIONARY],
        write_statistics=[path for path, parts in leaves.items() if len(parts) == 1 and parts[0] in _STATISTICS],
        write_page_checksum=True,
        write_page_index=True,
        store_schema=True,
    )


def _leaves(schema: pa.Schema) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    physical = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [physical.column(i).path for i in range(len(physical))]


def _write_part(folder: Path, name: str, shard_id: str, table: pa.Table) -> tuple[ShardFile, Path | None]:
    """Write one data file; returns its entry, and its path unless a file with the same bytes was there already."""
    from pipeline.audit.records import chain_start, table_header

    head = table.column("record_sha256")[-1].as_py() if table.num_rows else chain_start(table_header(table.schema))
    placed: dict[str, Any] = {}

    def fill(stream: BufferedRandom) -> None:
        write_parquet(table, stream)
        stream.flush()
        stream.seek(0)
        placed["sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
        placed["bytes"] = stream.tell()

    def rename(temporary: Path, _: Path) -> None:
        placed["path"] = folder / name / f"part-{shard_id}-{placed['sha256'][:16]}.parquet"
        placed["new"] = not placed["path"].exists()
        os.replace(temporary, placed["path"])

    _place(folder / name / f"part-{shard_id}", fill, rename)
    path = placed["path"]
    file = ShardFile(name, f"{name}/{path.name}", placed["sha256"], placed["bytes"], table.num_rows, head)
    return file, path if placed["new"] else None


def _place(path: Path, fill: Callable[[BufferedRandom], Any], put: Callable[[Path, Path], Any]) -> None:
    """Temporary file beside the target → fill → fsync → put it in place → fsync the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{path.name}-{secrets.token_hex(6)}"
    try:
        with temporary.open("xb+") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        put(temporary, path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> None:
    # A hard link fails when the name exists: that is the compare-and-swap that makes the first commit win.
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(temporary, path)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(PermissionError):  # some network file systems refuse to open folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _inside(folder: Path) -> list[Path]:
    names = (".", "samples", "attempts", "commits")
    return [path for name in names if (folder / name).is_dir() for path in sorted((folder / name).iterdir()) if path.is_file()]


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _receipt(marker: Path) -> ShardReceipt:
    receipt = ShardReceipt.parse(marker.read_bytes(), where=f"commits/{marker.name}")
    if receipt.shard_id != marker.stem:
        where = f"commits/{marker.name}"
        raise IntegrityError(f"is the marker of shard {receipt.shard_id!r}", where=where, fix="Rename it back")
    return receipt


def _cannot_write(error: OSError, where: Path) -> ClearanceError:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ClearanceError("the disk is full", where=str(where), fix="Free some space, then run again with --resume")
    reason = error.strerror or type(error).__name__
    return ClearanceError(f"cannot be written ({reason})", where=str(where), fix="Check the path and its permissions")


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
