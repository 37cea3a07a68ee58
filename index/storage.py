"""The one door to storage: local and mounted folders, and folders on object stores; every failure is a sentence.

Run folders and indexes go through it. A *place* is a local path, or ``s3://bucket/folder`` and the like
(:class:`index.places.object_folder.ObjectFolder`); :func:`place` makes one from text. Names are paths inside a place, with
``/``. Files are written whole or not at all; the first of several writers of one name wins where that matters
(:func:`create_once`, :func:`replace_if`, :func:`commit`).

How that is done is a matter of the kind of place: :mod:`index.places.local`, :mod:`index.places.remote`. The kinds of object
stores are a table by scheme: :mod:`index.places.schemes`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, TypeVar

from index.errors import ClearanceError, IntegrityError, OutOfMemory, RunStopped
from index.padding import first_line, out_of_memory
from index.places import local, remote
from index.places.backend import TEMPORARY, Entry, Part, Place, Stored, Tagged
from index.places.disk import Disk, advice, cannot_read, cannot_write, disk, filling_temporary, is_lasting, using
from index.places.local import NO_LINK, inside
from index.places.named import is_uri, place
from index.places.object_folder import ObjectFolder
from index.places.objects import impatient
from index.places.remote import require_held

__all__ = [
    "NO_LINK", "TEMPORARY", "Disk", "Entry", "ObjectFolder", "Part", "Stored", "Tagged", "advice", "cannot_read",
    "cannot_write", "disk", "filling_temporary", "impatient", "inside", "is_lasting", "is_uri", "place", "require_held",
    "using",
]  # fmt: skip

_T = TypeVar("_T")
AT_ONCE = 16  # requests to an object store under way together


def _of(folder: Path) -> Place:
    return remote if isinstance(folder, ObjectFolder) else local


def is_remote(folder: Path) -> bool:
    """Whether a place lies on an object store."""
    return isinstance(folder, ObjectFolder)


# --- folders ---------------------------------------------------------------------------------------------------------------


def is_folder(folder: Path) -> bool:
    """Whether the place is a folder that is there. On an object store: whether anything lies in it.

    Raises:
        InputError: the storage does not say.
    """
    return _of(folder).is_folder(folder)


def require_writable(folder: Path) -> None:
    """Refuse a place in which nothing can be made. Writes nothing.

    Raises:
        RunStopped: it is mounted read-only, this user may not write there, or the object store denies access or is away.
    """
    _of(folder).require_writable(folder)


def make(folder: Path, name: str = "") -> None:
    """Make the folder, and the folder ``name`` in it, where they are missing.

    Raises:
        RunStopped: it cannot be made. IntegrityError: a part of the path is a link, or not a folder.
    """
    _of(folder).make(folder, name)


def remove_empty(folder: Path) -> None:
    """Remove the folder if nothing is in it; failures are not raised."""
    _of(folder).remove_empty(folder)


def entries(folder: Path, name: str = "") -> list[Entry]:
    """What is in the run folder, or in the folder ``name`` in it, by name; nothing when it is not there.

    Raises:
        IntegrityError: a part of the path is a link, or not a folder.
        InputError: it cannot be read.
    """
    return _of(folder).entries(folder, name)


def entry_of(folder: Path, name: str) -> Entry | None:
    """What has that name in the run folder; None when nothing has."""
    return _of(folder).entry_of(folder, name)


def fenced(folder: Path, name: str, token: str) -> Path:
    """The place as one holder sees it: :func:`commit` and :func:`require_held` are refused there once its file ``name`` holds
    another token. A local folder is returned as it is: there the kernel's lock does that work.
    """
    return folder.fenced(name, token) if isinstance(folder, ObjectFolder) else folder


# --- reading ---------------------------------------------------------------------------------------------------------------


def open_file(folder: Path, name: str, *, little: bool = False) -> BufferedReader:
    """Open a regular file of the run folder for reading. The stream is seekable; of a large object, what is read is fetched.

    Args:
        folder: the run folder.
        name: a path in it.
        little: only a little of it is going to be read, as the header of a table: an object is not fetched whole for that.

    Raises:
        IntegrityError: it is missing, a link, a folder or another thing in a file's place.
        InputError: it cannot be read.
    """
    return _of(folder).open_file(folder, name, little)


def read_file(folder: Path, name: str) -> bytes:
    """A file's bytes; raises as :func:`open_file`."""
    with open_file(folder, name) as stream:
        try:
            return stream.read()
        except OSError as error:
            raise cannot_read(error, folder / name) from error


def read_tagged(folder: Path, name: str) -> Tagged | None:
    """A small file with the tag of its version, for :func:`replace_if`, and its age; None when it is missing."""
    return _of(folder).read_tagged(folder, name)


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        IntegrityError: it is missing, or holds something else; or as :func:`open_file`.
    """
    return parse_object(read_file(folder, name), where=str(folder / name))


def parse_object(data: bytes, *, where: str) -> dict[str, Any]:
    """One JSON object.

    Raises:
        IntegrityError: the bytes are something else.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        text = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise IntegrityError(f"is not JSON ({text[:120]})", where=where, fix="Restore it from a copy") from None
    if not isinstance(found, dict):
        raise IntegrityError("is not a JSON object", where=where, fix="Restore it from a copy")
    return found


def digest_of(folder: Path, name: str) -> str:
    """sha256 of a file of the run folder, hex; raises as :func:`open_file`."""
    with open_file(folder, name) as stream:
        try:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise cannot_read(error, folder / name) from error


def of_storage(error: BaseException) -> bool:
    """Whether an error that came up while stored bytes were parsed is the storage's: it failed, and says nothing of the bytes.

    Arrow hands on what a stream raises. Of damaged bytes it raises an OSError too, one without a number.
    """
    return isinstance(error, ClearanceError) or (isinstance(error, OSError) and error.errno is not None)


@contextmanager
def parsing(where: Path | str, *, fix: str, what: str = "cannot be read") -> Iterator[None]:
    """Parse the bytes of a stream in this block: an error names them as damaged, or the storage as away, whichever it is.

    Args:
        where: what is parsed. fix: what to do if it is damaged. what: what to say of it then.

    Raises:
        IntegrityError: the bytes are damaged; whatever the parser raised.
        OutOfMemory: memory ran out meanwhile, which says nothing of the bytes.
        InputError: the storage failed meanwhile. Its cause is kept: by it a caller decides whether to try again.
    """
    try:
        yield
    except ClearanceError:
        raise
    except Exception as error:  # the reader of damaged bytes may raise anything
        if isinstance(error, OSError) and of_storage(error):
            raise cannot_read(error, where) from error
        if out_of_memory(error) and not _asks_for_all(error):
            fix = "Free memory, or use a machine with more of it, and try again; nothing shows that the file is damaged"
            raise OutOfMemory(f"memory ran out while it was read ({first_line(error)})", where=str(where), fix=fix) from error
        raise IntegrityError(f"{what} ({first_line(error)})", where=str(where), fix=fix) from None


def _asks_for_all(error: BaseException) -> bool:
    """Whether Arrow was to allocate more than the machine has: a length out of damaged bytes, which no sound file holds."""
    asked = re.search(r"alloc of size (\d+)", str(error))
    return asked is not None and int(asked[1]) > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def each(folder: Path, do: Callable[[str], _T], names: Iterable[str]) -> Iterator[_T]:
    """Do the same with many names of a place, in order; on an object store several at a time, because each is a request."""
    if not is_remote(folder):
        yield from map(do, names)
        return
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import copy_context

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from [one.result() for one in [pool.submit(copy_context().run, do, name) for name in names]]


# --- writing ---------------------------------------------------------------------------------------------------------------


def write_file(folder: Path, name: str, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, and a power cut loses neither.

    Whatever had the name is replaced; if it was a link, what it led to is left alone.

    Raises:
        RunStopped: it cannot be written.
        IntegrityError: a folder on the way is a link.
    """
    _of(folder).write_file(folder, name, data)


def write_from(folder: Path, name: str, fill: Callable[[IO[bytes]], Any]) -> None:
    """The same for content that a function writes, so that it need not be in memory; raises as :func:`write_file`."""
    _of(folder).write_from(folder, name, fill)


def create_once(folder: Path, name: str, data: bytes) -> bool:
    """Write a file if nothing has its name yet. Of several writers the first one wins.

    Returns:
        Whether it was written; False: something had the name, and stays.

    Raises:
        As :func:`write_file`.
    """
    return _of(folder).create_once(folder, name, data)


def replace_if(folder: Path, name: str, data: bytes, tag: str) -> str | None:
    """Replace a file if it is still the version that :func:`read_tagged` saw.

    Returns:
        The tag of the new version; None: somebody else replaced or removed it meanwhile, and nothing was written.

    Raises:
        As :func:`write_file`.
    """
    return _of(folder).replace_if(folder, name, data, tag)


def commit(folder: Path, parts: Sequence[Part], marker: str, content: Callable[[Sequence[Stored]], bytes]) -> bool:
    """Store data files, and last of all the marker that makes them count, if nothing has its name yet.

    Args:
        folder: the place.
        parts: the data files; their paths are unlike those of any other writer.
        marker: path of the marker.
        content: makes its bytes from what was stored.

    Returns:
        Whether this marker is in force; False: another one had the name, and nothing of these parts stays.

    Raises:
        FileNotFoundError: a sweep removed the temporary files meanwhile. OSError, RunStopped: it cannot be written, or the
            place is another holder's by now (:func:`fenced`). Unless an answer was lost, nothing of the parts stays.
        IntegrityError: a folder on the way is a link.
    """
    return _of(folder).commit(folder, parts, marker, content)


def remove(folder: Path, name: str, *, inode: int | None = None) -> bool:
    """Remove a file (or a link, never what it leads to) of the run folder.

    Args:
        folder: the run folder.
        name: a path in it.
        inode: remove it only if it is still this one.

    Returns:
        Whether something was removed; failures are not raised: a leftover does no harm. Where it does: :func:`remove_all`.
    """
    return _of(folder).remove(folder, name, inode)


def remove_all(folder: Path, names: Iterable[str], *, fix: str) -> list[str]:
    """Remove files of which none may stay, in order; of what is not there nothing.

    Args:
        folder: the run folder.
        names: paths in it.
        fix: what to do when some cannot be removed.

    Returns:
        Those that were removed.

    Raises:
        RunStopped: some are still there; it names them. InputError: the storage does not say whether they are.
    """
    kept: list[str] = []
    removed: list[str] = []
    for name in names:
        (removed if remove(folder, name) else kept).append(name)
    left = [name for name, found in zip(kept, each(folder, lambda one: entry_of(folder, one), kept), strict=True) if found]
    if left:
        more = f" and {len(left) - 3:,} more" if len(left) > 3 else ""
        what = f"cannot be removed: {', '.join(left[:3])}{more}"
        raise RunStopped(what, where=str(folder), fix=fix)
    return removed
