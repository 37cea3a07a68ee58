"""Commits of shards, one after the other: at once, or in a thread beside the denoiser.

To mark, encode, sign and write a shard's pictures takes a processor's time. Where the denoiser computes on an accelerator it
need not wait for that: the thread works while the device does. On a processor a thread would only take turns with it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.outcome import Sample

if TYPE_CHECKING:
    from pipeline.audit.shards import ShardReceipt

MOST = 2  # shards whose pictures wait for their commit, so that memory stays flat


@dataclass(frozen=True)
class Committed:
    """A shard that is committed: its number, receipt and samples, and how many seconds the commit took."""

    shard_no: int
    receipt: ShardReceipt
    samples: Sequence[Sample]
    seconds: float


class Commits:
    """The commits under way.

    Args:
        beside: in a thread; else each is made at once.
    """

    def __init__(self, *, beside: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "commits") if beside else None
        self._under_way: OrderedDict[int, Future[Committed]] = OrderedDict()  # the oldest first

    def __contains__(self, shard_no: int) -> bool:
        return shard_no in self._under_way

    def add(self, shard_no: int, samples: Sequence[Sample], do: Callable[[], ShardReceipt]) -> None:
        """Make a commit, or have it made. Raises what it raises, where it is made at once."""

        def committed() -> Committed:
            began = time.monotonic()
            return Committed(shard_no, do(), samples, time.monotonic() - began)

        if self._thread is None:
            made: Future[Committed] = Future()
            made.set_result(committed())
            self._under_way[shard_no] = made
        else:
            self._under_way[shard_no] = self._thread.submit(copy_context().run, committed)

    def ended(self, *, wait: bool = False) -> list[Committed]:
        """The commits that have ended, in their order.

        Args:
            wait: for the oldest one, where any is under way; without it only while there are more than :data:`MOST`.

        Raises:
            whatever the first that failed raised.
        """
        found: list[Committed] = []
        while self._under_way:
            shard_no, oldest = next(iter(self._under_way.items()))
            if not (oldest.done() or len(self._under_way) > MOST or (wait and not found)):
                break
            del self._under_way[shard_no]
            found.append(oldest.result())
        return found

    def close(self) -> None:
        """Let the commit that is being made end, and make no more."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
