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
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import IO, Any, ClassVar

from index.errors import ClearanceError, InputError, RunStopped
from index.places.backend import CHUNK, LITTLE, Entry, Tagged
from index.places.disk import CONTINUE

BODY = "body"  # the rest of an answer that was counted already
_RETRY: Any = {"max_retries": 8, "retry_timeout": timedelta(seconds=120)}
_GONE = "the object store does not answer"
_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound|bucket does not exist")
_KEYLESS = re.compile(
    r"credential|169\.254\.169\.254|metadata\.google|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken", re.I
)
_AWAY = re.compile("error sending request|connect|dns|timed out|timeout|reset|broken pipe", re.I)


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
            ClearanceError: it failed; obstore's errors about presence and versions pass.
        """
        from obstore import exceptions as known

        if kind != BODY:
            self.requests[kind] += 1
        try:
            return do()
        except (FileNotFoundError, known.NotFoundError) as error:
            if writing or _NO_BUCKET.search(str(error)):
                raise self._sentence(error, key, writing) from None
            raise known.NotFoundError(key) from None
        except (known.AlreadyExistsError, known.PreconditionError):
            raise
        except (known.BaseError, OSError, ValueError) as error:
            sentence = self._sentence(error, key, writing)
            # The cause is what a caller decides by whether to try again; the library's own may hold a secret.
            raise sentence from (TimeoutError(errno.ETIMEDOUT, "away") if sentence.what == _GONE else None)

    def _sentence(self, error: Exception, key: str, writing: bool) -> ClearanceError:
        from obstore import exceptions as known

        text, _, more = str(error).partition("Debug source")
        kind, where = (RunStopped if writing else InputError), f"{self.root}/{key}".rstrip("/")
        then = f", {CONTINUE}" if writing else ", then try again"
        status = int(found[1]) if (found := re.search(r"status code: (\d{3})", text)) else 0
        if _NO_BUCKET.search(text) or isinstance(error, known.NotFoundError | FileNotFoundError):
            return kind("there is no such bucket", where=self.root, fix="Make it, or check its name and the endpoint")
        if isinstance(error, known.NotSupportedError | NotImplementedError):
            return kind("this kind of place cannot be written to", where=where, fix="Name a place such as s3://BUCKET/FOLDER")
        if isinstance(error, known.UnauthenticatedError) or _KEYLESS.search(text):
            return kind("there are no credentials that the object store accepts", where=where, fix=self._credentials)
        if isinstance(error, known.PermissionDeniedError):
            rights = "Give these credentials the right to list, read, write and delete there, or name another place"
            return kind("the object store denies access", where=where, fix=rights)
        if status in (408, 429) or status >= 500 or (not status and _AWAY.search(text + more)):
            fix = f"Check the network and the endpoint in the environment{then}"
            return kind(_GONE, where=where, fix=fix)
        return kind(f"the object store failed ({_plain(text)})", where=where, fix=f"Look at the object store{then}")

    @property
    def _credentials(self) -> str:
        names = {
            "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
            "gs": "GOOGLE_APPLICATION_CREDENTIALS",
            "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        }
        return f"Set {names.get(self.root.partition(':')[0], 'the credentials')} in the environment"

    # --- reading --------------------------------------------------------------------------------------------------

    def listed(self, key: str) -> list[Entry]:
        import obstore

        if self.root.startswith("http"):
            return []  # a web server lists nothing
        prefix = f"{key}/" if key else None
        found: Any = self.request("list", key, lambda: obstore.list_with_delimiter(self.store, prefix))
        folders = [Entry(_leaf(path), "folder", 0, 0) for path in found["common_prefixes"]]
        files = [_entry(meta) for meta in found["objects"] if meta["path"] != key]
        return sorted([*folders, *files], key=lambda entry: entry.name)

    def entry(self, key: str) -> Entry | None:
        import obstore

        try:
            return _entry(self.request("head", key, lambda: obstore.head(self.store, key)))
        except obstore.exceptions.NotFoundError:
            return None

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

        self.request("put", key, lambda: obstore.put(self.store, key, content), writing=True)

    def create(self, key: str, data: bytes) -> bool:
        import obstore

        try:
            self.request("put", key, lambda: obstore.put(self.store, key, data, mode="create"), writing=True)
            return True
        except obstore.exceptions.AlreadyExistsError:
            # A request that is sent again because its answer was lost finds its own work.
            there = self.tagged(key)
            return there is not None and there.data == data

    def replace(self, key: str, data: bytes, tag: str) -> str | None:
        import obstore

        update: Any = json.loads(tag)
        try:
            put = self.request("put", key, lambda: obstore.put(self.store, key, data, mode=update), writing=True)
            return _tag(put)
        except (obstore.exceptions.PreconditionError, obstore.exceptions.AlreadyExistsError):
            there = self.tagged(key)  # as above
            return there.tag if there is not None and there.data == data else None

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
        try:
            got = self._store.request(
                "range", self._key, lambda: obstore.get(self._store.store, self._key, options=options).bytes()
            )
        except (obstore.exceptions.PreconditionError, obstore.exceptions.NotFoundError):
            where = f"{self._store.root}/{self._key}"
            raise InputError("was replaced or removed while it was read", where=where, fix="Try again") from None
        buffer[: len(got)] = memoryview(got)
        self._at += len(got)
        return len(got)


def _tag(made: Any) -> str:
    """The mark of a version: the entity tag, and the generation too where the store has one (Google compares only that)."""
    return json.dumps({name: made[name] for name in ("e_tag", "version") if made.get(name) is not None})


def _entry(meta: Any) -> Entry:
    version = f"{meta['e_tag']} {meta['last_modified']}"
    return Entry(_leaf(meta["path"]), "file", int(hashlib.sha256(version.encode()).hexdigest()[:15], 16), int(meta["size"]))


def _leaf(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _plain(text: str) -> str:
    """An error of a library in one line, without what may hold a secret."""
    line = re.sub(r"\s+", " ", text.partition("Debug source")[0]).strip()
    return re.sub(r"//[^/@\s]*@", "//", re.sub(r"\?[^\s\"')]*", "", line))[:200]


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
        what = f"cannot be opened ({_plain(str(error))})"
        raise InputError(what, where=root, fix="Check the URI, and the credentials in the environment") from None
    return ObjectStore(root, store)
