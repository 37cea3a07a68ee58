"""The machine's load during a bench: beside other work, ratios of time are not reliable."""

from __future__ import annotations

import os
from collections.abc import Mapping

OWN = 1.0  # the bench's own part of the load average: it draws with one thread
BESIDE = 0.5  # load of other work that does not matter on a small machine
SHARE = 1 / 8  # the same as a share of the processors, on a large machine


def load_average() -> float:
    """Mean number of running or waiting processes over the last minute, this one included."""
    return os.getloadavg()[0]


def quiet(load: float, processors: int | None = None, own: float = OWN) -> bool:
    """Whether other work was small enough to leave this process and its caches undisturbed."""
    return load - own <= max(BESIDE, SHARE * (processors or os.cpu_count() or 1))


def remark(loads: Mapping[str, float], processors: int | None = None, *, own: Mapping[str, float] | None = None) -> str:
    """A warning about the parts that were measured beside other work; empty where the machine was quiet.

    Args:
        loads: load average by part.
        processors: of the machine; counted when not given.
        own: the bench's own part of it, by part, where several of its processes work at once.
    """
    mine = own or {}
    busy = [f"{part} ({load:.1f})" for part, load in loads.items() if not quiet(load, processors, mine.get(part, OWN))]
    if not busy:
        return ""
    parts = f"Other work ran beside these parts (load average; the bench's own is one for each process): {', '.join(busy)}."
    return f"{parts} Their ratios of time are not worth quoting; run them again on a quiet machine."
