"""The reference index: what must not be copied.

On disk an index is a folder::

    CURRENT                       names the snapshot in force; replaced atomically, the only file that ever changes
    snapshots/<sha256>.json       embedder, segments with their files' digests, tombstones, history
    segments/<digest>/references.parquet   metadata, embedding, PDQ hash, and the picture where it may be kept
    segments/<digest>/vectors.faiss        candidates for the search

A snapshot and a segment are named after their content and never change. ``index_id`` is the digest of what the index
*says* (embedder, references, embeddings, tombstones), not of how it is stored: building at once or adding in two steps
gives the same id, and merging segments keeps it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from index.errors import IndexMismatch, InputError, IntegrityError

if TYPE_CHECKING:
    from index.embed import Embedder

FORMAT = 1
MAX_SEGMENTS = 8  # more are merged into one at the next add
MATCHING = ("active", "disputed")  # statuses that can match; a disputed claim protects until it is settled
STATUSES = ("active", "disputed", "allowed")  # what a reference can be given; retired comes from retire()
BASES = ("licensed", "claim", "registry", "memorisation_probe", "own_mark")
COLUMNS = ("title", "source_uri", "rightsholder", "rights_basis", "licence", "status", "claim_id")


@dataclass(frozen=True)
class Reference:
    """One protected or memorised work, as stored: embedding and hashes beside it, the picture only if allowed."""

    ref_id: str
    title: str
    content_sha256: str
    pdq: str
    source_uri: str = ""
    rightsholder: str = ""
    rights_basis: str = "claim"  # licensed | claim | registry | memorisation_probe | own_mark
    licence: str = ""
    status: str = "active"  # active | retired | disputed | allowed
    added_at: float = 0.0
    retired_at: float | None = None
    claim_id: str = ""


@dataclass(frozen=True)
class Match:
    """A reference near a picture.

    Attributes:
        ref_id, title, rights_basis, status: copied from the reference.
        similarity: cosine between the embeddings, exact.
        confirm: score of the second, geometric look in [0, 1] (None: not looked).
    """

    ref_id: str
    title: str
    similarity: float
    rights_basis: str = "claim"
    status: str = "active"
    confirm: float | None = None


@dataclass(frozen=True)
class NewReference:
    """A work on its way into an index.

    Attributes:
        title: what a person calls it.
        picture: uint8 RGB (H, W, 3).
        keep_picture: whether the picture itself may be stored; without it there is no second look and no steering away.
    """

    title: str
    picture: np.ndarray = field(repr=False, compare=False)
    source_uri: str = ""
    rightsholder: str = ""
    rights_basis: str = "claim"
    licence: str = ""
    keep_picture: bool = False
    status: str = "active"
    claim_id: str = ""


class ReferenceIndex:
    """An index on disk, opened. Build one with :meth:`build`, open one with :meth:`open`."""

    def __init__(self, folder: Path, snapshot_sha256: str, snapshot: dict[str, Any]) -> None:
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
        empty = {
            "format": FORMAT, "embedder_id": embedder.embedder_id, "dim": int(embedder.dim), "segments": [],
            "tombstones": [], "history": [], "index_id": index_id_of(embedder.embedder_id, int(embedder.dim), [], []),
        }  # fmt: skip
        index = cls(folder, "", empty)
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
        snapshot_sha256, snapshot = _read_snapshot(folder)
        if embedder_id is not None and embedder_id != snapshot["embedder_id"]:
            raise IndexMismatch(
                f"the index was built with embedder {snapshot['embedder_id']}, this one is {embedder_id}", where=str(folder),
                fix="Use the embedder of the index, or build the index again with this one",
            )  # fmt: skip
        return cls(folder, snapshot_sha256, snapshot)

    # --- what it holds --------------------------------------------------------------------------------------------

    @property
    def index_id(self) -> str:
        """Digest of what the index says: embedder, references, embeddings, tombstones."""
        return str(self._snapshot["index_id"])

    @property
    def embedder_id(self) -> str:
        """The embedder the index is bound to."""
        return str(self._snapshot["embedder_id"])

    @property
    def dim(self) -> int:
        """Length of the embeddings."""
        return int(self._snapshot["dim"])

    def __len__(self) -> int:
        return len(self._references)

    def references(self) -> list[Reference]:
        """Every reference, retired and allowed ones included, ordered by id."""
        return [self._references[ref_id] for ref_id in sorted(self._references)]

    def history(self) -> list[dict[str, Any]]:
        """What happened, oldest first: ``at`` (seconds), ``event``, ``ref_ids``, ``reason``, and the ``index_id`` after it."""
        return [dict(entry) for entry in self._snapshot["history"]]

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
        """
        from index import ann

        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise IndexMismatch(
                f"embeddings of shape {embeddings.shape} do not fit an index of {self.dim} dimensions", where=str(self.folder),
                fix=f"Use the embedder of the index: {self.embedder_id}",
            )  # fmt: skip
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
        gone = set(self._snapshot["tombstones"])
        new = [ref_id for ref_id in dict.fromkeys(ref_ids) if ref_id not in gone]
        if new:
            self._commit(self._snapshot["segments"], gone | set(new), "retired", new, reason)

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
        segments = list(self._snapshot["segments"])
        if fresh:
            table = self._table(fresh, embedder)
            if len(segments) >= MAX_SEGMENTS:
                import pyarrow as pa

                table = pa.concat_tables([*(segment.table() for segment in self._segments), table]).sort_by("ref_id")
                segments = []
            segments.append(_write_segment(self.folder, table, self.dim, flat_limit))
        revived = set(ref_ids) & set(self._snapshot["tombstones"])
        changed = sorted({digest[:16] for digest in fresh} | revived)
        if changed or event == "built":
            self._commit(segments, set(self._snapshot["tombstones"]) - revived, event, changed, "")
        return ref_ids

    def _table(self, fresh: dict[str, NewReference], embedder: Embedder) -> Any:
        """Arrow table of new references, ordered by id."""
        import pyarrow as pa

        ordered = sorted(fresh)
        vectors = np.empty((len(ordered), self.dim), np.float32)
        for row, digest in enumerate(ordered):  # pictures differ in size, so they are embedded one by one
            vectors[row] = embedder.images(fresh[digest].picture[None])[0]
        columns: dict[str, Any] = {
            "ref_id": [digest[:16] for digest in ordered],
            "content_sha256": ordered,
            "pdq": [pdq_of(fresh[digest].picture) for digest in ordered],
        }
        for name in COLUMNS:
            columns[name] = [getattr(fresh[digest], name) for digest in ordered]
        flat = pa.array(vectors.reshape(-1), pa.float32())
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, self.dim)
        kept = [_encode(fresh[digest].picture) if fresh[digest].keep_picture else None for digest in ordered]
        columns["picture"] = pa.array(kept, pa.large_binary())
        return pa.table(columns)

    def _commit(
        self, segments: list[dict[str, Any]], tombstones: set[str], event: str, ref_ids: list[str], reason: str
    ) -> None:
        """Write a snapshot and point to it: temporary file, fsync, rename."""
        current = self.folder / "CURRENT"
        on_disk = current.read_text(encoding="utf-8").strip() if current.exists() else ""
        if on_disk != self._snapshot_sha256:
            raise IndexMismatch("the index changed on disk since it was opened", where=str(self.folder), fix="Open it again")
        opened = [_Segment(self.folder, entry) for entry in segments]
        rows = [digest for segment in opened for digest in segment.row_digests()]
        index_id = index_id_of(self.embedder_id, self.dim, rows, sorted(tombstones))
        entry = {"at": time.time(), "event": event, "ref_ids": ref_ids, "reason": reason, "index_id": index_id}
        snapshot = {
            **self._snapshot, "segments": segments, "tombstones": sorted(tombstones), "index_id": index_id,
            "history": [*self._snapshot["history"], entry],
        }  # fmt: skip
        content = (json.dumps(snapshot, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
        digest = hashlib.sha256(content).hexdigest()
        _write(self.folder / "snapshots" / f"{digest}.json", content)
        _write(current, f"{digest}\n".encode())
        self._load(digest, snapshot)

    # --- checking -------------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Recompute every digest: files, pictures, rows, and the index id.

        Raises:
            IntegrityError: naming the file (and reference) that does not match.
        """
        snapshot_sha256, snapshot = _read_snapshot(self.folder)
        rows: list[str] = []
        for entry in snapshot["segments"]:
            segment = _Segment(self.folder, entry)
            segment.check_rows()
            rows += segment.row_digests()
        expected = index_id_of(snapshot["embedder_id"], snapshot["dim"], rows, snapshot["tombstones"])
        if expected != snapshot["index_id"]:
            where = str(self.folder / "snapshots" / f"{snapshot_sha256}.json")
            raise IntegrityError(f"says {snapshot['index_id']}, its content is {expected}", where=where, fix=_RESTORE)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _load(self, snapshot_sha256: str, snapshot: dict[str, Any]) -> None:
        self._snapshot_sha256, self._snapshot = snapshot_sha256, snapshot
        self._segments = [_Segment(self.folder, entry) for entry in snapshot["segments"]]
        added: dict[str, float] = {}
        retired: dict[str, float] = {}
        for event in snapshot["history"]:
            for ref_id in event["ref_ids"]:
                if event["event"] == "retired":
                    retired[ref_id] = event["at"]
                else:
                    added.setdefault(ref_id, event["at"])
        gone = set(snapshot["tombstones"])
        self._references: dict[str, Reference] = {}
        self._where: dict[str, tuple[_Segment, int]] = {}
        for segment in self._segments:
            for row, stored in enumerate(segment.references):
                reference = replace(stored, added_at=added.get(stored.ref_id, 0.0))
                if stored.ref_id in gone:
                    reference = replace(reference, status="retired", retired_at=retired.get(stored.ref_id))
                self._references[stored.ref_id] = reference
                self._where[stored.ref_id] = (segment, row)

    def _place(self, ref_id: str) -> tuple[_Segment, int]:
        try:
            return self._where[ref_id]
        except KeyError:
            raise InputError(
                "no such reference", where=f"{self.folder}: {ref_id}", fix="List them: clearance index info"
            ) from None


_RESTORE = "Restore the folder from a backup, or build the index again"


class _Segment:
    """One immutable part of an index: its rows in memory, pictures and FAISS index read when first needed."""

    def __init__(self, folder: Path, entry: dict[str, Any]) -> None:
        import pyarrow.parquet as pq

        self.folder = folder / "segments" / entry["name"]
        self._files: dict[str, str] = entry["files"]
        for name in self._files:
            self._read(name)
        self._path = self.folder / "references.parquet"
        names = ["ref_id", "content_sha256", "pdq", *COLUMNS]
        table = pq.read_table(self._path, columns=[*names, "embedding"])
        columns = {name: table.column(name).to_pylist() for name in names}
        self.references = [Reference(**{name: columns[name][row] for name in names}) for row in range(table.num_rows)]
        self.ref_ids: list[str] = columns["ref_id"]
        self.keys = np.array([key_of(ref_id) for ref_id in self.ref_ids], np.int64)
        embeddings = table.column("embedding").combine_chunks()
        self.vectors: np.ndarray = np.asarray(embeddings.flatten(), np.float32).reshape(table.num_rows, -1)
        self._row = {int(key): row for row, key in enumerate(self.keys)}
        self._ann: Any = None
        self._pictures: Any = None

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        try:
            content: bytes = path.read_bytes()
        except FileNotFoundError:
            raise IntegrityError("is missing", where=str(path), fix=_RESTORE) from None
        if hashlib.sha256(content).hexdigest() != self._files[name]:
            raise IntegrityError("does not match its recorded sha256", where=str(path), fix=_RESTORE)
        return content

    def ann(self) -> Any:
        """The FAISS index of this segment."""
        if self._ann is None:
            from index import ann

            self._ann = ann.from_bytes(self._read("vectors.faiss"))
        return self._ann

    def active(self, references: dict[str, Reference]) -> np.ndarray | None:
        """Keys that can match; None when all can."""
        can = np.array([references[ref_id].status in MATCHING for ref_id in self.ref_ids], bool)
        return None if can.all() else self.keys[can]

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Row numbers of keys."""
        return np.array([self._row[int(key)] for key in keys], np.int64)

    def picture(self, row: int) -> np.ndarray | None:
        """The picture of a row, if kept."""
        if self._pictures is None:
            import pyarrow.parquet as pq

            self._pictures = pq.read_table(self._path, columns=["picture"]).column("picture")
        content = self._pictures[row].as_py()
        return None if content is None else _decode(content)

    def table(self) -> Any:
        """Everything, as an Arrow table."""
        import pyarrow.parquet as pq

        return pq.read_table(self._path)

    def row_digests(self) -> list[str]:
        """One sha256 per reference over its metadata, hashes and embedding, and whether the picture is kept."""
        if self._pictures is None and self.ref_ids:
            self.picture(0)
        out = []
        for row, reference in enumerate(self.references):
            said = {**asdict(reference), "kept": bool(self._pictures[row].is_valid)}
            for moment in ("added_at", "retired_at"):
                said.pop(moment)  # times are history, not content
            plain = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            out.append(hashlib.sha256(plain.encode() + b"\n" + self.vectors[row].astype("<f4").tobytes()).hexdigest())
        return out

    def check_rows(self) -> None:
        """Pictures against their digests, FAISS ids against the rows."""
        for row, reference in enumerate(self.references):
            picture = self.picture(row)
            same = picture is None or content_digest(picture) == reference.content_sha256
            if not same or reference.ref_id != reference.content_sha256[:16]:
                raise IntegrityError(f"reference {reference.ref_id} is not its picture", where=str(self._path), fix=_RESTORE)
        if self.ann().ntotal != len(self.ref_ids):
            raise IntegrityError("does not hold every reference", where=str(self.folder / "vectors.faiss"), fix=_RESTORE)


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


def content_digest(picture: np.ndarray) -> str:
    """sha256 over a picture's size and RGB bytes, whatever file it came in."""
    header = f"{picture.shape[0]}x{picture.shape[1]} RGB\n".encode()
    return hashlib.sha256(header + np.ascontiguousarray(picture).tobytes()).hexdigest()


def key_of(ref_id: str) -> int:
    """A reference id (16 hexadecimal digits) as the positive 63-bit key that FAISS stores."""
    return int(ref_id, 16) >> 1


def pdq_of(picture: np.ndarray) -> str:
    """Meta's PDQ perceptual hash of uint8 RGB (H, W, 3), as 64 hexadecimal digits."""
    import pdqhash

    bits, _ = pdqhash.compute(np.ascontiguousarray(picture))
    return np.packbits(np.asarray(bits, np.uint8)).tobytes().hex()


def require(item: NewReference) -> None:
    """Refuse a new reference whose picture, rights basis or status cannot be used; raises InputError."""
    picture = item.picture
    where = f"reference {item.title!r}"
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        what = f"picture must be uint8 (H, W, 3), this is {picture.dtype} {picture.shape}"
        raise InputError(what, where=where, fix="Convert it to RGB bytes first")
    if item.rights_basis not in BASES:
        raise InputError(f"rights_basis is {item.rights_basis!r}", where=where, fix=f"One of: {', '.join(BASES)}")
    if item.status not in STATUSES:
        raise InputError(f"status is {item.status!r}", where=where, fix=f"One of: {', '.join(STATUSES)}")


def _encode(picture: np.ndarray) -> bytes:
    """Losslessly: WebP, or PNG above WebP's 16,383 pixels."""
    import io

    from PIL import Image

    stream = io.BytesIO()
    if max(picture.shape[:2]) <= 16_383:
        Image.fromarray(picture).save(stream, "WEBP", lossless=True, quality=60, method=4)
    else:
        Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def _decode(content: bytes) -> np.ndarray:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def _read_snapshot(folder: Path) -> tuple[str, dict[str, Any]]:
    current = folder / "CURRENT"
    if not current.exists():
        raise InputError(
            "is no reference index", where=str(folder), fix="Build one: clearance index build REFERENCES --out FOLDER"
        )
    digest = current.read_text(encoding="utf-8", errors="replace").strip()
    path = folder / "snapshots" / f"{digest}.json"
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef") or not path.exists():
        raise IntegrityError("names no snapshot of this index", where=str(current), fix=_RESTORE)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise IntegrityError("does not match the sha256 in its name", where=str(path), fix=_RESTORE)
    snapshot: dict[str, Any] = json.loads(content)
    if snapshot.get("format") != FORMAT:
        what = f"is an index of format {snapshot.get('format')}, this version reads {FORMAT}"
        raise InputError(what, where=str(folder), fix="Build it again, or use the version that wrote it")
    return digest, snapshot


def _write_segment(folder: Path, table: Any, dim: int, flat_limit: int | None) -> dict[str, Any]:
    """Write a segment's two files under a name made of their digests; returns its entry in the snapshot."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from index import ann

    keys = np.array([key_of(ref_id) for ref_id in table.column("ref_id").to_pylist()], np.int64)
    vectors = np.asarray(table.column("embedding").combine_chunks().flatten(), np.float32).reshape(len(keys), dim)
    stream = pa.BufferOutputStream()
    compression = {name: "none" if name in ("picture", "embedding") else "zstd" for name in table.column_names}
    compression["embedding.list.element"] = "none"
    pq.write_table(table, stream, compression=compression, use_dictionary=False, write_page_checksum=True)
    contents = {
        "references.parquet": stream.getvalue().to_pybytes(),
        "vectors.faiss": ann.to_bytes(
            ann.build(vectors, keys, flat_limit=ann.FLAT_LIMIT if flat_limit is None else flat_limit)
        ),
    }
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    name = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32]
    (folder / "segments" / name).mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        _write(folder / "segments" / name / file, content)
    return {"name": name, "rows": len(keys), "files": files}


def _write(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
