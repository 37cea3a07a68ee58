"""What a worker's time went into: the denoiser's computing and waiting, the queue to the guards, and the guards' own time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Activity:
    """Seconds of the clock, and counts, since the first request.

    Attributes:
        elapsed: in all, while there were requests.
        computed: in calls of the denoiser.
        blocked: waiting for a guard's answer, with nothing to compute or no room in the queue.
        looked: decoding and guards in the denoiser's own process.
        calls: of the denoiser.
        pictures: looked at.
        beside: of these, in processes beside the denoiser.
        queued: pictures at the guards now; ``deepest``: the most there ever were.
        guards: seconds by guard, wherever it ran.
        processes: guard processes that are ready now.
        deaths: guard processes that died or were ended at their deadline.
        note: why guards work in the denoiser's process although processes were asked for; empty where they do not.
    """

    elapsed: float = 0.0
    computed: float = 0.0
    blocked: float = 0.0
    looked: float = 0.0
    calls: int = 0
    pictures: int = 0
    beside: int = 0
    queued: int = 0
    deepest: int = 0
    guards: Counter[str] = field(default_factory=Counter)
    processes: int = 0
    deaths: int = 0
    note: str = ""
    _last: float | None = None

    @contextmanager
    def spending(self, on: str) -> Iterator[None]:
        """Add the block's seconds to ``computed``, ``blocked`` or ``looked``."""
        start = self.touch()
        try:
            yield
        finally:
            setattr(self, on, getattr(self, on) + self.touch() - start)

    def touch(self, *, rested: bool = False) -> float:
        """Something begins or has ended: the clock, up to which time counts; not the time since the last touch if the worker
        ``rested``, for want of requests."""
        now = time.perf_counter()
        if self._last is not None and not rested:
            self.elapsed += now - self._last
        self._last = now
        return now

    def depth(self, queued: int) -> None:
        """The queue's length now."""
        self.queued, self.deepest = queued, max(self.deepest, queued)

    def plain(self) -> dict[str, Any]:
        """Plain numbers by name.

        Those above; ``waited``, in which the denoiser did not compute, whatever else was done; ``busy``, the share
        of ``elapsed`` in which it did (0 to 1); and ``queues``, lengths by name.
        """
        waited = self.elapsed - self.computed
        seconds = {
            "elapsed": self.elapsed, "computed": self.computed, "waited": waited, "blocked": self.blocked,
            "looked": self.looked,
        }  # fmt: skip
        counts = {
            "calls": self.calls, "pictures": self.pictures, "beside": self.beside, "deepest": self.deepest,
            "processes": self.processes, "deaths": self.deaths,
        }  # fmt: skip
        busy = self.computed / self.elapsed if self.elapsed else 0.0
        return {
            **seconds,
            **counts,
            "busy": busy,
            "queues": {"guards": self.queued},
            "guards": dict(self.guards),
            "note": self.note,
        }


def sentence(activity: dict[str, Any]) -> str:
    """One line for people: what the denoiser's time went into, and the guards' time."""
    if not activity.get("elapsed"):
        return ""

    def share(name: str) -> str:
        return f"{100 * activity[name] / activity['elapsed']:.0f} %"

    parts = [f"denoiser busy {share('computed')} of {activity['elapsed']:.0f} s", f"waiting for guards {share('blocked')}"]
    if activity["looked"]:
        parts.append(f"guards in its process {share('looked')}")
    if len(sizes := activity.get("sizes", {})) > 1:
        parts.append(
            "rows used: " + ", ".join(f"{name} {100 * one['used'] / one['rows']:.0f} %" for name, one in sizes.items())
        )
    guards = sum(activity["guards"].values())
    parts.append(f"guards {guards:.0f} s for {activity['pictures']} pictures, {activity['beside']} of them beside it")
    if activity["deaths"]:
        parts.append(f"{activity['deaths']} guard processes died and were replaced")
    return "; ".join(parts) + (f" ({activity['note']})" if activity["note"] else "")
