"""Copies on this machine of what lies on an object store: fetched once, whole or not at all, by several processes at once.

A copy has its name only when all of it is there; two processes that fetch at the same moment make two copies, and one of them
gets the name. The sizes of its files are noted in it, so that one from which files were purged is fetched again. What is named
after its content is held against that digest; the rest is known by its place and the version marks of the store, so that what
changed there is fetched again. The folder is ``CLEARANCE_CACHE``; :mod:`index.places.kept` bounds it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from index.errors import ClearanceError, InputError, IntegrityError
from index.places import remote
from index.places.backend import CHUNK, TEMPORARY, Entry
from index.places.kept import SIZES, hold, is_whole, keep_to_bound
from index.places.kept import cache_folder as cache_folder
from index.places.object_folder import ObjectFolder

_ABANDONED = 86_400.0  # seconds after which the copy of a process that was killed is removed


def local_copy(place: Path) -> Path:
    """The place itself where it is local; else its copy on this machine, fetched unless this version of it is there already.

    Args:
        place: a file or a folder.

    Raises:
        InputError: there is nothing of that name, it cannot be read or kept, or it changed while it was fetched.
    """
    if not isinstance(place, ObjectFolder):
        return place
    found = _listed(place)
    if not found:
        raise InputError("there is no such file or folder", where=str(place), fix="Check its name")
    version = [str(place), *(f"{name} {one.size} {one.inode}" for name, one in sorted(found.items()))]
    key = hashlib.sha256("\n".join(version).encode()).hexdigest()[:32]

    def fetch(work: Path) -> None:
        for name in found:
            source = place if name else place.parent
            download(source, name or place.name, work / place.name / name if name else work / place.name)
        if _listed(place) != found:  # files of two versions would be one copy
            raise InputError("changed while it was fetched", where=str(place), fix="Try again")

    return kept_as(cache_folder() / "copies" / key, fetch, where=str(place)) / place.name


def kept_as(target: Path, fetch: Callable[[Path], object], *, where: str) -> Path:
    """A folder of the cache, filled by ``fetch`` unless all of it is there; it stays there until this process has ended.

    Raises:
        InputError: this machine cannot keep it.
    """
    if hold(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent)
        work = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=target.parent))
        try:
            fetch(work)
            (work / SIZES).write_text(json.dumps(_sizes(work)), encoding="utf-8")
            _name(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        if hold(target):
            keep_to_bound()
            return target
        raise OSError("the copy is gone")
    except OSError as error:
        what = f"cannot be kept on this machine ({error.strerror or error})"
        fix = f"Make room in {cache_folder()}, or name another folder in CLEARANCE_CACHE"
        raise InputError(what, where=where, fix=fix) from None


def _name(work: Path, target: Path) -> None:
    """Give a copy its name, in place of one that is not whole; where another process was faster, its copy is as good."""
    with contextlib.suppress(OSError):
        work.rename(target)
        return
    if is_whole(target):
        return
    old = work.with_name(f"{work.name}-old")
    with contextlib.suppress(OSError):
        target.rename(old)
        work.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _sizes(folder: Path) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for at, folders, files in os.walk(folder):  # not into links
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]
        found |= {os.path.relpath(os.path.join(at, name), folder): None for name in links}
        found |= {os.path.relpath(path, folder): os.path.getsize(path) for name in files if (path := os.path.join(at, name))}
    return found


def download(folder: Path, name: str, to: Path, *, sha256: str | None = None) -> None:
    """Copy a file of a place to this machine.

    Raises:
        IntegrityError: its content does not have the digest ``sha256`` (hex).
        OSError: it cannot be written here.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with remote.open_file(folder, name) as stream, to.open("wb") as sink:
        while block := stream.read(CHUNK):
            digest.update(block)
            sink.write(block)
    if sha256 is not None and digest.hexdigest() != sha256:
        fix = "Restore the folder from a backup, or build the index again"
        raise IntegrityError("does not match its recorded sha256", where=str(folder / name), fix=fix)


@contextlib.contextmanager
def named_as(place: Path, copy: Path) -> Iterator[None]:
    """Errors about a copy name the place that it was fetched from."""
    try:
        yield
    except ClearanceError as error:
        if place != copy:
            error.where = error.where.replace(str(copy), str(place))
            error.args = (error.what, error.where, error.fix)
        raise


def _listed(place: ObjectFolder) -> dict[str, Entry]:
    """The files of a place by their paths in it, with their versions; a place that is one file has the path ""."""
    entry = remote.entry_of(place.parent, place.name) if place.key else None
    return {"": entry} if entry is not None else dict(_below(place))


def _below(place: Path, name: str = "") -> Iterator[tuple[str, Entry]]:
    for entry in remote.entries(place, name):
        path = f"{name}/{entry.name}" if name else entry.name
        if entry.kind == "folder":
            yield from _below(place, path)
        else:
            yield path, entry


def _remove_abandoned(folder: Path) -> None:
    for path in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
