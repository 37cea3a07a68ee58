"""What a folder that is no index probably is: the works themselves, one that an index lies in, a build that was stopped."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from index.errors import InputError
from index.records import TARS
from index.walk import files_below

LOOKED_AT = 200  # files: enough to see a picture among some notes, without walking through a whole disk
CURRENT = "CURRENT"
BUILD = "clearance index build {} --out FOLDER"


def not_an_index(folder: Path) -> InputError:
    """The refusal of a folder or file that is named as an index and is none, with what was likely meant."""
    what, fix = "is not a reference index", f"Build one: {BUILD.format('REFERENCES')}"
    if not folder.is_dir():
        what += ": it is a file" if folder.exists() else ": it is not there"
    elif inside := [name for name in _names(folder) if (folder / name / CURRENT).is_file()]:
        what += f"; one lies in it: {inside[0]}"
        fix = f"Name {folder / inside[0]}"
    elif (folder / "building").is_dir():
        what += " yet: its build has not ended"
        fix = "Repeat the command that builds it; what it has embedded is kept"
    elif _names(folder / "snapshots"):
        what += ": it has the parts of one, and no file CURRENT that names those in force"
        fix = "If a build was stopped, repeat its command; if the file is lost, restore it from a copy"
    elif kind := next(_works(folder), ""):
        what += f"; it holds {kind}, as works do that an index is built of"
        fix = f"Build the index of them first: {BUILD.format(folder)}"
    return InputError(what, where=str(folder), fix=fix)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _works(folder: Path) -> Iterator[str]:
    """What kinds of works lie in a folder, by the names of its first files."""
    try:
        for path in islice(files_below(folder), LOOKED_AT):
            if (mimetypes.guess_type(path.name)[0] or "").startswith("image/"):
                yield "pictures"
            elif path.name.lower().endswith(TARS):
                yield "tars"
    except InputError:
        return  # a folder in it that cannot be listed
