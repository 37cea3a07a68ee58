"""Local and mounted folders: files opened without following links, written whole, and on the disk before they have a name.

:mod:`index.storage` states what each operation does and raises.

A run folder is often on storage that many can reach. So nothing in it leads out of it: its own folders and files are opened
relative to a handle of the folder above and never through a link, and only regular files are read. The run folder itself may be
reached through a link; that is its owner's choice.

A commit may meet the sweep of the run's next session. The order of steps keeps a marker from ever standing without its files:
the marker is written under a temporary name *before* the data files take their places; the sweep notes the data files, removes
the temporary markers, and only then looks which markers there are. So a data file that the sweep noted belongs to a marker that
the sweep sees, or to one that can no longer come.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import IO, Any, Literal

from index.errors import ClearanceError, IntegrityError
from index.places.backend import TEMPORARY, Entry, Part, Stored, Tagged, parts_of
from index.places.disk import cannot_read, cannot_write, disk

# Some network file systems cannot bring a folder to the disk (CIFS, some FUSE mounts); then there is nothing to wait for.
_NO_FOLDER_SYNC = frozenset(
    {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF}
)
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
NO_LINK = "Put a real file or folder in its place; the run folder as a whole may be a link"


def is_folder(folder: Path) -> bool:
    """Whether there is such a folder."""
    try:
        return folder.is_dir()
    except OSError as error:  # a folder above may not be entered, or a mount went away
        raise cannot_read(error, folder) from error


def make(folder: Path, name: str = "") -> None:
    """Make the folder, and the folder ``name`` in it, where they are missing."""
    try:
        with inside(folder, name, make=True):
            pass
    except OSError as error:
        raise cannot_write(error, folder) from error


def remove_empty(folder: Path) -> None:
    """Remove the folder if nothing is in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def require_writable(folder: Path) -> None:
    """Refuse a folder in which nothing can be made, or the folder above one that is still missing."""
    place = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    try:
        reason = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
        if place.is_dir() and not disk().writable(place):
            raise OSError(reason, os.strerror(reason))
    except OSError as error:
        raise cannot_write(error, place) from error


# --- looking ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def inside(folder: Path, name: str = "", *, make: bool = False) -> Iterator[int]:
    """A handle of the run folder, or of the folder ``name`` in it, for the time of the block.

    Args:
        folder: the run folder.
        name: a path in it; none of its parts may be a link.
        make: make what is missing.

    Raises:
        IntegrityError: a part of the path is a link, or not a folder.
        OSError: it cannot be opened (FileNotFoundError: it is not there).
    """
    flags = os.O_RDONLY | os.O_DIRECTORY
    if make:
        _make_root(folder)
    handles = [disk().open(str(folder), flags)]
    try:
        for part in parts_of(name) if name else ():
            if make:
                with contextlib.suppress(FileExistsError):
                    disk().make_folder(part, at=handles[-1])
            try:
                handles.append(disk().open(part, flags | os.O_NOFOLLOW, at=handles[-1]))
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    what = "is a link" if _is_link(part, handles[-1]) else "is not a folder"
                    raise IntegrityError(what, where=str(folder / name), fix=NO_LINK) from None
                raise
        yield handles[-1]
    finally:
        for handle in handles:
            os.close(handle)


def entries(folder: Path, name: str = "") -> list[Entry]:
    """What is in the folder."""
    try:
        with inside(folder, name) as at:
            found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in os.scandir(at)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise cannot_read(error, folder / name) from error
    return [_entry(leaf, info) for leaf, info in sorted(found, key=lambda f: f[0])]


def entry_of(folder: Path, name: str) -> Entry | None:
    """What has that name."""
    parent, leaf = _split(name)
    try:
        with inside(folder, parent) as at:
            info = os.stat(leaf, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot_read(error, folder / name) from error
    return _entry(leaf, info)


def _entry(leaf: str, info: os.stat_result) -> Entry:
    return Entry(name=leaf, kind=_kind(info.st_mode), inode=info.st_ino, size=info.st_size)


# --- reading ---------------------------------------------------------------------------------------------------------------


def open_file(folder: Path, name: str, little: bool = False) -> BufferedReader:
    """Open a regular file for reading."""
    parent, leaf = _split(name)
    where = str(folder / name)
    try:
        with inside(folder, parent) as at:
            # Without O_NONBLOCK a pipe in a file's place would wait for a writer.
            handle = disk().open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, at=at)
    except FileNotFoundError:
        raise IntegrityError("is missing", where=where, fix="Restore it from a copy") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise IntegrityError("is a link", where=where, fix=NO_LINK) from None
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise IntegrityError("is not a file", where=where, fix="Restore it from a copy") from None
        raise cannot_read(error, where) from error
    kind = _kind(os.fstat(handle).st_mode)
    if kind != "file":
        os.close(handle)
        what = "is a folder in a file's place" if kind == "folder" else "is not a file"
        raise IntegrityError(what, where=where, fix="Move it away and restore the file from a copy")
    return os.fdopen(handle, "rb")


def read_tagged(folder: Path, name: str) -> Tagged | None:
    """A small file, its digest as the tag, and its age; None when it is missing."""
    if entry_of(folder, name) is None:
        return None
    with open_file(folder, name) as stream:
        try:
            data, info = stream.read(), os.fstat(stream.fileno())
        except OSError as error:
            raise cannot_read(error, folder / name) from error
    return Tagged(data, hashlib.sha256(data).hexdigest(), time.time() - info.st_mtime)


# --- writing ---------------------------------------------------------------------------------------------------------------


def write_file(folder: Path, name: str, data: bytes) -> None:
    """Write a file whole."""
    write_from(folder, name, lambda stream: stream.write(data))


def write_from(folder: Path, name: str, fill: Callable[[IO[bytes]], Any]) -> None:
    """Write a file whole, from a function that fills it."""
    try:
        with staged(folder, name, fill) as (at, temporary, leaf):
            disk().replace(temporary, leaf, at=at)
            sync_folder(at)
    except OSError as error:
        raise cannot_write(error, folder / name) from error


def create_once(folder: Path, name: str, data: bytes) -> bool:
    """Write a file under a name that nothing has yet; False when something has."""
    while True:
        try:
            with staged(folder, name, lambda stream: stream.write(data)) as (at, temporary, leaf):
                put_once(at, temporary, leaf)
                sync_folder(at)
            return True
        except FileExistsError:
            return False
        except FileNotFoundError:
            continue  # the session of a run swept the temporary file away
        except OSError as error:
            raise cannot_write(error, folder / name) from error


def replace_if(folder: Path, name: str, data: bytes, tag: str) -> str | None:
    """Replace a file that has still the digest ``tag``. Where the file system has no locks, the last of two writers wins."""
    parent, _ = _split(name)
    try:
        with inside(folder, parent) as at:
            with contextlib.suppress(OSError):
                fcntl.flock(at, fcntl.LOCK_EX)  # ends with the handle
            before = read_tagged(folder, name)
            if before is None or before.tag != tag:
                return None
            write_file(folder, name, data)
    except OSError as error:
        raise cannot_write(error, folder / name) from error
    return hashlib.sha256(data).hexdigest()


def commit(folder: Path, parts: Sequence[Part], marker: str, content: Callable[[Sequence[Stored]], bytes]) -> bool:
    """Put the parts in their places and then the marker, if nothing has its name."""
    placed: list[str] = []
    try:
        with ExitStack() as stack:
            staged_parts = [_stage(stack, folder, part) for part in parts]
            data = content([stored for stored, _, _ in staged_parts])
            at, temporary, leaf = stack.enter_context(staged(folder, marker, lambda stream: stream.write(data)))
            for stored, there, name in staged_parts:
                placed.append(stored.path)
                disk().replace(name, stored.path.rpartition("/")[2], at=there)
                sync_folder(there)
            put_once(at, temporary, leaf)
            sync_folder(at)
        return True
    except FileExistsError:
        for path in placed:
            remove(folder, path)
        return False
    except BaseException:
        # A marker that did land commits the parts, whatever failed after it (the fsync of its folder, say).
        if not _has(folder, marker):
            for path in placed:
                remove(folder, path)
        raise


def _stage(stack: ExitStack, folder: Path, part: Part) -> tuple[Stored, int, str]:
    """A part on the disk under a temporary name: what it is, the handle of its folder, and that name."""
    made: list[Any] = []

    def fill(stream: BufferedRandom) -> None:
        part.fill(stream)
        stream.flush()
        stream.seek(0)
        made.extend([hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()])

    at, temporary, _ = stack.enter_context(staged(folder, part.beside, fill))
    return Stored(part.path(made[0]), made[0], made[1]), at, temporary


def _has(folder: Path, name: str) -> bool:
    try:
        return entry_of(folder, name) is not None
    except ClearanceError:
        return False


@contextlib.contextmanager
def staged(
    folder: Path, name: str, fill: Callable[[BufferedRandom], Any], *, make: bool = True
) -> Iterator[tuple[int, str, str]]:
    """A filled temporary file, on the disk, beside where ``name`` is to stand; gone after the block unless it was moved.

    With ``make``, missing folders are made.

    Yields:
        A handle of the folder both are in, the temporary name and the final one.

    Raises:
        OSError: it cannot be written.
        IntegrityError: a folder on the way is a link.
    """
    parent, leaf = _split(name)
    with inside(folder, parent, make=make) as at:
        temporary = temporary_name(leaf)
        try:
            handle = disk().open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, at=at)
            with os.fdopen(handle, "wb+") as stream:
                fill(stream)
                stream.flush()
                disk().fsync(stream.fileno())
            yield at, temporary, leaf
        finally:
            with contextlib.suppress(OSError):
                disk().unlink(temporary, at=at)


def temporary_name(leaf: str) -> str:
    """A name that no other writer uses."""
    return f"{TEMPORARY}{leaf}-{secrets.token_hex(6)}"


def put_once(at: int, temporary: str, leaf: str) -> None:
    """Give a temporary file its name if nothing has that name yet.

    Raises:
        FileExistsError: something has. FileNotFoundError: the temporary file is gone.
        OSError: it cannot be done.
    """
    # A hard link fails when the name exists: that is the compare-and-swap that makes the first writer win.
    try:
        disk().link(temporary, leaf, at=at)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with contextlib.suppress(FileNotFoundError):
            os.stat(leaf, dir_fd=at, follow_symlinks=False)
            raise FileExistsError(leaf) from None
        disk().replace(temporary, leaf, at=at)


def remove(folder: Path, name: str, inode: int | None = None) -> bool:
    """Remove a file, or a link; whether something was removed."""
    parent, leaf = _split(name)
    try:
        with inside(folder, parent) as at:
            if inode is not None and os.stat(leaf, dir_fd=at, follow_symlinks=False).st_ino != inode:
                return False
            disk().unlink(leaf, at=at)
            return True
    except (OSError, IntegrityError):
        return False


def sync_folder(at: int) -> None:
    """Bring a folder's names to the disk, where the file system can."""
    try:
        disk().fsync(at)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def _make_root(folder: Path) -> None:
    missing = [folder, *folder.parents]
    missing = missing[: next((i for i, path in enumerate(missing) if path.exists()), len(missing))]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            disk().make_folder(str(path))


def _split(name: str) -> tuple[str, str]:
    *parents, leaf = parts_of(name)
    return "/".join(parents), leaf


def _kind(mode: int) -> Literal["file", "folder", "link", "other"]:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "other"


def _is_link(name: str, at: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
    except OSError:
        return False
