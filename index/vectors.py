"""Read works whose embeddings were made elsewhere: NumPy files of vectors, with their metadata beside them.

``NAME.npy`` holds the vectors (N, D), and ``NAME.parquet`` or ``NAME.csv`` a row for each; a folder may hold many such pairs.
clip-retrieval's output is read too: ``img_emb/img_emb_0.npy`` beside ``metadata/metadata_0.parquet``. Files are mapped, and a
block of rows is in memory at a time.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from index.collect import NAMED, Reading, listed
from index.errors import IndexMismatch, InputError
from index.parquet import parquet_file
from index.reference import COLUMNS, require_terms
from index.sheet import FILE_COLUMNS, delimiter_of
from index.walk import files_below, shown

if TYPE_CHECKING:
    from index.embed import Embedder

ROWS = 4096  # in memory at a time
SPOT, SPOT_ALIKE = 16, 0.98  # pictures beside the vectors that are embedded again, and the cosine expected at least
SHORTEST = 1e-3  # of a vector: a shorter one has no direction worth the name
HEX = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class VectorBlock:
    """Some works of a source.

    Attributes:
        place, start: the file, and the number of the first row in it.
        texts: column → a value a row: ``content_sha256``, ``pdq`` and :data:`index.reference.COLUMNS`.
        vectors: float32 (N, D), unit length.
    """

    place: str
    start: int
    texts: Mapping[str, list[str]]
    vectors: np.ndarray

    def where(self, row: int) -> str:
        """What messages call a row of the block."""
        return f"{self.place}: row {self.start + row}"


def holds_vectors(path: Path) -> bool:
    """Whether a path is a NumPy file, or a folder with such files or with ``img_emb``; :class:`StoredVectors` refuses one that
    holds pictures as well."""
    if path.is_file():
        return path.suffix == ".npy"
    if not path.is_dir():
        return False
    names = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    return any(name == "img_emb" or name.endswith(".npy") for name in names)


class StoredVectors:
    """The works of NumPy files, block by block.

    A work's ``content_sha256`` is the metadata's, if it has such a column (the digest that this index computes of a picture);
    otherwise it is the digest of the vector, because the picture is not at hand. Its picture is never kept.

    Args:
        path: a file or a folder, see the head of this module.
        dim: length of the vectors.
        how: basis of works that state none, and names of columns.

    Attributes:
        total: how many works there are. checked: how many of them :meth:`spot_check` held against their pictures.
        others: files of the folder that were not read: (name, what they are).

    Raises:
        InputError: nothing there, another length, metadata missing rows; a folder that also holds pictures, or metadata of no
            file of vectors. While it is gone through: a vector without direction, an unknown value.
    """

    def __init__(self, path: Path, dim: int, how: Reading | None = None) -> None:
        self.path, self.dim, self.how, self.checked = Path(path), dim, how or Reading(), 0
        pairs = _pairs(self.path)
        if not pairs:
            raise InputError("holds no vectors", where=shown(path), fix="Name a .npy file, or a folder of them")
        self.others = _others(self.path, pairs) if self.path.is_dir() else []
        self._parts = [(file, metadata, self._opened(file)) for file, metadata in pairs]
        for file, metadata, vectors in self._parts:
            rows = None if metadata is None else _count(metadata)
            if rows is not None and rows != len(vectors):
                what = f"has {rows} rows, and {shown(file)} has {len(vectors)} vectors"
                raise InputError(what, where=shown(metadata or file), fix="Write one row for each vector, in their order")
        self.total = sum(len(vectors) for _, _, vectors in self._parts)
        if not self.total:
            raise InputError(
                "holds no vectors", where=shown(path), fix="Write one for each work: an empty index protects nothing"
            )

    def _opened(self, file: Path) -> np.ndarray:
        try:
            vectors = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0][:160]
            raise InputError(
                f"is no NumPy file of numbers ({first})", where=shown(file), fix="Write it with numpy.save"
            ) from None
        if vectors.ndim != 2 or vectors.dtype.kind != "f":
            what = f"holds {vectors.dtype} of shape {vectors.shape}, not a table of floating-point numbers"
            raise InputError(what, where=shown(file), fix="Write float16 or float32 (N, D)")
        if vectors.shape[1] != self.dim:
            what = f"holds vectors of {vectors.shape[1]} numbers, the embedder makes {self.dim}"
            raise InputError(what, where=shown(file), fix="Name the embedder that made them: --embedder")
        return np.asarray(vectors)

    def __iter__(self) -> Iterator[VectorBlock]:
        for file, metadata, vectors in self._parts:
            start = 0
            for rows in _rows(metadata, len(vectors), self._wanted()):
                count = len(next(iter(rows.values()))) if rows else min(ROWS, len(vectors) - start)
                block = self._unit(vectors[start : start + count], file, start)
                place = shown(metadata or file)
                yield VectorBlock(
                    place=place, start=start, texts=self._texts(rows, block, file, f"{place}: row", start), vectors=block
                )
                start += count

    def _wanted(self) -> dict[str, str]:
        """Our name of a column → the source's."""
        return {name: self.how.columns.get(name, name) for name in (*COLUMNS, "content_sha256", "pdq")}

    def _unit(self, stored: np.ndarray, file: Path, start: int) -> np.ndarray:
        wide = np.asarray(stored, np.float64)
        length = np.linalg.norm(wide, axis=1, keepdims=True)
        bad = np.flatnonzero(~(np.isfinite(length[:, 0]) & (length[:, 0] > SHORTEST)))
        if len(bad):  # it would be near to no picture, and its work unprotected
            where = f"{shown(file)}: row {start + int(bad[0])}"
            raise InputError("its vector is zero or not finite", where=where, fix="Embed the work again, or leave it out")
        return np.asarray(wide / length, np.float32)

    def _texts(
        self, rows: Mapping[str, list[str]], vectors: np.ndarray, file: Path, where: str, start: int
    ) -> dict[str, list[str]]:
        count = len(vectors)
        texts = {name: rows.get(name) or [""] * count for name in (*COLUMNS, "content_sha256", "pdq")}
        texts["title"] = [title or f"{file.stem}-{start + n:09d}" for n, title in enumerate(texts["title"])]
        texts["rights_basis"] = [basis or self.how.rights_basis for basis in texts["rights_basis"]]
        texts["status"] = [status or "active" for status in texts["status"]]
        for basis, status in {*zip(texts["rights_basis"], texts["status"], strict=True)}:
            at = next(n for n in range(count) if (texts["rights_basis"][n], texts["status"][n]) == (basis, status))
            require_terms(basis, status, where=f"{where} {start + at}")
        digests = [given.lower() or _digest(vector) for given, vector in zip(texts["content_sha256"], vectors, strict=True)]
        for n, digest in enumerate(digests):
            if not HEX.fullmatch(digest):
                fix = "Write 64 hexadecimal digits, or leave the column out"
                raise InputError(f"content_sha256 is {digest[:80]!r}", where=f"{where} {start + n}", fix=fix)
        texts["content_sha256"] = digests
        return texts

    def spot_check(self, embedder: Embedder) -> int:
        """Embed pictures that lie beside the vectors again (metadata's column ``file``) and compare; returns how many.

        Raises:
            IndexMismatch: a vector is not what the embedder makes of its picture: then copies would not be found.
        """
        from index.embed import embed_each
        from index.picture import read_picture

        for file, metadata, vectors in self._parts:
            for row, name in _named(metadata, len(vectors)) if metadata is not None else ():
                picture = file.parent / name
                if self.checked >= SPOT or not picture.is_file():
                    continue
                made = embed_each(embedder, [read_picture(picture)])[0]
                cosine = float(self._unit(vectors[row : row + 1], file, row)[0] @ made)
                if cosine < SPOT_ALIKE:
                    what = f"is not what {embedder.embedder_id} makes of {shown(name)} (cosine {cosine:.3f})"
                    where = f"{shown(file)}: row {row}"
                    fix = "Name the embedder that made the vectors; if it did, look at the order of the rows"
                    raise IndexMismatch(what, where=where, fix=fix)
                self.checked += 1
        return self.checked


def _digest(vector: np.ndarray) -> str:
    """sha256 of a vector float32 (D,): stands for the digest of a picture that is not at hand."""
    return hashlib.sha256(f"vector {len(vector)}\n".encode() + vector.astype("<f4").tobytes()).hexdigest()


def _pairs(path: Path) -> list[tuple[Path, Path | None]]:
    """Files of vectors, each with its metadata."""
    if path.is_file():
        return [(path, _beside(path))]
    if (path / "img_emb").is_dir():
        files = sorted((path / "img_emb").glob("*.npy"), key=_number)
        metadata = {_number(file): file for file in sorted((path / "metadata").glob("*.parquet"))}
        return [(file, metadata.get(_number(file))) for file in files]
    return [(file, _beside(file)) for file in sorted(path.glob("*.npy"))]


def _others(path: Path, pairs: Sequence[tuple[Path, Path | None]]) -> list[tuple[str, str]]:
    """Files of a folder that are in no pair: (name, what it is).

    Raises:
        InputError: some of them hold works, or metadata: the works would be left out, and nobody would see it.
    """
    read, held, others = {file for pair in pairs for file in pair}, list[tuple[str, str]](), list[tuple[str, str]]()
    for file in files_below(path):
        if file not in read:
            name, (works, what) = shown(file.relative_to(path)), _what_is(file, of_texts=file.parent == path / "text_emb")
            (held if works else others).append((name, what))
        if len(held) > NAMED:  # the folder may hold a million pictures
            break
    if held:
        first = shown(pairs[0][0].relative_to(path))
        fix = f"Name a file of vectors ({first}), and build from the rest as well; or move the vectors to a folder of their own"
        if "/" in first:  # its metadata would not be found
            fix = "Move what belongs to no vectors to another folder, and build from it as well"
        more = " and more" if len(held) > NAMED else ""
        what = f"holds vectors, and works or metadata that belong to none: {listed(held[:NAMED])}{more}"
        raise InputError(what, where=shown(path), fix=fix)
    return others


def _what_is(file: Path, *, of_texts: bool) -> tuple[bool, str]:
    """Whether a file beside vectors holds works or metadata, and what it is."""
    from index.picture import UnreadablePicture, why_no_picture
    from index.records import holds_records

    ending = file.suffix.lower()
    if ending == ".npy":  # clip-retrieval writes the vectors of captions beside those of pictures
        return (False, "vectors of texts") if of_texts else (True, "vectors")
    if (kind := holds_records(file)) is not None:
        return True, "Parquet without vectors" if kind == "parquet" else "tar"
    try:
        other = why_no_picture(file)
    except UnreadablePicture as error:
        return True, error.what
    if other is None:
        return True, "a picture"
    return (True, "CSV without vectors") if ending == ".csv" and other == "no picture" else (False, other)


def _beside(file: Path) -> Path | None:
    there = [file.with_suffix(ending) for ending in (".parquet", ".csv") if file.with_suffix(ending).exists()]
    if len(there) > 1:
        what = f"has two files of metadata: {there[0].name} and {there[1].name}"
        raise InputError(what, where=shown(file), fix="Keep one of them there")
    return there[0] if there else None


def _number(file: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", file.stem)
    return (int(digits[-1]), "") if digits else (-1, file.stem)


def _count(metadata: Path) -> int:
    import pyarrow.parquet as pq

    if metadata.suffix == ".parquet":
        with _readable(metadata):
            return int(pq.read_metadata(metadata).num_rows)
    return sum(len(next(iter(rows.values()))) for rows in _csv(metadata, {}))


def _rows(metadata: Path | None, total: int, wanted: Mapping[str, str]) -> Iterator[dict[str, list[str]]]:
    """Our columns that the metadata have, as texts, a block of rows at a time; without metadata, empty ones."""
    if metadata is None:
        yield from ({} for _ in range(0, total, ROWS))
    elif metadata.suffix == ".csv":
        yield from _csv(metadata, wanted)
    else:
        yield from _parquet(metadata, wanted)


def _parquet(metadata: Path, wanted: Mapping[str, str]) -> Iterator[dict[str, list[str]]]:
    with _readable(metadata), parquet_file(metadata, mapped=True) as file:
        names = file.schema_arrow.names
        _require_names(names, wanted, metadata)
        there = {ours: theirs for ours, theirs in wanted.items() if theirs in names}
        columns = [*dict.fromkeys(there.values())] or names[:1]  # without any, the number of rows is known
        for batch in file.iter_batches(ROWS, columns=columns):
            rows = {ours: [_plain(value) for value in batch.column(theirs).to_pylist()] for ours, theirs in there.items()}
            yield rows or {"": [""] * batch.num_rows}


def _csv(metadata: Path, wanted: Mapping[str, str]) -> Iterator[dict[str, list[str]]]:
    import pyarrow as pa
    import pyarrow.csv as arrow_csv

    with _readable(metadata):
        with metadata.open("rb") as stream:
            header = stream.readline().decode("utf-8-sig").strip()
        sign = delimiter_of(header)
        names = next(csv.reader([header], delimiter=sign), [])
        _require_names(names, wanted, metadata)
        texts = arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
        how = arrow_csv.ParseOptions(delimiter=sign, newlines_in_values=True)
        for whole in arrow_csv.open_csv(metadata, parse_options=how, convert_options=texts):
            for start in range(0, whole.num_rows, ROWS):
                batch = whole.slice(start, ROWS)
                there = {ours: theirs for ours, theirs in wanted.items() if theirs in names}
                rows = {ours: [text.strip() for text in batch.column(theirs).to_pylist()] for ours, theirs in there.items()}
                yield rows or {"": [""] * batch.num_rows}


def _require_names(names: Sequence[str], wanted: Mapping[str, str], metadata: Path) -> None:
    """Other columns may be there; one that is ours but for its spelling would be left out, and nobody would see it."""
    if absent := [theirs for ours, theirs in wanted.items() if theirs not in (ours, *names)]:
        raise InputError(f"has no column {absent[0]!r}", where=shown(metadata), fix=f"It has: {', '.join(names)}")
    if twice := [theirs for theirs in wanted.values() if names.count(theirs) > 1]:
        fix = "Keep the one that counts, and give the other another name"
        raise InputError(f"has the column {twice[0]!r} twice", where=shown(metadata), fix=fix)
    spelt = {theirs.casefold(): theirs for theirs in wanted.values()}
    for name in names:
        meant = spelt.get(name.strip().casefold())
        if meant is not None and meant not in names:
            raise InputError(f"has the column {name!r} (did you mean {meant!r}?)", where=shown(metadata), fix=f"Write {meant}")


class _readable:  # noqa: N801 - a context manager, used like a function
    """What Arrow raises about a file of metadata, as one sentence."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        import pyarrow as pa

        if isinstance(error, (pa.ArrowException, OSError, UnicodeDecodeError)):
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            raise InputError(f"cannot be read ({first})", where=shown(self._path), fix="Write the metadata again") from None


def _named(metadata: Path, total: int) -> list[tuple[int, str]]:
    """Rows that name a picture file, spread evenly; where none of those does, the first that do. Row and name of each."""
    spread: list[tuple[int, str]] = []
    first: list[tuple[int, str]] = []
    start, step = 0, max(1, total // SPOT)
    for rows in _rows(metadata, total, {name: name for name in FILE_COLUMNS}):
        for n, name in enumerate(next((values for values in rows.values() if any(values)), [])):
            if name and (start + n) % step == 0:
                spread.append((start + n, name))
            elif name and len(first) < SPOT:
                first.append((start + n, name))
        start += len(next(iter(rows.values())))
    return spread or first


def _plain(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else str(value).strip()
