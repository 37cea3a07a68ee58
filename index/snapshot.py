"""Snapshots of an index: the state in force, its history, and the one pointer that moves.

A snapshot is a JSON file named after its own sha256 and never changes; ``CURRENT`` names the one in force. Its history is the
index's journal: what happened, when, to which references, and the ``index_id`` after it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from index.embedder_source import EmbedderSource
from index.errors import InputError, IntegrityError
from index.files import RESTORE, read_known, write_whole
from index.reference import COLUMNS, STATUSES

FORMAT = 2  # of the file; 1 had neither amendments nor the embedder's source
READABLE = (1, 2)
CONTENT = 1  # version of the content that the index id digests; it stays, so that equal content keeps its id
FILES = {"references.parquet", "vectors.faiss"}  # of a segment


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state of an index.

    Attributes:
        embedder_id, dim: the embedder it is bound to, and the length of its vectors.
        segments: of each its folder's ``name``, its ``rows``, and ``files``: name → sha256.
        tombstones: ids of retired references, sorted.
        history: oldest first: ``at`` (seconds), ``event``, ``ref_ids``, ``reason``, ``index_id``.
        index_id: see :func:`index_id_of`.
        amendments: what has changed about a reference since its segment was written: id → column → value.
        source: what the embedder was opened from, with paths relative to the index; no part of the id.
    """

    embedder_id: str
    dim: int
    segments: tuple[dict[str, Any], ...]
    tombstones: tuple[str, ...]
    history: tuple[dict[str, Any], ...]
    index_id: str
    amendments: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    source: EmbedderSource = field(default_factory=EmbedderSource)

    @classmethod
    def empty(cls, embedder_id: str, dim: int, source: EmbedderSource | None = None) -> Snapshot:
        """Of an index without references."""
        index_id = index_id_of(embedder_id, dim, [], [])
        return cls(
            embedder_id=embedder_id,
            dim=dim,
            segments=(),
            tombstones=(),
            history=(),
            index_id=index_id,
            source=source or EmbedderSource(),
        )

    def content(self) -> bytes:
        """The snapshot as it is written."""
        plain = {"format": FORMAT, **asdict(self)}
        return (json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @classmethod
    def of_content(cls, stored: Any) -> Snapshot:
        """The snapshot from its :meth:`content`, parsed.

        Raises:
            ValueError, TypeError, KeyError: a part is missing or of another kind.
        """
        segments, tombstones, history = ([*_items(stored[name])] for name in ("segments", "tombstones", "history"))
        for entry in segments:
            if not re.fullmatch("[0-9a-f]{32}", entry["name"]) or set(entry["files"]) != FILES:
                raise ValueError(f"{entry!r} is not a segment")
            if not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in entry["files"].values()):
                raise ValueError(f"{entry!r} names no digests")
        for event in history:
            if not math.isfinite(event["at"]) or not all(
                isinstance(event[name], str) for name in ("event", "reason", "index_id")
            ):
                raise ValueError(f"{event!r} is not an event")
            if any(not isinstance(ref_id, str) for ref_id in _items(event["ref_ids"])):
                raise ValueError(f"{event!r} names no references")
        amendments = stored.get("amendments", {})
        for ref_id, changed in amendments.items():
            if not set(changed) <= set(COLUMNS) or not all(isinstance(value, str) for value in changed.values()):
                raise ValueError(f"{ref_id!r} is amended by {changed!r}")
            if changed.get("status", "active") not in STATUSES:
                raise ValueError(f"{ref_id!r} has the status {changed['status']!r}")
        dim = stored["dim"]
        if not isinstance(dim, int) or dim < 1 or any(not isinstance(ref_id, str) for ref_id in tombstones):
            raise ValueError("dim or tombstones")
        return cls(
            embedder_id=_text(stored["embedder_id"]),
            dim=dim,
            segments=tuple(segments),
            tombstones=tuple(tombstones),
            history=tuple(history),
            index_id=_text(stored["index_id"]),
            amendments=amendments,
            source=EmbedderSource.of_record(stored.get("source")),
        )

    def moments(self) -> tuple[dict[str, float], dict[str, float]]:
        """When each reference was first added and last retired: two maps from its id to seconds."""
        added: dict[str, float] = {}
        retired: dict[str, float] = {}
        for event in self.history:
            for ref_id in event["ref_ids"]:
                if event["event"] == "retired":
                    retired[ref_id] = event["at"]
                else:
                    added.setdefault(ref_id, event["at"])
        return added, retired


def index_id_of(embedder_id: str, dim: int, row_digests: Sequence[str], tombstones: Sequence[str]) -> str:
    """Content address of an index, independent of the order and the segments its rows are stored in."""
    content = {
        "format": CONTENT,
        "embedder_id": embedder_id,
        "dim": dim,
        "rows": sorted(row_digests),
        "tombstones": sorted(tombstones),
    }
    return "index-" + hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def current(folder: Path) -> str:
    """The content of ``CURRENT``; empty when there is none.

    Raises:
        IntegrityError: it cannot be read.
    """
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
    digest = current(folder)
    if not digest and not os.path.exists(pointer):
        fix = "Build one: clearance index build REFERENCES --out FOLDER"
        raise InputError("is not a reference index", where=str(folder), fix=fix)
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


def put_in_force(folder: Path, snapshot: Snapshot) -> str:
    """Write a snapshot, then point to it; returns its sha256. Until the pointer has moved, the one before is in force."""
    content = snapshot.content()
    digest = hashlib.sha256(content).hexdigest()
    write_whole(snapshot_path(folder, digest), content)
    write_whole(folder / "CURRENT", f"{digest}\n".encode())
    return digest


def _items(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value
