"""Memory that a process has freed and its C library keeps: given back to the kernel now and then.

glibc returns by itself only what lies above the last block in use. Buffers of networks, pictures and rows come in many sizes
and leave gaps below it. A worker grew by 45 MB for each thousand samples (64 px), while what it used stayed the same to .3 MB.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable

EVERY = 30.0  # seconds; giving back takes some milliseconds, and what is needed again has to be mapped again


class Heap:
    """The heap of this process.

    Args:
        every: seconds between two times that memory is given back.
    """

    def __init__(self, every: float = EVERY) -> None:
        self._every, self._next = every, time.monotonic() + every

    def give_back(self) -> bool:
        """Give back what lies free, if the last time is long enough ago.

        Returns:
            Whether it was asked for; never where the C library is not glibc, which gives back in its own way.
        """
        trim = _trim()
        if trim is None or time.monotonic() < self._next:
            return False
        trim(0)
        self._next = time.monotonic() + self._every
        return True


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """``malloc_trim`` of glibc; None elsewhere."""
    try:
        found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # TypeError: Windows has no library of that name
        return None
    return found
