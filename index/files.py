"""Files of an index: written whole or not at all, and read only if their digest matches."""

from __future__ import annotations

import hashlib
from pathlib import Path

from index import storage
from index.errors import IntegrityError
from index.places import local

RESTORE = "Restore the folder from a backup, or build the index again"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, and stays after a power cut.

    Raises:
        OSError: it cannot be written.
    """
    with local.staged(path.parent, path.name, lambda stream: stream.write(content), make=False) as (at, temporary, leaf):
        storage.disk().replace(temporary, leaf, at=at)
        local.sync_folder(at)


def settle(temporary: Path, path: Path) -> None:
    """Give a written file its name, so that it is there whole or not at all, and stays after a power cut.

    Raises:
        OSError: it cannot be moved.
    """
    with temporary.open("rb") as stream:
        storage.disk().fsync(stream.fileno())
    temporary.chmod(0o644)
    temporary.replace(path)
    with local.inside(path.parent, "") as at:
        local.sync_folder(at)


def read_known(path: Path, sha256: str) -> bytes:
    """Read a file whose digest is on record.

    Raises:
        IntegrityError: it is missing, cannot be read, or a byte of it changed.
    """
    try:
        content: bytes = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise IntegrityError("does not match its recorded sha256", where=str(path), fix=RESTORE)
    return content


def unreadable(path: Path, error: OSError) -> IntegrityError:
    """The sentence for a file of an index that cannot be read."""
    what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror or error})"
    return IntegrityError(what, where=str(path), fix=RESTORE)
