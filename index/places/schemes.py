"""The kinds of object stores, by the scheme of a URI; and places from text.

Another kind is one file with a function ``open(root)`` that returns a :class:`index.places.backend.Backend`, and a line in
:data:`SCHEMES`; or, in another package, an entry point of the group ``clearance.storage`` named after the scheme.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from index.errors import ConfigError
from index.places.backend import Backend
from index.places.object_folder import ObjectFolder
from index.places.objects import Memory, open_store

Open = Callable[[str], Backend]
SCHEMES: dict[str, Open] = {
    "s3": open_store,  # Amazon S3 and what speaks its protocol: MinIO, Ceph, R2 …
    "gs": open_store,  # Google Cloud Storage
    "az": open_store,  # Azure Blob Storage
    "https": open_store,  # single files, read only
    "http": open_store,
    "memory": Memory.open,
}
GROUP = "clearance.storage"
_others: ContextVar[Mapping[str, Open]] = ContextVar("others", default={})  # noqa: B039 (it is never changed)


@contextmanager
def using(others: Mapping[str, Open]) -> Iterator[None]:
    """Open these schemes otherwise for the time of the block."""
    token = _others.set({**_others.get(), **others})
    try:
        yield
    finally:
        _others.reset(token)


def backend_of(folder: ObjectFolder) -> Backend:
    """The store that a folder lies on.

    Raises:
        ConfigError: nothing opens its scheme.
    """
    scheme = folder.store.partition("://")[0]
    found = _others.get().get(scheme) or SCHEMES.get(scheme) or _outside(scheme)
    if found is None:
        raise _unknown(scheme, str(folder))
    return found(folder.store)


def place(text: str, base: Path | None = None) -> Path:
    """The place that a text names: a local path (relative ones start from ``base``), or a folder on an object store.

    Raises:
        ConfigError: a scheme that nothing opens, or a URI that is none, or holds credentials.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        whole = Path(os.path.expanduser(text))
        return whole if base is None else base / whole
    scheme = scheme.lower()  # RFC 3986, 3.1: S3:// is s3://
    if scheme == "file":
        return Path(rest)
    bucket, _, key = rest.partition("/")
    shown = f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}".rstrip("/")
    if not (scheme in _others.get() or scheme in SCHEMES or _outside(scheme)):
        raise _unknown(scheme, shown)
    if "@" in bucket or "?" in rest:
        fix = "Leave them out of it, and set them in the environment (AWS_ACCESS_KEY_ID …)"
        raise ConfigError("a place is named without credentials or options", where=shown, fix=fix)
    steps = key.strip("/").split("/") if key.strip("/") else []
    if not bucket or any(step in ("", ".", "..") for step in steps):
        raise ConfigError("is not a place", where=shown, fix=f"Name it as {scheme}://BUCKET/FOLDER")
    return ObjectFolder(f"{scheme}://{bucket}", "/".join(steps))


def is_uri(text: str) -> bool:
    """Whether a text names a place by its scheme."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def _unknown(scheme: str, where: str) -> ConfigError:
    near = get_close_matches(scheme, SCHEMES, n=1)
    hint = f"Did you mean {near[0]}://? " if near else ""
    known = ", ".join(f"{name}://" for name in SCHEMES)
    return ConfigError(f"nothing here opens {scheme}://", where=where, fix=f"{hint}Name a local folder, or one of {known}")


@lru_cache(maxsize=64)
def _outside(scheme: str) -> Open | None:
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP, name=scheme):
        loaded: Open = point.load()
        return loaded
    return None
