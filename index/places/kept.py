"""Copies in the cache of this machine: which of them are in use, and which go when they are too many.

A process holds a shared lock (``flock``) on every copy that it opens, until it ends in whatever way. What is locked is never
removed: neither by another run that needs the room nor by ``clearance cache clear``. Where a file system has no such locks,
what is in use cannot be known, and nothing is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from index.errors import InputError
from index.places.backend import TEMPORARY

SIZES = ".sizes.json"  # in a copy: path → bytes of a file, or null of a link to another copy
LIMIT, LIMIT_GIB = "CLEARANCE_CACHE_GIB", 100.0  # the bound on all copies, in GiB; 0: none
NAMED = 5  # copies in one message
_held: dict[Path, int] = {}  # the copies that this process has opened, and the descriptors with their locks
_holding = threading.Lock()
_listener: list[Callable[[str], None]] = []


def cache_folder() -> Path:
    """The folder of this user's copies and notes: ``CLEARANCE_CACHE``, or the usual place for caches."""
    named = os.environ.get("CLEARANCE_CACHE", "")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clearance"


def most_bytes() -> float:
    """How many bytes all copies may take together.

    Raises:
        InputError: ``CLEARANCE_CACHE_GIB`` is no number of GiB.
    """
    text = os.environ.get(LIMIT, "").strip()
    try:
        found = float(text) if text else LIMIT_GIB
    except ValueError:
        found = -1.0
    if not (math.isfinite(found) and found >= 0):
        raise InputError(f"is {text!r}", where=LIMIT, fix="Set it to a number of GiB, or to 0 for no bound")
    return found * 2**30 if found else math.inf


def listen(to: Callable[[str], None]) -> None:
    """Say what is removed on the way here, in place of the log of Python."""
    _listener[:] = [to]


# --- copies in use ----------------------------------------------------------------------------------------------------------


def is_whole(folder: Path) -> bool:
    """Whether every file of a copy is there with its size, and every copy that it links to is whole."""
    try:
        return all(
            is_whole((folder / name).resolve()) if size is None else (folder / name).stat().st_size == size
            for name, size in _noted(folder).items()
        )
    except (OSError, ValueError, AttributeError):
        return False


def hold(folder: Path) -> bool:
    """Keep a copy, and those that it links to, until this process ends; False: not all of it is there."""
    if not is_whole(folder):
        return False
    try:
        links = [(folder / name).resolve() for name, size in _noted(folder).items() if size is None]
    except (OSError, ValueError, AttributeError):
        return False
    # Locks are taken one by one: what was removed before its lock was there is seen now.
    return all([_lock(one) for one in (folder, *links)]) and is_whole(folder)


def _lock(folder: Path) -> bool:
    with _holding:
        try:
            handle = os.open(folder / SIZES, os.O_RDONLY)  # not the folder: whoever changes an index locks that
        except OSError:
            return False
        known = _held.get(folder)
        if known is not None and os.path.sameopenfile(known, handle):
            os.close(handle)
            handle = known
        else:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_SH)  # waits while another process takes it away
            if not _is(folder, handle):
                os.close(handle)
                return False
            if known is not None:
                os.close(known)
            _held[folder] = handle
        with contextlib.suppress(OSError):
            os.utime(folder)  # used now
        return True


def _is(folder: Path, handle: int) -> bool:
    """Whether a copy still has its name."""
    try:
        return os.path.samestat(os.stat(folder / SIZES), os.fstat(handle))
    except OSError:
        return False


def _noted(folder: Path) -> dict[str, int | None]:
    found: dict[str, int | None] = json.loads((folder / SIZES).read_text(encoding="utf-8"))
    return found


# --- what the cache holds ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Copy:
    """One copy in the cache.

    Attributes:
        path: its folder.
        name: what people know it by: the file or folder that was fetched.
        what: "copy" of a file or folder, "segment" or "view" of an index, or "build" of one that is not on its store yet.
        bytes: of its files, without those of copies that it links to.
        used: when a process opened it last, seconds.
    """

    path: Path
    name: str
    what: str
    bytes: int
    used: float


def copies() -> list[Copy]:
    """Every copy in the cache, the one that was not used for longest first; builds that are not done included."""
    root, found = cache_folder(), []
    patterns = {"copies/*": "copy", "segments/*": "segment", "indexes/*/*": "view"}
    for pattern, what in patterns.items():
        for path in root.glob(pattern):
            with contextlib.suppress(OSError):
                if path.is_symlink() or not path.is_dir() or path.name.startswith(TEMPORARY):
                    continue
                kind = "build" if what == "view" and path.name == "new" else what
                if kind != "view" or re.fullmatch("[0-9a-f]{64}", path.name):
                    used = path.stat().st_mtime
                    found.append(Copy(path=path, name=_name(path, kind), what=kind, bytes=_bytes(path), used=used))
    return sorted(found, key=lambda copy: copy.used)


def _name(folder: Path, what: str) -> str:
    inside = [entry.name for entry in folder.iterdir() if entry.name != SIZES] if what == "copy" else []
    return inside[0] if inside else f"{what} {(folder.parent if what == 'build' else folder).name[:12]}"


def _bytes(folder: Path) -> int:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return sum(size or 0 for size in _noted(folder).values())
    sizes = (os.path.join(at, name) for at, _, files in os.walk(folder) for name in files)
    return sum(os.path.getsize(path) for path in sizes if os.path.exists(path))


# --- what goes --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Trimmed:
    """What was removed, what stays because a process uses it, and the bytes of all copies that are left."""

    removed: tuple[Copy, ...]
    in_use: tuple[Copy, ...]
    left: int


def trim(most: float, *, builds: bool = False) -> Trimmed:
    """Remove copies until no more than ``most`` bytes are left, those that were not used for longest first.

    Args:
        most: bytes that may stay. Copies in use stay whatever they take.
        builds: also indexes that are being built for an object store and that nobody works on; what they embedded is lost.
    """
    found = [copy for copy in copies() if builds or copy.what != "build"]
    left, removed, in_use = sum(copy.bytes for copy in found), [], []
    for copy in found:
        if left <= most and most > 0:
            break
        if remove(copy.path):
            removed.append(copy)
            left -= copy.bytes
        else:
            in_use.append(copy)
    return Trimmed(removed=tuple(removed), in_use=tuple(in_use), left=left)


def remove(folder: Path) -> bool:
    """Remove a copy, unless a process uses or changes it, or that cannot be known."""
    with contextlib.ExitStack() as locks:
        try:
            for path in (folder, folder / SIZES):
                if path == folder or path.exists():  # a build has no note of its sizes yet
                    handle = os.open(path, os.O_RDONLY)
                    locks.callback(os.close, handle)
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            gone = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent))
            folder.rename(gone)  # at once: nobody sees half of it
        except OSError:
            return False
    shutil.rmtree(gone, ignore_errors=True)
    return True


def keep_to_bound() -> None:
    """Remove what is over the bound, and say so; called when a copy was added."""
    most = most_bytes()
    if math.isinf(most):
        return
    done, now = trim(most), time.time()
    if done.removed:
        names = [f"{copy.name} (last used {max(0.0, now - copy.used) / 86_400:.0f} days ago)" for copy in done.removed[:NAMED]]
        more = f" and {len(done.removed) - NAMED} more" if len(done.removed) > NAMED else ""
        freed = sum(copy.bytes for copy in done.removed) / 2**30
        _say(f"removed {freed:.2f} GiB of copies to stay within {most / 2**30:g} GiB ({LIMIT}): {', '.join(names)}{more}")
    if done.left > most:
        held = f"all copies take {done.left / 2**30:.2f} GiB, more than {most / 2**30:g} GiB ({LIMIT})"
        _say(f"{held}: {len(done.in_use)} of them are in use by this run or others and stay")


def _say(text: str) -> None:
    for to in _listener or [logging.getLogger("clearance.cache").warning]:
        to(text)
