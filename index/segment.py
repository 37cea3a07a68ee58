"""Segments of an index: immutable parts of it, each a table of references and the FAISS index over their embeddings."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from index.errors import InputError, IntegrityError
from index.files import RESTORE, read_known, write_whole
from index.reference import COLUMNS, MATCHING, NewReference, Reference, content_digest, pdq_of

if TYPE_CHECKING:
    from index.embed import Embedder

TABLE, VECTORS = "references.parquet", "vectors.faiss"


class Segment:
    """One immutable part of an index: its rows in memory, pictures and FAISS index read when first needed.

    Args:
        folder: of the index.
        entry: what the snapshot says of the segment: ``name``, ``files``.

    Attributes:
        references: in the order of the rows, without what only the snapshot knows (times, tombstones).
        ref_ids, keys: their ids, and the same as FAISS stores them (see :func:`key_of`).
        vectors: their embeddings, float32 (rows, dim).

    Raises:
        IntegrityError: a file is missing or was changed.
    """

    def __init__(self, folder: Path, entry: Mapping[str, Any]) -> None:
        import pyarrow.parquet as pq

        self.folder = folder / "segments" / entry["name"]
        self._files: dict[str, str] = entry["files"]
        for name, digest in self._files.items():
            read_known(self.folder / name, digest)
        self._path = self.folder / TABLE
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

    def ann(self) -> Any:
        """The FAISS index of this segment."""
        if self._ann is None:
            from index import ann

            self._ann = ann.from_bytes(read_known(self.folder / VECTORS, self._files[VECTORS]))
        return self._ann

    def active(self, references: Mapping[str, Reference]) -> np.ndarray | None:
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
        """Pictures against their digests, FAISS ids against the rows.

        Raises:
            IntegrityError: naming the file (and reference) that does not match.
        """
        for row, reference in enumerate(self.references):
            picture = self.picture(row)
            same = picture is None or content_digest(picture) == reference.content_sha256
            if not same or reference.ref_id != reference.content_sha256[:16]:
                raise IntegrityError(f"reference {reference.ref_id} is not its picture", where=str(self._path), fix=RESTORE)
        if self.ann().ntotal != len(self.ref_ids):
            raise IntegrityError("does not hold every reference", where=str(self.folder / VECTORS), fix=RESTORE)


def key_of(ref_id: str) -> int:
    """A reference id (16 hexadecimal digits) as the positive 63-bit key that FAISS stores."""
    return int(ref_id, 16) >> 1


def table_of(fresh: Mapping[str, NewReference], embedder: Embedder) -> Any:
    """New references (by content digest) as an Arrow table ordered by id; pictures are embedded here.

    Raises:
        InputError: the embedder makes no finite vector of a picture, so that nothing would ever be near to it.
    """
    import pyarrow as pa

    ordered, dim = sorted(fresh), int(embedder.dim)
    vectors = np.empty((len(ordered), dim), np.float32)
    for row, digest in enumerate(ordered):  # pictures differ in size, so they are embedded one by one
        vectors[row] = embedder.images(fresh[digest].picture[None])[0]
        if not np.isfinite(vectors[row]).all():
            where = f"reference {fresh[digest].title!r}"
            raise InputError("its embedding is not finite", where=where, fix="Look at the picture, and at the embedder")
    columns: dict[str, Any] = {
        "ref_id": [digest[:16] for digest in ordered],
        "content_sha256": ordered,
        "pdq": [pdq_of(fresh[digest].picture) for digest in ordered],
    }
    for name in COLUMNS:
        columns[name] = [getattr(fresh[digest], name) for digest in ordered]
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float32()), dim)
    kept = [_encode(fresh[digest].picture) if fresh[digest].keep_picture else None for digest in ordered]
    columns["picture"] = pa.array(kept, pa.large_binary())
    return pa.table(columns)


def write_segment(folder: Path, table: Any, dim: int, flat_limit: int | None) -> dict[str, Any]:
    """Write a segment's two files under a name made of their digests.

    Args:
        folder: of the index.
        table: from :func:`table_of`, or several of them joined and ordered by id.
        dim: length of the embeddings.
        flat_limit: from how many references on the search is approximate before the exact re-ranking; None: as usual.

    Returns:
        Its entry in the snapshot.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from index import ann

    keys = np.array([key_of(ref_id) for ref_id in table.column("ref_id").to_pylist()], np.int64)
    vectors = np.asarray(table.column("embedding").combine_chunks().flatten(), np.float32).reshape(len(keys), dim)
    stream = pa.BufferOutputStream()
    compression = {name: "none" if name in ("picture", "embedding") else "zstd" for name in table.column_names}
    compression["embedding.list.element"] = "none"
    pq.write_table(table, stream, compression=compression, use_dictionary=False, write_page_checksum=True)
    limit = ann.FLAT_LIMIT if flat_limit is None else flat_limit
    contents = {
        TABLE: stream.getvalue().to_pybytes(),
        VECTORS: ann.to_bytes(ann.build(vectors, keys, flat_limit=limit)),
    }
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    name = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32]
    (folder / "segments" / name).mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        write_whole(folder / "segments" / name / file, content)
    return {"name": name, "rows": len(keys), "files": files}


def _encode(picture: np.ndarray) -> bytes:
    """Losslessly: WebP, or PNG above WebP's 16,383 pixels."""
    from PIL import Image

    stream = io.BytesIO()
    if max(picture.shape[:2]) <= 16_383:
        Image.fromarray(picture).save(stream, "WEBP", lossless=True, quality=60, method=4)
    else:
        Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def _decode(content: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
