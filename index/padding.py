"""Network calls with one fixed number of rows, halved when memory runs out.

With a fixed shape a row's result does not depend on its neighbours, byte for byte; with a varying shape it does. So the last
call is padded. Where memory runs out the shape is halved permanently, and the work of that call begins again: all results of
one :meth:`PaddedCalls.run` come from one shape, and the shapes that a process has had are kept for the audit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

from index.errors import OutOfMemory

PHRASES = ("out of memory", "not enough memory", "can't allocate memory", "failed to allocate memory")  # the last: ONNX Runtime


class Rows(Protocol):
    """What a call answers: something that is cut along its first dimension, as a tensor is."""

    def __getitem__(self, at: slice, /) -> Self: ...


T = TypeVar("T", bound=Rows)


class PaddedCalls:
    """One network's calls.

    Args:
        rows: of a call, as configured.
        network: its name, for people.
        fix: advice for when not even one row fits.

    Attributes:
        shapes: rows of a call: as configured, and after every halving. The last is in force.
    """

    def __init__(self, rows: int, network: str, fix: str) -> None:
        self.shapes: tuple[int, ...] = (rows,)
        self.network, self.fix = network, fix

    @property
    def rows(self) -> int:
        """Rows of a call now."""
        return self.shapes[-1]

    def run(self, call: Callable[[list[int]], T], count: int, join: Callable[[list[T]], T] | None = None) -> T:
        """Results for items 0 … count − 1, concatenated along their first dimension.

        Args:
            call: is handed the positions of exactly ``rows`` items; the last block is padded by repeating its first.
            count: how many items, at least 1.
            join: makes one result of those of the calls; absent: they are tensors, concatenated.

        Raises:
            OutOfMemory: not even a call of one row fits.
            whatever else ``call`` raises.
        """
        import torch

        together: Any = join or torch.cat
        while True:
            try:
                blocks: list[T] = []
                for start in range(0, count, self.rows):
                    block = list(range(start, min(start + self.rows, count)))
                    full = block + block[:1] * (self.rows - len(block))
                    blocks.append(call(full)[: len(block)])
                whole: T = together(blocks)
                return whole
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if self.rows == 1:
                    what = f"not even one row fits into memory ({first_line(error)})"
                    raise OutOfMemory(what, where=self.network, fix=self.fix) from error
            self.shapes += (self.rows // 2,)  # outside the handler, which holds on to the failed call's tensors


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host ran out of memory; torch raises a class of its own on CUDA and a plain error elsewhere."""
    torch = sys.modules.get("torch")  # where it was never imported, the error is not one of its own
    words = str(error).lower()
    own = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return own or isinstance(error, MemoryError) or any(phrase in words for phrase in PHRASES)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut to fit into another message; with the next where it only announces that one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{lines[0]} {lines[1]}"[:240] if lines[0].endswith(":") and lines[1:] else lines[0][:160]
