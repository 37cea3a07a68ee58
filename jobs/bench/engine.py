"""The engine: bytes, speed, what repairs cost, what negative token merging costs.

Ratios within one run, turn by turn, of processor time on one thread: the same as seconds where nothing else runs, and hardly
moved by neighbours on the machine.
"""

from __future__ import annotations

from pathlib import Path

from jobs.bench.measures import publish

SEEDS = (1, 2, 3)


def bench(out: Path, *, quick: bool = False) -> None:
    """Measure and publish ``engine``."""
    import torch

    from index.torchvision_ops import ensure
    from jobs.bench.engine_equality import benign_equality, equality
    from jobs.bench.engine_matching import matching
    from jobs.bench.engine_negtome import step_overhead
    from jobs.bench.engine_reruns import reruns
    from jobs.bench.engine_stock import against_stock
    from pipeline.config import ModelConfig
    from pipeline.model.families import load_model

    ensure()
    torch.set_num_threads(1)
    seeds = SEEDS[:1] if quick else SEEDS
    measures = matching(rounds=3 if quick else 15)
    models = {dtype: load_model(ModelConfig(dtype=dtype)) for dtype in ("bfloat16", "float32")}  # type: ignore[arg-type]
    for dtype, model in models.items():
        measures += equality(model, dtype, steps=4 if quick else 10)
    measures += step_overhead(models["bfloat16"], steps=4 if quick else 20, rounds=1 if quick else 2)
    samples, steps = (8, 8) if quick else (24, 20)
    for rate in (0.15,) if quick else (0.0, 0.05, 0.15, 0.35):  # all seeds where it is judged
        measures += reruns(models["bfloat16"], rate, seeds if rate == 0.15 else seeds[:1], samples=samples, steps=steps)
    measures += against_stock(models, samples=8 if quick else 16, rounds=1 if quick else 2, steps=steps)
    measures += benign_equality(captions=2 if quick else 16, seeds=seeds[:1])  # last: a studio sets the whole process up
    publish("engine", measures, out, seeds=seeds, quick=quick)
