"""The reference index at sizes that matter, held against brute force: decisions, speed, memory, opening, changing, building.

Every part runs in a process of its own with one thread, and its result is kept in ``work``, so that a bench that is stopped
continues. Speeds are ratios of processor time within one process, ours and brute force in turns. Brute force ("Flat") is that
of FAISS over the same mapped vectors. Memory is what the kernel counts as anonymous: the pages of a process that no file backs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jobs.lab.bench.apart import run_apart
from jobs.lab.bench.index_data import DIM
from jobs.lab.bench.load import load_average, remark
from jobs.lab.bench.measures import Measure, publish, share, spread

SIZES = (20_000, 200_000, 1_000_000)
HELD = 200_000  # references from which on the goals hold
PARTS = ("data", "build", "truth", "search", "open", "change", "alike")
PICTURES = 768  # embedded for the rate of building
QUERIES = 5_000  # made-up ones; real ones come on top


def bench(out: Path, *, quick: bool = False, work: Path, sizes: Sequence[int] = ()) -> None:
    """Measure and publish ``index``. Sizes that were measured before and lie in ``work`` are published again."""
    chosen = (3_000,) if quick else (sizes or SIZES)
    measures, loads, facts = list[Measure](), dict[str, float](), dict[str, Any]()
    for rows in sorted(chosen):
        folder = work / str(rows)
        found = {part: _part(part, folder, rows, quick=quick) for part in PARTS}
        measures += of_size(rows, found, goals=rows >= HELD)
        loads |= {f"{rows:,} {part}": each["load"] for part, each in found.items()}
        facts[str(rows)] = {part: each for part, each in found.items()}
    pictures = _part("pictures", work, 128 if quick else PICTURES, quick=quick)
    measures.append(spread("building from pictures: calls of one reference ÷ full calls, seconds", pictures["ratios"], 5.0))
    more = {"load_averages": loads, "remark": remark(loads), "ten_million": ten_million(facts), "parts": facts}
    publish("index", measures, out, seeds=[0], quick=quick, more=more)


def of_size(rows: int, found: dict[str, dict[str, Any]], *, goals: bool) -> list[Measure]:
    """The measures of one size, out of what the parts found."""
    search, change, build, alike = found["search"], found["change"], found["build"], found["alike"]

    def goal(value: float) -> float | None:
        return value if goals else None

    def one(what: str, value: float, asked: float | None = None, better: str = "lower") -> Measure:
        return Measure(id=f"{rows:,}: {what}", value=value, low=value, high=value, n=1, goal=asked, better=better)

    name = f"{rows:,}: "
    old = build.get("old_seconds")
    compared = []
    if old is not None:
        compared.append(one("seconds of the old search structure ÷ today's", old / build["ann_seconds"], better="higher"))
    return [
        share(f"{name}decisions equal to Flat's", search["decisions"], search["queries"], goal(1.0)),
        share(f"{name}… of the queries that are real embeddings", search["real_decisions"], search["real"], goal(1.0)),
        share(f"{name}recall at the threshold, pairs of the nearest 3", search["pairs_found"], search["pairs"], goal(0.999)),
        share(f"{name}copies among works that are alike: nearest as Flat's", alike["best"], alike["queries"], goal(1.0)),
        share(f"{name}… pairs of the nearest 3", alike["pairs_found"], alike["pairs"], goal(0.999)),
        spread(f"{name}… seconds a query ÷ those of other queries", alike["ratios"], better="lower"),
        spread(f"{name}queries in a second ÷ Flat's, in batches", search["batch_ratios"], goal(10.0)),
        spread(f"{name}queries in a second ÷ Flat's, one by one", search["single_ratios"], goal(10.0)),
        spread(f"{name}queries in a second, in batches", search["batch_rates"]),
        spread(f"{name}queries in a second, one by one", search["single_rates"]),
        one("anonymous memory, bytes a reference", search["anonymous_bytes"] / rows, goal(64.0)),
        spread(f"{name}opening, ms", found["open"]["milliseconds"], goal(50.0), "lower"),
        spread(f"{name}retiring 1,000, ms of processor time", change["retire_cpu_ms"], goal(10.0), "lower"),
        spread(f"{name}retiring 1,000, ms with its writes", change["retire_wall_ms"], better="lower"),
        one("retiring 1,000, bytes written", change["retire_bytes"]),
        share(f"{name}wrong answers after retiring", change["wrong"], change["asked"], goal(0.0), "lower"),
        one("adding 1,000, seconds", change["add_seconds"]),
        one("adding 1,000, bytes written", change["add_bytes"]),
        share(f"{name}added ones that are found", change["added_found"], change["added"], goal(1.0)),
        one("building from vectors, references in a second of processor time", rows / build["cpu_seconds"], better="higher"),
        one("building from vectors, peak of anonymous memory, MB", build["peak_anonymous_bytes"] / 1e6),
        *compared,
    ]  # fmt: skip


def ten_million(facts: dict[str, Any]) -> dict[str, float]:
    """What 10,000,000 references would take, by arithmetic from the two largest sizes: a power law through both.

    Empty where fewer than two sizes lie over the limit of the flat index. A number that is 0 at one of them is left out:
    memory that a process already had does not grow.
    """
    from index.ann import FLAT_LIMIT

    sizes = sorted(int(rows) for rows in facts if int(rows) > FLAT_LIMIT)[-2:]
    if len(sizes) < 2:
        return {}
    small, large = (facts[str(rows)] for rows in sizes)
    numbers: dict[str, Callable[[dict[str, Any]], float]] = {
        "seconds a query, in batches": lambda one: one["search"]["batch_seconds"],
        "seconds a query, one by one": lambda one: one["search"]["single_seconds"],
        "processor seconds of building from vectors": lambda one: one["build"]["cpu_seconds"],
        "bytes on disk": lambda one: one["build"]["bytes_on_disk"],
        "peak of anonymous memory while building, bytes": lambda one: one["build"]["peak_anonymous_bytes"],
        "opening, ms": lambda one: sorted(one["open"]["milliseconds"])[len(one["open"]["milliseconds"]) // 2],
    }
    pairs = {name: (read(small), read(large)) for name, read in numbers.items()}
    return {name: power_law(sizes, pair, 10_000_000) for name, pair in pairs.items() if min(pair) > 0}


def power_law(sizes: Sequence[int], values: Sequence[float], at: int) -> float:
    """The value at another size, on the power law through two points."""
    from math import log

    slope = log(values[1] / values[0]) / log(sizes[1] / sizes[0])
    return float(values[1] * (at / sizes[1]) ** slope)


def _part(part: str, folder: Path, rows: int, *, quick: bool) -> dict[str, Any]:
    """What a part found, now or before."""
    path = folder / f"{part}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{rows:,}: {part}", file=sys.stderr, flush=True)
        _apart(part, folder, rows, quick=quick)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _apart(part: str, folder: Path, rows: int, *, quick: bool) -> None:
    """Run a part in a process of its own, on one thread; its result is its last line."""
    code = f"from jobs.lab.bench.index_parts import main; main({part!r}, {str(folder)!r}, {rows}, {quick!r})"
    found = json.loads(run_apart(code).splitlines()[-1]) | {"load": load_average(), "dim": DIM}
    (folder / f"{part}.part").write_text(json.dumps(found), encoding="utf-8")
    (folder / f"{part}.part").rename(folder / f"{part}.json")
