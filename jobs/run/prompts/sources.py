"""Which files the run file's ``prompts`` names: files, folders and patterns become one list, in an order that stays.

The order decides row numbers, and the keys of rows that have none. It is that of the names in the run file. Inside a folder or
a pattern it is that of the paths, numbers in them counted as numbers: ``part-10`` comes after ``part-9``. A file that is added
at the end moves no row of those before it.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath

from index.errors import InputError
from index.places.cache import local_copy
from index.storage import entries, is_folder, is_remote, is_uri, place
from index.walk import files_below
from jobs.run.prompts.files import READERS
from pipeline.notes import Note

PATTERN = re.compile(r"[*?\[]")
SHOWN = 3  # names of files that a note repeats
KINDS = ", ".join(READERS)


@dataclass(frozen=True)
class Source:
    """A prompt file.

    Attributes:
        path: on this machine.
        label: what messages about its rows begin with; nothing where the run file names this one file.
        origin: where the file was fetched from, and what messages call it; None: it was always here.
    """

    path: Path
    label: str = ""
    origin: Path | None = None


def sources_of(names: Sequence[str], base: Path, notes: list[Note]) -> list[Source]:
    """The prompt files that a run file names; those on object stores are fetched, each by itself.

    Args:
        names: files, folders, or patterns such as ``data/*.parquet`` and ``data/**/*.csv``; local ones, or by URI.
        base: folder that relative names start from.
        notes: receives the files in folders and patterns that are no prompt files.

    Raises:
        InputError: a folder or a pattern holds no prompt file, or a file is named twice.
    """
    roots = [(name, place(name) if is_uri(name) else base / name) for name in names]
    if len(roots) == 1 and not _is_many(roots[0][1]):
        return [_source(roots[0][1], "")]
    found: dict[Path, str] = {}
    named_by: dict[Path, str] = {}
    for name, root in roots:
        for path in _files(root, name, notes) if _is_many(root) else [root]:
            real = path.resolve()
            if real in named_by:
                fix = "Name every prompt file once"
                raise InputError(f"is named twice, by {named_by[real]!r} and {name!r}", where=str(path), fix=fix)
            named_by[real], found[path] = name, _label(path, base)
    return [_source(path, label) for path, label in found.items()]


def _source(path: Path, label: str) -> Source:
    return Source(local_copy(path), label, path) if is_remote(path) else Source(path, label)


def _label(path: Path, base: Path) -> str:
    if is_remote(path):
        return str(path).partition("://")[2].partition("/")[2]
    return (path.relative_to(base) if path.is_relative_to(base) else Path(path.name)).as_posix()


def _is_many(root: Path) -> bool:
    """Whether a name stands for several files. A file whose own name has such signs in it is one file."""
    if is_remote(root):
        return not root.is_file() and (PATTERN.search(str(root)) is not None or is_folder(root))
    try:
        return root.is_dir() or (not root.exists() and PATTERN.search(str(root)) is not None)
    except OSError:  # a name that is too long; reading it says so
        return False


def _files(root: Path, name: str, notes: list[Note]) -> list[Path]:
    what = "pattern" if PATTERN.search(str(root)) and not is_folder(root) else "folder"
    if is_remote(root):
        there, inside = _remote(root)
    elif what == "folder":
        there = list(files_below(root))
        inside = [path.relative_to(root) for path in there]
    else:
        there = [path for text in glob.iglob(str(root), recursive=True) if not (path := Path(text)).is_dir()]
        inside = [PurePosixPath(path.name) for path in there]
    # Programs that write folders of Parquet put marks of their own beside the data: _SUCCESS, .part-0.crc.
    visible = [p for p, parts in zip(there, inside, strict=True) if not any(part[:1] in "._" for part in parts.parts)]
    prompts = [path for path in visible if path.suffix.lower() in READERS]
    if not prompts:
        first = f"; the first is {visible[0].name}" if visible else ""
        fix = f"Put prompt files there ({KINDS}), or name another place"
        raise InputError(f"no prompt file in this {what} ({len(visible)} other files{first})", where=str(root), fix=fix)
    read = set(prompts)
    other = in_order(path for path in visible if path not in read)
    if other:
        more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
        named = ", ".join(path.name for path in other[:SHOWN])
        notes.append(Note("prompts", f"{name}: left out, because they are no prompt files: {named}{more}"))
    return in_order(prompts)


def _remote(root: Path) -> tuple[list[Path], list[PurePath]]:
    """The files of a folder or pattern on an object store, and their paths in the folder that is searched."""
    steps = list(root.parts)  # the first is scheme and bucket
    begins = next((number for number, step in enumerate(steps) if number and PATTERN.search(step)), len(steps))
    folder = place("/".join(steps[:begins]))
    below = [PurePosixPath(path) for path in _below(folder)]
    inside = [path for path in below if begins == len(steps) or _matches(path.parts, steps[begins:])]
    return [folder / path.as_posix() for path in inside], list(inside)


def _below(folder: Path, name: str = "") -> Iterator[str]:
    for entry in entries(folder, name):
        path = f"{name}/{entry.name}" if name else entry.name
        if entry.kind == "folder":
            yield from _below(folder, path)
        else:
            yield path


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern, step by step; ``**`` stands for any number of folders."""
    if not pattern or not parts:
        return not parts and all(step == "**" for step in pattern)
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Paths in the order of their names, numbers counted as numbers."""

    def pieces(path: Path) -> list[tuple[int, int, str]]:
        split = re.split(r"(\d+)", path.as_posix())
        return [(0, int(piece), "") if piece.isdecimal() and piece.isascii() else (1, 0, piece) for piece in split]

    return sorted(paths, key=lambda path: (pieces(path), path.as_posix()))
