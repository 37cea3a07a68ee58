"""Segments of an index: immutable parts of it, mapped into memory and read where a search or a question needs them.

Since format 3 a segment is a folder of six files::

    references.arrow   metadata in Arrow's file format, as it lies in memory     vectors.f32    embeddings, float32 (rows, dim)
    pictures.parquet   the pictures that may be kept                             vectors.faiss  candidates for the search
    keys.i64           the ids as numbers, sorted, and the row of each           digests.bin    a sha256 of every row

What can change about a reference (tombstones, amendments) is the snapshot's. :mod:`index.old_segment` reads formats 1 and 2.
"""

from __future__ import annotations

import hashlib
import io
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import IntegrityError
from index.files import RESTORE
from index.fingerprint import content_digest
from index.ids import numbers_of
from index.known import LARGE, require_known
from index.parquet import parquet_file
from index.reference import COLUMNS, MATCHING, PREFIX, STATUSES, Reference, amended

TABLE, PICTURES, VECTORS, ANN = "references.arrow", "pictures.parquet", "vectors.f32", "vectors.faiss"
KEYS, DIGESTS = "keys.i64", "digests.bin"
FILES = frozenset({TABLE, PICTURES, VECTORS, ANN, KEYS, DIGESTS})
TEXTS = ("ref_id", "content_sha256", "pdq", *COLUMNS)
TOGETHER = 1024  # rows that become Python objects at once
FEW = 16  # rows whose values cost less one by one than by Arrow's function for many
GROUPS = 16  # row groups whose pictures stay in memory; a group is some 16 MB (:mod:`index.intake`)


class Segment:
    """One immutable part of an index.

    Args:
        folder: of the index.
        entry: the snapshot's entry of the segment: ``name``, ``rows``, ``files``.
        dim: length of the embeddings.
        afresh: read every file again, also those that were checked on this machine.

    Attributes:
        rows: number of references.
        vectors: their embeddings, float32 (rows, dim), mapped.

    Raises:
        IntegrityError: a file is missing, was changed, or does not hold references.
    """

    def __init__(self, folder: Path, entry: Mapping[str, Any], dim: int, *, afresh: bool = False) -> None:
        self.folder = folder / "segments" / entry["name"]
        self.rows, self.dim = int(entry["rows"]), dim
        self.vectors: np.ndarray
        self._sorted: np.ndarray
        self._row: np.ndarray
        read = {name: require_known(self.folder / name, digest, afresh=afresh) for name, digest in entry["files"].items()}
        try:
            self._open()
            large = [name for name in read if (self.folder / name).stat().st_size >= LARGE]
            if not large or any(read[name] for name in large):  # what was whole when it was checked is whole still
                self._check()
        except IntegrityError:
            raise
        except Exception as error:
            # A matching digest does not make the file valid: Arrow, NumPy and Python raise many types of errors.
            what = f"holds no references ({type(error).__name__}: {error})"
            raise IntegrityError(what, where=str(self.folder / self._table_name), fix=RESTORE) from None
        self._ann: Any = None
        self._device: Any = None  # False: it is not searched on a device
        self._opened_parts: dict[int, dict[str, Any]] = {}
        self._group = lru_cache(maxsize=GROUPS)(self._pictures_of)

    _table_name, _pictures_name = TABLE, PICTURES

    def _open(self) -> None:
        import pyarrow as pa

        with pa.memory_map(str(self.folder / TABLE)) as source:
            self._table = pa.ipc.open_file(source).read_all()
        self.vectors = self._mapped(VECTORS, "<f4", (self.rows, self.dim))
        self._sorted, self._row = self._mapped(KEYS, "<i8", (2, self.rows))

    def _mapped(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        path = self.folder / name
        size = int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))
        if path.stat().st_size != size:
            raise IntegrityError(f"has {path.stat().st_size} bytes, not {size}", where=str(path), fix=RESTORE)
        return np.memmap(path, dtype, "r", shape=shape) if size else np.zeros(shape, dtype)

    def _check(self) -> None:
        """What no search should stumble over, and none should miss."""
        if self._table.num_rows != self.rows:
            raise ValueError(f"{self._table.num_rows} rows, not {self.rows}")
        for name in TEXTS:
            column = self._table.column(name)
            if str(column.type) not in ("string", "large_string") or column.null_count:
                raise ValueError(f"a value of {name} is not text")
        kept = self._table.column("kept")
        if str(kept.type) != "bool" or kept.null_count:
            raise ValueError("a value of kept is neither yes nor no")
        odd = set(self._table.column("status").unique().to_pylist()) - set(STATUSES)
        if odd:  # such a reference would match nothing
            raise ValueError(f"unknown status {odd.pop()!r}")
        for start in range(0, self.rows, 2**16):
            if not np.isfinite(self.vectors[start : start + 2**16]).all():
                raise ValueError("an embedding is not finite")
        keys = np.concatenate([np.zeros(0, np.int64), *self._keys()])
        if not np.array_equal(keys[self._row], self._sorted) or (np.diff(self._sorted) < 0).any():
            raise IntegrityError("knows other references", where=str(self.folder / KEYS), fix=RESTORE)

    def _keys(self) -> Iterator[np.ndarray]:
        """The keys int64 of the rows, a part of the table at a time."""
        for chunk in self._table.column("ref_id").chunks:
            yield (numbers_of(chunk.to_pylist()) >> np.uint64(1)).astype(np.int64)

    # --- rows -----------------------------------------------------------------------------------------------------

    def ref_ids(self) -> Iterator[str]:
        """The ids of all rows, in order."""
        for chunk in self._table.column("ref_id").chunks:
            yield from chunk.to_pylist()

    def ids_in_order(self) -> Iterator[str]:
        """The same, sorted by their keys."""
        column = self._table.column("ref_id")
        return (column[int(row)].as_py() for row in self._row)

    def find(self, ref_id: str) -> int | None:
        """The row of an id; None when it is not here."""
        try:
            key = key_of(ref_id)
        except ValueError:
            return None
        at = int(np.searchsorted(self._sorted, key))
        while at < self.rows and self._sorted[at] == key:
            row = int(self._row[at])
            if self.ref_id(row) == ref_id:
                return row
            at += 1
        return None

    def rows_of(self, ref_ids: Sequence[str]) -> np.ndarray:
        """The rows int64 (N,) of ids, in their order; -1 for those that are not here. Many are found at once."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found = np.full(len(ref_ids), -1, np.int64)
        if not (self.rows and len(ref_ids)):
            return found
        keys = np.fromiter((_key_or_none(ref_id) for ref_id in ref_ids), np.int64, len(ref_ids))
        at = np.minimum(np.searchsorted(self._sorted, keys), self.rows - 1)
        alike = np.flatnonzero(self._sorted[at] == keys)
        rows = np.asarray(self._row[at[alike]], np.int64)
        same = np.zeros(len(rows), bool)
        parts = np.searchsorted(self._parts, rows, side="right") - 1
        for part in np.unique(parts):  # one at a time, because Arrow starts threads for a table in parts
            mine = np.flatnonzero(parts == part)
            stored = self._columns(int(part))["ref_id"].take(pa.array(rows[mine] - self._parts[part]))
            wanted = pa.array([ref_ids[alike[i]] for i in mine], stored.type)
            same[mine] = np.asarray(pc.equal(stored, wanted).to_numpy(zero_copy_only=False), bool)
        found[alike[same]] = rows[same]
        for i in alike[~same]:  # two ids with one key, which is one in 10^12
            row = self.find(ref_ids[i])
            found[i] = -1 if row is None else row
        return found

    def beginning_with(self, beginning: str) -> list[str]:
        """The ids that begin so; none for less than :data:`index.reference.PREFIX` digits, which begin too many."""
        if len(beginning) < PREFIX or len(beginning) > 16:
            return []
        try:
            keys = [key_of(beginning.ljust(16, digit)) for digit in "0f"]
        except ValueError:
            return []
        first, last = np.searchsorted(self._sorted, keys[0]), np.searchsorted(self._sorted, keys[1], side="right")
        found = (self.ref_id(int(row)) for row in self._row[first:last])
        return [ref_id for ref_id in found if ref_id.startswith(beginning)]

    def counts(self, name: str) -> dict[str, int]:
        """How many rows have each value in a column."""
        import pyarrow.compute as pc

        if not self.rows:
            return {}
        return {one["values"]: one["counts"] for one in pc.value_counts(self._table.column(name)).to_pylist()}

    def ref_id(self, row: int) -> str:
        return self.values(row, ("ref_id",))[0]

    def values(self, row: int, names: Sequence[str]) -> list[str]:
        """Texts of a row, by the names of their columns."""
        part = bisect_right(self._parts, row) - 1
        columns, at = self._columns(part), row - self._parts[part]
        return [columns[name][at].as_py() for name in names]

    def texts(self, rows: np.ndarray, names: Sequence[str]) -> list[tuple[str, ...]]:
        """The same of rows int64 (N,), many at once."""
        import pyarrow as pa

        if len(rows) < FEW:
            return [tuple(self.values(row, names)) for row in rows.tolist()]
        found: list[tuple[str, ...]] = [()] * len(rows)
        parts = np.searchsorted(self._parts, rows, side="right") - 1
        for part in np.unique(parts).tolist():  # one at a time, because Arrow starts threads for a table in parts
            mine = np.flatnonzero(parts == part)
            columns, at = self._columns(part), pa.array(rows[mine] - self._parts[part])
            each = zip(*(columns[name].take(at).to_pylist() for name in names), strict=True)
            for place, texts in zip(mine.tolist(), each, strict=True):
                found[place] = texts
        return found

    @cached_property
    def _parts(self) -> list[int]:
        """The first row of every part that the table lies in."""
        return [*accumulate((len(chunk) for chunk in self._table.column("ref_id").chunks), initial=0)][:-1]

    def _columns(self, part: int) -> dict[str, Any]:
        if part not in self._opened_parts:
            self._opened_parts[part] = {name: self._table.column(name).chunk(part) for name in TEXTS}
        return self._opened_parts[part]

    def reference(self, row: int) -> Reference:
        """A row as stored, without the snapshot's part (times, tombstones, amendments)."""
        texts: dict[str, Any] = dict(zip(TEXTS, self.values(row, TEXTS), strict=True))
        return Reference(**texts)

    def references(self) -> Iterator[Reference]:
        """Every row as stored; some thousand are in memory at once."""
        for batch in self._table.select(TEXTS).to_batches(max_chunksize=TOGETHER):
            columns = [column.to_pylist() for column in batch.columns]
            yield from (Reference(**dict(zip(TEXTS, row, strict=True))) for row in zip(*columns, strict=True))

    @cached_property
    def stored_inactive(self) -> np.ndarray:
        """Row numbers of the references that were written with a status that cannot match."""
        import pyarrow as pa
        import pyarrow.compute as pc

        can = pc.is_in(self._table.column("status"), value_set=pa.array(MATCHING))
        return np.flatnonzero(~np.asarray(can.to_numpy(zero_copy_only=False), bool)) if self.rows else np.zeros(0, np.int64)

    @property
    def kept(self) -> np.ndarray:
        """bool (rows,): whether the row's picture is kept."""
        return np.asarray(self._table.column("kept").to_numpy(), bool)

    def keeps(self, row: int) -> bool:
        return bool(self._table.column("kept")[row].as_py())

    # --- searching ------------------------------------------------------------------------------------------------

    def ann(self) -> Any:
        """The FAISS index of this segment."""
        if self._ann is None:
            from index import ann

            try:
                self._ann = ann.mapped(self.folder / ANN)
                if (self._ann.ntotal, self._ann.d) != (self.rows, self.dim):
                    raise ValueError(f"{self._ann.ntotal} vectors of {self._ann.d} dimensions")
            except Exception as error:  # FAISS raises bare RuntimeErrors
                first = (str(error).splitlines() or [""])[0][:200]
                raise IntegrityError(f"holds no vectors ({first})", where=str(self.folder / ANN), fix=RESTORE) from None
        return self._ann

    def nearest(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray]]:
        """The k nearest rows of every query with their exact cosines, as :func:`index.ann.nearest` has them.

        Args:
            queries: float32 (N, dim). k: how many neighbours are wanted in the end.
            allowed: the rows that may match, as :func:`index.ann.bits`; None: all.
        """
        from index import ann

        if self._device is None:
            from index import device

            self._device = device.place(self.vectors) or False
        return ann.nearest(self._device or self.ann(), self.vectors, queries, k, allowed)

    @property
    def late(self) -> bool:
        """Whether an earlier version wrote the segment, and today's form would open faster, or be searched better."""
        from index import ann

        return self.rows > ann.FLAT_LIMIT and not ann.has_lists(self.folder / ANN)

    # --- pictures and digests -------------------------------------------------------------------------------------

    def picture(self, row: int) -> np.ndarray | None:
        """The picture of a row, if kept."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        content = self._group(group)[row - int(self._starts[group])].as_py()
        if content is None:
            return None
        try:
            return _decode(content)
        except Exception as error:
            what = f"the picture of reference {self.ref_id(row)} cannot be read ({error})"
            raise IntegrityError(what, where=str(self.folder / self._pictures_name), fix=RESTORE) from None

    @cached_property
    def _starts(self) -> np.ndarray:
        metadata = self._pictures().metadata
        return np.cumsum([0, *(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))])

    def _pictures(self) -> Any:
        try:
            file = parquet_file(self.folder / self._pictures_name)
            if file.metadata.num_rows != self.rows:
                raise ValueError(f"{file.metadata.num_rows} rows, not {self.rows}")
            return file
        except Exception as error:
            where = str(self.folder / self._pictures_name)
            raise IntegrityError(f"its pictures cannot be read ({error})", where=where, fix=RESTORE) from None

    def _pictures_of(self, group: int) -> Any:
        try:
            return self._pictures().read_row_group(group, columns=["picture"]).column("picture")
        except IntegrityError:
            raise
        except Exception as error:
            where = str(self.folder / self._pictures_name)
            raise IntegrityError(f"its pictures cannot be read ({error})", where=where, fix=RESTORE) from None

    def tables(self) -> Iterator[Any]:
        """Everything, as Arrow tables with the columns that :func:`index.segment_writer.write_segment` takes."""
        import pyarrow as pa

        for group in range(len(self._starts) - 1):
            start, stop = int(self._starts[group]), int(self._starts[group + 1])
            flat = pa.array(np.ascontiguousarray(self.vectors[start:stop]).reshape(-1))
            table = self._table.select(TEXTS).slice(start, stop - start)
            table = table.append_column("embedding", pa.FixedSizeListArray.from_arrays(flat, self.dim))
            yield table.append_column("picture", self._pictures_of(group))

    def digest(self, row: int, changes: Mapping[str, str]) -> bytes:
        """The digest of a row with other values in some columns; without any, the one that was stored."""
        if not changes:
            return bytes(self._digests[row])
        return row_digest(amended(self.reference(row), changes), self.keeps(row), self.vectors[row])

    @cached_property
    def _digests(self) -> np.ndarray:
        return self._mapped(DIGESTS, "u1", (self.rows, 32))

    def check_rows(self) -> None:
        """Pictures against their digests, rows against theirs, FAISS against the rows.

        Raises:
            IntegrityError: naming the file (and reference) that does not match.
        """
        self._check()
        for row, (reference, kept) in enumerate(zip(self.references(), self.kept, strict=True)):
            picture = self.picture(row)
            same = (picture is not None) == kept and (picture is None or content_digest(picture) == reference.content_sha256)
            if not same or reference.ref_id != reference.content_sha256[:16]:
                where = str(self.folder / self._pictures_name)
                raise IntegrityError(f"reference {reference.ref_id} is not its picture", where=where, fix=RESTORE)
            if row_digest(reference, bool(kept), self.vectors[row]) != self.digest(row, {}):
                where = str(self.folder / DIGESTS)
                raise IntegrityError(f"has another digest for reference {reference.ref_id}", where=where, fix=RESTORE)
        self.ann()


def row_digest(reference: Reference, kept: bool, vector: np.ndarray) -> bytes:
    """sha256 over a reference's metadata, its embedding float32 (dim,), and whether its picture is kept."""
    content = {**{name: getattr(reference, name) for name in TEXTS}, "kept": kept}  # times are history, not content
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(plain.encode() + b"\n" + vector.astype("<f4").tobytes()).digest()


def key_of(ref_id: str) -> int:
    """A reference id (16 hexadecimal digits) as a positive number of 63 bits."""
    return int(ref_id, 16) >> 1


def _key_or_none(ref_id: str) -> int:
    """The same; -1, which no key is, for a text that is no id."""
    try:
        return key_of(ref_id) if len(ref_id) <= 16 else -1  # a whole digest would not fit
    except ValueError:
        return -1


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
