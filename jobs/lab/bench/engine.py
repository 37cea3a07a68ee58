"""The engine: equal bytes, speed, the cost of repairs, the cost of negative token merging.

Times are ratios within one run: the variants alternate, on one thread, in processor time. Processor time equals seconds on an
idle machine, and other processes change it little. They do change it, because they empty the caches: the load average is
recorded for every part, and the bench prints a warning when the machine was busy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from jobs.lab.bench.measures import Measure, publish

SEEDS = (1, 2, 3)
COINS = tuple(range(1, 5))  # seeds of the flags
JOB = 48  # samples, as in the demo; the shards of a run overlap, so rows run empty once a job, not once a shard


def bench(out: Path, *, quick: bool = False) -> None:
    """Measure and publish ``engine``."""
    import torch

    from index.torchvision_ops import ensure
    from jobs.lab.bench.engine_equality import benign_equality, equality
    from jobs.lab.bench.engine_matching import matching
    from jobs.lab.bench.engine_negtome import step_overhead
    from jobs.lab.bench.engine_reruns import reruns
    from jobs.lab.bench.engine_stock import against_stock
    from jobs.lab.bench.load import load_average, remark
    from pipeline.config import ModelConfig
    from pipeline.model.load import load_model

    ensure()
    torch.set_num_threads(1)
    seeds = SEEDS[:1] if quick else SEEDS
    models = {dtype: load_model(ModelConfig(dtype=dtype)) for dtype in ("bfloat16", "float32")}  # type: ignore[arg-type]
    drawn, steps = (8, 8) if quick else (JOB, 20)
    flags = {0.15: COINS[:1]} if quick else {0.15: COINS, 0.0: COINS[:2], 0.05: COINS[:2], 0.35: COINS[:2]}
    parts: dict[str, Callable[[], list[Measure]]] = {
        "matching": lambda: matching(rounds=3 if quick else 15),
        **{
            f"{rate:.0%} flagged": lambda rate=rate, coins=coins: reruns(  # type: ignore[misc]
                models["bfloat16"], rate, coins, samples=drawn, steps=steps
            )
            for rate, coins in flags.items()
        },
        "NegToMe": lambda: step_overhead(models["bfloat16"], steps=4 if quick else 20, rounds=1 if quick else 3),
        "diffusers": lambda: against_stock(models, samples=8, rounds=1 if quick else 3, steps=steps),
        **{f"bytes, {dtype}": lambda dtype=dtype: equality(models[dtype], dtype, steps=4 if quick else 8) for dtype in models},  # type: ignore[misc]
        # Last, because a runtime changes settings of the whole process.
        "benign": lambda: benign_equality(captions=2 if quick else 12, seeds=seeds[:1]),
    }
    measures, loads = list[Measure](), dict[str, float]()
    for name, part in parts.items():
        found, loads[name] = part(), load_average()
        for measure in found:  # progress: the whole bench takes a while
            print(f"{name} · {measure.id}: {measure.value:.3f}, load average {loads[name]:.1f}", file=sys.stderr, flush=True)
        measures += found
    publish("engine", measures, out, seeds=seeds, quick=quick, more={"load_averages": loads, "remark": remark(loads)})
    if warning := remark(loads):
        print(warning, file=sys.stderr, flush=True)
