"""Read the works that are to become references, with their metadata: from a folder, a file, Parquet or tar files."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import InputError
from index.picture import UnreadablePicture, read_frames, read_picture, why_no_picture
from index.records import Record, count_records, holds_records, records_in
from index.reference import COLUMNS, NewReference, require_terms
from index.sheet import KNOWN, SHEET, Row, read_sheet
from index.walk import files_below, shown

__all__ = ["KEEPING", "Reading", "Seen", "Works", "read_picture", "read_references"]

KEEPING = ("licensed", "memorisation_probe", "own_mark")  # bases that allow a copy of the picture to be kept
NAMED = 20  # names in one message
NOTHING: Mapping[str, Any] = {}  # what the sheet has about a file that it does not list
GONE = ("it does not exist", "a link to nothing")  # in the reasons of files that no program can save again
FREE = 2  # spread of values up to which a picture shows one colour only


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How works are read.

    Attributes:
        rights_basis: of works that state none.
        keep_pictures: whether the pictures of works that state nothing are kept; None: if their basis allows a copy.
        columns: our column → the source's, where they differ; for sheets, Parquet and the JSON of tar files.
        picture_column: of Parquet files; empty: found by its name and kind.
        leave_out: continue without pictures that cannot be read, instead of refusing the source.
        option: of the caller's command that would leave them out, for the refusal; empty: it has none.
    """

    rights_basis: str = "claim"
    keep_pictures: bool | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    picture_column: str = ""
    leave_out: bool = False
    option: str = ""

    def __post_init__(self) -> None:
        require_terms(self.rights_basis, "active", where="rights basis of works that state none")
        if unknown := sorted(set(self.columns) - set(KNOWN)):
            raise InputError(f"there is no column {unknown[0]!r}", where="columns", fix=f"One of: {', '.join(KNOWN)}")


@dataclass(kw_only=True)
class Seen:
    """The result of reading a source. Every picture becomes a work or is left out.

    Attributes:
        pictures: files, rows and samples that are pictures, those left out included.
        frames: further frames and pages that became works of their own.
        left_out: pictures that cannot be read: (name, reason).
        others: files that are no pictures: (name, what they are).
        unlisted: pictures that the sheet does not list; they are claims.
        one_colour: pictures of a single colour, which are probably damaged.
    """

    pictures: int = 0
    frames: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    others: list[tuple[str, str]] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    one_colour: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Found:
    """A picture file, and its row of the sheet; a path as text, because a folder may hold a million."""

    path: str
    name: str
    fields: Mapping[str, Any]
    where: str


class Works:
    """The works of a source, read one by one; :attr:`seen` lists afterwards what became of every file.

    A folder is searched with all folders below it, linked ones too. What is a picture is decided by the content of a file. With
    a ``metadata.csv`` in the folder its lines come first; pictures that it does not list are claims. Parquet and tar files in
    the folder are read as well.

    Args:
        path: a folder, a picture, a Parquet file, or a tar of WebDataset.
        how: see :class:`Reading`.

    Attributes:
        total: how many pictures there are; None where that is known only at the end.

    Raises:
        InputError: nothing there, a sheet or a file of many pictures that cannot be used. While it is gone through: an
            unreadable picture (all of them are named, at the end), an unknown value.
    """

    def __init__(self, path: Path, how: Reading | None = None) -> None:
        self.path, self.how, self.seen = Path(path), how or Reading(), Seen()
        self._found: list[_Found] = []
        self._stored: list[tuple[Path, str]] = []
        if self.path.is_dir():
            self._look_through()
        elif os.path.lexists(self.path):
            self._look_at(self.path, self.path.name)
        else:
            raise InputError("does not exist", where=shown(path), fix="Name a folder of pictures")
        counts = [count_records(*stored) for stored in self._stored]
        known = sum(count or 0 for count in counts) + len(self._found)
        self.total = None if None in counts else known
        if not self._found and not self._stored and not self.seen.left_out:
            what = "holds no pictures" + (f", only {listed(self.seen.others)}" if self.seen.others else "")
            raise InputError(what, where=shown(path), fix="Put pictures there (PNG, JPEG, WebP, TIFF, AVIF …)")

    def __iter__(self) -> Iterator[NewReference]:
        self.seen.pictures = len(self.seen.left_out)
        if self.seen.left_out and not self.how.leave_out:
            for _ in self._works():  # find all that is wrong, not only what the beginnings of files show
                pass
            raise self._refusal()
        some = False
        for work in self._works():
            some = True
            yield work
        if self.seen.left_out and not (some and self.how.leave_out):
            raise self._refusal()
        if not some:  # Parquet or tars without a row: the index would protect nothing
            raise InputError("holds no pictures", where=shown(self.path), fix="Put pictures there, a row or sample for each")

    # --- finding --------------------------------------------------------------------------------------------------

    def _look_through(self) -> None:
        sheet = self.path / SHEET
        rows = read_sheet(sheet, self.how.columns) if os.path.lexists(sheet) else []
        listed_files, unlisted = set(), os.path.lexists(sheet)
        for row in rows:
            path = self._of_row(row)
            where = f"{shown(sheet)}, line {row.line}"
            self._check(row.fields, where)
            again = os.path.realpath(path) in listed_files
            listed_files.add(os.path.realpath(path))
            name = f"{row.file} (line {row.line})" if again else row.file
            self._look_at(path, name, row.fields, where, listed=True)
        for path in files_below(self.path):
            name = shown(path.relative_to(self.path))
            if name != SHEET and not (listed_files and os.path.realpath(path) in listed_files):
                self._look_at(path, name, unlisted=unlisted)

    def _of_row(self, row: Row) -> Path:
        """The file that a line names, however its accents are composed and whichever slashes it has."""
        path = self.path / row.file
        if os.path.lexists(path):
            return path
        wanted = unicodedata.normalize("NFC", row.file.replace("\\", "/"))
        return self._composed.get(wanted, path)

    @cached_property
    def _composed(self) -> dict[str, Path]:
        """Every file of the folder by its name with composed accents, the first of several."""
        found: dict[str, Path] = {}
        for path in files_below(self.path):
            found.setdefault(unicodedata.normalize("NFC", shown(path.relative_to(self.path))), path)
        return found

    def _look_at(
        self, path: Path, name: str, fields: Mapping[str, Any] | None = None, where: str = "", *, listed: bool = False,
        unlisted: bool = False,
    ) -> None:  # fmt: skip
        """Sort a file: a picture, a file of many pictures, something else, or one that cannot be read."""
        name = shown(name)
        kind = None if listed else holds_records(path)
        if kind is not None:
            self._stored.append((path, kind))
            return
        try:
            other = why_no_picture(path)
        except UnreadablePicture as error:
            near = self._near(path, listed)
            self.seen.left_out.append((name, f"{error.what.removesuffix(')')}{near})" if near else error.what))
            return
        if other is not None and listed:
            self.seen.left_out.append((name, f"cannot be read ({other})"))
        elif other is not None:
            sheet = Path(name).stem.lower() == Path(SHEET).stem
            self.seen.others.append((name, f"not read: a sheet is {SHEET}, in the folder itself" if sheet else other))
        else:
            self._found.append(_Found(str(path), name, fields or NOTHING, where or name))
            if unlisted:
                self.seen.unlisted.append(name)

    def _near(self, path: Path, listed: bool) -> str:
        if not listed or os.path.lexists(path) or not path.parent.is_dir():
            return ""
        names = {shown(p.name).lower(): shown(p.name) for p in path.parent.iterdir()}
        near = get_close_matches(path.name.lower(), names, n=1)
        return f"; did you mean {names[near[0]]}?" if near else ""

    # --- reading --------------------------------------------------------------------------------------------------

    def _works(self) -> Iterator[NewReference]:
        for found in self._found:
            yield from self._work(Path(found.path), found.name, Path(found.name).stem, found.fields, found.where)
        theirs = [self.how.columns.get(name, name) for name in KNOWN]
        required = [] if os.path.lexists(self.path / SHEET) else [*self.how.columns.values()]  # else they are the sheet's
        for path, kind in self._stored:
            name = shown(path.relative_to(self.path)) if self.path.is_dir() else shown(path.name)
            there, some = set[str](), False
            for record in records_in(path, kind, column=self.how.picture_column, wanted=theirs, required=required):
                there.update(record.fields)
                some |= not record.problem
                yield from self._recorded(record, f"{name}{record.place.removeprefix(str(path))}")
            if some and (never := sorted(set(required) - there)):  # of a tar it is known at its end
                fix = f"Correct --column; they have: {', '.join(sorted(there)) or 'nothing but pictures'}"
                raise InputError(f"no sample has {never[0]!r}", where=shown(path), fix=fix)

    def _recorded(self, record: Record, name: str) -> Iterator[NewReference]:
        if record.problem:
            self.seen.pictures += 1
            self.seen.left_out.append((name, record.problem))
            return
        values = {ours: record.fields.get(self.how.columns.get(ours, ours)) for ours in KNOWN}
        fields = {ours: _plain(value) for ours, value in values.items() if _plain(value)}
        self._check(fields, shown(record.place))
        title = Path(shown(record.name)).stem if "/" not in record.name else shown(record.name)
        yield from self._work(record.content, name, title, fields, shown(record.place))

    def _work(
        self, source: Path | bytes, name: str, title: str, fields: Mapping[str, Any], where: str
    ) -> Iterator[NewReference]:
        basis = fields.get("rights_basis") or self.how.rights_basis
        otherwise = basis in KEEPING if self.how.keep_pictures is None else self.how.keep_pictures
        keep = _yes(fields.get("keep_picture", ""), otherwise, where=where)
        stated = {column: fields[column] for column in COLUMNS if fields.get(column)}
        stated = {"title": title, **stated, "rights_basis": basis}
        self.seen.pictures += 1
        count = 0
        try:
            for number, picture in read_frames(source, where=name):
                if _spread(picture[::16, ::16]) <= FREE and _spread(picture) <= FREE:
                    self.seen.one_colour.append(name)
                mark = f" (frame {number})" if count else ""
                work = {**stated, "title": stated["title"] + mark}
                yield NewReference(picture=picture, keep_picture=keep, origin=name + mark, **work)
                count += 1
        except UnreadablePicture as error:
            self.seen.left_out.append((name, error.what))
        self.seen.frames += max(0, count - 1)

    def _check(self, fields: Mapping[str, Any], where: str) -> None:
        require_terms(fields.get("rights_basis") or "claim", fields.get("status") or "active", where=where)
        _yes(fields.get("keep_picture", ""), True, where=where)

    def _refusal(self) -> InputError:
        names = listed(self.seen.left_out)
        left, seen = len(self.seen.left_out), self.seen.pictures
        gone = sum(any(word in reason for word in GONE) for _, reason in self.seen.left_out)
        denied = sum("Permission denied" in reason for _, reason in self.seen.left_out)
        ways = ["Save them again as PNG or JPEG"] if gone + denied < left else []
        ways += ["Give this user the right to read them"] if denied else []
        ways += [f"Restore what does not exist, or correct its name in {SHEET}"] if gone else []
        fix = ". ".join(ways or ["Remove them"])
        fix += f"; or leave them out ({self.how.option}), and they are not protected" if self.how.option else ""
        return InputError(f"{left} of {seen} pictures cannot be read: {names}", where=shown(self.path), fix=fix)


def read_references(path: Path) -> list[NewReference]:
    """The works of a source, all at once; see :class:`Works`.

    Raises:
        InputError: nothing there, an unreadable picture (all of them are named), an unknown column or value.
    """
    return list(Works(path))


def listed(named: Iterable[tuple[str, str]], most: int = NAMED) -> str:
    """Names with their reasons, for one message: "a.png (no picture), b.txt (empty) and 3 more"."""
    pairs = [f"{name} ({reason.removeprefix('cannot be read (').removesuffix(')')})" for name, reason in named]
    more = f" and {len(pairs) - most} more" if len(pairs) > most else ""
    return ", ".join(pairs[:most]) + more


def _spread(picture: np.ndarray) -> int:
    """The largest difference between two values of one channel."""
    return int(np.ptp(picture.reshape(-1, 3), axis=0).max())


def _plain(value: Any) -> str:
    """A value of a row as text; empty for a missing value."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return ("yes" if value else "no") if isinstance(value, bool) else str(value).strip()


def _yes(word: str, otherwise: bool, *, where: str) -> bool:
    if not word:
        return otherwise
    if word.lower() in ("yes", "true", "1", "no", "false", "0"):
        return word.lower() in ("yes", "true", "1")
    raise InputError(f"keep_picture is {word!r}", where=where, fix="Write yes or no")
