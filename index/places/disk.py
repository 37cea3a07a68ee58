"""The system calls that a local folder depends on, and the sentences for those that fail."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from index.errors import ClearanceError, InputError, RunStopped

CONTINUE = "then repeat the command; a run continues with --resume"
_WHY: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", f"Free some space, {CONTINUE}"),
    errno.EDQUOT: ("the disk quota is used up", f"Free some space or raise the quota, {CONTINUE}"),
    errno.EIO: ("the storage failed (input/output error)", f"Check the disk or the network mount, {CONTINUE}"),
    errno.ESTALE: ("the network folder went away (stale file handle)", f"Mount it again, {CONTINUE}"),
    errno.ENOTCONN: ("the network folder is not connected", f"Mount it again, {CONTINUE}"),
    errno.ETIMEDOUT: ("the network folder does not answer", f"Wait until it answers, {CONTINUE}"),
    errno.EROFS: ("the folder is mounted read-only", "Mount it writable, or name a folder elsewhere with --out"),
    errno.EACCES: ("permission denied", "Give this user the right to write there, or name a folder elsewhere with --out"),
    errno.EPERM: ("permission denied", "Give this user the right to write there, or name a folder elsewhere with --out"),
    errno.EFBIG: (
        "the file is larger than file system or limits allow",
        "Raise the limit (ulimit -f) or use another file system; the files of a run are smaller with a smaller shard_size",
    ),
}

TMPDIR = "Free some space on that disk, or name a folder on another one in TMPDIR"
NO_TMPDIR = "No usable temporary directory"  # Python's message where none of them can be written to: mostly, a full disk
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # these say that something was written, and no reading ends so


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


def cannot_write(error: OSError, where: Path | str) -> RunStopped:
    """The sentence for a write that failed."""
    reason, fix = _WHY.get(error.errno or 0, ("", ""))
    reason = reason or f"cannot be written ({error.strerror or type(error).__name__})"
    return RunStopped(reason, where=str(where), fix=fix or "Check the path and its permissions")


def cannot_read(error: OSError, where: Path | str) -> ClearanceError:
    """The sentence for a read that failed."""
    reason = f"cannot be read ({error.strerror or type(error).__name__})"
    return InputError(reason, where=str(where), fix="Check its permissions and the disk or network mount, then try again")


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Work that writes files into a folder through libraries, whose errors name no place.

    Raises:
        RunStopped: there is no room for them.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise cannot_write(error, folder) from error


@contextlib.contextmanager
def filling_temporary() -> Iterator[None]:
    """Work that fills temporary files of this machine, whose errors would be taken for those of the place that they are for.

    Raises:
        RunStopped: there is no room for them; it names their folder.
    """
    try:
        yield
    except OSError as error:
        if NO_TMPDIR in str(error):
            raise RunStopped(str(error.strerror), fix=TMPDIR) from error
        if error.errno not in _NO_ROOM:
            raise
        made = cannot_write(error, tempfile.gettempdir())
        raise RunStopped(made.what, where=made.where, fix=made.fix if error.errno == errno.EFBIG else TMPDIR) from error


def advice(error: OSError) -> str:
    """What to do about a failure of the storage."""
    return _WHY.get(error.errno or 0, ("", f"Mend the storage, {CONTINUE}"))[1]


def is_lasting(error: OSError) -> bool:
    """Whether the error is the storage's (full, gone, broken), not that of one file."""
    return error.errno in _WHY
