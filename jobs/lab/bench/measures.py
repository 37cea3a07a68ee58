"""One number with its interval and its goal; the table and the JSON that benches publish.

Goals are set before measuring and never follow the result. The table marks a missed goal.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

RESAMPLES = 4000
HALVES = 200


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number: value with a 95 % interval, n, and its goal."""

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
    def goal_text(self) -> str:
        """The goal as text, such as "≥ 0.9"; empty where there is none."""
        if self.goal is None:
            return ""
        if self.most is not None:
            return f"{self.goal:g} – {self.most:g}"
        return f"{'≥' if self.better == 'higher' else '≤'} {self.goal:g}"


def share(name: str, count: int, n: int, goal: float | None = None, better: str = "higher") -> Measure:
    """A rate of independent trials with Wilson's interval."""
    from index.rate import wilson

    low, high = wilson(count, n)
    return Measure(id=name, value=count / max(1, n), low=low, high=high, n=n, goal=goal, better=better)


def clustered(
    name: str, values: Sequence[float] | np.ndarray, clusters: Sequence[str], goal: float | None = None, better: str = "higher",
    most: float | None = None,
) -> Measure:  # fmt: skip
    """A mean of values that come in clusters (several seeds of one caption): bootstrap interval over whole clusters.

    A mean of exactly 0 or 1 has no spread to resample: its interval reaches 3 / (number of clusters) inwards.
    """
    x, of = np.asarray(values, np.float64), np.asarray(clusters)
    if not len(x):
        return Measure(id=name, value=0.0, low=0.0, high=1.0, n=0, goal=goal, better=better, most=most)
    groups = [np.flatnonzero(of == cluster) for cluster in np.unique(of)]
    sums, sizes = np.array([x[g].sum() for g in groups]), np.array([len(g) for g in groups])
    drawn = np.random.default_rng(0).integers(0, len(groups), (RESAMPLES, len(groups)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = (float(v) for v in np.quantile(means, (0.025, 0.975)))
    if x.min() == x.max() and x[0] in (0.0, 1.0):
        reach = min(1.0, 3 / len(groups))
        low, high = (0.0, reach) if x[0] == 0 else (1 - reach, 1.0)
    return Measure(id=name, value=float(x.mean()), low=low, high=high, n=len(x), goal=goal, better=better, most=most)


def spread(name: str, values: Sequence[float], goal: float | None = None, better: str = "higher") -> Measure:
    """The median of repeated measurements, with their range as the interval."""
    return Measure(
        id=name, value=float(np.median(values)), low=min(values), high=max(values), n=len(values), goal=goal, better=better
    )


def ratio(
    name: str, before: np.ndarray, after: np.ndarray, clusters: Sequence[str], goal: float | None = None,
    better: str = "higher", alarms: float | np.ndarray = 0.0,
) -> Measure:  # fmt: skip
    """Mean before over mean after, of the same requests; bootstrap over whole clusters; a count of zero is taken as a half.

    ``alarms``: the detector's rate of false alarms, in all or by request; subtracted from both (Rogan and Gladen; its
    sensitivity cancels).
    """
    of, least = np.asarray(clusters), 0.5
    groups = [np.flatnonzero(of == cluster) for cluster in np.unique(of)]
    sums = np.array([[x[g].sum() for g in groups] for x in (np.asarray(before, float), np.asarray(after, float))])
    sums = sums - [np.broadcast_to(alarms, of.shape)[g].sum() for g in groups]
    drawn = np.random.default_rng(0).integers(0, len(groups), (RESAMPLES, len(groups)))
    first, second = (np.maximum(0.0, sums[i][drawn].sum(1)) for i in (0, 1))
    low, high = (float(v) for v in np.quantile(first / np.maximum(least, second), (0.025, 0.975)))
    value = max(0.0, float(sums[0].sum())) / max(least, float(sums[1].sum()))
    return Measure(id=name, value=value, low=low, high=high, n=len(of), goal=goal, better=better)


def paired(name: str, before: np.ndarray, after: np.ndarray, of: Sequence[str], goal: float | None = None) -> Measure:
    """By how much a mean changed, on the same samples; bootstrap over whole clusters ``of`` them.

    Where no sample changed, the interval reaches 3 / (number of clusters) to both sides.
    """
    moved = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    found = clustered(name, moved, of, goal)
    if not moved.any():
        reach = min(1.0, 3 / len(np.unique(np.asarray(of))))
        found = replace(found, low=-reach, high=reach)
    return found


def change(name: str, before: np.ndarray, after: np.ndarray, of: Sequence[str], goal: float | None = None) -> Measure:
    """By which share a mean changed, on the same groups; bootstrap over captions. A goal is a fall of at least so much."""
    clusters = np.asarray(of)
    groups = [np.flatnonzero(clusters == one) for one in np.unique(clusters)]
    sums = np.array([[x[g].sum() for g in groups] for x in (before, after)])
    drawn = np.random.default_rng(0).integers(0, len(groups), (RESAMPLES, len(groups)))
    shares = sums[1][drawn].sum(1) / sums[0][drawn].sum(1) - 1
    low, high = (float(v) for v in np.quantile(shares, (0.025, 0.975)))
    value = float(after.sum() / before.sum() - 1)
    return Measure(id=name, value=value, low=low, high=high, n=len(before), goal=goal, better="lower")


def corrected(name: str, seen: Measure, sensitivity: float, specificity: float) -> Measure:
    """The rate that a perfect detector would find (Rogan and Gladen), kept within 0 and 1.

    (p − (1 − specificity)) / (sensitivity + specificity − 1). The interval of the observed rate is corrected in the same way;
    the detector's own rates are taken as exact.
    """
    informed = sensitivity + specificity - 1
    if informed <= 0:
        return Measure(id=name, value=0.0, low=0.0, high=1.0, n=seen.n)
    value, low, high = (min(1.0, max(0.0, (p - 1 + specificity) / informed)) for p in (seen.value, seen.low, seen.high))
    return Measure(id=name, value=value, low=low, high=high, n=seen.n)


def kid(x: np.ndarray, y: np.ndarray) -> float:
    """Kernel inception distance of features (N, D) and (M, D): unbiased MMD² with k(a, b) = (a·b/D + 1)³."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)

    n, m = len(x), len(y)
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def half_samples(
    name: str, x: np.ndarray, y: np.ndarray, statistic: Callable[[np.ndarray, np.ndarray], float], scale: float = 1.0
) -> Measure:
    """A statistic of rows x against fixed rows y; its interval from halves of x drawn without replacement.

    Such a half has the variance of the whole sample and no row twice; distances react to repeated rows.
    """
    rng = np.random.default_rng(0)
    drawn = [statistic(x[rng.permutation(len(x))[: max(2, len(x) // 2)]], y) for _ in range(HALVES)]
    low, high = (scale * float(v) for v in np.quantile(drawn, (0.025, 0.975)))
    return Measure(id=name, value=scale * statistic(x, y), low=low, high=high, n=len(x), better="lower")


def shipped_model() -> str:
    """The digest of the embedded world's model: a result of what it draws holds for these weights alone."""
    from index.shipped import STICKERS

    listed: dict[str, str] = json.loads((STICKERS / "digests.json").read_text(encoding="utf-8"))
    lines = [f"{name} {digest}" for name, digest in sorted(listed.items()) if name.startswith("model/")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def publish(
    name: str, measures: Sequence[Measure], out: Path, *, seeds: Sequence[int], quick: bool, more: dict[str, Any] | None = None
) -> None:
    """Print the table and write ``out/name.json`` (``name-quick.json`` for a quick run), with the entries of ``more``."""
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "value", "95 % interval", "n", "goal", "met", title=f"bench {name}{' (quick)' if quick else ''}")
    for m in measures:
        met = {None: "", True: "yes", False: "NO"}[m.met]
        table.add_row(m.id, f"{m.value:.3f}", f"{m.low:.3f} – {m.high:.3f}", str(m.n), m.goal_text, met)
    Console().print(table)
    out.mkdir(parents=True, exist_ok=True)
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    body = {
        "bench": name,
        "commit": found.stdout.strip(),
        "device": "cpu",
        "model": shipped_model(),
        "seeds": list(seeds),
        "measures": [asdict(m) | {"met": m.met} for m in measures],
        **(more or {}),
    }
    (out / f"{name}{'-quick' if quick else ''}.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
