"""The reference index: what must not be copied.

On disk an index is a folder::

    CURRENT                       names the snapshot in force; replaced atomically, the only file that ever changes
    snapshots/<sha256>.json       embedder, segments with their files' digests, tombstones, history (:mod:`index.snapshot`)
    segments/<digest>/            references and the candidates for the search (:mod:`index.segment`)
        references.parquet        metadata, embedding, PDQ hash, and the picture where it may be kept
        vectors.faiss

A snapshot and a segment are named after their content and never change. ``index_id`` is the digest of what the index
*says* (embedder, references, embeddings, tombstones), not of how it is stored: building at once or adding in two steps
gives the same id, and merging segments keeps it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from index.errors import IndexMismatch, InputError, IntegrityError
from index.files import RESTORE
from index.reference import Match, NewReference, Reference, content_digest, require
from index.segment import Segment, table_of, write_segment
from index.snapshot import Snapshot, current, index_id_of, put_in_force, read_snapshot, snapshot_path

if TYPE_CHECKING:
    from index.embed import Embedder

MAX_SEGMENTS = 8  # more are merged into one at the next add


class ReferenceIndex:
    """An index on disk, opened. Build one with :meth:`build`, open one with :meth:`open`."""

    def __init__(self, folder: Path, snapshot_sha256: str, snapshot: Snapshot) -> None:
        self.folder = folder
        self._load(snapshot_sha256, snapshot)

    # --- making and opening ---------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls, folder: Path, items: Iterable[NewReference], embedder: Embedder, *, flat_limit: int | None = None
    ) -> ReferenceIndex:
        """Embed works and write a new index.

        Args:
            folder: must not hold an index yet.
            items: the works; those with identical pictures are one reference, the first one's metadata counts.
            embedder: its id is bound to the index.
            flat_limit: from how many references on the search is approximate before the exact re-ranking.

        Raises:
            InputError: the folder holds an index, or a work is not usable.
        """
        folder = Path(folder)
        if (folder / "CURRENT").exists():
            raise InputError("already holds an index", where=str(folder), fix="Add to it, or name a new folder")
        (folder / "snapshots").mkdir(parents=True, exist_ok=True)
        (folder / "segments").mkdir(exist_ok=True)
        index = cls(folder, "", Snapshot.empty(embedder.embedder_id, int(embedder.dim)))
        index._append(list(items), embedder, flat_limit=flat_limit, event="built")
        return index

    @classmethod
    def open(cls, folder: Path, embedder_id: str | None = None) -> ReferenceIndex:
        """Open an index; every file's digest is checked.

        Args:
            folder: the index.
            embedder_id: the embedder that will be used with it; None to look at the index only.

        Raises:
            InputError: there is no index.
            IndexMismatch: it was built with another embedder.
            IntegrityError: a file is missing or changed; the message names it.
        """
        folder = Path(folder)
        snapshot_sha256, snapshot = read_snapshot(folder)
        if embedder_id is not None and embedder_id != snapshot.embedder_id:
            raise IndexMismatch(
                f"the index was built with embedder {snapshot.embedder_id}, this one is {embedder_id}", where=str(folder),
                fix="Use the embedder of the index, or build the index again with this one",
            )  # fmt: skip
        return cls(folder, snapshot_sha256, snapshot)

    # --- what it holds --------------------------------------------------------------------------------------------

    @property
    def index_id(self) -> str:
        """Digest of what the index says: embedder, references, embeddings, tombstones."""
        return self._snapshot.index_id

    @property
    def embedder_id(self) -> str:
        """The embedder the index is bound to."""
        return self._snapshot.embedder_id

    @property
    def dim(self) -> int:
        """Length of the embeddings."""
        return self._snapshot.dim

    def __len__(self) -> int:
        return len(self._references)

    def references(self) -> list[Reference]:
        """Every reference, retired and allowed ones included, ordered by id."""
        return [self._references[ref_id] for ref_id in sorted(self._references)]

    def history(self) -> list[dict[str, Any]]:
        """What happened, oldest first: ``at`` (seconds), ``event``, ``ref_ids``, ``reason``, and the ``index_id`` after it."""
        return [dict(entry) for entry in self._snapshot.history]

    def picture(self, ref_id: str) -> np.ndarray | None:
        """The reference's picture uint8 RGB (H, W, 3), or None where only its hashes are kept.

        Raises:
            InputError: no such reference.
        """
        segment, row = self._place(ref_id)
        return segment.picture(row)

    def embedding(self, ref_id: str) -> np.ndarray:
        """The reference's embedding float32 (dim,)."""
        segment, row = self._place(ref_id)
        return np.array(segment.vectors[row])

    # --- searching ------------------------------------------------------------------------------------------------

    def search(self, embeddings: np.ndarray, k: int) -> list[list[Match]]:
        """The k nearest references that can match, best first; fewer if there are fewer.

        FAISS proposes candidates, the exact cosine (float64 products of the stored float32 vectors) ranks and decides;
        a row does not depend on its neighbours. Retired and allowed references never match. Ties go by id.

        Args:
            embeddings: float32 (N, dim), unit length.
            k: at least 1.

        Raises:
            IndexMismatch: vectors of another length.
            InputError: a vector that is not finite, or k below 1.
        """
        from index import ann

        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise IndexMismatch(
                f"embeddings of shape {embeddings.shape} do not fit an index of {self.dim} dimensions", where=str(self.folder),
                fix=f"Use the embedder of the index: {self.embedder_id}",
            )  # fmt: skip
        if not np.isfinite(embeddings).all():  # NaN is near to nothing: a picture would pass as unlike everything
            raise InputError("an embedding is not finite", where="search", fix="Look at the picture, and at the embedder")
        if k < 1:
            raise InputError(f"k is {k}", where="search", fix="Ask for at least one neighbour")
        found: list[list[tuple[float, str]]] = [[] for _ in embeddings]
        for segment in self._segments:
            proposals = ann.candidates(segment.ann(), embeddings, k, segment.active(self._references))
            for query, proposed, hits in zip(embeddings, proposals, found, strict=True):
                rows = segment.rows(proposed[proposed >= 0])
                cosines = np.sum(segment.vectors[rows].astype(np.float64) * query.astype(np.float64), axis=1)
                hits.extend(zip(cosines.tolist(), (segment.ref_ids[row] for row in rows.tolist()), strict=True))
        return [
            [self._match(ref_id, cosine) for cosine, ref_id in sorted(hits, key=lambda hit: (-hit[0], hit[1]))[:k]]
            for hits in found
        ]

    def compare(self, embedding: np.ndarray, ref_id: str) -> Match:
        """One embedding float32 (dim,) against one reference, retired and allowed ones included.

        Raises:
            InputError: no such reference.
        """
        segment, row = self._place(ref_id)
        return self._match(ref_id, float(np.sum(segment.vectors[row].astype(np.float64) * embedding.astype(np.float64))))

    def _match(self, ref_id: str, cosine: float) -> Match:
        reference = self._references[ref_id]
        return Match(ref_id, reference.title, cosine, reference.rights_basis, reference.status)

    # --- changing -------------------------------------------------------------------------------------------------

    def add(self, items: Iterable[NewReference], embedder: Embedder) -> list[str]:
        """Add works; returns their ids in order.

        A picture that is already there is kept as it is; if it was retired, it is active again.

        Raises:
            IndexMismatch: another embedder, or the index changed on disk since it was opened.
            InputError: a work is not usable.
        """
        return self._append(list(items), embedder, flat_limit=None, event="added")

    def retire(self, ref_ids: Sequence[str], reason: str = "") -> None:
        """Retire references at once: they match no more and stay on record. Retiring twice changes nothing.

        Raises:
            InputError: no such reference (then nothing is retired).
        """
        for ref_id in ref_ids:
            self._place(ref_id)
        gone = set(self._snapshot.tombstones)
        new = [ref_id for ref_id in dict.fromkeys(ref_ids) if ref_id not in gone]
        if new:
            self._commit(self._snapshot.segments, gone | set(new), "retired", new, reason)

    def _append(self, items: list[NewReference], embedder: Embedder, *, flat_limit: int | None, event: str) -> list[str]:
        if embedder.embedder_id != self.embedder_id:
            raise IndexMismatch(
                f"the index was built with embedder {self.embedder_id}, this one is {embedder.embedder_id}",
                where=str(self.folder), fix="Use the embedder of the index, or build a new index with this one",
            )  # fmt: skip
        for item in items:
            require(item)
        digests = [content_digest(item.picture) for item in items]
        fresh: dict[str, NewReference] = {}
        for item, digest in zip(items, digests, strict=True):
            if digest[:16] in self._references:
                if self._references[digest[:16]].content_sha256 != digest:
                    raise IntegrityError(
                        "two pictures share one reference id", where=item.title, fix="Report this: it is one in 10^9"
                    )
            else:
                fresh.setdefault(digest, item)
        ref_ids = [digest[:16] for digest in digests]
        segments = list(self._snapshot.segments)
        if fresh:
            table = table_of(fresh, embedder)
            if len(segments) >= MAX_SEGMENTS:
                import pyarrow as pa

                table = pa.concat_tables([*(segment.table() for segment in self._segments), table]).sort_by("ref_id")
                segments = []
            segments.append(write_segment(self.folder, table, self.dim, flat_limit))
        revived = set(ref_ids) & set(self._snapshot.tombstones)
        changed = sorted({digest[:16] for digest in fresh} | revived)
        if changed or event == "built":
            self._commit(segments, set(self._snapshot.tombstones) - revived, event, changed, "")
        return ref_ids

    def _commit(
        self, segments: Sequence[dict[str, Any]], tombstones: set[str], event: str, ref_ids: list[str], reason: str
    ) -> None:
        """Put a new snapshot in force, unless somebody else did meanwhile."""
        if current(self.folder) != self._snapshot_sha256:
            raise IndexMismatch("the index changed on disk since it was opened", where=str(self.folder), fix="Open it again")
        rows = [digest for entry in segments for digest in Segment(self.folder, entry).row_digests()]
        gone = tuple(sorted(tombstones))
        index_id = index_id_of(self.embedder_id, self.dim, rows, gone)
        entry = {"at": time.time(), "event": event, "ref_ids": ref_ids, "reason": reason, "index_id": index_id}
        history = (*self._snapshot.history, entry)
        snapshot = replace(self._snapshot, segments=tuple(segments), tombstones=gone, history=history, index_id=index_id)
        self._load(put_in_force(self.folder, snapshot), snapshot)

    # --- checking -------------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Recompute every digest: files, pictures, rows, and the index id.

        Raises:
            IntegrityError: naming the file (and reference) that does not match.
        """
        snapshot_sha256, snapshot = read_snapshot(self.folder)
        rows: list[str] = []
        for entry in snapshot.segments:
            segment = Segment(self.folder, entry)
            segment.check_rows()
            rows += segment.row_digests()
        expected = index_id_of(snapshot.embedder_id, snapshot.dim, rows, snapshot.tombstones)
        if expected != snapshot.index_id:
            where = str(snapshot_path(self.folder, snapshot_sha256))
            raise IntegrityError(f"says {snapshot.index_id}, its content is {expected}", where=where, fix=RESTORE)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _load(self, snapshot_sha256: str, snapshot: Snapshot) -> None:
        self._snapshot_sha256, self._snapshot = snapshot_sha256, snapshot
        self._segments = [Segment(self.folder, entry) for entry in snapshot.segments]
        added, retired = snapshot.moments()
        gone = set(snapshot.tombstones)
        self._references: dict[str, Reference] = {}
        self._where: dict[str, tuple[Segment, int]] = {}
        for segment in self._segments:
            for row, stored in enumerate(segment.references):
                reference = replace(stored, added_at=added.get(stored.ref_id, 0.0))
                if stored.ref_id in gone:
                    reference = replace(reference, status="retired", retired_at=retired.get(stored.ref_id))
                self._references[stored.ref_id] = reference
                self._where[stored.ref_id] = (segment, row)

    def _place(self, ref_id: str) -> tuple[Segment, int]:
        try:
            return self._where[ref_id]
        except KeyError:
            raise InputError(
                "no such reference", where=f"{self.folder}: {ref_id}", fix="List them: clearance index info"
            ) from None
