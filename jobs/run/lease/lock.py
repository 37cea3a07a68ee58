"""One run folder, one run: a lock that ends with its process, and a sign of life for machines that cannot see the process.

The lock is the kernel's (``flock``): it ends with the process, so a killed run leaves nothing to clean up. It does not work
between machines and on file systems without locks. Therefore the run that holds the folder writes its process into the file and
touches the file every few seconds. A run that finds a process of another machine waits for the next touch, and takes over when
none comes.

On an object store, which has neither locks nor files to touch: :mod:`jobs.run.lease.objects`.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from index.errors import ClearanceError, IntegrityError, RunStopped
from index.storage import NO_LINK, ObjectFolder, cannot_write, disk, entry_of, inside, is_remote, read_file
from jobs.run.lease import objects
from jobs.run.lease.process import Process
from pipeline.audit.coverage import LEASE_FILE

BEAT_SECONDS = 5.0  # how often the holder touches the file
PATIENCE_SECONDS = 20.0  # how long a touch is waited for
_FRESH_SECONDS = 60.0  # for `status`, which does not wait; clocks of two machines differ
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.ENOTTY})


def holder(folder: Path) -> str:
    """The run that holds this folder now, in words; empty when none does, as far as can be seen. Takes no lock."""
    if is_remote(folder):
        return objects.holder(folder, _FRESH_SECONDS)
    try:
        content = read_file(folder, LEASE_FILE) if entry_of(folder, LEASE_FILE) is not None else b""
        holder_process = Process.parse(content)
        if not content or holder_process is None or holder_process.lives() is False:
            return ""
        quiet = time.time() - (folder / LEASE_FILE).lstat().st_mtime
    except (ClearanceError, OSError):
        return ""
    return str(holder_process) if quiet < _FRESH_SECONDS else ""


class Held(Protocol):
    """A lease while it is held."""

    def require(self) -> None:
        """Refuse to go on when another session took the folder over; raises RunStopped."""
        ...


class _Locked:
    """A lease on a local or mounted folder, once this session has written itself into the file.

    A local disk's lock cannot be lost while the process lives. A network folder's can, where this machine stood still or was
    cut off for long; and without locks another run comes after some seconds without a touch. Either changes the file.
    """

    def __init__(self, folder: Path, mine: bytes) -> None:
        self.folder, self._mine = folder, mine
        self._shown = self._content() == mine  # else this storage shows late what was written, and proves nothing

    def _content(self) -> bytes | None:
        """What the file holds; None: it is gone, which tells of no other run, or the storage does not say."""
        with suppress(ClearanceError, OSError):
            return read_file(self.folder, LEASE_FILE)
        return None

    @property
    def lost(self) -> bool:
        """Whether another session has, or had, the folder in this one's place."""
        return self._shown and self._content() not in (None, self._mine)

    def require(self) -> None:
        if self.lost:
            other = Process.parse(self._content() or b"")
            raise objects.taken_over(self.folder, str(other) if other is not None else "")


@contextmanager
def lease(
    folder: Path,
    *,
    note: Callable[[str], None] = lambda _: None,
    me: Process | None = None,
    beat: float = BEAT_SECONDS,
    patience: float = PATIENCE_SECONDS,
) -> Iterator[Held]:
    """Hold the run folder for the time of the block.

    Args:
        folder: the run folder. On an object store its fence holds this session's token (:func:`index.storage.fenced`).
        note: called with a sentence when there is something to wait for or to know.
        me: the process that holds it; this one when not given.
        beat: seconds between touches.
        patience: seconds for which a touch by another machine is waited for.

    Raises:
        RunStopped: another run holds the folder, or it cannot be written.
        IntegrityError: something else stands in the lock's place.
    """
    me = me or Process.this()
    if isinstance(folder, ObjectFolder):
        token = folder.fence[1] if folder.fence is not None else secrets.token_hex(8)
        with objects.object_lease(folder, token, note=note, me=me, beat=beat, patience=patience) as held:
            yield held
        return
    handle = _open(folder)
    try:
        locked = _lock(folder, handle)
        # A start that failed removes the file: holder_process locked it before then holds nothing.
        if (there := entry_of(folder, LEASE_FILE)) is None or there.inode != os.fstat(handle).st_ino:
            raise RunStopped("another run was here at the same moment", where=str(folder), fix="Try again")
        _take_over(folder, handle, me, locked, note, patience)
        mine = json.dumps(asdict(me)).encode()
        os.ftruncate(handle, 0)
        os.pwrite(handle, mine, 0)
        if not locked:
            _confirm(folder, me)
    except OSError as error:
        os.close(handle)
        raise cannot_write(error, folder / LEASE_FILE) from error
    except BaseException:
        os.close(handle)
        raise
    ours, ended = _Locked(folder, mine), threading.Event()
    beating = threading.Thread(target=_beat, args=(handle, ours, beat, ended), name="lease", daemon=True)
    beating.start()
    try:
        yield ours
    finally:
        ended.set()
        beating.join()
        if not ours.lost:  # else it is the other's
            with suppress(OSError):
                os.ftruncate(handle, 0)  # emptied, not removed: removing would race with a run that waits for the lock
        os.close(handle)


def _open(folder: Path) -> int:
    where = str(folder / LEASE_FILE)
    try:
        with inside(folder) as at:
            handle = disk().open(LEASE_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644, at=at)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise IntegrityError("is a link", where=where, fix=NO_LINK) from None
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise IntegrityError("is not a file", where=where, fix="Move it away, then try again") from None
        raise cannot_write(error, where) from error
    info = os.fstat(handle)
    # A second name (a hard link) would be emptied with the first.
    if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
        os.close(handle)
        what = "is not a file" if not stat.S_ISREG(info.st_mode) else "is the same file as another one (a hard link)"
        raise IntegrityError(what, where=where, fix="Move it away, then try again")
    return handle


def _lock(folder: Path, handle: int) -> bool:
    """Lock the file; False where the file system has no locks."""
    try:
        disk().lock(handle)
        return True
    except BlockingIOError:
        raise objects.held_by(folder, Process.parse(_content(handle))) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False


def _take_over(folder: Path, handle: int, me: Process, locked: bool, note: Callable[[str], None], patience: float) -> None:
    """Make sure that the process written in the file has ended."""
    content = _content(handle)
    if not locked:
        note("this file system has no locks: start no second run in this folder while this one is going")
    if not content:
        return
    holder_process = Process.parse(content)
    if holder_process is None:
        where = str(folder / LEASE_FILE)
        raise IntegrityError("is not the lock of a run", where=where, fix="Move it away, then try again")
    if (locked and holder_process.same_kernel(me)) or holder_process.lives() is False:
        return
    if holder_process.lives():
        raise objects.held_by(folder, holder_process)
    note(f"{holder_process} may still hold this folder: waiting {patience:.0f} s for a sign of life")
    if _touched(folder, patience):
        raise RunStopped(
            f"a run on another machine holds this folder ({holder_process})",
            where=str(folder),
            fix="Wait for it, or stop it first",
        )
    note(f"{holder_process} gave no sign of life for {patience:.0f} s: going on in its place")


def _touched(folder: Path, patience: float) -> bool:
    def seen() -> tuple[int, int]:
        # Opened anew each time: that is when network file systems ask the server.
        handle = _open(folder)
        try:
            info = os.fstat(handle)
            return info.st_mtime_ns, info.st_size
        finally:
            os.close(handle)

    before, deadline = seen(), time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(min(0.5, patience / 8))
        if seen() != before:
            return True
    return False


def _confirm(folder: Path, me: Process) -> None:
    """Without locks two runs may start at once: the one that wrote last holds the folder."""
    time.sleep(0.3)
    holder_process = Process.parse(read_file(folder, LEASE_FILE))
    if holder_process != me:
        fix = "Wait for it, or stop it first"
        raise RunStopped(f"another run took this folder at the same moment ({holder_process})", where=str(folder), fix=fix)


def _beat(handle: int, held: _Locked, seconds: float, ended: threading.Event) -> None:
    while not ended.wait(seconds) and not held.lost:  # else it would be a sign of life for the other
        with suppress(OSError):
            os.utime(handle)


def _content(handle: int) -> bytes:
    return os.pread(handle, 4096, 0)
