"""Pictures inside other files: the rows of Parquet files and the samples of WebDataset's tar files."""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from index.errors import InputError
from index.once import once
from index.parquet import parquet_file
from index.picture import UnreadablePicture, endings, why_no_picture

ROWS = 16  # of a Parquet file in memory
LARGEST = 2**30  # bytes of one member of a tar
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
TEXT = 2**20  # bytes up to which a sample's other files are read


@dataclass(frozen=True, kw_only=True)
class Record:
    """One picture in a file of many, not decoded yet.

    Attributes:
        name: of the row or sample, for titles.
        place: the file, and where in it, for messages.
        content: the picture file's bytes; empty where there is none, or none that can be used.
        fields: what else the row or sample holds: columns, the keys of its JSON, its text files by their endings.
        problem: why there is no content.
        further: whether it is a sample's second picture or a later one.
    """

    name: str
    place: str
    content: bytes
    fields: Mapping[str, Any]
    problem: str = ""
    further: bool = False


def holds_records(path: Path) -> str | None:
    """ "parquet" or "tar" for a file of many pictures, by its content or the ending of its name; None for any other."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError:
        return None
    if head[:4] == b"PAR1" or path.suffix.lower() == ".parquet":
        return "parquet"
    return "tar" if head[257:262] == b"ustar" or path.name.lower().endswith(TARS) else None


def records_in(
    path: Path, kind: str, *, column: str = "", wanted: Iterable[str] = (), required: Iterable[str] = ()
) -> Iterator[Record]:
    """The pictures of a file of that kind, see :func:`parquet_records` and :func:`tar_records`."""
    return tar_records(path) if kind == "tar" else parquet_records(path, column=column, wanted=wanted, required=required)


def count_records(path: Path, kind: str) -> int | None:
    """How many rows or samples there are; None where that would mean reading everything (a compressed tar)."""
    if kind == "parquet":
        with _parquet(path) as file:
            return int(file.metadata.num_rows)
    try:
        with tarfile.open(path, "r:") as file:
            return sum(1 for _ in itertools.groupby(_key(member.name)[0] for member in file if member.isfile()))
    except (tarfile.TarError, EOFError, OSError):
        return None


# --- Parquet ----------------------------------------------------------------------------------------------------------------


def parquet_records(
    path: Path, *, column: str = "", wanted: Iterable[str] = (), required: Iterable[str] = ()
) -> Iterator[Record]:
    """The rows of a Parquet file whose pictures are a struct of ``bytes`` and ``path``, or the file's bytes.

    Args:
        path: the file.
        column: of the pictures; empty: one that the file's metadata call an image or that is called ``image``, else the first
            of bytes.
        wanted: other columns to read, those of them that there are. required: those that there must be.

    Raises:
        InputError: not a readable Parquet file, or no such column.
    """
    with _parquet(path) as file:
        image = _image_column(file.schema_arrow, path, column)
        there = set(file.schema_arrow.names)
        if absent := [name for name in required if name not in there]:
            raise InputError(f"has no column {absent[0]!r}", where=str(path), fix=f"It has: {', '.join(sorted(there))}")
        others = [name for name in dict.fromkeys(wanted) if name in there and name != image]
        number = 0
        for batch in file.iter_batches(ROWS, columns=[image, *others]):
            for row in batch.to_pylist():
                stored = row.pop(image)
                named = stored.get("path") if isinstance(stored, dict) else None
                content = (stored.get("bytes") if isinstance(stored, dict) else stored) or b""
                name = str(named or f"{path.stem}-{number:06d}")
                yield Record(
                    name=name,
                    place=f"{path}: row {number}",
                    content=content,
                    fields=row,
                    problem="" if content else f"names the file {named} and does not hold it" if named else "holds no picture",
                )
                number += 1


class _parquet:  # noqa: N801 - a context manager, used like a function
    """Opens a Parquet file; what Arrow raises, here or inside the block, becomes one sentence."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        import pyarrow as pa

        try:
            self._file = parquet_file(self.path, mapped=True)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None
        return self._file

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        import pyarrow as pa

        self._file.close()
        if isinstance(error, (pa.ArrowException, OSError, UnicodeDecodeError)):
            raise self._unreadable(error) from None

    def _unreadable(self, error: BaseException) -> InputError:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        return InputError(f"not a readable Parquet file ({first})", where=str(self.path), fix="Fetch or write it again")


def _image_column(schema: Any, path: Path, column: str) -> str:
    import pyarrow as pa

    def holds(kind: Any) -> bool:
        kind = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    fits = [field.name for field in schema if holds(field.type)]
    if column:
        if column in fits:
            return column
        there = ", ".join(schema.names)
        what = f"the column {column!r} holds no pictures" if column in schema.names else f"has no column {column!r}"
        raise InputError(what, where=str(path), fix=f"Name one that holds a picture file's bytes; columns are: {there}")
    declared = _declared(schema)
    named = [name for name in fits if name in declared or name == "image"]
    if not (named or fits):
        fix = "Name one 'image' and store struct<bytes, path> or the file's bytes in it"
        raise InputError("no column holds pictures", where=str(path), fix=fix)
    return str((named or fits)[0])


def _declared(schema: Any) -> set[str]:
    """Columns that the file's metadata call images, as Hugging Face's datasets writes them."""
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = noted["info"]["features"]
        return {name for name, feature in features.items() if feature.get("_type") == "Image"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()


# --- tar --------------------------------------------------------------------------------------------------------------------


def tar_records(path: Path) -> Iterator[Record]:
    """The samples of a WebDataset tar, front to back: members of the same name but for their ending are one sample.

    Every picture of a sample is a record; the first has the sample's name. A sample of text and JSON alone is about the whole.

    Raises:
        InputError: not a readable tar file; a sample without picture; no pictures at all.
    """
    number = 0
    try:
        with tarfile.open(path, "r|*", tarinfo=_Header) as file:
            for key, members in itertools.groupby(_members(file), key=lambda member: member[0]):
                sample = [(ending, data, problem) for _, ending, data, problem in members]
                for record in _sample(path, key, sample):
                    yield record
                    number += 1
    except (tarfile.TarError, EOFError, OSError) as error:
        what = f"not a readable tar file, after {number} pictures ({error})"
        raise InputError(what, where=str(path), fix="Fetch or write it again") from None
    if not number:
        raise InputError("holds no pictures", where=str(path), fix="Name a tar with pictures in it")


def _sample(path: Path, key: str, sample: list[tuple[str, bytes, str]]) -> Iterator[Record]:
    place = f"{path}: {key}"
    pictures = [(ending, data, problem) for ending, data, problem in sample if _is_picture(ending, data, problem)]
    kinds = {PurePosixPath(ending).suffix or ending for ending, _, _ in sample}
    if not pictures:
        if kinds <= {".txt", ".json"}:  # a file about the whole
            return
        what = f"no picture among {', '.join(sorted(kinds))}"
        raise InputError(what, where=place, fix="Write it again with a picture in it, PNG or JPEG for example")
    fields, unreadable = _fields(sample)
    for count, (ending, data, problem) in enumerate(pictures):
        name = key if not count else f"{key}{ending}"
        problem = problem or unreadable
        yield Record(
            name=name,
            place=f"{path}: {name}",
            content=b"" if problem else data,
            fields=fields,
            problem=problem,
            further=count > 0,
        )


def _is_picture(ending: str, data: bytes, problem: str) -> bool:
    if problem:
        return True
    try:
        return why_no_picture(data, f"x{ending}") is None
    except UnreadablePicture:
        return True  # it should be one


def _fields(sample: list[tuple[str, bytes, str]]) -> tuple[dict[str, Any], str]:
    """The fields of a sample's text files and JSON, and why they cannot be read."""
    fields: dict[str, Any] = {}
    for ending, data, _ in sample:
        last = PurePosixPath(ending).suffix or ending
        if last == ".json" and len(data) > TEXT:
            return fields, f"its .json is larger than {TEXT >> 20} MiB"
        if last in endings() or len(data) > TEXT:
            continue
        try:
            text = data.decode("utf-8-sig")
            if last == ".json":
                stored = json.loads(text, object_pairs_hook=once)
                fields |= stored if isinstance(stored, dict) else {}
            elif last in (".txt", ".caption", ".text"):
                fields[last[1:]] = text.strip()
        except (ValueError, RecursionError) as error:
            return fields, f"its {last} cannot be read ({error})"
    return fields, ""


def _members(file: tarfile.TarFile) -> Iterator[tuple[str, str, bytes, str]]:
    """Key, ending, content and problem of every file."""
    for member in _to_the_end(file):
        stream = file.extractfile(member) if member.isfile() else None
        if stream is not None:
            key, ending = _key(member.name)
            large = member.size > LARGEST
            yield key, ending, b"" if large else stream.read(), f"is larger than {LARGEST >> 20} MiB" if large else ""


class _Header(tarfile.TarInfo):
    """A member whose header is damaged or cut is an error. Python's reader takes it for the end of the file and says nothing:
    whatever stands behind it would not be protected."""

    @classmethod
    def fromtarfile(cls, file: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(file)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the mark of the end
            raise
        except tarfile.HeaderError as error:
            if file.offset == 0:  # no tar at all, which Python says itself
                raise
            raise tarfile.ReadError(f"a header is damaged or cut: {error}") from None


def _to_the_end(file: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Every member, and nothing but zeros behind the mark of the end: two tars in one file are read as the first alone."""
    yield from file
    while behind := file.fileobj.read(1 << 16):
        if behind.strip(b"\0"):
            raise tarfile.ReadError("something stands behind its end: another tar, perhaps")


def _key(name: str) -> tuple[str, str]:
    """A sample's key ends at the first dot of its file's name; the rest is the ending, in lower case."""
    path = PurePosixPath(name)
    stem = path.name.split(".")[0] or path.name
    return str(path.with_name(stem)), path.name[len(stem) :].lower()
