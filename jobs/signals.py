"""Signals that end a command: SIGTERM, SIGHUP and SIGINT become one exception, so that open files are closed in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_received: list[int] = []
_listening: list[bool] = []  # one entry inside :func:`ending`


class Interrupted(KeyboardInterrupt):
    """A signal ended the command."""


@contextmanager
def ending() -> Iterator[None]:
    """Turn the signals into :class:`Interrupted` for the time of the block.

    While the command closes its files, further signals are ignored (a closing terminal sends SIGHUP twice); only a SIGINT then
    ends the process at once. An ignored signal stays ignored (``nohup``). Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _end)
    _listening.append(True)
    try:
        yield
    finally:
        _listening.pop()
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def check() -> None:
    """Raise :class:`Interrupted` if a signal came whose exception was lost in a library's callback."""
    if _received and _listening:
        raise Interrupted


def received() -> int:
    """Number of the signal that ended the command; 0 when none did."""
    return _received[0] if _received else 0


def name(number: int) -> str:
    return signal.Signals(number).name


def _end(number: int, frame: FrameType | None) -> None:
    first = not _received
    _received.append(number)
    if not first:
        return
    for other in _ENDING:
        if signal.getsignal(other) is _end:
            signal.signal(other, signal.SIG_DFL if other is signal.SIGINT else signal.SIG_IGN)
    raise Interrupted
