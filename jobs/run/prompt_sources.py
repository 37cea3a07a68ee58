"""Which files the run file's ``prompts`` names: files, folders and patterns become one list, in an order that stays.

The order decides row numbers, and the keys of rows that have none. It is that of the names in the run file. Inside a folder or
a pattern it is that of the paths, numbers in them counted as numbers: ``part-10`` comes after ``part-9``. A file that is added
at the end moves no row of those before it.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from index.errors import InputError
from index.places.cache import local_copy
from index.storage import is_uri, place
from index.walk import files_below
from jobs.run.prompt_files import READERS
from pipeline.notes import Note

PATTERN = re.compile(r"[*?\[]")
SHOWN = 3  # names of files that a note repeats
KINDS = ", ".join(READERS)


@dataclass(frozen=True)
class Source:
    """A prompt file, and what messages about its rows begin with; nothing where the run file names this one file."""

    path: Path
    label: str = ""


def sources_of(names: Sequence[str], base: Path, notes: list[Note]) -> list[Source]:
    """The prompt files that a run file names.

    Args:
        names: files, folders, or patterns such as ``data/*.parquet`` and ``data/**/*.csv``; files and folders by URI.
        base: folder that relative names start from.
        notes: receives the files in folders and patterns that are no prompt files.

    Raises:
        InputError: a folder or a pattern holds no prompt file, or a file is named twice.
    """
    if any(is_uri(name) for name in names):
        names = [str(local_copy(place(name))) if is_uri(name) else name for name in names]
    if len(names) == 1 and not _is_many(base / names[0]):
        return [Source(base / names[0])]
    found: dict[Path, Source] = {}
    named_by: dict[Path, str] = {}
    for name in names:
        for path in _files(base / name, name, notes) if _is_many(base / name) else [base / name]:
            real = path.resolve()
            if real in found:
                fix = "Name every prompt file once"
                raise InputError(f"is named twice, by {named_by[real]!r} and {name!r}", where=str(path), fix=fix)
            label = path.relative_to(base) if path.is_relative_to(base) else Path(path.name)
            found[real], named_by[real] = Source(path, label.as_posix()), name
    return list(found.values())


def _is_many(place: Path) -> bool:
    """Whether a name stands for several files. A file whose own name has such signs in it is one file."""
    try:
        return place.is_dir() or (not place.exists() and PATTERN.search(str(place)) is not None)
    except OSError:  # a name that is too long; reading it says so
        return False


def _files(place: Path, name: str, notes: list[Note]) -> list[Path]:
    if place.is_dir():
        what, there = "folder", list(files_below(place))
        inside = [path.relative_to(place) for path in there]
    else:
        what, there = "pattern", [Path(path) for path in glob.iglob(str(place), recursive=True)]
        there = [path for path in there if not path.is_dir()]
        inside = [Path(path.name) for path in there]
    # Programs that write folders of Parquet put marks of their own beside the data: _SUCCESS, .part-0.crc.
    visible = [p for p, parts in zip(there, inside, strict=True) if not any(part[:1] in "._" for part in parts.parts)]
    prompts = [path for path in visible if path.suffix.lower() in READERS]
    if not prompts:
        first = f"; the first is {visible[0].name}" if visible else ""
        fix = f"Put prompt files there ({KINDS}), or name another place"
        raise InputError(f"no prompt file in this {what} ({len(visible)} other files{first})", where=str(place), fix=fix)
    other = in_order(path for path in visible if path not in set(prompts))
    if other:
        more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
        named = ", ".join(path.name for path in other[:SHOWN])
        notes.append(Note("prompts", f"{name}: left out, because they are no prompt files: {named}{more}"))
    return in_order(prompts)


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Paths in the order of their names, numbers counted as numbers."""

    def pieces(path: Path) -> list[tuple[int, int, str]]:
        split = re.split(r"(\d+)", path.as_posix())
        return [(0, int(piece), "") if piece.isdecimal() and piece.isascii() else (1, 0, piece) for piece in split]

    return sorted(paths, key=lambda path: (pieces(path), path.as_posix()))
