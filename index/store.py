"""The reference index: the works that must not be copied.

On disk an index is a folder::

    CURRENT                       names the snapshot in force; replaced atomically, the only file that ever changes
    snapshots/<sha256>.json       embedder, segments with their files' digests, tombstones, amendments (:mod:`index.snapshot`)
    journal/<sha256>.json         what happened, one leaf a change (:mod:`index.journal`)
    segments/<digest>/            references, embeddings, pictures, candidates for the search (:mod:`index.segment`)

Snapshots, leaves and segments are named after their content and never change; what changes about a reference later is an
amendment in the snapshot. ``index_id`` is the digest of what the index *holds* (embedder, references, embeddings, tombstones),
not of how it is stored: building at once or adding in two steps gives the same id, and merging segments keeps it. Whether a
picture is kept is decided when its reference is new, and is part of the id: where a later work decides otherwise, only a new
build follows it. Segments are mapped into memory, and their rows are found where they lie: an index of a million references
opens at once.

Where one picture has several names, at once or later, the strictest status is in force: a claimed work does not become free
because another source calls it free. :meth:`ReferenceIndex.set_status` corrects a status.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index import at_uri, journal, storage
from index.embedder_source import EmbedderSource
from index.errors import IndexMismatch, InputError
from index.intake import Intake, Taken, alone
from index.journal import Change
from index.opened import OpenedIndex
from index.places.disk import filling
from index.reference import RETIRED, STATUSES, NewReference
from index.segment_writer import write_segment
from index.segments import amended_by, differences, hash_of_rows, make_folder, to_merge
from index.snapshot import Snapshot, current, index_id_of, put_in_force, read_snapshot
from index.vector_intake import VectorIntake

if TYPE_CHECKING:
    from index.embed import Embedder
    from index.vectors import VectorBlock

MAX_SEGMENTS = 8  # with more, those that are not large are merged at the next add
GIVEN = "vectors as given"  # in the history: no picture was embedded


class ReferenceIndex(OpenedIndex):
    """An index on disk, opened. Build one with :meth:`build`, open one with :meth:`open`."""

    def __init__(self, folder: Path, snapshot_sha256: str, snapshot: Snapshot) -> None:
        super().__init__(folder, snapshot_sha256, snapshot)
        self.taken = Taken()  # the result of the last build or addition

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
            RunStopped: there is no room on the disk; what was embedded is kept.
        """
        index = cls._empty(folder, embedder.embedder_id, int(embedder.dim), getattr(embedder, "source", None))
        index._append(index._intake(embedder), items, flat_limit=flat_limit, event="built")
        return index

    @classmethod
    def build_of_vectors(
        cls, folder: Path, blocks: Iterable[VectorBlock], embedder: Embedder, *, flat_limit: int | None = None
    ) -> ReferenceIndex:
        """Write a new index of works whose vectors are given (:class:`index.vectors.StoredVectors`), as :meth:`build` does.

        Nobody embeds anything: the caller answers for the vectors being the embedder's.
        """
        index = cls._empty(folder, embedder.embedder_id, int(embedder.dim), getattr(embedder, "source", None))
        index._append(index._vector_intake(), blocks, flat_limit=flat_limit, event="built", reason=GIVEN)
        return index

    @classmethod
    def _empty(cls, folder: Path, embedder_id: str, dim: int, source: EmbedderSource | None) -> ReferenceIndex:
        folder = at_uri.for_a_build(folder)
        make_folder(folder)
        kept = source.seen_from(folder) if source is not None else None
        return cls(folder, "", Snapshot.empty(embedder_id, dim, kept))

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

    # --- changing -------------------------------------------------------------------------------------------------

    def add(self, items: Iterable[NewReference], embedder: Embedder, reason: str = "") -> Sequence[str]:
        """Add works; returns their ids in order, and :attr:`taken` lists what became of them. The history keeps the reason.

        A picture that is already there stays, unless the work's status is stricter: then the work's columns count. If it
        was retired, it matches again, with the work's status. Whether the index keeps its picture stays as it was:
        :attr:`taken` names the references of which a work would have it otherwise.

        Raises:
            IndexMismatch: another embedder, or the index changed on disk since it was opened.
            InputError: a work is not usable.
        """
        self.require_embedder(embedder.embedder_id)
        return self._append(self._intake(embedder), items, event="added", reason=reason)

    def add_vectors(self, blocks: Iterable[VectorBlock], embedder: Embedder, reason: str = "") -> Sequence[str]:
        """Add works whose vectors are given; otherwise as :meth:`add`."""
        self.require_embedder(embedder.embedder_id)
        return self._append(self._vector_intake(), blocks, event="added", reason="; ".join(filter(None, (reason, GIVEN))))

    def renew(self) -> list[str]:
        """Write segments of earlier versions in today's form; returns their names. The works and their statuses stay.

        The index gets a new id if it was of format 1 or 2, whose ids were made otherwise.
        """
        with filling(self.folder), alone(self.folder):
            self._require_unchanged()
            late = {segment.folder.name for segment in self._segments if segment.late}
            if not late:
                return []
            entries = [
                write_segment(self.folder, segment.tables(), self.dim, None) if segment.folder.name in late else entry
                for segment, entry in zip(self._segments, self._snapshot.segments, strict=True)
            ]
            self._commit(entries, self._gone, self._snapshot.amendments, Change("renewed", []))
        return sorted(late)

    def _intake(self, embedder: Embedder) -> Intake:
        return Intake(self.folder, embedder, self.get)

    def _vector_intake(self) -> VectorIntake:
        return VectorIntake(self.folder, self.get, self.has)

    def retire(self, ref_ids: Sequence[str], reason: str = "") -> None:
        """Retire references at once: they match no more and stay on record. Retiring twice changes nothing.

        Raises:
            InputError: no such reference (then nothing is retired).
            IndexMismatch: another process changes the index, or has since it was opened.
        """
        self._require_there(ref_ids)
        with filling(self.folder), alone(self.folder):
            self._require_unchanged()
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
            IndexMismatch: another process changes the index, or has since it was opened.
        """
        if status not in (*STATUSES, RETIRED):
            fix = f"One of: {', '.join((*STATUSES, RETIRED))}"
            raise InputError(f"status is {status!r}", where=f"reference {ref_id}", fix=fix)
        with filling(self.folder), alone(self.folder):
            self._require_unchanged()
            return self._set_status(ref_id, status, reason)

    def _set_status(self, ref_id: str, status: str, reason: str) -> str:
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
            amendments[ref_id] = differences(segment.reference(row), now)
        event = "retired" if status == RETIRED else "status"
        change = Change(event, [ref_id], reason, {"change": f"{before} → {status}"})
        self._commit(self._snapshot.segments, gone, amendments, change)
        return before

    def _append(
        self,
        intake: Intake | VectorIntake,
        works: Iterable[Any],
        *,
        flat_limit: int | None = None,
        event: str,
        reason: str = "",
    ) -> Sequence[str]:
        with filling(self.folder), alone(self.folder):
            self._require_unchanged()
            for left in (self.folder / "segments").glob(f"{storage.TEMPORARY}*"):  # of a build that was killed
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink(missing_ok=True)
            taken = intake.take(works)
            for ref_id, wish in taken.wished.items():
                if wish != self.keeps(ref_id):
                    (taken.not_kept if wish else taken.still_kept).append(ref_id)
            segments = list(self._snapshot.segments)
            if taken.new:
                old = to_merge(self._segments) if len(segments) >= MAX_SEGMENTS else []
                tables = chain((table for segment in old for table in segment.tables()), intake.tables())
                merged = {segment.folder.name for segment in old}
                segments = [entry for entry in segments if entry["name"] not in merged]
                segments.append(write_segment(self.folder, tables, self.dim, flat_limit))
            stored = {ref_id: segment.reference(row) for ref_id in taken.amended for segment, row in [self._place(ref_id)]}
            amendments = amended_by(taken.amended, stored, self._snapshot.amendments)
            changed = taken.changed()
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
        """Recompute every digest: files, pictures, rows, and the index id; on an object store, of the objects there.

        Raises:
            IntegrityError: naming the file (and reference) that does not match.
        """
        from index.check import check

        check(self.folder)


def _require_embedder(folder: Path, snapshot: Snapshot, embedder_id: str) -> None:
    if embedder_id == snapshot.embedder_id:
        return
    fix = "Name no embedder, and that of the index is used; or build the index again with this one"
    known = f" ({snapshot.source})"
    if not snapshot.source.model:
        known, fix = "", "Name the embedder that it was built with: --embedder, or model under [embedder] in the run file"
    what = f"the index was built with embedder {snapshot.embedder_id}{known}, this one is {embedder_id}"
    raise IndexMismatch(what, where=str(folder), fix=fix)
