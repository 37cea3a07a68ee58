"""Snapshots of an index: the state in force, and the one pointer that moves.

A snapshot is a JSON file named after its own sha256 and never changes; ``CURRENT`` names the one in force. It is small whatever
the index holds, so that a change is one small write: rows are in the segments, what happened is in the journal.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from index import at_uri
from index.embedder_source import EmbedderSource
from index.errors import InputError, IntegrityError
from index.files import RESTORE, read_known, write_whole
from index.journal import event_of, items, text
from index.old_segment import OLD_FILES
from index.reference import COLUMNS, STATUSES
from index.segment import FILES
from index.set_hash import SetHash

FORMAT = 3  # of the file; 1 had neither amendments nor the embedder's source, 2 held its history and no hash of its rows
READABLE = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of an index.

    Attributes:
        embedder_id, dim: the embedder it is bound to, and the length of its vectors.
        segments: of each its folder's ``name``, its ``rows``, and ``files``: name → sha256.
        set_hash: of the digests of all rows as amended (:class:`index.set_hash.SetHash`); None: of a format that had none.
        tombstones: ids of retired references, sorted.
        index_id: see :func:`index_id_of`.
        amendments: what has changed about a reference since its segment was written: id → column → value.
        source: what the embedder was opened from, with paths relative to the index; no part of the id.
        journal: the journal's last leaf (:mod:`index.journal`); empty: there is none.
        history: what happened before there was a journal, oldest first.
    """

    embedder_id: str
    dim: int
    segments: tuple[dict[str, Any], ...]
    tombstones: tuple[str, ...]
    index_id: str
    set_hash: str | None = ""
    amendments: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    source: EmbedderSource = field(default_factory=EmbedderSource)
    journal: str = ""
    history: tuple[dict[str, Any], ...] = ()

    @classmethod
    def empty(cls, embedder_id: str, dim: int, source: EmbedderSource | None = None) -> Snapshot:
        """Of an index without references."""
        sums = SetHash().hex()
        index_id = index_id_of(embedder_id, dim, sums, [])
        return cls(
            embedder_id=embedder_id, dim=dim, segments=(), tombstones=(), index_id=index_id, set_hash=sums,
            source=source or EmbedderSource(),
        )  # fmt: skip

    def content(self) -> bytes:
        """The snapshot as it is written."""
        plain = {"format": FORMAT, **vars(self), "source": asdict(self.source)}  # asdict copies every tombstone
        del plain["history"]
        return (json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @classmethod
    def of_content(cls, stored: Any) -> Snapshot:
        """Out of :meth:`content`, or a file of an earlier format, once parsed.

        Raises:
            ValueError, TypeError, KeyError: a part is missing or of another kind.
        """
        early = stored["format"] < FORMAT
        segments, tombstones = ([*items(stored[name])] for name in ("segments", "tombstones"))
        for entry in segments:
            if not re.fullmatch("[0-9a-f]{32}", entry["name"]) or set(entry["files"]) not in (FILES, OLD_FILES):
                raise ValueError(f"{entry!r} is not a segment")
            if not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in entry["files"].values()):
                raise ValueError(f"{entry!r} names no digests")
            if type(entry["rows"]) is not int or entry["rows"] < 0:
                raise ValueError(f"{entry!r} names no number of rows")
        history = [event_of(event) for event in items(stored["history"])] if early else []
        amendments = stored.get("amendments", {})
        for ref_id, changed in amendments.items():
            if not set(changed) <= set(COLUMNS) or not all(isinstance(value, str) for value in changed.values()):
                raise ValueError(f"{ref_id!r} is amended by {changed!r}")
            if changed.get("status", "active") not in STATUSES:
                raise ValueError(f"{ref_id!r} has the status {changed['status']!r}")
        dim = stored["dim"]
        if type(dim) is not int or dim < 1 or any(not isinstance(ref_id, str) for ref_id in tombstones):
            raise ValueError("dim or tombstones")
        set_hash = None if early else SetHash(text(stored["set_hash"])).hex()
        journal = "" if early else text(stored["journal"])
        if journal and not re.fullmatch("[0-9a-f]{64}", journal):
            raise ValueError(f"{journal!r} is not a digest")
        return cls(
            embedder_id=text(stored["embedder_id"]),
            dim=dim,
            segments=tuple(segments),
            tombstones=tuple(tombstones),
            index_id=text(stored["index_id"]),
            set_hash=set_hash,
            amendments=amendments,
            source=EmbedderSource.of_record(stored.get("source")),
            journal=journal,
            history=tuple(history),
        )


def index_id_of(embedder_id: str, dim: int, set_hash: str, tombstones: Collection[str]) -> str:
    """Content address of an index, independent of the order and the segments its rows are stored in."""
    content = {"format": 2, "embedder_id": embedder_id, "dim": dim, "rows": set_hash, "tombstones": sorted(tombstones)}
    return _address(content)


def early_index_id_of(embedder_id: str, dim: int, row_digests: Collection[str], tombstones: Collection[str]) -> str:
    """The content address that formats 1 and 2 had, from the digests (hex) of all rows."""
    content = {
        "format": 1, "embedder_id": embedder_id, "dim": dim, "rows": sorted(row_digests), "tombstones": sorted(tombstones),
    }  # fmt: skip
    return _address(content)


def _address(content: Mapping[str, Any]) -> str:
    return "index-" + hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def current(folder: Path) -> str:
    """The content of ``CURRENT``, on the object store for an index there; empty when there is none.

    Raises:
        IntegrityError: it cannot be read.
    """
    place = at_uri.origin(folder)
    return _pointer(folder) if place is None else at_uri.in_force(place)


def _pointer(folder: Path) -> str:
    path = folder / "CURRENT"
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise IntegrityError(f"cannot be read ({error.strerror})", where=str(path), fix=RESTORE) from None


def snapshot_path(folder: Path, sha256: str) -> Path:
    """Where the snapshot of that digest lies."""
    return folder / "snapshots" / f"{sha256}.json"


def read_snapshot(folder: Path) -> tuple[str, Snapshot]:
    """The sha256 of the snapshot in force, and the snapshot.

    Raises:
        InputError: the folder holds no index, or one of another format.
        IntegrityError: the pointer or the snapshot was changed.
    """
    pointer = folder / "CURRENT"
    digest = _pointer(folder)
    if not digest and not os.path.exists(pointer):
        from index.no_index import not_an_index

        raise not_an_index(folder)
    path = snapshot_path(folder, digest)
    if not re.fullmatch("[0-9a-f]{64}", digest) or not os.path.exists(path):
        raise IntegrityError("names no snapshot of this index", where=str(pointer), fix=RESTORE)
    content = read_known(path, digest)
    try:
        stored = json.loads(content)
        version = stored["format"]
        if version in READABLE:
            return digest, Snapshot.of_content(stored)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        what = f"is not a snapshot of an index ({type(error).__name__}: {error})"
        raise IntegrityError(what, where=str(path), fix=RESTORE) from None
    raise InputError(
        f"is an index of format {version}, this version reads {READABLE[0]} to {READABLE[-1]}",
        where=str(folder), fix="Build it again, or use the version that wrote it",
    )  # fmt: skip


def put_in_force(folder: Path, snapshot: Snapshot, before: str = "") -> str:
    """Write a snapshot, then point to it; returns its sha256. Until the pointer has moved, the one before is in force.

    Args:
        folder: of the index. snapshot: the snapshot.
        before: sha256 of the one that it follows; what an index on an object store compares.

    Raises:
        IndexMismatch: on an object store, another one is in force by now.
        OSError, RunStopped: it cannot be written.
    """
    content = snapshot.content()
    digest = hashlib.sha256(content).hexdigest()
    write_whole(snapshot_path(folder, digest), content)
    place = at_uri.origin(folder)
    if place is not None:
        at_uri.publish(place, folder, digest, json.loads(content), before)
        if _pointer(folder):  # the view of a snapshot goes on naming that one
            return digest
    write_whole(folder / "CURRENT", f"{digest}\n".encode())
    return digest
