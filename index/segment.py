"""Segments of an index: immutable parts of it, each a table of references and the FAISS index over their embeddings."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from index import storage
from index.errors import IntegrityError
from index.files import RESTORE, read_known, require_known, settle, write_whole
from index.fingerprint import content_digest
from index.reference import COLUMNS, MATCHING, STATUSES, Reference

TABLE, VECTORS = "references.parquet", "vectors.faiss"
GROUPS = 16  # row groups whose pictures stay in memory; a group is some 16 MB (:mod:`index.intake`)


class Segment:
    """One immutable part of an index: its rows in memory, pictures and FAISS index read when first needed.

    Args:
        folder: of the index.
        entry: the snapshot's entry of the segment: ``name``, ``files``.

    Attributes:
        references: in the order of the rows, without the snapshot's part (times, tombstones, amendments).
        ref_ids, keys: their ids, and the same as FAISS stores them (see :func:`key_of`).
        vectors: their embeddings, float32 (rows, dim).

    Raises:
        IntegrityError: a file is missing, was changed, or does not hold references.
    """

    def __init__(self, folder: Path, entry: Mapping[str, Any]) -> None:
        self.folder = folder / "segments" / entry["name"]
        self._files: dict[str, str] = entry["files"]
        for name, digest in self._files.items():
            require_known(self.folder / name, digest)
        self._path = self.folder / TABLE
        try:
            self._read()
        except Exception as error:
            # A matching digest does not make the file valid: Arrow, NumPy and Python raise many types of errors.
            what = f"holds no references ({type(error).__name__}: {error})"
            raise IntegrityError(what, where=str(self._path), fix=RESTORE) from None
        self._ann: Any = None
        self._group = lru_cache(maxsize=GROUPS)(self._pictures_of)

    def _read(self) -> None:
        import pyarrow.parquet as pq

        file = pq.ParquetFile(self._path)
        names = ["ref_id", "content_sha256", "pdq", *COLUMNS]
        table = file.read(columns=[*names, "embedding"])
        columns = {name: table.column(name).to_pylist() for name in names}
        if any(not isinstance(value, str) for column in columns.values() for value in column):
            raise ValueError("a value is not text")
        odd = set(columns["status"]) - set(STATUSES)
        if odd:  # such a reference would match nothing
            raise ValueError(f"unknown status {odd.pop()!r}")
        self.references = [Reference(**{name: columns[name][row] for name in names}) for row in range(table.num_rows)]
        self.ref_ids: list[str] = columns["ref_id"]
        self.keys = np.array([key_of(ref_id) for ref_id in self.ref_ids], np.int64)
        embeddings = table.column("embedding").combine_chunks()
        self.vectors: np.ndarray = np.asarray(embeddings.flatten(), np.float32).reshape(table.num_rows, -1)
        if not np.isfinite(self.vectors).all():
            raise ValueError("an embedding is not finite")
        self._row = {int(key): row for row, key in enumerate(self.keys)}
        groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        self._starts = np.cumsum([0, *groups])

    def ann(self) -> Any:
        """The FAISS index of this segment."""
        if self._ann is None:
            from index import ann

            content = read_known(self.folder / VECTORS, self._files[VECTORS])
            try:
                self._ann = ann.from_bytes(content)
            except Exception as error:
                # FAISS raises bare RuntimeErrors
                what = f"holds no vectors ({error})"
                raise IntegrityError(what, where=str(self.folder / VECTORS), fix=RESTORE) from None
        return self._ann

    def active(self, references: Mapping[str, Reference]) -> np.ndarray | None:
        """Keys that can match; None when all can."""
        can = np.array([references[ref_id].status in MATCHING for ref_id in self.ref_ids], bool)
        return None if can.all() else self.keys[can]

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Row numbers of keys.

        Raises:
            IntegrityError: FAISS knows a key that the table does not.
        """
        try:
            return np.array([self._row[int(key)] for key in keys], np.int64)
        except KeyError:
            raise IntegrityError("knows other references", where=str(self.folder / VECTORS), fix=RESTORE) from None

    def picture(self, row: int) -> np.ndarray | None:
        """The picture of a row, if kept."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        content = self._group(group)[row - int(self._starts[group])].as_py()
        if content is None:
            return None
        try:
            return _decode(content)
        except Exception as error:
            what = f"the picture of reference {self.ref_ids[row]} cannot be read ({error})"
            raise IntegrityError(what, where=str(self._path), fix=RESTORE) from None

    def _pictures_of(self, group: int) -> Any:
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self._path).read_row_group(group, columns=["picture"]).column("picture")
        except Exception as error:
            raise IntegrityError(f"its pictures cannot be read ({error})", where=str(self._path), fix=RESTORE) from None

    def tables(self) -> Iterator[Any]:
        """Everything, as Arrow tables, one row group after the other."""
        import pyarrow.parquet as pq

        file = pq.ParquetFile(self._path)
        for group in range(file.metadata.num_row_groups):
            yield file.read_row_group(group)

    @cached_property
    def kept(self) -> np.ndarray:
        """bool (rows,): whether the row's picture is kept."""
        import pyarrow.parquet as pq

        metadata, kept = pq.ParquetFile(self._path).metadata, [np.zeros(0, bool)]
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            column = next(i for i in range(group.num_columns) if group.column(i).path_in_schema == "picture")
            statistics = group.column(column).statistics
            absent = statistics.null_count if statistics is not None and statistics.has_null_count else -1
            if absent in (0, group.num_rows):  # all or none: no need to read them
                kept.append(np.full(group.num_rows, not absent))
            else:
                kept.append(np.asarray(self._pictures_of(number).is_valid().to_numpy(), bool))
        return np.concatenate(kept)

    def row_digests(self, amendments: Mapping[str, Mapping[str, str]]) -> list[str]:
        """One sha256 per reference over its metadata as amended, hashes and embedding, and whether the picture is kept."""
        out = []
        for row, (reference, kept) in enumerate(zip(self.references, self.kept, strict=True)):
            content = {**asdict(reference), **amendments.get(reference.ref_id, {}), "kept": bool(kept)}
            for moment in ("added_at", "retired_at"):
                content.pop(moment)  # times are history, not content
            plain = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
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


def write_segment(folder: Path, tables: Iterable[Any], dim: int, flat_limit: int | None) -> dict[str, Any]:
    """Write a segment's two files under a name made of their digests.

    Args:
        folder: of the index.
        tables: Arrow tables with the columns of a segment, each written as one row group; never two in memory.
        dim: length of the embeddings.
        flat_limit: from how many references on the search is approximate before the exact re-ranking; None: as usual.

    Returns:
        Its entry in the snapshot.
    """
    from index import ann

    segments = folder / "segments"
    handle, temporary = tempfile.mkstemp(dir=segments, prefix=storage.TEMPORARY)
    os.close(handle)
    try:
        keys, vectors = _write_table(Path(temporary), tables, dim)
        order = np.argsort(keys)  # FAISS is built the same in whatever order the works came
        limit = ann.FLAT_LIMIT if flat_limit is None else flat_limit
        content = ann.to_bytes(ann.build(vectors[order], keys[order], flat_limit=limit))
        with open(temporary, "rb") as stream:
            files = {TABLE: hashlib.file_digest(stream, "sha256").hexdigest(), VECTORS: hashlib.sha256(content).hexdigest()}
        name = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32]
        (segments / name).mkdir(exist_ok=True)
        settle(Path(temporary), segments / name / TABLE)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    write_whole(segments / name / VECTORS, content)
    return {"name": name, "rows": len(keys), "files": files}


def _write_table(path: Path, tables: Iterable[Any], dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Write the table; returns FAISS keys int64 (N,) and embeddings float32 (N, dim) in the order of its rows."""
    import pyarrow.parquet as pq

    keys, vectors, writer = [np.zeros(0, np.int64)], [np.zeros((0, dim), np.float32)], None
    try:
        for table in tables:
            if writer is None:
                compression = {name: "none" if name in ("picture", "embedding") else "zstd" for name in table.column_names}
                compression["embedding.list.element"] = "none"
                writer = pq.ParquetWriter(
                    path, table.schema, compression=compression, use_dictionary=False, write_page_checksum=True
                )
            writer.write_table(table, row_group_size=max(1, table.num_rows))
            keys.append(np.array([key_of(ref_id) for ref_id in table.column("ref_id").to_pylist()], np.int64))
            flat = np.asarray(table.column("embedding").combine_chunks().flatten(), np.float32)
            vectors.append(flat.reshape(table.num_rows, dim))
    finally:
        if writer is not None:
            writer.close()
    return np.concatenate(keys), np.concatenate(vectors)


def encode(picture: np.ndarray) -> bytes:
    """uint8 RGB (H, W, 3) losslessly as a file's content: WebP, or PNG above WebP's 16,383 pixels."""
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
