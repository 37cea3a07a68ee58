"""Python's collector of cycles stands still while libraries and models are loaded, and when a program ends.

A worker loads some 4,000 modules, and nothing of them is garbage. The collector goes through everything that is there again and
again while it becomes more. That was a fifth of the time in which diffusers, open_clip and RapidOCR are imported (7.3 s of
processor time with it, 5.5 s without). At the end of such a process Python goes through it twice more: 1.7 s, .2 s without.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Collect no cycles in the block, of whatever thread; where modules were loaded, everything counts as old afterwards.

    Blocks may lie in one another. Where a program keeps the collector off itself, it stays off.
    """
    if not gc.isenabled():
        yield
        return
    modules = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules and not gc.get_freeze_count():  # a program may have set objects apart itself
            gc.freeze()
            gc.unfreeze()  # both only move lists: everything is in the oldest generation, and nothing was gone through
        gc.enable()


def leave() -> None:
    """Let a process that is about to end leave what it holds to the kernel, without a search for cycles in it.

    What is to be done at the end, by ``atexit`` or ``with``, is done all the same.
    """
    gc.freeze()
