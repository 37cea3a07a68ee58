"""Object stores through obstore: S3, Google Cloud Storage, Azure, a web server to read from, and memory.

Credentials and endpoints come from the usual environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``,
``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME`` …). They are in no file, plan, log or message of ours.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain, repeat
from typing import IO, Any, ClassVar

from index.errors import InputError, RunStopped
from index.places.backend import CHUNK, LITTLE, Entry, Tagged
from index.places.refused import Answer, one_line, sentence

BODY = "body"  # the rest of an answer that was counted already
_RETRY: Any = {"max_retries": 8, "retry_timeout": timedelta(seconds=120)}
AWAY_SECONDS = 120.0  # for which a store is asked again that answers that it is away or has too much to do
AWAY_PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before it is; the last again and again
PAUSES = (0.2, 1.0, 3.0)  # seconds before a write is repeated that came in another's way (HTTP 409)
_patience: ContextVar[float] = ContextVar("patience", default=AWAY_SECONDS)


@contextmanager
def impatient() -> Iterator[None]:
    """In this block a store that is away is not asked again for long: whoever calls comes back by himself."""
    token = _patience.set(0.0)
    try:
        yield
    finally:
        _patience.reset(token)


class ObjectStore:
    """One bucket, seen through obstore.

    Attributes:
        root: scheme and bucket, for messages.
        requests: how many requests were made, by kind; a large object that is sent in pieces counts as one.
    """

    def __init__(self, root: str, store: Any) -> None:
        self.root, self.store = root, store
        self.requests: Counter[str] = Counter()

    # --- requests -------------------------------------------------------------------------------------------------

    def request(self, kind: str, key: str, do: Callable[[], Any], *, writing: bool = False) -> Any:
        """Make one request. Every request goes through here.

        Raises:
            ClearanceError: it failed. obstore's NotFoundError passes where something was read.
        """
        from obstore import exceptions as known

        if kind != BODY:
            self.requests[kind] += 1
        until, pauses = time.monotonic() + _patience.get(), chain(AWAY_PAUSES, repeat(AWAY_PAUSES[-1]))
        while True:
            try:
                return do()
            except (FileNotFoundError, known.NotFoundError) as error:
                if writing or Answer.of(error).no_bucket:
                    raise sentence(error, self.root, key, writing=writing) from None
                raise known.NotFoundError(key) from None
            except (known.BaseError, OSError, ValueError) as error:
                found = Answer.of(error)
                # obstore itself has asked nine times by now, within seconds. A body that broke off cannot be asked for again.
                if kind == BODY or not (found.status and found.away) or time.monotonic() >= until:
                    refused = sentence(error, self.root, key, writing=writing)
                    raise refused from refused.__cause__
            time.sleep(next(pauses))

    # --- reading --------------------------------------------------------------------------------------------------

    def listed(self, key: str) -> list[Entry]:
        import obstore

        if self.root.startswith("http"):
            return []  # a web server lists nothing
        prefix = f"{key}/" if key else None
        found: Any = self.request("list", key, lambda: obstore.list_with_delimiter(self.store, prefix))
        folders = [Entry(name=_leaf(path), kind="folder", inode=0, size=0) for path in found["common_prefixes"]]
        files = [_entry(meta) for meta in found["objects"] if meta["path"] != key]
        return sorted([*folders, *files], key=lambda entry: entry.name)

    def entry(self, key: str) -> Entry | None:
        import obstore

        try:
            meta = self.request("head", key, lambda: obstore.head(self.store, key))
        except obstore.exceptions.NotFoundError:
            return None
        # Google numbers every object, whether or not its bucket keeps the older ones. S3 answers "null" for an object that was
        # written while versioning is suspended: the next one takes its place.
        kept = meta.get("version") not in (None, "null") and not self.root.startswith("gs://")
        return replace(_entry(meta), versioned=kept)

    def open(self, key: str, little: bool = False) -> io.BufferedReader | None:
        import obstore

        try:
            if little:
                meta = self.request("head", key, lambda: obstore.head(self.store, key))
                return io.BufferedReader(_Ranges(self, key, meta), buffer_size=LITTLE)
            got = self.request("get", key, lambda: obstore.get(self.store, key))
        except obstore.exceptions.NotFoundError:
            return None
        if got.meta["size"] <= CHUNK:
            data = self.request(BODY, key, got.bytes)
            return io.BufferedReader(_Whole(bytes(data)))
        return io.BufferedReader(_Ranges(self, key, got.meta), buffer_size=CHUNK)

    def tagged(self, key: str) -> Tagged | None:
        import obstore

        try:
            got = self.request("get", key, lambda: obstore.get(self.store, key))
        except obstore.exceptions.NotFoundError:
            return None
        meta, data = got.meta, self.request(BODY, key, got.bytes)
        return Tagged(bytes(data), _tag(meta), (datetime.now(UTC) - meta["last_modified"]).total_seconds())

    # --- writing --------------------------------------------------------------------------------------------------

    def put(self, key: str, content: bytes | IO[bytes]) -> None:
        import obstore

        def put() -> Any:
            if not isinstance(content, bytes):
                content.seek(0)
            return obstore.put(self.store, key, content)

        self.request("put", key, put, writing=True)

    def create(self, key: str, data: bytes) -> bool:
        import obstore

        def put() -> Any:
            return obstore.put(self.store, key, data, mode="create")

        for pause in (*PAUSES, None):
            if self.request("put", key, lambda: _unless_refused(put), writing=True) is not None:
                return True
            # A request that is sent again because its answer was lost finds its own work.
            if (there := self.tagged(key)) is not None:
                return there.data == data
            self._wait(pause, key)
        raise AssertionError

    def replace(self, key: str, data: bytes, tag: str) -> str | None:
        import obstore

        update: Any = json.loads(tag)

        def put() -> Any:
            return obstore.put(self.store, key, data, mode=update)

        for pause in (*PAUSES, None):
            if (made := self.request("put", key, lambda: _unless_refused(put), writing=True)) is not None:
                return _tag(made)
            there = self.tagged(key)  # as above
            if there is None or there.tag != tag:
                return there.tag if there is not None and there.data == data else None
            self._wait(pause, key)
        raise AssertionError

    def _wait(self, pause: float | None, key: str) -> None:
        """Wait after a condition was refused that holds: another write is under way.

        Raises:
            RunStopped: that was the last time; the cause is one that may pass.
        """
        if pause is None:
            fix = "Wait a moment, then repeat the command; a run continues with --resume"
            what = "the object store puts this write off for another one (HTTP 409)"
            raise RunStopped(what, where=f"{self.root}/{key}", fix=fix) from BlockingIOError(errno.EAGAIN, "in conflict")
        time.sleep(pause)

    def delete(self, key: str) -> None:
        import obstore

        with suppress(obstore.exceptions.NotFoundError):
            self.request("delete", key, lambda: obstore.delete(self.store, key))


class _Whole(io.BytesIO):
    """Bytes in memory, as a raw stream."""


class _Ranges(io.RawIOBase):
    """An object read in ranges, always of the version that it had when it was opened."""

    def __init__(self, store: ObjectStore, key: str, meta: Any) -> None:
        self._store, self._key, self._tag, self._size, self._at = store, key, meta["e_tag"], meta["size"], 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        import obstore

        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        options: Any = {"range": (self._at, end)} | ({"if_match": self._tag} if self._tag else {})

        def fetch() -> Any:
            return obstore.get(self._store.store, self._key, options=options).bytes()

        try:
            got = self._store.request("range", self._key, lambda: _unless_refused(fetch))
        except obstore.exceptions.NotFoundError:
            got = None
        if got is None:
            where = f"{self._store.root}/{self._key}"
            raise InputError("was replaced or removed while it was read", where=where, fix="Try again")
        buffer[: len(got)] = memoryview(got)
        self._at += len(got)
        return len(got)


def _unless_refused(do: Callable[[], Any]) -> Any:
    """The answer to a request with a condition; None where the store says that the condition does not hold."""
    from obstore import exceptions as known

    try:
        return do()
    except (known.AlreadyExistsError, known.PreconditionError):
        return None


def _tag(made: Any) -> str:
    """The mark of a version: the entity tag, and the generation too where the store has one (Google compares only that)."""
    return json.dumps({name: made[name] for name in ("e_tag", "version") if made.get(name) is not None})


def _entry(meta: Any) -> Entry:
    version = f"{meta['e_tag']} {meta['last_modified']}"
    inode = int(hashlib.sha256(version.encode()).hexdigest()[:15], 16)
    return Entry(name=_leaf(meta["path"]), kind="file", inode=inode, size=int(meta["size"]))


def _leaf(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


# --- how each kind is opened -----------------------------------------------------------------------------------------------


class Memory:
    """Places in the memory of this process, by name; for tests and for trying things out."""

    _stores: ClassVar[dict[str, ObjectStore]] = {}

    @classmethod
    def open(cls, root: str) -> ObjectStore:
        """The store of that name, the same one each time."""
        from obstore.store import MemoryStore

        return cls._stores.setdefault(root, ObjectStore(root, MemoryStore()))


def open_store(root: str) -> ObjectStore:
    """The bucket of a URI, with what the environment holds now.

    Raises:
        ConfigError, InputError: the environment or the URI does not make a store.
    """
    relevant = sorted((name, os.environ[name]) for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_")))
    return _opened(root, hashlib.sha256(repr(relevant).encode()).hexdigest())


@lru_cache(maxsize=64)
def _opened(root: str, _environment: str) -> ObjectStore:
    from obstore.store import from_url

    endpoints = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL")
    plain = root.startswith("http://") or any(os.environ.get(name, "").startswith("http://") for name in endpoints)
    more: dict[str, Any] = {}
    if root.startswith("s3://") and (endpoint := os.environ.get("AWS_ENDPOINT_URL_S3", "")):
        more["endpoint"] = endpoint
    try:
        client: Any = {"allow_http": plain, "timeout": "120s", "connect_timeout": "10s"}
        store = from_url(root, client_options=client, retry_config=_RETRY, **more)
    except Exception as error:  # each kind of store has its own errors
        what = f"cannot be opened ({one_line(str(error))})"
        raise InputError(what, where=root, fix="Check the URI, and the credentials in the environment") from None
    return ObjectStore(root, store)
