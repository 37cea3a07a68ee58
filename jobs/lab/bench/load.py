"""How busy the machine was while a bench measured: beside other work, ratios of time say little."""

from __future__ import annotations

import os
from collections.abc import Mapping

OWN = 1.0  # what a bench adds to the load average itself: it draws with one thread
BESIDE = 0.5  # others' load that does not matter, on a small machine
SHARE = 1 / 8  # and as a share of the processors, on a large one


def load_average() -> float:
    """Processes that ran or wanted to, this one included, on average over the last minute."""
    return os.getloadavg()[0]


def quiet(load: float, processors: int | None = None) -> bool:
    """Whether others left this process, and the caches it shares with them, alone."""
    return load - OWN <= max(BESIDE, SHARE * (processors or os.cpu_count() or 1))


def remark(loads: Mapping[str, float], processors: int | None = None) -> str:
    """What to say about the numbers of the parts that were measured under such loads; empty where there is nothing to say."""
    busy = [f"{part} ({load:.1f})" for part, load in loads.items() if not quiet(load, processors)]
    if not busy:
        return ""
    told = f"Other work ran beside these parts (load average; the bench's own is {OWN:g}): {', '.join(busy)}."
    return f"{told} Their ratios of time are not worth quoting; run them again on a quiet machine."
