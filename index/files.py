"""Files of an index: there whole or not at all, and read only if they are what was written."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from index.errors import IntegrityError

RESTORE = "Restore the folder from a backup, or build the index again"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, and stays after a power cut."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_known(path: Path, sha256: str) -> bytes:
    """Read a file whose digest is on record.

    Raises:
        IntegrityError: it is missing, or a byte of it changed.
    """
    try:
        content: bytes = path.read_bytes()
    except FileNotFoundError:
        raise IntegrityError("is missing", where=str(path), fix=RESTORE) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise IntegrityError("does not match its recorded sha256", where=str(path), fix=RESTORE)
    return content
