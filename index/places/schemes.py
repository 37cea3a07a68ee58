"""The kinds of object stores, by the scheme of a URI.

Another kind is one file with a function ``open(root)`` that returns a :class:`index.places.backend.Backend`, and a line in
:data:`SCHEMES`; or, in another package, an entry point of the group ``clearance.storage`` named after the scheme.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from functools import lru_cache

from index.errors import ConfigError
from index.places.backend import Backend
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


def backend_of(store: str) -> Backend:
    """A store by its scheme and bucket, as in ``s3://bucket``.

    Raises:
        ConfigError: nothing opens its scheme.
    """
    return opener(store.partition("://")[0], store)(store)


def opener(scheme: str, where: str) -> Open:
    """What opens the stores of a scheme.

    Args:
        scheme: in small letters.
        where: the place that needs it, for the error.

    Raises:
        ConfigError: nothing opens it.
    """
    found = _others.get().get(scheme) or SCHEMES.get(scheme) or _outside(scheme)
    if found is None:
        raise _unknown(scheme, where)
    return found


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
