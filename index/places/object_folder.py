"""A folder on an object store, by its URI, in the place of a local path: joined, named, compared and printed as one.

Everything that would touch a disk is refused with a sentence, so that no code reads or writes a local folder of that name by
mistake. Files are reached through :mod:`index.storage`.
"""

from __future__ import annotations

from pathlib import PosixPath, PurePath
from typing import Any, NoReturn

from index.errors import ConfigError, InputError
from index.places.schemes import backend_of


class ObjectFolder(PosixPath):
    """``s3://bucket/runs/monday``: the folder of keys that begin with ``runs/monday/``.

    Attributes:
        store: scheme and bucket, as in ``s3://bucket``.
        key: the path in it, without a slash at either end.
        fence: name of a file in the folder, and the token that it holds while this holder may commit; None: everybody may.
    """

    store: str
    key: str
    fence: tuple[str, str] | None

    def __new__(cls, store: str, key: str = "", fence: tuple[str, str] | None = None) -> ObjectFolder:
        self = object.__new__(cls)
        self.store, self.key, self.fence = store, key, fence
        return self

    def __init__(self, *_: Any) -> None:  # the parts of a local path are none of ours
        pass

    def __reduce__(self) -> Any:
        return ObjectFolder, (self.store, self.key, self.fence)

    def fenced(self, name: str, token: str) -> ObjectFolder:
        """The same folder for one holder: see :attr:`fence`."""
        return ObjectFolder(self.store, self.key, (name, token))

    # --- as a path ------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return f"{self.store}/{self.key}" if self.key else self.store

    def __repr__(self) -> str:
        return f"ObjectFolder({str(self)!r})"

    def __truediv__(self, name: Any) -> ObjectFolder:
        text = str(name)
        if isinstance(name, ObjectFolder) or text.startswith("/"):
            raise InputError("a path of another place cannot lie in it", where=f"{self}: {text}", fix="Name one of the two")
        steps = self.key.split("/") if self.key else []
        for step in text.split("/"):
            if step == "..":
                del steps[-1:]
            elif step not in ("", "."):
                steps.append(step)
        return ObjectFolder(self.store, "/".join(steps), self.fence)

    def __rtruediv__(self, _: Any) -> ObjectFolder:
        return self

    def joinpath(self, *names: Any) -> ObjectFolder:
        place = self
        for name in names:
            place = place / name
        return place

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectFolder) and (self.store, self.key) == (other.store, other.key)

    def __hash__(self) -> int:
        return hash((self.store, self.key))

    def __lt__(self, other: Any) -> bool:
        return str(self) < str(other)

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2] or self.store.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return PurePath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePath(self.name).suffix

    @property
    def parent(self) -> ObjectFolder:
        return ObjectFolder(self.store, self.key.rpartition("/")[0])

    @property
    def parents(self) -> list[ObjectFolder]:
        found, place = [], self
        while place.key:
            found.append(place := place.parent)
        return found

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.store, *(self.key.split("/") if self.key else ()))

    def with_name(self, name: str) -> ObjectFolder:
        return self.parent / name

    def is_absolute(self) -> bool:
        return True

    def is_relative_to(self, other: Any, *_: Any) -> bool:
        """Whether it is the other place, or lies in it."""
        same = isinstance(other, ObjectFolder) and self.store == other.store
        return same and (self.key == other.key or not other.key or self.key.startswith(f"{other.key}/"))

    def as_posix(self) -> str:
        return str(self)

    as_uri = as_posix

    def resolve(self, strict: bool = False) -> ObjectFolder:
        return self

    def absolute(self) -> ObjectFolder:
        return self

    def expanduser(self) -> ObjectFolder:
        return self

    def exists(self, **_: Any) -> bool:
        """Whether there is such an object, or anything below it."""
        return self.is_file() or self.is_dir()

    def is_dir(self, **_: Any) -> bool:
        """Whether there is anything below it."""
        return bool(backend_of(self.store).listed(self.key))

    def is_file(self, **_: Any) -> bool:
        """Whether there is such an object. Longer names do not count: a folder is in no object's place."""
        return bool(self.key) and backend_of(self.store).entry(self.key) is not None

    def is_symlink(self) -> bool:
        return False

    # --- what only a disk can do ----------------------------------------------------------------------------------

    def _refuse(self, what: str) -> NoReturn:
        raise ConfigError(
            f"lies on an object store, and {what} works on local folders only",
            where=str(self),
            fix="Name a local or mounted folder here",
        )

    def __fspath__(self) -> str:
        self._refuse("this step")

    def __bytes__(self) -> bytes:
        self._refuse("this step")

    # From these the parts of a path are taken when another path is made from it.
    @property
    def _parts(self) -> Any:
        self._refuse("this step")

    @property
    def _raw_paths(self) -> Any:
        self._refuse("this step")


def _refusing(name: str) -> Any:
    def refused(self: ObjectFolder, *_: Any, **__: Any) -> NoReturn:
        self._refuse(f"{name}()")

    return property(refused) if isinstance(getattr(PosixPath, name), property) else refused


# Whatever else a path can do, in this version of Python or in a later one, would touch a disk.
for _name in dir(PosixPath):
    if not _name.startswith("_") and _name not in ObjectFolder.__dict__ and _name not in ("cwd", "home", "from_uri"):
        setattr(ObjectFolder, _name, _refusing(_name))
