"""Take works into an index: embed them in full calls, block after block, and keep them on disk until they are put in force.

No more than a block of works is in memory. What is embedded lies in the folder ``building`` of the index, so that a build that
is stopped does not embed it again; the folder goes when the works are in force.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from index.embed import embed_each
from index.errors import IndexMismatch, InputError, IntegrityError
from index.files import write_whole
from index.fingerprint import content_digest, pdq, pdq_hex
from index.ids import Ids
from index.parquet import parquet_file
from index.reference import COLUMNS, RETIRED, NewReference, Reference, require, stricter
from index.segment import encode
from index.spool import Places, SharedId, Spool

if TYPE_CHECKING:
    from index.embed import Embedder

BLOCK = 64  # pictures embedded at a time: eight full calls
GROUP_ROWS, GROUP_BYTES = 1024, 2**24  # of a block on disk, which becomes a row group of the segment
SAVE_EVERY = 20.0  # seconds of work that an interruption may cost
NO_PICTURE = np.zeros((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class Conflict:
    """One picture under several names, or already in the index, with different statuses: the strictest is in force.

    Attributes:
        ref_id: the reference.
        origin, stated: the work that came later, and its status.
        before: the reference's status until then.
    """

    ref_id: str
    origin: str
    stated: str
    before: str

    @property
    def kept(self) -> str:
        """The status in force."""
        return self.stated if stricter(self.stated, self.before) else self.before


@dataclass(kw_only=True)
class Taken:
    """The result of taking works into an index.

    Attributes:
        ref_ids: of every work, in order.
        new: ids that the index did not have.
        duplicates: works whose picture had come before under another name: (origin, origin of the first).
        known: works whose picture was in the index already: (origin, id).
        revived: ids that were retired and match again.
        conflicts: where statuses differed.
        amended: what changes about references that were in the index: id → the work that has it.
        wished: of references that were in the index, whether their works would have the picture kept; an addition changes no
            picture: the next two say where that is not as it is.
        not_kept: ids whose picture a work would have kept, and the index has it not.
        still_kept: ids whose picture the work in force would not have kept, and the index has it.
    """

    ref_ids: Ids = field(default_factory=Ids)
    new: Ids = field(default_factory=Ids)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    known: list[tuple[str, str]] = field(default_factory=list)
    revived: list[str] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    amended: dict[str, NewReference] = field(default_factory=dict)
    wished: dict[str, bool] = field(default_factory=dict)
    not_kept: list[str] = field(default_factory=list)
    still_kept: list[str] = field(default_factory=list)

    def repeat(self, ref_id: str, work: NewReference, first: str, before: str) -> None:
        """Note a work that came before, as ``first`` and with the status ``before``."""
        self.duplicates.append((work.place, first))
        if work.status != before:
            self.conflicts.append(Conflict(ref_id, work.place, work.status, before))

    def changed(self) -> Sequence[str]:
        """Ids of the references that are new or different, sorted."""
        if not (self.revived or self.amended):
            return Ids.of_numbers(np.sort(self.new.numbers()))
        return sorted({*self.new, *self.revived, *self.amended})


def shared_id(where: str) -> IntegrityError:
    """The sentence for a work whose digest begins as another picture's does, and goes on otherwise."""
    fix = "Write each picture's sha256, where the source states content_sha256; if it states none, report this: one in 10^9"
    return IntegrityError("two pictures share one reference id", where=where, fix=fix)


def compare(taken: Taken, known: Reference, digest: str, work: NewReference) -> Reference | None:
    """Compare a work with the reference of its picture: the stricter status counts; a retired one takes the work's.

    Returns:
        The reference with its new status; None where it stays as it is.
    """
    ref_id = known.ref_id
    if known.content_sha256 != digest:
        raise shared_id(work.place)
    taken.known.append((work.place, ref_id))
    if known.status == RETIRED:
        taken.revived.append(ref_id)
    elif work.status != known.status:
        taken.conflicts.append(Conflict(ref_id, work.place, work.status, known.status))
    if not stricter(work.status, known.status):
        if work.keep_picture:
            taken.wished.setdefault(ref_id, True)
        return None
    taken.wished[ref_id] = work.keep_picture
    taken.amended[ref_id] = replace(work, picture=NO_PICTURE)
    return replace(known, status=work.status)


class Intake:
    """Takes works in for one build or addition.

    Args:
        folder: of the index.
        embedder: turns pictures into vectors.
        known: the reference of an id that the index has; None where it has none.
    """

    def __init__(self, folder: Path, embedder: Embedder, known: Callable[[str], Reference | None]) -> None:
        self.folder, self._embedder, self._known = folder / "building", embedder, known
        self._changed: dict[str, Reference] = {}  # of the known ones, those that a work has changed
        self._fit: Callable[[np.ndarray], np.ndarray] = getattr(embedder, "fitted", lambda picture: picture)
        self._fresh: Spool
        self._files: list[Path] = []  # blocks of embedded works
        self._embedded = Places()  # in which block each is, at which row, and whether with its picture: see _packed
        self._waiting: list[tuple[str, str, np.ndarray, str, bytes | None]] = []
        self._rows: list[dict[str, Any]] = []
        self._saved = time.monotonic()
        self.taken = Taken()

    def take(self, works: Iterable[NewReference]) -> Taken:
        """Go through the works once.

        Raises:
            InputError: a work is not usable, or the embedder makes no finite vector of it; the folder is a link.
            whatever the iterable raises.
        """
        if self.folder.is_symlink():  # its files are removed in the end: they must be ours
            raise InputError("is a link", where=str(self.folder), fix="Remove the link; the folder is made anew")
        self._fresh = Spool(self.folder)
        for path, digests, kept in _read_blocks(self.folder, self._embedder.embedder_id):
            self._note(path, digests, kept)
        try:
            for work in works:
                require(work)
                self._take(work)
            self._embed()
        finally:  # what is embedded is kept, whatever stopped it
            self._save()
        self.taken.new = self._fresh.ids()
        return self.taken

    def _take(self, work: NewReference) -> None:
        digest = content_digest(work.picture)
        ref_id = digest[:16]
        self.taken.ref_ids.append(ref_id)
        known = self._changed.get(ref_id) or self._known(ref_id)
        if known is not None:
            changed = compare(self.taken, known, digest, work)
            if changed is not None:
                self._changed[ref_id] = changed
            return
        try:
            first = self._fresh.find(digest)
            if first is None:
                self._fresh.add(digest, work)
            else:
                before = self._fresh.status(first)
                self.taken.repeat(ref_id, work, self._fresh.place(first), before)
                if not stricter(work.status, before):
                    return
                self._fresh.replace(first, replace(work, picture=NO_PICTURE))
            there = self._embedded.get(digest)
        except SharedId:
            raise shared_id(work.place) from None
        if there is None or (work.keep_picture and not there & 1):
            stored = encode(work.picture) if work.keep_picture else None
            self._waiting.append((digest, work.place, self._fit(work.picture), pdq_hex(pdq(work.picture)[0]), stored))
            if len(self._waiting) >= BLOCK or time.monotonic() - self._saved > SAVE_EVERY:
                self._embed()

    # --- embedding ------------------------------------------------------------------------------------------------

    def _embed(self) -> None:
        """Embed what waits."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            vectors = embed_each(self._embedder, [picture for _, _, picture, _, _ in waiting])
            for (digest, place, _, pdq, stored), vector in zip(waiting, vectors, strict=True):
                if not np.isfinite(vector).all():
                    where = f"reference {place!r}"
                    fix = "Look at the picture, and at the embedder"
                    raise InputError("its embedding is not finite", where=where, fix=fix)
                self._rows.append({"content_sha256": digest, "pdq": pdq, "embedding": vector, "picture": stored})
        held = sum(len(row["picture"] or b"") for row in self._rows)
        if len(self._rows) >= GROUP_ROWS or held >= GROUP_BYTES or time.monotonic() - self._saved > SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._rows:
            vectors = np.stack([row["embedding"] for row in self._rows]).astype(np.float32)
            table = pa.table(
                {
                    "content_sha256": [row["content_sha256"] for row in self._rows],
                    "pdq": [row["pdq"] for row in self._rows],
                    "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
                    "picture": pa.array([row["picture"] for row in self._rows], pa.large_binary()),
                }
            ).replace_schema_metadata({"embedder_id": self._embedder.embedder_id})
            stream = io.BytesIO()
            pq.write_table(table, stream, compression="none")
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{hashlib.sha256(stream.getvalue()).hexdigest()}.parquet"
            write_whole(path, stream.getvalue())
            digests = [row["content_sha256"] for row in self._rows]
            self._note(path, digests, [row["picture"] is not None for row in self._rows])
        self._rows, self._saved = [], time.monotonic()

    def _note(self, path: Path, digests: Sequence[str], kept: Sequence[bool]) -> None:
        """Remember where some works are embedded; what is noted later counts."""
        block = len(self._files)
        self._files.append(path)
        before = self._embedded.several(digests)
        for row, (digest, pictured) in enumerate(zip(digests, kept, strict=True)):
            self._embedded.put(digest, _packed(block, row, pictured=pictured), new=bool(before[row] < 0))

    # --- what it makes of them ------------------------------------------------------------------------------------

    def tables(self) -> Iterator[Any]:
        """The new references as Arrow tables with the columns of a segment, a block at a time."""
        import pyarrow as pa

        for number, path in enumerate(self._files):
            block = parquet_file(path).read()
            digests = block.column("content_sha256").to_pylist()
            which = self._fresh.several(digests)
            here = self._embedded.several(digests) >> 1 == np.arange(len(digests)) + _packed(number, 0, pictured=False) // 2
            rows = np.flatnonzero(here & (which >= 0))  # a work may lie in two blocks, and in the later one with its picture
            if not len(rows):
                continue
            block, works = block.take(pa.array(rows)), [self._fresh.row(int(which[row])) for row in rows]
            columns: dict[str, Any] = {"ref_id": [digests[row][:16] for row in rows]}
            columns |= {name: block.column(name) for name in ("content_sha256", "pdq")}
            columns |= {name: [work[name] for work in works] for name in COLUMNS}
            columns["embedding"] = block.column("embedding").combine_chunks()
            kept = [
                picture if work["keep"] else None for work, picture in zip(works, block["picture"].to_pylist(), strict=True)
            ]
            columns["picture"] = pa.array(kept, pa.large_binary())
            yield pa.table(columns)

    def done(self) -> None:
        """The works are in force: remove what was kept for another try."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _packed(block: int, row: int, *, pictured: bool) -> int:
    """A place in one number."""
    return (block << 32 | row) << 1 | pictured


def _read_blocks(folder: Path, embedder_id: str) -> Iterator[tuple[Path, list[str], list[bool]]]:
    """Blocks that an earlier try embedded with the same embedder: file, digests, and which have their picture.

    Incomplete blocks and another embedder's are removed.
    """
    import pyarrow as pa

    for path in sorted(path for path in folder.glob("*.parquet") if re.fullmatch("[0-9a-f]{64}", path.stem)):
        try:
            content = path.read_bytes()
            table = parquet_file(io.BytesIO(content)).read(use_threads=False)
            theirs = (table.schema.metadata or {}).get(b"embedder_id", b"").decode()
            if hashlib.sha256(content).hexdigest() != path.stem or theirs != embedder_id:
                raise ValueError("not this embedder's, or changed")
            kept = table.column("picture").is_valid().to_pylist()
            digests = table.column("content_sha256").to_pylist()
        except (OSError, ValueError, KeyError, pa.ArrowException):
            path.unlink(missing_ok=True)
        else:
            yield path, digests, kept


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold an index for a change; a second process is refused. Where the file system has no locks, the last pointer wins.

    Raises:
        IndexMismatch: another process is changing the index.
        InputError: the folder is gone.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)  # the folder itself is locked, so that no file is left in it
    except OSError as error:
        what = f"cannot be opened ({error.strerror or error})"
        raise InputError(what, where=str(folder), fix="Look where the index lies, and open it again") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fix = "Wait until it has ended, then try again"
            raise IndexMismatch("another process is changing this index", where=str(folder), fix=fix) from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)
