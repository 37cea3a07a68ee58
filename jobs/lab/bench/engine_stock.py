"""The engine against diffusers' own loop: equal pictures, and the ratio of their speeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from jobs.lab.bench.engine_runs import CAPTIONS, GUIDANCE, contexts_of, engine, plain
from jobs.lab.bench.measures import Measure, share, spread

if TYPE_CHECKING:
    from pipeline.model.interface import DiffusionModel

BATCH = 8


def against_stock(models: Mapping[str, DiffusionModel], *, samples: int, rounds: int, steps: int) -> list[Measure]:
    """Pictures per second, alternating, and how closely the pictures of the same seeds agree."""
    import torch
    from diffusers import StableDiffusionPipeline

    from pipeline.config import ModelConfig
    from pipeline.model.folder.resolve import resolve
    from pipeline.model.libraries import quiet

    with quiet():
        pipe = StableDiffusionPipeline.from_pretrained(resolve(ModelConfig()), safety_checker=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def stock() -> np.ndarray:
        drawn = []
        for start in range(0, samples, BATCH):
            seeds = range(start, start + BATCH)
            noise = [torch.Generator().manual_seed(seed) for seed in seeds]
            chosen = [CAPTIONS[seed % len(CAPTIONS)] for seed in seeds]
            found = pipe(chosen, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=noise, output_type="np")
            drawn.append(found.images)
        return np.concatenate(drawn)

    def ours(model: DiffusionModel) -> np.ndarray:
        e, contexts = engine(model, steps), contexts_of(model)
        latents = e.finish([plain(e, tag, contexts) for tag in range(samples)])
        return model.decode(torch.stack([latents[tag] for tag in range(samples)]))

    ratios: dict[str, list[float]] = {dtype: [] for dtype in models}
    for _ in range(rounds):
        took, theirs = _timed(stock)
        for dtype, model in models.items():
            mine, pictures = _timed(lambda model=model: ours(model))  # type: ignore[misc]
            ratios[dtype].append(took / mine)
            if dtype == "float32":
                levels = np.abs(np.round(theirs * 255) - pictures.astype(np.float64)).reshape(samples, -1).max(1)
    return [
        *(
            spread(f"pictures per second, engine {dtype} against diffusers' loop in float32", ratios[dtype], 2.0)
            for dtype in models
        ),
        share("pictures equal to diffusers' own within one level of 255, float32", int((levels <= 1).sum()), samples, 1.0),
    ]


def _timed(job: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    began = time.process_time()
    made = job()
    return time.process_time() - began, made
