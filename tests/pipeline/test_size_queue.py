"""How full the calls are that nine sizes share: the engine itself, over a network that does nothing."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.conditioning import Conditioning

ROWS, STEPS = 8, 30
# SDXL's buckets of about one megapixel, in 64 pixels: one position of these latents each
BUCKETS = [(16, 16), (18, 14), (14, 18), (19, 13), (13, 19), (21, 12), (12, 21), (24, 10), (10, 24)]
TAIL = STEPS * ROWS // 2  # rows that may stay empty for each size, while its last samples end


def engine() -> Engine:
    from diffusers import DDIMScheduler

    def scheduled(kind: Any, steps: int, **changes: Any) -> Any:
        built = DDIMScheduler(clip_sample=False)
        built.set_timesteps(steps)
        return built

    model: Any = SimpleNamespace(
        latent_shape=(1, *BUCKETS[0]), distilled=False, prediction_type="epsilon", scheduled=scheduled,
        device=torch.device("cpu"),
        scheduler_config={"_class_name": "DDIMScheduler"}, guided=lambda scale: scale > 1,
        combine=lambda negative, conditional, scale: conditional, sites=tuple,
        denoise=lambda latents, *_: torch.zeros_like(latents),
    )  # fmt: skip
    return Engine(model, rows=ROWS, steps=STEPS, guidance_scale=3.0)


def drawn(buckets: list[int], *, steered: float = 0.0, away: int = 12) -> Engine:
    """An engine after it has drawn these, in this order; a share of them comes back ``away`` calls after they ended."""
    e, coming, back, dice = engine(), list(enumerate(buckets)), list[tuple[int, Trajectory]](), random.Random(0)
    context = Conditioning(torch.zeros(1, 1))
    while coming or back or e.busy:
        while e.room and coming:
            tag, bucket = coming.pop(0)
            noise = e.initial_noise(tag, size=BUCKETS[bucket])
            e.submit(Trajectory(tag=tag, latent=noise, step=0, context=context, negative=context))
        for due, t in [one for one in back if one[0] <= e.calls]:
            back.remove((due, t))
            e.submit(Trajectory(tag=-1, latent=t.latent, step=0, context=context, negative=context).resumed(t, 0))
        if not e.busy:
            e.calls = back[0][0]  # the denoiser waits for the guards
            continue
        back += [(e.calls + away, t) for t in e.step() if t.tag >= 0 and dice.random() < steered]
    return e


def empty(e: Engine) -> int:
    return sum(one.rows - one.used for one in e.filled.values())


@pytest.mark.parametrize("each", [5, 9])
def test_sorted_by_size_no_more_rows_stay_empty_than_the_last_samples_leave(each: int) -> None:
    e = drawn([bucket for bucket in range(9) for _ in range(each)])
    assert all(one.rows - one.used <= TAIL for one in e.filled.values())
    assert empty(e) <= 9 * TAIL


ORDERS = {  # rows that stay empty, and of which share of all: the numbers of the decision
    "sorted": (0.0, False, 0, 0.00),
    "sorted, 15 % come back": (0.15, False, 892, 0.08),
    "any order": (0.0, True, 952, 0.10),
    "any order, 15 % come back": (0.15, True, 1652, 0.14),
}


@pytest.mark.parametrize("name", ORDERS)
def test_how_many_rows_stay_empty(name: str) -> None:
    """144 samples; where shards hold several sizes, calls are nearly as full as where they are sorted."""
    steered, shuffled, rows, share = ORDERS[name]
    order = [bucket for bucket in range(9) for _ in range(16)]
    if shuffled:
        random.Random(1).shuffle(order)
    e = drawn(order, steered=steered)
    assert empty(e) == rows
    assert round(empty(e) / sum(one.rows for one in e.filled.values()), 2) == share
    assert sum(one.used for one in e.filled.values()) >= 144 * STEPS * 2
