"""The time that negative token merging adds to a step when a quarter of the rows is steered."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from jobs.lab.bench.engine_runs import ROWS, contexts_of, engine, plain
from jobs.lab.bench.measures import Measure, spread

if TYPE_CHECKING:
    from pipeline.engine.engine import Engine
    from pipeline.engine.trajectory import Trajectory
    from pipeline.model.interface import DiffusionModel

STEERED = 4  # one sample in four


def step_overhead(model: DiffusionModel, *, steps: int, rounds: int) -> list[Measure]:
    """Calls with and without pushes, alternating; and whole samples whose references take rows of the calls."""
    cached = _engine(model, steps, cache=True)
    ratios = []
    for _ in range(rounds):
        engines = engine(model, steps), cached
        for e, steered in zip(engines, (False, True), strict=True):
            for t in _samples(e, ROWS // 2, steered):
                e.submit(t)
        for step in range(steps):
            took = {
                e: _seconds(e) for e in (engines if step % 2 else engines[::-1])
            }  # alternating: the second one finds other caches
            ratios.append(took[cached] / took[engines[0]] - 1)
    bare = []
    for _ in range(rounds):
        whole = []
        for steered in (False, True):
            e = engine(model, steps)
            trajectories = _samples(e, ROWS, steered)
            began = time.process_time()
            e.finish(trajectories)
            whole.append(time.process_time() - began)
        bare.append(whole[1] / whole[0] - 1)
    return [
        spread("NegToMe, a quarter of the rows steered from cached features: time added to a call", ratios, 0.03, "lower"),
        spread("NegToMe, a quarter of the samples with a reference row: time added to all", bare, None, "lower"),
    ]


def _engine(model: DiffusionModel, steps: int, *, cache: bool) -> Engine:
    from pipeline.steer.features import FeatureCache

    e = engine(model, steps)
    e.features = FeatureCache(1 << 30) if cache else None
    return e


def _samples(e: Engine, count: int, steered: bool) -> list[Trajectory]:
    """Plain samples, or every fourth pushed from a reference of its own by the ladder's rung, in every step."""
    import torch

    from pipeline.respond.copies import Failed, Tools, retry
    from pipeline.rungs import NegToMeRung

    contexts = contexts_of(e.model)
    trajectories = [plain(e, tag, contexts) for tag in range(count)]
    if not steered:
        return trajectories
    rung = NegToMeRung(precision="bfloat16", token_threshold=0.3)
    tools = Tools(engine=e, reference_context=contexts[-1], centre=torch.zeros(e.model.latent_shape))
    for i in range(0, count, STEERED):
        last = trajectories[i]
        last.ring[0] = last.latent
        failed = Failed(last=last, seed=i, attempt=1, ref_ids=[f"{i:016x}"], latents=[e.initial_noise(900 + i)])
        trajectories[i] = retry(failed, rung, tools).trajectory
    return trajectories


def _seconds(e: Engine) -> float:
    began = time.process_time()
    e.step()
    return time.process_time() - began
