"""Snapshots of an index: what is in force, how it came to be so, and the one pointer that ever moves.

A snapshot is a JSON file named after its own sha256 and never changes; ``CURRENT`` names the one in force. Its history is the
index's journal: what happened, when, to which references, and the ``index_id`` after it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from index.errors import InputError, IntegrityError
from index.files import RESTORE, write_whole

FORMAT = 1


@dataclass(frozen=True)
class Snapshot:
    """The state of an index.

    Attributes:
        embedder_id, dim: the embedder it is bound to, and the length of its vectors.
        segments: of each its folder's ``name``, its ``rows``, and ``files``: name → sha256.
        tombstones: ids of retired references, sorted.
        history: oldest first: ``at`` (seconds), ``event``, ``ref_ids``, ``reason``, ``index_id``.
        index_id: see :func:`index_id_of`.
    """

    embedder_id: str
    dim: int
    segments: tuple[dict[str, Any], ...]
    tombstones: tuple[str, ...]
    history: tuple[dict[str, Any], ...]
    index_id: str

    @classmethod
    def empty(cls, embedder_id: str, dim: int) -> Snapshot:
        """Of an index without references."""
        return cls(embedder_id, dim, (), (), (), index_id_of(embedder_id, dim, [], []))

    def content(self) -> bytes:
        """As it is written."""
        said = {"format": FORMAT, **asdict(self)}
        return (json.dumps(said, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

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
    said = {
        "format": FORMAT,
        "embedder_id": embedder_id,
        "dim": dim,
        "rows": sorted(row_digests),
        "tombstones": sorted(tombstones),
    }
    return "index-" + hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def current(folder: Path) -> str:
    """What ``CURRENT`` says; empty when there is none."""
    path = folder / "CURRENT"
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""


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
    if not pointer.exists():
        raise InputError(
            "is no reference index", where=str(folder), fix="Build one: clearance index build REFERENCES --out FOLDER"
        )
    digest = current(folder)
    path = snapshot_path(folder, digest)
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef") or not path.exists():
        raise IntegrityError("names no snapshot of this index", where=str(pointer), fix=RESTORE)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise IntegrityError("does not match the sha256 in its name", where=str(path), fix=RESTORE)
    said: dict[str, Any] = json.loads(content)
    if said.get("format") != FORMAT:
        what = f"is an index of format {said.get('format')}, this version reads {FORMAT}"
        raise InputError(what, where=str(folder), fix="Build it again, or use the version that wrote it")
    return digest, Snapshot(
        str(said["embedder_id"]), int(said["dim"]), tuple(said["segments"]), tuple(said["tombstones"]),
        tuple(said["history"]), str(said["index_id"]),
    )  # fmt: skip


def put_in_force(folder: Path, snapshot: Snapshot) -> str:
    """Write a snapshot, then point to it; returns its sha256. Until the pointer has moved, the one before is in force."""
    content = snapshot.content()
    digest = hashlib.sha256(content).hexdigest()
    write_whole(snapshot_path(folder, digest), content)
    write_whole(folder / "CURRENT", f"{digest}\n".encode())
    return digest
