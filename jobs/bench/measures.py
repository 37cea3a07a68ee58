"""One number with its interval and its goal; the table and the JSON that benches publish.

Goals are the issues' own and never follow the result; a bar that is missed says so.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

RESAMPLES = 4000


@dataclass(frozen=True)
class Measure:
    """One number: value with a 95 % interval, n, and the goal it is held against."""

    id: str
    value: float
    low: float
    high: float
    n: int
    goal: float | None = None
    better: str = "higher"
    most: float | None = None  # for a goal that is a range: the upper end

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        if self.most is not None:
            return self.goal <= self.value <= self.most
        return self.value >= self.goal if self.better == "higher" else self.value <= self.goal

    @property
    def told(self) -> str:
        """The goal, for people."""
        if self.goal is None:
            return ""
        if self.most is not None:
            return f"{self.goal:g} – {self.most:g}"
        return f"{'≥' if self.better == 'higher' else '≤'} {self.goal:g}"


def share(name: str, count: int, n: int, goal: float | None = None, better: str = "higher") -> Measure:
    """A rate of independent cases with Wilson's interval."""
    from pipeline.audit.numbers import wilson

    low, high = wilson(count, n)
    return Measure(name, count / max(1, n), low, high, n, goal, better)


def clustered(
    name: str, values: Sequence[float] | np.ndarray, clusters: Sequence[str], goal: float | None = None, better: str = "higher",
    most: float | None = None,
) -> Measure:  # fmt: skip
    """A mean whose cases come in clusters (several seeds of one caption): bootstrap interval over whole clusters.

    A mean of exactly 0 or 1 has no spread to resample: its interval reaches to 3 / number of clusters from the end.
    """
    x, of = np.asarray(values, np.float64), np.asarray(clusters)
    if not len(x):
        return Measure(name, 0.0, 0.0, 1.0, 0, goal, better, most)
    groups = [np.flatnonzero(of == cluster) for cluster in np.unique(of)]
    sums, sizes = np.array([x[g].sum() for g in groups]), np.array([len(g) for g in groups])
    drawn = np.random.default_rng(0).integers(0, len(groups), (RESAMPLES, len(groups)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = (float(v) for v in np.quantile(means, (0.025, 0.975)))
    if x.min() == x.max() and x[0] in (0.0, 1.0):
        reach = min(1.0, 3 / len(groups))
        low, high = (0.0, reach) if x[0] == 0 else (1 - reach, 1.0)
    return Measure(name, float(x.mean()), low, high, len(x), goal, better, most)


def spread(name: str, values: Sequence[float], goal: float | None = None, better: str = "higher") -> Measure:
    """The median of repeated measurements, with their range as the interval."""
    ordered = sorted(values)
    return Measure(name, ordered[len(ordered) // 2], ordered[0], ordered[-1], len(ordered), goal, better)


def publish(
    name: str, measures: Sequence[Measure], out: Path, *, seeds: Sequence[int], quick: bool, more: dict[str, Any] | None = None
) -> None:
    """Print the table and write ``out/name.json`` (``name-quick.json`` for a quick run), with whatever ``more`` holds."""
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "value", "95 % interval", "n", "goal", "met", title=f"bench {name}{' (quick)' if quick else ''}")
    for m in measures:
        met = {None: "", True: "yes", False: "NO"}[m.met]
        table.add_row(m.id, f"{m.value:.3f}", f"{m.low:.3f} – {m.high:.3f}", str(m.n), m.told, met)
    Console().print(table)
    out.mkdir(parents=True, exist_ok=True)
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    body = {
        "bench": name,
        "commit": found.stdout.strip(),
        "device": "cpu",
        "seeds": list(seeds),
        "measures": [asdict(m) | {"met": m.met} for m in measures],
        **(more or {}),
    }
    (out / f"{name}{'-quick' if quick else ''}.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
