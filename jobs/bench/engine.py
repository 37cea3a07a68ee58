"""Byte-equality and speed of the engine against diffusers' own loop, in one run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench.measures import publish, share, spread

if TYPE_CHECKING:
    from pipeline.engine import Engine, Trajectory


def bench(out: Path, *, quick: bool = False) -> None:
    """Measure and publish ``engine``."""
    import torch

    from index.torchvision_ops import ensure
    from pipeline.config import ModelConfig
    from pipeline.engine import Engine
    from pipeline.model.families import load_model, resolve

    ensure()
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(2)
    samples, rounds, steps = (8, 1, 10) if quick else (16, 3, 20)
    pipe = StableDiffusionPipeline.from_pretrained(resolve(ModelConfig()), safety_checker=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    prompts = [f"a {name}" for name in ("pear", "bear", "cat", "castle", "lion", "pizza", "taxi", "key")]

    def stock() -> None:
        for start in range(0, samples, 8):
            chosen = [prompts[(start + i) % 8] for i in range(8)]
            noise = [torch.Generator().manual_seed(start + i) for i in range(8)]
            pipe(chosen, num_inference_steps=steps, guidance_scale=3.0, generator=noise, output_type="pt")

    measures = []
    for dtype in ("float32", "bfloat16"):
        model = load_model(ModelConfig(dtype=dtype))  # type: ignore[arg-type]

        def make(model: Any = model) -> Engine:
            return Engine(model, rows=16, steps=steps, guidance_scale=3.0)

        def ours(make: Callable[[], Engine] = make, model: Any = model) -> None:
            e = make()
            latents = _run(e, [_trajectory(e, i, prompts[i % 8]) for i in range(samples)])
            model.decode(torch.stack(list(latents.values())))

        ratios = []
        for _ in range(rounds):
            took = []
            for job in (stock, ours):
                began = time.perf_counter()
                job()
                took.append(time.perf_counter() - began)
            ratios.append(took[0] / took[1])
        measures.append(spread(f"pictures per second, engine {dtype} against diffusers' loop in float32", ratios, 2.0))
        alone = {i: _digest(_run(e := make(), [_trajectory(e, i, prompts[i % 8], push=i % 3 == 0)])[i]) for i in range(6)}
        equal = 0
        for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [2, 5, 4, 1, 3, 0]):
            e = make()
            mixed = _run(e, [_trajectory(e, i, prompts[i % 8], push=i % 3 == 0) for i in order])
            equal += sum(_digest(z) == alone[i] for i, z in mixed.items())
        measures.append(share(f"byte-equal to being drawn alone, 3 schedules, {dtype}", equal, 18, 1.0))
    publish("engine", measures, out, seeds=(0,), quick=quick)


def _trajectory(e: Engine, i: int, prompt: str, *, push: bool = False) -> Trajectory:
    import torch

    from pipeline.engine import Trajectory
    from pipeline.steer.negtome import NegToMe

    texts = e.model.encode_prompts([prompt, ""])
    t = Trajectory(i, e.initial_noise(i), 0, texts[0], texts[1])
    if push:
        z = torch.randn(e.model.latent_shape, generator=torch.Generator().manual_seed(900 + i))
        t.push = NegToMe((z,), (z,), texts[1], alpha=0.9, threshold=0.3, until_step=len(e.sampler))
    return t


def _run(e: Engine, trajectories: list[Trajectory]) -> dict[int, Any]:
    for t in trajectories:
        e.submit(t)
    done: dict[int, Any] = {}
    while e.busy:
        done |= {t.tag: t.latent for t in e.step()}
    return done


def _digest(latent: Any) -> str:
    return hashlib.sha256(latent.numpy().tobytes()).hexdigest()
