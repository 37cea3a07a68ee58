"""Remember which large files were checked on this machine, so that an index of gigabytes attaches at once.

A file over :data:`LARGE` bytes whose digest was computed here is not read again while its place, size and both times are the
same: its content cannot be changed without a new change time (``st_ctime``), which no program can set. Whoever wants every byte
read again asks for it: ``clearance index info``, :meth:`index.store.ReferenceIndex.verify`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from index.errors import IntegrityError
from index.files import RESTORE, unreadable
from index.places.cache import cache_folder

LARGE = 2**20  # smaller files are read each time: that takes a millisecond


def require_known(path: Path, sha256: str, *, afresh: bool = False) -> bool:
    """Check a file against its recorded digest without holding it in memory.

    Args:
        path: the file.
        sha256: its digest on record.
        afresh: read it whatever is remembered.

    Returns:
        Whether its bytes were read; False: they were earlier, and nothing has changed since.

    Raises:
        IntegrityError: it is missing, cannot be read, or a byte of it changed.
    """
    try:
        with path.open("rb") as stream:
            before = _seen(os.fstat(stream.fileno()))
            note = _notes() / sha256
            if not afresh and before is not None and _read(note) == before:
                return False
            found = hashlib.file_digest(stream, "sha256").hexdigest()
            after = _seen(os.fstat(stream.fileno()))
    except OSError as error:
        raise unreadable(path, error) from None
    if found != sha256:
        raise IntegrityError("does not match its recorded sha256", where=str(path), fix=RESTORE)
    if before is not None and before == after:
        with contextlib.suppress(OSError):  # a machine without a home remembers nothing
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(before)
    return True


def _notes() -> Path:
    return cache_folder() / "known"


def _seen(info: os.stat_result) -> str | None:
    if info.st_size < LARGE:
        return None
    return f"{info.st_dev} {info.st_ino} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"


def _read(note: Path) -> str:
    try:
        return note.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
