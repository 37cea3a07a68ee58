"""Folders on object stores: objects are written whole, a commit marker is put if nothing has its name, and nothing is renamed.

A commit puts its data objects first and its marker last. Who was stopped between the two leaves objects that no marker names;
they do no harm, and are swept once every shard of the run has its marker: until then an older writer might still put one.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import IO, Any

from index.errors import ClearanceError, IntegrityError, RunStopped
from index.places.backend import Backend, Entry, Part, Stored, Tagged, parts_of
from index.places.disk import filling_temporary
from index.places.object_folder import ObjectFolder
from index.places.schemes import backend_of


def is_folder(folder: Path) -> bool:
    """Whether anything lies in the folder."""
    backend, key = _at(folder)
    return bool(backend.listed(key))


def require_writable(folder: Path) -> None:
    """Refuse a place that does not answer, or where these credentials may not look. Writes nothing.

    Raises:
        RunStopped: it cannot be reached.
    """
    backend, key = _at(folder)
    try:
        backend.listed(key)
    except ClearanceError as error:
        raise RunStopped(error.what, where=error.where, fix=error.fix) from None


def make(folder: Path, name: str = "") -> None:
    """Nothing has to be made: a folder is there with its first object."""


def remove_empty(folder: Path) -> None:
    """Nothing is there to remove."""


def entries(folder: Path, name: str = "") -> list[Entry]:
    """What is in the folder, by name; nothing when it is not there."""
    backend, key = _at(folder, name)
    return backend.listed(key)


def entry_of(folder: Path, name: str) -> Entry | None:
    """The object of that name; None when there is none. Longer names do not count: a folder is in no object's place."""
    backend, key = _at(folder, name)
    return backend.entry(key)


def open_file(folder: Path, name: str, little: bool = False) -> BufferedReader:
    """Open an object for reading; raises IntegrityError when it is missing."""
    backend, key = _at(folder, name)
    found = backend.open(key, little)
    if found is None:
        raise IntegrityError("is missing", where=str(folder / name), fix="Restore it from a copy")
    return found


def read_tagged(folder: Path, name: str) -> Tagged | None:
    """A small object with its tag; None when it is missing."""
    backend, key = _at(folder, name)
    return backend.tagged(key)


def write_file(folder: Path, name: str, data: bytes) -> None:
    """Write an object whole."""
    backend, key = _at(folder, name)
    backend.put(key, data)


def write_from(folder: Path, name: str, fill: Callable[[IO[bytes]], Any]) -> None:
    """Write an object whole, from a function that fills it; it is collected on this machine's disk before."""
    backend, key = _at(folder, name)
    with _collected(fill) as stream:
        _upload(backend, key, stream)


def create_once(folder: Path, name: str, data: bytes) -> bool:
    """Write an object under a name that nothing has yet; False when something has."""
    backend, key = _at(folder, name)
    return backend.create(key, data)


def replace_if(folder: Path, name: str, data: bytes, tag: str) -> str | None:
    """Replace an object that is still the version of that tag; its new tag, or None."""
    backend, key = _at(folder, name)
    return backend.replace(key, data, tag)


def commit(folder: Path, parts: Sequence[Part], marker: str, content: Callable[[Sequence[Stored]], bytes]) -> bool:
    """Put the parts in their places and then the marker, if nothing has its name; else nothing of them stays.

    Raises:
        RunStopped: it cannot be written, or the folder is another holder's by now.
    """
    backend, key = _at(folder, marker)
    placed: list[str] = []
    tried = won = False
    try:
        stored = []
        for part in parts:
            with _collected(part.fill) as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                stored.append(Stored(part.path(digest), digest, stream.tell()))
                placed.append(_at(folder, stored[-1].path)[1])
                _upload(backend, placed[-1], stream)
        data = content(stored)
        require_held(folder)
        tried = True
        won = backend.create(key, data)
    except BaseException as error:
        if not tried:
            _forget(backend, placed)
        elif isinstance(error, ClearanceError):
            # The answer may have been lost on its way. What is not certain stays: the sweep takes it when it is.
            with suppress(ClearanceError):
                if (there := backend.tagged(key)) is not None and there.data == data:
                    return True
        raise
    if not won:
        _forget(backend, placed)
    return won


def _forget(backend: Backend, keys: Sequence[str]) -> None:
    for key in keys:
        with suppress(ClearanceError):
            backend.delete(key)


def remove(folder: Path, name: str, inode: int | None = None) -> bool:
    """Remove an object; whether one was removed."""
    try:
        backend, key = _at(folder, name)
        there = backend.entry(key)
        if there is None or (inode is not None and there.inode != inode):
            return False
        backend.delete(key)
        return True
    except ClearanceError:
        return False


def require_held(folder: Path) -> None:
    """Refuse to go on where the folder's fence names another holder.

    Raises:
        RunStopped: it does.
    """
    if not isinstance(folder, ObjectFolder) or folder.fence is None:
        return
    name, token = folder.fence
    there = read_tagged(folder, name)
    try:
        held = json.loads(there.data) if there is not None else {}
        mine = held.get("token") == token
    except (ValueError, AttributeError):
        mine = False
    if not mine:
        raise RunStopped(
            "another run took this folder over, so this one commits nothing more",
            where=str(folder),
            fix="Let the other run finish; see `clearance status`",
        )


def _at(folder: Path, name: str = "") -> tuple[Backend, str]:
    assert isinstance(folder, ObjectFolder)
    steps = parts_of(name) if name else []
    return backend_of(folder.store), "/".join([folder.key, *steps] if folder.key else steps)


@contextmanager
def _collected(fill: Callable[[IO[bytes]], Any]) -> Iterator[BufferedRandom]:
    """A temporary file of this machine that a function has filled, at its beginning.

    Raises:
        RunStopped: this machine has no room for it.
    """
    with filling_temporary(), tempfile.TemporaryFile(prefix="clearance-") as stream:
        fill(stream)
        stream.flush()
        stream.seek(0)
        yield stream


def _upload(backend: Backend, key: str, stream: IO[bytes]) -> None:
    stream.seek(0)
    backend.put(key, stream)
