"""Calls of urllib3 that end in time.

urllib3 limits each read of a socket, so that a server that sends a byte now and then is never late. Here a thread of its own
makes the call, and another one shuts its socket down when the time is over.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, TypeVar

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

T = TypeVar("T")

_calling = threading.local()  # ``line``: that of the call which this thread makes


class Line:
    """The sockets of one call, held so that another thread can shut them down: in the handshake of TLS, too."""

    def __init__(self) -> None:
        self._lock, self._held, self._cut = threading.Lock(), list[socket.socket](), False

    def hold(self, connected: socket.socket) -> None:
        with self._lock:
            self._held.append(socket.socket(fileno=os.dup(connected.fileno())))  # TLS takes the first one away
            if self._cut:
                self._shut()

    def cut(self) -> None:
        """End the call: its sockets read the end, and send nothing more; one that connects only now is shut down as well."""
        with self._lock:
            self._cut = True
            self._shut()

    def close(self) -> None:
        """Let the sockets go as they are."""
        with self._lock:
            for held in self._held:
                held.close()
            self._held.clear()

    def _shut(self) -> None:
        for held in self._held:
            with suppress(OSError):  # the other side has closed it
                held.shutdown(socket.SHUT_RDWR)


def within(seconds: float, call: Callable[[], T]) -> T:
    """What a call returns or raises; it uses one of :func:`connections` at most.

    Raises:
        TimeoutError: it takes longer; its connection is ended.
    """
    line, done = Line(), Future[T]()

    def make() -> None:
        _calling.line = line
        try:
            found = call()
        except BaseException as error:
            line.close()
            done.set_exception(error)
        else:
            line.close()  # before anybody knows of the answer: the connection stays open for the next call
            done.set_result(found)

    threading.Thread(target=make, name="clearance-call", daemon=True).start()
    try:
        if not wait([done], timeout=seconds).done:
            raise TimeoutError
    finally:
        line.cut()
    return done.result()


def connections(**settings: Any) -> PoolManager:
    """Connections of urllib3 whose calls :func:`within` can end."""
    made = PoolManager(**settings)
    made.pool_classes_by_scheme = {"http": _Pool, "https": _PoolTLS}
    return made


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        made = super()._new_conn()
        _calling.line.hold(made)
        return made

    def request(self, *arguments: Any, **settings: Any) -> None:
        if self.sock is not None:  # kept open since an earlier call
            _calling.line.hold(self.sock)
        super().request(*arguments, **settings)


class _ConnectionTLS(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _PoolTLS(HTTPSConnectionPool):
    ConnectionCls = _ConnectionTLS
