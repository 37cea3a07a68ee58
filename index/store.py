"""The reference index: the works that must not be copied.

On disk an index is a folder::

    CURRENT                       names the snapshot in force; replaced atomically, the only file that ever changes
    snapshots/<sha256>.json       embedder, segments with their files' digests, tombstones, history (:mod:`index.snapshot`)
    segments/<digest>/            references and the candidates for the search (:mod:`index.segment`)
        references.parquet        metadata, embedding, PDQ hash, and the picture where it may be kept
        vectors.faiss

A snapshot and a segment are named after their content and never change; what changes about a reference later is an amendment
in the snapshot. ``index_id`` is the digest of what the index *holds* (embedder, references, embeddings, tombstones), not of how
it is stored: building at once or adding in two steps gives the same id, and merging segments keeps it.

Where one picture has several names, at once or later, the strictest status is in force: a claimed work does not become free
because another source calls it free. :meth:`ReferenceIndex.set_status` corrects a status.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from index import storage
from index.embedder_source import EmbedderSource
from index.errors import IndexMismatch, InputError, IntegrityError
from index.files import RESTORE
from index.intake import Intake, Taken, alone
from index.reference import COLUMNS, RETIRED, STATUSES, Match, NewReference, Reference, amended, the_id
from index.segment import Segment, write_segment
from index.snapshot import Snapshot, current, index_id_of, put_in_force, read_snapshot, snapshot_path

if TYPE_CHECKING:
    from index.embed import Embedder

MAX_SEGMENTS = 8  # more are merged into one at the next add
OWN = {"CURRENT", "snapshots", "segments", "building", "calibration.json"}  # what a folder may hold beforehand


class ReferenceIndex:
    """An index on disk, opened. Build one with :meth:`build`, open one with :meth:`open`."""

    def __init__(self, folder: Path, snapshot_sha256: str, snapshot: Snapshot) -> None:
        self.folder = folder
        self.taken = Taken()  # the result of the last build or addition
        self._load(snapshot_sha256, snapshot)

    # --- making and opening ---------------------------------------------------------------------------------------

    @classmethod
    def build(
        cls, folder: Path, items: Iterable[NewReference], embedder: Embedder, *, flat_limit: int | None = None
    ) -> ReferenceIndex:
        """Embed works and write a new index.

        Works are taken one by one and embedded in full calls; no more than a block of them is in memory. An index is there
        whole or not at all; what a stopped build has embedded is used by the next one in the same folder.

        Args:
            folder: must not hold anything else.
            items: the works; works with identical pictures become one reference with the strictest status among them (see
                :attr:`taken` afterwards).
            embedder: its id is bound to the index, and how to open it is remembered.
            flat_limit: from how many references on the search is approximate before the exact re-ranking.

        Raises:
            InputError: the folder holds something, or a work is not usable.
        """
        folder = Path(folder)
        if os.path.exists(folder / "CURRENT"):
            raise InputError("already holds an index", where=str(folder), fix="Add to it, or name a new folder")
        try:
            other = sorted(path.name for path in folder.iterdir() if path.name not in OWN) if folder.exists() else []
            if other:
                what = f"is not empty ({', '.join(other[:3])}{' …' if len(other) > 3 else ''})"
                raise InputError(what, where=str(folder), fix="Name a new folder with --out")
            (folder / "snapshots").mkdir(parents=True, exist_ok=True)
            (folder / "segments").mkdir(exist_ok=True)
        except OSError as error:
            what = f"cannot become an index ({error.strerror or error})"
            raise InputError(what, where=str(folder), fix="Name a folder that may be written to") from None
        source: EmbedderSource | None = getattr(embedder, "source", None)
        kept = source.seen_from(folder) if source is not None else None
        index = cls(folder, "", Snapshot.empty(embedder.embedder_id, int(embedder.dim), kept))
        index._append(items, embedder, flat_limit=flat_limit, event="built")
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
        if embedder_id is not None:
            _require_embedder(folder, snapshot, embedder_id)
        return cls(folder, snapshot_sha256, snapshot)

    def require_embedder(self, embedder_id: str) -> None:
        """Refuse another embedder than the one that the index was built with; raises IndexMismatch."""
        _require_embedder(self.folder, self._snapshot, embedder_id)

    # --- what it holds --------------------------------------------------------------------------------------------

    @property
    def index_id(self) -> str:
        """Digest of the index's content: embedder, references, embeddings, tombstones."""
        return self._snapshot.index_id

    @property
    def embedder_id(self) -> str:
        """The embedder the index is bound to."""
        return self._snapshot.embedder_id

    @property
    def embedder_source(self) -> EmbedderSource:
        """What the embedder was opened from, with paths relative to the index; empty where the index has no record of it."""
        return self._snapshot.source

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
        """What happened, oldest first: ``at`` (seconds), ``event``, ``ref_ids``, ``reason``, and the ``index_id`` after it;
        where a status was set, the ``change``."""
        return [dict(entry) for entry in self._snapshot.history]

    def picture(self, ref_id: str) -> np.ndarray | None:
        """The reference's picture uint8 RGB (H, W, 3), or None where only its hashes are kept.

        Raises:
            InputError: no such reference.
        """
        segment, row = self._place(ref_id)
        return segment.picture(row)

    def keeps(self, ref_id: str) -> bool:
        """Whether the index holds the reference's picture.

        Raises:
            InputError: no such reference.
        """
        segment, row = self._place(ref_id)
        return bool(segment.kept[row])

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
        if not np.isfinite(embeddings).all():  # NaN is near to no reference: the picture would pass
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
        return Match(
            ref_id=ref_id,
            title=reference.title,
            similarity=cosine,
            rights_basis=reference.rights_basis,
            status=reference.status,
        )

    # --- changing -------------------------------------------------------------------------------------------------

    def add(self, items: Iterable[NewReference], embedder: Embedder) -> list[str]:
        """Add works; returns their ids in order, and :attr:`taken` lists what became of them.

        A picture that is already there stays, unless the work's status is stricter: then the work's columns count. If it
        was retired, it matches again, with the work's status.

        Raises:
            IndexMismatch: another embedder, or the index changed on disk since it was opened.
            InputError: a work is not usable.
        """
        return self._append(items, embedder, flat_limit=None, event="added")

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
            self._commit(self._snapshot.segments, gone | set(new), self._snapshot.amendments, "retired", new, reason)

    def set_status(self, ref_id: str, status: str, reason: str = "") -> str:
        """Give one reference another status; returns the one before. Setting it back gives the index its former id.

        Args:
            ref_id: the reference.
            status: active, disputed, allowed or retired.
            reason: kept in the history.

        Raises:
            InputError: no such reference or status.
        """
        if status not in (*STATUSES, RETIRED):
            fix = f"One of: {', '.join((*STATUSES, RETIRED))}"
            raise InputError(f"status is {status!r}", where=f"reference {ref_id}", fix=fix)
        segment, row = self._place(ref_id)
        before, gone = self._references[ref_id].status, set(self._snapshot.tombstones)
        if status == before:
            return before
        amendments = {key: dict(value) for key, value in self._snapshot.amendments.items()}
        if status == RETIRED:
            gone.add(ref_id)
        else:
            gone.discard(ref_id)
            now = {**amendments.get(ref_id, {}), "status": status}
            amendments[ref_id] = _differences(segment.references[row], now)
        self._commit(
            self._snapshot.segments, gone, amendments, "retired" if status == RETIRED else "status", [ref_id], reason,
            change=f"{before} → {status}",
        )  # fmt: skip
        return before

    def _append(self, items: Iterable[NewReference], embedder: Embedder, *, flat_limit: int | None, event: str) -> list[str]:
        self.require_embedder(embedder.embedder_id)
        with alone(self.folder):
            self._require_unchanged()
            for left in (self.folder / "segments").glob(f"{storage.TEMPORARY}*"):  # of a build that was killed
                left.unlink(missing_ok=True)
            intake = Intake(self.folder, embedder, self._references)
            taken = intake.take(items)
            segments = list(self._snapshot.segments)
            if taken.new:
                old = self._segments if len(segments) >= MAX_SEGMENTS else []
                tables = chain((table for segment in old for table in segment.tables()), intake.tables())
                segments = [entry for entry in segments if not old]
                segments.append(write_segment(self.folder, tables, self.dim, flat_limit))
            amendments = {key: dict(value) for key, value in self._snapshot.amendments.items()}
            for ref_id, work in taken.amended.items():
                segment, row = self._place(ref_id)
                stored = amended(segment.references[row], amendments.get(ref_id, {}))
                if work.status != stored.status:  # the same status again is no news
                    now = {name: getattr(work, name) for name in COLUMNS}
                    amendments[ref_id] = _differences(segment.references[row], now)
            changed = sorted({*taken.new, *taken.revived, *taken.amended})
            if changed or event == "built":
                stricter = [f"{c.ref_id} {c.before} → {c.kept}" for c in taken.conflicts if c.ref_id in taken.amended]
                reason = f"stricter now: {', '.join(stricter)}" if stricter else ""
                gone = set(self._snapshot.tombstones) - set(taken.revived)
                self._commit(segments, gone, amendments, event, changed, reason)
            intake.done()
        self.taken = taken
        return taken.ref_ids

    def _require_unchanged(self) -> None:
        if current(self.folder) != self._snapshot_sha256:
            raise IndexMismatch("the index changed on disk since it was opened", where=str(self.folder), fix="Open it again")

    def _commit(
        self, segments: Sequence[dict[str, Any]], tombstones: set[str], amendments: Mapping[str, Mapping[str, str]],
        event: str, ref_ids: list[str], reason: str, **more: str,
    ) -> None:  # fmt: skip
        """Put a new snapshot in force, unless another process did meanwhile."""
        self._require_unchanged()
        amendments = {ref_id: changed for ref_id, changed in amendments.items() if changed}
        rows = [digest for entry in segments for digest in Segment(self.folder, entry).row_digests(amendments)]
        gone = tuple(sorted(tombstones))
        index_id = index_id_of(self.embedder_id, self.dim, rows, gone)
        entry = {"at": time.time(), "event": event, "ref_ids": ref_ids, "reason": reason, "index_id": index_id, **more}
        snapshot = replace(
            self._snapshot, segments=tuple(segments), tombstones=gone, history=(*self._snapshot.history, entry),
            index_id=index_id, amendments=amendments,
        )  # fmt: skip
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
            rows += segment.row_digests(snapshot.amendments)
        expected = index_id_of(snapshot.embedder_id, snapshot.dim, rows, snapshot.tombstones)
        if expected != snapshot.index_id:
            where = str(snapshot_path(self.folder, snapshot_sha256))
            raise IntegrityError(f"names {snapshot.index_id}, its content is {expected}", where=where, fix=RESTORE)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _load(self, snapshot_sha256: str, snapshot: Snapshot) -> None:
        self._snapshot_sha256, self._snapshot = snapshot_sha256, snapshot
        self._segments = [Segment(self.folder, entry) for entry in snapshot.segments]
        added, retired = snapshot.moments()
        gone = set(snapshot.tombstones)
        self._references: dict[str, Reference] = {}
        self._where: dict[str, tuple[Segment, int]] = {}
        for segment in self._segments:
            if segment.vectors.shape[1] != snapshot.dim:
                what = f"holds vectors of {segment.vectors.shape[1]} dimensions, the index has {snapshot.dim}"
                raise IntegrityError(what, where=str(segment.folder), fix=RESTORE)
            for row, stored in enumerate(segment.references):
                now = amended(stored, snapshot.amendments.get(stored.ref_id, {}))
                reference = replace(now, added_at=added.get(stored.ref_id, 0.0))
                if stored.ref_id in gone:
                    reference = replace(reference, status=RETIRED, retired_at=retired.get(stored.ref_id))
                self._references[stored.ref_id] = reference
                self._where[stored.ref_id] = (segment, row)

    def full_id(self, beginning: str) -> str:
        """The id that begins so; raises as :func:`index.reference.the_id`."""
        return the_id(beginning, self._where, where=str(self.folder))

    def _place(self, ref_id: str) -> tuple[Segment, int]:
        try:
            return self._where[ref_id]
        except KeyError:
            fix = "List them: clearance index info --json"
            raise InputError("no such reference", where=f"{self.folder}: {ref_id}", fix=fix) from None


def _differences(stored: Reference, now: Mapping[str, str]) -> dict[str, str]:
    """The columns of a work that differ from the stored ones."""
    return {name: value for name, value in now.items() if value != getattr(stored, name)}


def _require_embedder(folder: Path, snapshot: Snapshot, embedder_id: str) -> None:
    if embedder_id == snapshot.embedder_id:
        return
    fix = "Name no embedder, and that of the index is used; or build the index again with this one"
    known = f" ({snapshot.source})"
    if not snapshot.source.model:
        known, fix = "", "Name the embedder that it was built with: --embedder, or model under [embedder] in the run file"
    what = f"the index was built with embedder {snapshot.embedder_id}{known}, this one is {embedder_id}"
    raise IndexMismatch(what, where=str(folder), fix=fix)
