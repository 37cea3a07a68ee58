"""A process beside the denoiser: it opens decoder and guards once, and looks at what it is sent until its pipe ends.

It lives no longer than the process that started it: when that ends, in whatever way, the pipe ends, and so does this one.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from index.heap import Heap
from index.loading import loading

GRACE = 30.0  # seconds beyond the deadline after which a process that nobody ended any more ends itself


def send(connection: Connection, message: Any) -> None:
    """Send by value. A connection's own way would share tensors by files, which outlive a process that is killed."""
    connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def main() -> None:
    """Serve the connection whose file descriptor is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all processes; the denoiser's ends this one
    connection: Connection = Connection(int(sys.argv[1]))
    messages: SimpleQueue[Any] = SimpleQueue()
    threading.Thread(target=_read, args=(connection, messages), daemon=True).start()
    with loading():  # the thread that reads imports what the first message names
        opened = _opened(messages)
    send(connection, opened)
    heap = Heap()
    while True:
        latents, own, deadline = messages.get()
        # In C, without Python's lock: it also ends a guard that never gives the lock back, when nobody is left to end it.
        faulthandler.dump_traceback_later(deadline + GRACE, exit=True, file=2)
        answer = _looked(latents, own)
        faulthandler.cancel_dump_traceback_later()
        send(connection, answer)
        heap.give_back()


_looker: Any = None


def _opened(messages: SimpleQueue[Any]) -> tuple[str, Any]:
    """Open what the first message names: ("ready", identity), or ("failed", why)."""
    global _looker
    try:
        _looker = messages.get()()
        return "ready", _looker.identity
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"


def _looked(latents: Any, own: Sequence[Sequence[str]]) -> list[Any]:
    from pipeline.looking.study import each_study

    return list(each_study(_looker, list(latents), own))


def _read(connection: Connection, messages: SimpleQueue[Any]) -> None:
    """Pass messages on; where there are no more to come, end at once, whatever the guards are doing."""
    try:
        while True:
            messages.put(pickle.loads(connection.recv_bytes()))
    except BaseException as error:
        if not isinstance(error, (EOFError, OSError)):  # the first message names a class that is not here
            messages.put(_Unreadable(error))
            return
        os._exit(0)


class _Unreadable:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __call__(self) -> Any:
        raise self._error
