"""What a storage place is to the door: entries, the parts of a commit, and the operations that every kind of place has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol

from index.errors import IntegrityError

TEMPORARY = ".tmp-"
LITTLE = 2**16  # bytes that a reader of headers fetches at once
CHUNK = 2**23  # bytes of an object that are read at once; a smaller object is read whole in one request


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One name in a folder.

    Attributes:
        name: the name. kind: what it is.
        inode: with this number, a file that took the same name meanwhile is recognised.
        size: bytes of a file.
        versioned: the storage says that it keeps what is replaced or removed here as an older version.
    """

    name: str
    kind: Literal["file", "folder", "link", "other"]
    inode: int
    size: int
    versioned: bool = False


class Tagged(NamedTuple):
    """A small file with the mark of its version, and how many seconds ago it was written by the storage's clock."""

    data: bytes
    tag: str
    age: float


@dataclass(frozen=True)
class Part:
    """A data file of a commit.

    Attributes:
        beside: path in the run folder that its temporary name is made from.
        fill: writes its content.
        path: its path in the run folder, from the sha256 (hex) of its content.
    """

    beside: str
    fill: Callable[[IO[bytes]], Any]
    path: Callable[[str], str]


@dataclass(frozen=True)
class Stored:
    """A part as it is stored: its path, sha256 (hex) and size in bytes."""

    path: str
    sha256: str
    bytes: int


class Place(Protocol):
    """A kind of place: local folders (:mod:`index.places.local`), folders on object stores (:mod:`index.places.remote`).

    Names are paths inside the folder. :mod:`index.storage` states what each operation does and raises.
    """

    def is_folder(self, folder: Path) -> bool: ...
    def require_writable(self, folder: Path) -> None: ...
    def make(self, folder: Path, name: str) -> None: ...
    def remove_empty(self, folder: Path) -> None: ...
    def entries(self, folder: Path, name: str) -> list[Entry]: ...
    def entry_of(self, folder: Path, name: str) -> Entry | None: ...
    def open_file(self, folder: Path, name: str, little: bool) -> BufferedReader: ...
    def read_tagged(self, folder: Path, name: str) -> Tagged | None: ...
    def write_file(self, folder: Path, name: str, data: bytes) -> None: ...
    def write_from(self, folder: Path, name: str, fill: Callable[[IO[bytes]], Any]) -> None: ...
    def create_once(self, folder: Path, name: str, data: bytes) -> bool: ...
    def replace_if(self, folder: Path, name: str, data: bytes, tag: str) -> str | None: ...
    def commit(
        self, folder: Path, parts: Sequence[Part], marker: str, content: Callable[[Sequence[Stored]], bytes]
    ) -> bool: ...
    def remove(self, folder: Path, name: str, inode: int | None) -> bool: ...


class Backend(Protocol):
    """One object store: what a scheme needs. Keys are paths in the bucket; nothing is renamed, an object appears whole.

    A backend raises ClearanceError where the store fails: :class:`index.errors.RunStopped` for what it could not write,
    :class:`index.errors.InputError` for what it could not read.
    """

    def listed(self, key: str) -> list[Entry]:
        """What lies directly below a key, by name: objects are files, longer keys are folders."""
        ...

    def entry(self, key: str) -> Entry | None:
        """The object of that key; None when there is none."""
        ...

    def open(self, key: str, little: bool = False) -> BufferedReader | None:
        """A seekable reader that sees one version of the object, of which ``little`` is read; None when there is none."""
        ...

    def tagged(self, key: str) -> Tagged | None:
        """A small object with its tag; None when there is none."""
        ...

    def put(self, key: str, content: bytes | IO[bytes]) -> None:
        """Write an object whole, whatever had the key."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Write an object if nothing has the key; False when something has. The first of several writers wins."""
        ...

    def replace(self, key: str, data: bytes, tag: str) -> str | None:
        """Write an object if it is still the version of that tag; its new tag, or None when it is another one."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        ...


def parts_of(name: str) -> list[str]:
    """The parts of a path inside a run folder.

    Raises:
        IntegrityError: it leads out of the folder, or is none.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise IntegrityError(f"{name!r} is not a path inside a run folder", where=name, fix="Restore the file that names it")
    return parts
