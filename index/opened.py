"""An index as it is: what it holds, and what is near to a picture. :mod:`index.store` opens and changes it."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from index import journal
from index.embedder_source import EmbedderSource
from index.errors import IndexMismatch, InputError
from index.reference import RETIRED, Match, Reference, amended, the_id
from index.segment import Segment
from index.segments import allowed_rows, open_segment
from index.snapshot import Snapshot

LISTED = 1024  # references in memory while all of them are listed
_SHOWN = ("ref_id", "title", "rights_basis", "status")  # of a match
_RANK = itemgetter(0, 1)  # of a hit: by its cosine, then by its id, which is the first of its texts


class OpenedIndex:
    """A snapshot of an index, and its segments, mapped.

    Args:
        folder: of the index.
        snapshot_sha256, snapshot: the snapshot in force.
    """

    def __init__(self, folder: Path, snapshot_sha256: str, snapshot: Snapshot) -> None:
        self.folder = folder
        self._load(snapshot_sha256, snapshot)

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
        return sorted((reference for reference, _ in self.listed()), key=lambda reference: reference.ref_id)

    def listed(self) -> Iterator[tuple[Reference, bool]]:
        """Every reference with its times, and whether its picture is kept, as they are stored; a block is in memory at once."""
        moments = journal.Moments(self.events())
        for segment in self._segments:
            stored = zip(segment.references(), segment.kept.tolist(), strict=True)
            while block := list(islice(stored, LISTED)):
                ids = [reference.ref_id for reference, _ in block]
                times = zip(moments.added(ids).tolist(), moments.retired(ids).tolist(), strict=True)
                for (reference, kept), (added, retired) in zip(block, times, strict=True):
                    now = self._in_force(reference)
                    gone = retired if now.status == RETIRED and retired == retired else None  # NaN: no event retired it
                    yield replace(now, added_at=added, retired_at=gone), kept

    def in_force(self) -> Iterator[Reference]:
        """Every reference as it is now, without its times, one at a time."""
        return (self._in_force(stored) for segment in self._segments for stored in segment.references())

    def counts(self, name: str) -> Counter[str]:
        """How many references have each value in a column, as amended; counted where they lie."""
        counted: Counter[str] = Counter()
        for segment in self._segments:
            counted.update(segment.counts(name))
        changed = {ref_id for ref_id, changes in self._snapshot.amendments.items() if name in changes}
        for ref_id in changed | (self._gone if name == "status" else set()):
            segment, row = self._place(ref_id)
            stored = segment.reference(row)
            counted[getattr(stored, name)] -= 1
            counted[getattr(self._in_force(stored), name)] += 1
        return +counted

    def searched(self) -> str:
        """How the index is searched, in one sentence; with the remedy where an earlier version's form is slow or worse."""
        from index import ann, device

        late = [segment for segment in self._segments if segment.late]
        rows = sum(segment.rows for segment in late)
        if rows > ann.FLAT_LIMIT:
            what = f"{rows} references lie in an earlier version's form, which opens slowly or misses more candidates"
            return f"{what}: clearance index renew {self.folder}"
        coded = sum(segment.rows for segment in self._segments if segment.rows > ann.FLAT_LIMIT)
        how = f"exact over {len(self) - coded} references"
        if coded:
            how = f"candidates of {coded} references by codes, ranked exactly" + (f"; {how}" if coded < len(self) else "")
        return f"{how}; on {device.named()}"

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
        where a status was set, the ``change``. Of a large index its ids are a large list: see :meth:`events`.

        Raises:
            IntegrityError: a leaf of the journal is missing or was changed.
        """
        return [{**event, "ref_ids": [*event["ref_ids"]]} for event in self.events()]

    def events(self) -> list[dict[str, Any]]:
        """The same, with ``ref_ids`` in eight bytes each (:class:`index.ids.Ids`)."""
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
        found: list[list[tuple[float, Sequence[str]]]] = [[] for _ in embeddings]
        for segment, allowed in zip(self._segments, self._allowed, strict=True):
            near = segment.nearest(embeddings, k, allowed)
            texts = iter(segment.texts(np.concatenate([np.zeros(0, np.int64), *(rows for rows, _ in near)]), _SHOWN))
            for hits, (_, cosines) in zip(found, near, strict=True):
                hits.extend((-cosine, next(texts)) for cosine in cosines.tolist())
        return [[self._match(*hit) for hit in sorted(hits, key=_RANK)[:k]] for hits in found]

    def compare(self, embedding: np.ndarray, ref_id: str) -> Match:
        """One embedding float32 (dim,) against one reference, retired and allowed ones included.

        Raises:
            InputError: no such reference.
        """
        segment, row = self._place(ref_id)
        cosine = float(np.sum(segment.vectors[row].astype(np.float64) * embedding.astype(np.float64)))
        return self._match(-cosine, segment.values(row, _SHOWN))

    def _match(self, negative: float, texts: Sequence[str]) -> Match:
        ref_id, title, basis, status = texts
        if (changed := self._snapshot.amendments.get(ref_id)) is not None:
            title, basis, status = (changed.get(name, was) for name, was in
                                    (("title", title), ("rights_basis", basis), ("status", status)))  # fmt: skip
        status = RETIRED if ref_id in self._gone else status
        return Match(ref_id=ref_id, title=title, similarity=-negative, rights_basis=basis, status=status)

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
        found = [ref_id for segment in self._segments for ref_id in segment.beginning_with(beginning.lower())]
        return the_id(beginning, found, where=str(self.folder))

    def _find(self, ref_id: str) -> tuple[Segment, int] | None:
        for segment in self._segments:
            if (row := segment.find(ref_id)) is not None:
                return segment, row
        return None

    def _require_there(self, ref_ids: Sequence[str]) -> None:
        """Refuse ids that no reference has; raises InputError about the first."""
        for at in np.flatnonzero(~self.has(ref_ids))[:1]:
            self._place(ref_ids[at])

    def _place(self, ref_id: str) -> tuple[Segment, int]:
        place = self._find(ref_id)
        if place is None:
            fix = "List them: clearance index info INDEX --references"
            raise InputError("no such reference", where=f"{self.folder}: {ref_id}", fix=fix)
        return place

    def has(self, ref_ids: Sequence[str]) -> np.ndarray:
        """bool (N,): which of some ids are in the index."""
        there = np.zeros(len(ref_ids), bool)
        for segment in self._segments:
            there |= segment.rows_of(ref_ids) >= 0
        return there
