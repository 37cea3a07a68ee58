"""List every file below a folder, those behind linked folders included."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from index.errors import InputError


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in the order of names; linked folders come after the others.

    Each real folder is entered once, so circles of links end, and a folder that is reached in two ways counts under its own
    name. What is neither file nor folder (a pipe, a link to nothing) is among the files.

    Raises:
        InputError: a folder cannot be listed.
    """
    entered: set[tuple[int, int]] = set()
    linked = deque([folder])
    while linked:
        waiting = [linked.popleft()]
        while waiting:
            current = waiting.pop()
            try:
                found = current.stat()
                if (found.st_dev, found.st_ino) in entered:
                    continue
                entered.add((found.st_dev, found.st_ino))
                with os.scandir(current) as entries:
                    listed = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                fix = "Make it readable, or move it away"
                raise InputError(f"cannot be listed ({error.strerror or error})", where=shown(current), fix=fix) from None
            folders = []
            for entry in listed:
                path = current / entry.name
                if not _is_folder(entry):
                    yield path
                elif entry.is_symlink():
                    linked.append(path)
                else:
                    folders.append(path)
            waiting += reversed(folders)


def shown(path: Path | str) -> str:
    """A path as text that can be printed and stored, whatever bytes its name has; with forward slashes."""
    return os.fsencode(path).decode("utf-8", errors="replace").replace(os.sep, "/")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle of itself
        return False
