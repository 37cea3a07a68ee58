"""What tests of object stores share: how a process reaches the S3 server, and stores that fail or fall silent."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from index.errors import RunStopped
from index.places.objects import ObjectStore


def s3_environment(endpoint: str) -> dict[str, str]:
    """What a process needs to reach the server."""
    known = {"ACCESS_KEY_ID": "testing", "SECRET_ACCESS_KEY": "testing", "REGION": "us-east-1", "ENDPOINT_URL": endpoint}
    return {f"AWS_{name}": value for name, value in known.items()}


class Killed(BaseException):
    """The process is gone; whatever it would do from here on does not reach the store."""


class Dying(ObjectStore):
    """A store in memory whose user dies at one request: before it is carried out, or before its answer comes back."""

    def __init__(self, root: str) -> None:
        from obstore.store import MemoryStore

        super().__init__(root, MemoryStore())
        self.dies_at, self.carried_out, self.count = 0, False, 0

    def request(self, kind: str, key: str, do: Callable[[], Any], *, writing: bool = False) -> Any:
        if threading.current_thread().name == "lease":  # it beats by the clock, and its end is nobody's to see
            if self.dies_at and self.count >= self.dies_at:
                raise RunStopped("the object store does not answer", where=key)
            return super().request(kind, key, do, writing=writing)
        self.count += 1
        if self.dies_at and self.count >= self.dies_at:
            if self.count == self.dies_at and self.carried_out:
                super().request(kind, key, do, writing=writing)
            raise Killed
        return super().request(kind, key, do, writing=writing)

    def revive(self) -> None:
        self.dies_at = self.count = 0


class Failing(ObjectStore):
    """A store in memory that sends every object in ranges, and from one of them on is away."""

    def __init__(self, root: str) -> None:
        from obstore.store import MemoryStore

        super().__init__(root, MemoryStore())
        self.ranges_left: int | None = None  # None: it is never away
        self.watched = ""  # a part of the keys whose ranges count

    def open(self, key: str, little: bool = False) -> io.BufferedReader | None:
        return super().open(key, little=True)

    def request(self, kind: str, key: str, do: Callable[[], Any], *, writing: bool = False) -> Any:
        return super().request(kind, key, partial(self._answer, kind, key, do), writing=writing)

    def _answer(self, kind: str, key: str, do: Callable[[], Any]) -> Any:
        from obstore.exceptions import GenericError

        if kind == "range" and self.watched in key and self.ranges_left is not None:
            self.ranges_left -= 1
            if self.ranges_left < 0:
                raise GenericError("error sending request: connection reset by peer")
        return do()
