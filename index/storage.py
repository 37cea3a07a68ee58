"""The one door to storage: files opened without following links, written whole, and every failure a sentence.

Run folders and indexes go through it. A run folder is often on storage that many can reach. So nothing in it leads out of it:
its own folders and files are opened relative to a handle of the folder above and never through a link, and only regular files
are read. The run folder itself may be reached through a link; that is its owner's choice.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any, Literal

from index.errors import ClearanceError, InputError, IntegrityError, RunStopped

TEMPORARY = ".tmp-"

# Some network file systems cannot bring a folder to the disk (CIFS, some FUSE mounts); then there is nothing to wait for.
_NO_FOLDER_SYNC = frozenset(
    {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF}
)
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})

_CONTINUE = "then continue with --resume"
_WHY: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", f"Free some space, {_CONTINUE}"),
    errno.EDQUOT: ("the disk quota is used up", f"Free some space or raise the quota, {_CONTINUE}"),
    errno.EIO: ("the storage failed (input/output error)", f"Check the disk or the network mount, {_CONTINUE}"),
    errno.ESTALE: ("the network folder went away (stale file handle)", f"Mount it again, {_CONTINUE}"),
    errno.ENOTCONN: ("the network folder is not connected", f"Mount it again, {_CONTINUE}"),
    errno.ETIMEDOUT: ("the network folder does not answer", f"Wait until it answers, {_CONTINUE}"),
    errno.EROFS: ("the folder is mounted read-only", "Mount it writable, or name a folder elsewhere with --out"),
    errno.EACCES: ("permission denied", "Give this user the right to write there, or name a folder elsewhere with --out"),
    errno.EPERM: ("permission denied", "Give this user the right to write there, or name a folder elsewhere with --out"),
    errno.EFBIG: ("the file is larger than this file system allows", "Use a smaller shard_size, or another file system"),
}
NO_LINK = "Put a real file or folder in its place; the run folder as a whole may be a link"


class Disk:
    """The system calls that a run folder depends on. A test puts a disk with faults in its place: see :func:`using`."""

    def open(self, name: str, flags: int, mode: int = 0o666, *, at: int | None = None) -> int:
        return os.open(name, flags | os.O_CLOEXEC, mode, dir_fd=at)

    def fsync(self, handle: int) -> None:
        os.fsync(handle)

    def replace(self, old: str, new: str, *, at: int) -> None:
        os.replace(old, new, src_dir_fd=at, dst_dir_fd=at)

    def link(self, old: str, new: str, *, at: int) -> None:
        os.link(old, new, src_dir_fd=at, dst_dir_fd=at, follow_symlinks=False)

    def unlink(self, name: str, *, at: int) -> None:
        os.unlink(name, dir_fd=at)

    def make_folder(self, name: str, *, at: int | None = None) -> None:
        os.mkdir(name, dir_fd=at)

    def writable(self, folder: Path) -> bool:
        return os.access(folder, os.W_OK | os.X_OK)

    def lock(self, handle: int) -> None:
        """Lock without waiting; BlockingIOError when another process holds the lock."""
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


_disk: ContextVar[Disk] = ContextVar("disk", default=Disk())  # noqa: B039 (a disk keeps no state)


def disk() -> Disk:
    """The disk in use."""
    return _disk.get()


@contextlib.contextmanager
def using(other: Disk) -> Iterator[None]:
    """Use another disk for the time of the block."""
    token = _disk.set(other)
    try:
        yield
    finally:
        _disk.reset(token)


@dataclass(frozen=True)
class Entry:
    """One name in a folder.

    Attributes:
        name: the name. kind: what it is.
        inode: with this number, a file that took the same name meanwhile is recognised.
        size: bytes of a file.
    """

    name: str
    kind: Literal["file", "folder", "link", "other"]
    inode: int
    size: int


# --- errors ----------------------------------------------------------------------------------------------------------------


def cannot_write(error: OSError, where: Path | str) -> RunStopped:
    """The sentence for a write that failed."""
    reason, fix = _WHY.get(error.errno or 0, ("", ""))
    reason = reason or f"cannot be written ({error.strerror or type(error).__name__})"
    return RunStopped(reason, where=str(where), fix=fix or "Check the path and its permissions")


def cannot_read(error: OSError, where: Path | str) -> ClearanceError:
    """The sentence for a read that failed."""
    reason = f"cannot be read ({error.strerror or type(error).__name__})"
    return InputError(reason, where=str(where), fix="Check its permissions and the disk or network mount, then try again")


def advice(error: OSError) -> str:
    """What to do about a failure of the storage."""
    return _WHY.get(error.errno or 0, ("", f"Mend the storage, {_CONTINUE}"))[1]


def is_lasting(error: OSError) -> bool:
    """Whether the error is the storage's (full, gone, broken), not that of one file."""
    return error.errno in _WHY


def require_writable(folder: Path) -> None:
    """Refuse a folder in which nothing can be made, or the folder above one that is still missing. Writes nothing.

    Raises:
        RunStopped: it is mounted read-only, or this user may not write there.
    """
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
        for part in _parts(name) if name else ():
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
    """What is in the run folder, or in the folder ``name`` in it, by name; nothing when it is not there.

    Raises:
        IntegrityError: a part of the path is a link, or not a folder.
        InputError: it cannot be read.
    """
    try:
        with inside(folder, name) as at:
            found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in os.scandir(at)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise cannot_read(error, folder / name) from error
    return [Entry(leaf, _kind(info.st_mode), info.st_ino, info.st_size) for leaf, info in sorted(found, key=lambda f: f[0])]


def entry_of(folder: Path, name: str) -> Entry | None:
    """What has that name in the run folder; None when nothing has."""
    parent, leaf = _split(name)
    try:
        with inside(folder, parent) as at:
            info = os.stat(leaf, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot_read(error, folder / name) from error
    return Entry(leaf, _kind(info.st_mode), info.st_ino, info.st_size)


# --- reading ---------------------------------------------------------------------------------------------------------------


def open_file(folder: Path, name: str) -> BufferedReader:
    """Open a regular file of the run folder for reading.

    Raises:
        IntegrityError: it is missing, a link, a folder or another thing in a file's place.
        InputError: it cannot be read.
    """
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


def read_file(folder: Path, name: str) -> bytes:
    """A file's bytes; raises as :func:`open_file`."""
    with open_file(folder, name) as stream:
        try:
            return stream.read()
        except OSError as error:
            raise cannot_read(error, folder / name) from error


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


# --- writing ---------------------------------------------------------------------------------------------------------------


def write_file(folder: Path, name: str, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, and a power cut loses neither.

    Whatever had the name is replaced; if it was a link, what it led to is left alone.

    Raises:
        RunStopped: it cannot be written.
        IntegrityError: a folder on the way is a link.
    """
    try:
        with staged(folder, name, lambda stream: stream.write(data)) as (at, temporary, leaf):
            disk().replace(temporary, leaf, at=at)
            sync_folder(at)
    except OSError as error:
        raise cannot_write(error, folder / name) from error


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


def remove(folder: Path, name: str, *, inode: int | None = None) -> bool:
    """Remove a file (or a link, never what it leads to) of the run folder.

    Args:
        folder: the run folder.
        name: a path in it.
        inode: remove it only if it is still this one.

    Returns:
        Whether something was removed; failures are not raised: a leftover does no harm.
    """
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


def _parts(name: str) -> list[str]:
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise IntegrityError(f"{name!r} is not a path inside a run folder", where=name, fix="Restore the file that names it")
    return parts


def _split(name: str) -> tuple[str, str]:
    *parents, leaf = _parts(name)
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
