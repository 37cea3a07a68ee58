"""The reference index: the works that must not be copied.

On disk an index is a folder::

    CURRENT                       names the snapshot in force; replaced atomically, the only file that ever changes
    snapshots/<sha256>.json       embedder, segments with their files' digests, tombstones, amendments (:mod:`index.snapshot`)
    journal/<sha256>.json         what happened, one leaf a change (:mod:`index.journal`)
    segments/<digest>/            references, embeddings, pictures, candidates for the search (:mod:`index.segment`)

Snapshots, leaves and segments are named after their content and never change; what changes about a reference later is an
amendment in the snapshot. ``index_id`` is the digest of what the index *holds* (embedder, references, embeddings, tombstones),
not of how it is stored: building at once or adding in two steps gives the same id, and merging segments keeps it. Segments are
mapped into memory, and their rows are found where they lie: an index of a million references opens at once.

Where one picture has several names, at once or later, the strictest status is in force: a claimed work does not become free
because another source calls it free. :meth:`ReferenceIndex.set_status` corrects a status.
"""

from __future__ import annotations

import heapq
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from index import at_uri, journal, storage
from index.embedder_source import EmbedderSource
from index.errors import IndexMismatch, InputError
from index.intake import Intake, Taken, alone
from index.journal import Change
from index.reference import COLUMNS, RETIRED, STATUSES, Match, NewReference, Reference, amended, the_id
from index.segment import Segment
from index.segment_writer import write_segment
from index.segments import allowed_rows, hash_of_rows, open_segment, to_merge
from index.snapshot import Snapshot, current, index_id_of, put_in_force, read_snapshot

if TYPE_CHECKING:
    from index.embed import Embedder

MAX_SEGMENTS = 8  # with more, those that are not large are merged at the next add
OWN = {"CURRENT", "snapshots", "segments", "journal", "building", "calibration.json"}  # what a folder may hold beforehand


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
            folder: must not hold anything else; a place on an object store is built here first (:mod:`index.at_uri`).
            items: the works; works with identical pictures become one reference with the strictest status among them (see
                :attr:`taken` afterwards).
            embedder: its id is bound to the index, and how to open it is remembered.
            flat_limit: from how many references on the search is approximate before the exact re-ranking.

        Raises:
            InputError: the folder holds something, or a work is not usable.
        """
        folder = at_uri.for_a_build(folder)
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
        """Open an index; every file's digest is checked, a large file's once on a machine (:mod:`index.known`).

        Args:
            folder: the index.
            embedder_id: the embedder that will be used with it; None to look at the index only.

        Raises:
            InputError: there is no index.
            IndexMismatch: it was built with another embedder.
            IntegrityError: a file is missing or changed; the message names it.
        """
        folder = at_uri.here(folder)
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
        return sum(segment.rows for segment in self._segments)

    @property
    def matching(self) -> int:
        """How many references can match: neither retired nor allowed."""
        counted = zip(self._segments, self._allowed, strict=True)
        return sum(segment.rows if allowed is None else int(np.unpackbits(allowed).sum()) for segment, allowed in counted)

    @property
    def kept(self) -> int:
        """How many references have their picture in the index."""
        return sum(int(segment.kept.sum()) for segment in self._segments)

    def ids(self) -> Iterator[str]:
        """The id of every reference, retired and allowed ones included, in order; nothing is held in memory."""
        # Keys drop an id's last bit, so that two neighbours may come the wrong way round: they are one in 10^12.
        return heapq.merge(*(segment.ids_in_order() for segment in self._segments))

    def references(self) -> list[Reference]:
        """Every reference, retired and allowed ones included, ordered by id. Of a large index this is a large list."""
        added, retired = journal.moments(self.history())
        found = (self._in_force(stored) for segment in self._segments for stored in segment.references())
        timed = [
            replace(r, added_at=added.get(r.ref_id, 0.0), retired_at=retired.get(r.ref_id) if r.status == RETIRED else None)
            for r in found
        ]
        return sorted(timed, key=lambda reference: reference.ref_id)

    def _in_force(self, stored: Reference) -> Reference:
        """A reference as the snapshot has it, without times."""
        now = amended(stored, self._snapshot.amendments.get(stored.ref_id, {}))
        return replace(now, status=RETIRED) if stored.ref_id in self._gone else now

    def reference(self, ref_id: str) -> Reference:
        """One reference as it is now, without its times.

        Raises:
            InputError: no such reference.
        """
        segment, row = self._place(ref_id)
        return self._in_force(segment.reference(row))

    def get(self, ref_id: str) -> Reference | None:
        """The same; None where there is no such reference."""
        place = self._find(ref_id)
        return None if place is None else self._in_force(place[0].reference(place[1]))

    def history(self) -> list[dict[str, Any]]:
        """What happened, oldest first: ``at`` (seconds), ``event``, ``ref_ids``, ``reason``, and the ``index_id`` after it;
        where a status was set, the ``change``.

        Raises:
            IntegrityError: a leaf of the journal is missing or was changed.
        """
        return [dict(event) for event in (*self._snapshot.history, *journal.read(self.folder, self._snapshot.journal))]

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
        return segment.keeps(row)

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
        for segment, allowed in zip(self._segments, self._allowed, strict=True):
            for hits, nearest in zip(found, segment.nearest(embeddings, k, allowed), strict=True):
                hits.extend(nearest)
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
        reference = self.reference(ref_id)
        return Match(
            ref_id=ref_id,
            title=reference.title,
            similarity=cosine,
            rights_basis=reference.rights_basis,
            status=reference.status,
        )

    # --- changing -------------------------------------------------------------------------------------------------

    def add(self, items: Iterable[NewReference], embedder: Embedder, reason: str = "") -> list[str]:
        """Add works; returns their ids in order, and :attr:`taken` lists what became of them. The history keeps the reason.

        A picture that is already there stays, unless the work's status is stricter: then the work's columns count. If it
        was retired, it matches again, with the work's status.

        Raises:
            IndexMismatch: another embedder, or the index changed on disk since it was opened.
            InputError: a work is not usable.
        """
        return self._append(items, embedder, flat_limit=None, event="added", reason=reason)

    def retire(self, ref_ids: Sequence[str], reason: str = "") -> None:
        """Retire references at once: they match no more and stay on record. Retiring twice changes nothing.

        Raises:
            InputError: no such reference (then nothing is retired).
        """
        for ref_id in ref_ids:
            self._place(ref_id)
        new = [ref_id for ref_id in dict.fromkeys(ref_ids) if ref_id not in self._gone]
        if new:
            change = Change("retired", new, reason)
            self._commit(self._snapshot.segments, self._gone | set(new), self._snapshot.amendments, change)

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
        before, gone = self.reference(ref_id).status, set(self._gone)
        if status == before:
            return before
        amendments = {key: dict(value) for key, value in self._snapshot.amendments.items()}
        if status == RETIRED:
            gone.add(ref_id)
        else:
            gone.discard(ref_id)
            now = {**amendments.get(ref_id, {}), "status": status}
            amendments[ref_id] = _differences(segment.reference(row), now)
        event = "retired" if status == RETIRED else "status"
        self._commit(
            self._snapshot.segments, gone, amendments, Change(event, [ref_id], reason, {"change": f"{before} → {status}"})
        )
        return before

    def _append(
        self, items: Iterable[NewReference], embedder: Embedder, *, flat_limit: int | None, event: str, reason: str = ""
    ) -> list[str]:
        self.require_embedder(embedder.embedder_id)
        with alone(self.folder):
            self._require_unchanged()
            for left in (self.folder / "segments").glob(f"{storage.TEMPORARY}*"):  # of a build that was killed
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)
            intake = Intake(self.folder, embedder, self.get)
            taken = intake.take(items)
            segments = list(self._snapshot.segments)
            if taken.new:
                old = to_merge(self._segments) if len(segments) >= MAX_SEGMENTS else []
                tables = chain((table for segment in old for table in segment.tables()), intake.tables())
                merged = {segment.folder.name for segment in old}
                segments = [entry for entry in segments if entry["name"] not in merged]
                segments.append(write_segment(self.folder, tables, self.dim, flat_limit))
            amendments = {key: dict(value) for key, value in self._snapshot.amendments.items()}
            for ref_id, work in taken.amended.items():
                segment, row = self._place(ref_id)
                written = segment.reference(row)
                if work.status != amended(written, amendments.get(ref_id, {})).status:  # the same status again is no news
                    amendments[ref_id] = _differences(written, {name: getattr(work, name) for name in COLUMNS})
            changed = sorted({*taken.new, *taken.revived, *taken.amended})
            if changed or event == "built":
                stricter = [f"{c.ref_id} {c.before} → {c.kept}" for c in taken.conflicts if c.ref_id in taken.amended]
                reasons = [*([reason] if reason else []), *([f"stricter now: {', '.join(stricter)}"] if stricter else [])]
                change = Change(event, changed, "; ".join(reasons))
                self._commit(segments, self._gone - set(taken.revived), amendments, change)
            intake.done()
        self.taken = taken
        return taken.ref_ids

    def _require_unchanged(self) -> None:
        if current(self.folder) != self._snapshot_sha256:
            raise IndexMismatch("the index changed on disk since it was opened", where=str(self.folder), fix="Open it again")

    def _commit(
        self, entries: Sequence[dict[str, Any]], gone: set[str], amendments: Mapping[str, Mapping[str, str]], change: Change
    ) -> None:
        """Put a new snapshot in force, unless another process did meanwhile."""
        self._require_unchanged()
        before = self._snapshot
        amendments = {ref_id: changed for ref_id, changed in amendments.items() if changed}
        segments = self._opened(entries)
        sums = hash_of_rows(segments, entries, amendments).hex()
        index_id = index_id_of(self.embedder_id, self.dim, sums, gone)
        leaf = journal.append(self.folder, before.journal, [*before.history, change.event_at(time.time(), index_id)])
        snapshot = replace(
            before, segments=tuple(entries), tombstones=tuple(sorted(gone)), index_id=index_id, amendments=amendments,
            set_hash=sums, journal=leaf, history=(),
        )  # fmt: skip
        self._load(put_in_force(self.folder, snapshot, self._snapshot_sha256), snapshot)

    # --- checking -------------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Recompute every digest: files, pictures, rows, and the index id.

        Raises:
            IntegrityError: naming the file (and reference) that does not match.
        """
        from index.check import check

        check(self.folder)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _load(self, snapshot_sha256: str, snapshot: Snapshot) -> None:
        self._snapshot_sha256, self._snapshot = snapshot_sha256, snapshot
        self._segments = self._opened(snapshot.segments)
        self._gone = set(snapshot.tombstones)
        self._allowed = [allowed_rows(segment, snapshot.amendments, self._gone) for segment in self._segments]

    def _opened(self, entries: Sequence[Mapping[str, Any]]) -> list[Segment]:
        """The segments of some entries; those that are open stay so."""
        there = {segment.folder.name: segment for segment in getattr(self, "_segments", [])}
        return [there.get(entry["name"]) or open_segment(self.folder, entry, self._snapshot.dim) for entry in entries]

    def full_id(self, beginning: str) -> str:
        """The id that begins so; raises as :func:`index.reference.the_id`."""
        if self._find(beginning) is not None:
            return beginning
        return the_id(
            beginning, [ref_id for ref_id in self.ids() if ref_id.startswith(beginning.lower())], where=str(self.folder)
        )

    def _find(self, ref_id: str) -> tuple[Segment, int] | None:
        for segment in self._segments:
            if (row := segment.find(ref_id)) is not None:
                return segment, row
        return None

    def _place(self, ref_id: str) -> tuple[Segment, int]:
        place = self._find(ref_id)
        if place is None:
            fix = "List them: clearance index info --json"
            raise InputError("no such reference", where=f"{self.folder}: {ref_id}", fix=fix)
        return place


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
