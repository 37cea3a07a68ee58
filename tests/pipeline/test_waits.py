"""How often a denoiser call of a released size would wait for its device: counted on ``meta``, without a card and weights.

With ``CLEARANCE_TRUE_SIZES=1`` all released sizes are counted, Qwen-Image and FLUX.2 dev among them; `make nightly` does that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from index.errors import ModelError, SteeringFailed
from pipeline.config import DiversityConfig, ModelConfig
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.adapters.lowrank import LowRank
from pipeline.model.conditioning import Conditioning
from pipeline.model.families.latent import LatentDiffusion
from pipeline.model.load import load_model
from pipeline.steer.diversity import Group, mates_push
from pipeline.steer.negtome import NegToMe
from pipeline.steer.nudge import Nudge
from tests.pipeline.lora_files import empty_pairs
from tests.pipeline.true_sizes import EVERY, META, RELEASED, Waits, built

STEPS, ROWS = 6, 8
model = cache(built)
ALL = list(RELEASED) if EVERY else ["SDXL", "SD 3.5 large", "Flux.1 dev"]
STEERED = ALL if EVERY else ["SDXL", "Flux.1 dev"]


def engine(of: LatentDiffusion) -> Engine:
    return Engine(of, rows=ROWS, steps=STEPS, guidance_scale=5.0)


def trajectory(e: Engine, context: Conditioning, tag: int, **more: Any) -> Trajectory:
    negative = context if e.guided else None
    return Trajectory(tag=tag, latent=e.initial_noise(tag), step=0, context=context, negative=negative, seed=tag, **more)


def latent(e: Engine, seed: int) -> torch.Tensor:
    return e.initial_noise(seed)


def push(e: Engine, context: Conditioning, **more: Any) -> NegToMe:
    """The default rung's settings, on one reference."""
    mask = torch.zeros(e.model.latent_shape[1:], dtype=torch.bool)
    mask[32:96, 32:96] = True
    return NegToMe(
        latents=(latent(e, 7),), noises=(latent(e, 8),), context=context, alpha=0.9, threshold=0.3, until_step=STEPS,
        attention="both", masks=(mask,), **more,
    )  # fmt: skip


def waits_of_a_call(e: Engine, trajectories: list[Trajectory]) -> Waits:
    """Of the first call, which also makes what is made once."""
    for t in trajectories:
        e.submit(t)
    with Waits() as waits:
        ended = e.make_call()
    assert ended == ([], [])
    return waits


@pytest.mark.parametrize(
    ("what", "counted"),
    [
        (lambda x: x.cpu(), "copies from"),
        (lambda x: x.to("cpu", torch.float64), "copies from"),
        (lambda x: x.sum().item(), "numbers read"),
        (lambda x: float(x.sum()), "numbers read"),
        (lambda x: bool(x.sum() > 0), "numbers read"),
        (lambda x: x[x > 0], "numbers read"),
        (lambda x: torch.ones(3).to(x.device), "copies to"),
        (lambda x: x[torch.tensor([0, 2])], "hidden copies to"),
    ],
)
@pytest.mark.parametrize("inference", [False, True])
def test_the_counter_counts(what: Callable[[torch.Tensor], object], counted: str, inference: bool) -> None:
    with torch.inference_mode(inference), Waits() as waits:
        what(torch.empty(3, device=META))
    assert dict(waits.counts) == {counted: 1}


def test_norms_read_late_are_those_read_at_once_and_so_are_the_pictures(tiny_sd: Path) -> None:
    of = load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))
    negative, context = of.encode_prompts(["", "a red apple"])
    found = []
    for late in (False, True):
        e = Engine(of, rows=ROWS, steps=STEPS, guidance_scale=3.0)
        e.late = late
        ts = [Trajectory(tag=i, latent=e.initial_noise(i), step=0, context=context, negative=negative) for i in range(6)]
        done = e.finish(ts)
        found.append([(done[t.tag].numpy().tobytes(), t.update_norms, t.guidance_norms) for t in ts])
        assert all(t.device_seconds > 0 for t in ts)
    assert found[0] == found[1] and len(found[0][0][1]) == STEPS


@pytest.mark.parametrize("bad", ["network", "nudge"])
def test_a_latent_that_is_not_finite_ends_its_sample_alone_one_call_late(tiny_sd: Path, bad: str) -> None:
    of: Any = load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))
    negative, context = of.encode_prompts(["", "a red apple"])

    def run(broken: bool) -> tuple[Engine, dict[int, bytes], list[tuple[int, int, Exception]]]:
        e = Engine(of, rows=ROWS, steps=STEPS, guidance_scale=3.0)
        e.late = True
        ts = [Trajectory(tag=i, latent=e.initial_noise(i), step=0, context=context, negative=negative) for i in range(4)]
        if broken and bad == "nudge":
            ts[1].nudge = lambda clean, step, noise: clean * float("nan") if step == 2 else clean
        elif broken:
            ts[1].context = context.map(lambda part: part * float("nan"))
        for t in ts:
            e.submit(t)
        done, lost = {}, []
        while e.busy:
            ended = e.make_call()
            done |= {t.tag: t.latent.numpy().tobytes() for t in ended.finished}
            lost += [(t.tag, e.calls, error) for t, error in ended.failed]
        return e, done, lost

    _, whole, none = run(False)
    _, left, ((tag, calls, error),) = run(True)
    step = 2 if bad == "nudge" else 0
    assert none == [] and tag == 1
    assert left == {other: whole[other] for other in (0, 2, 3)}
    assert isinstance(error, SteeringFailed if bad == "nudge" else ModelError) and f"step {step}" in str(error)
    assert calls == step + 2  # the call after the one that broke it


@pytest.mark.parametrize("name", ALL)
def test_the_model_has_the_released_size(name: str) -> None:
    count = sum(p.numel() for p in model(name)[0].network.parameters())
    assert count / 1e9 == pytest.approx(RELEASED[name][1], abs=0.01)


@pytest.mark.parametrize("name", ALL)
def test_a_call_reads_one_small_vector(name: str) -> None:
    of, context = model(name)
    e = engine(of)
    waits = waits_of_a_call(e, [trajectory(e, context, tag) for tag in range(4)])
    assert waits.waited == {"copies from": 1} and waits.bytes["copies from"] <= 4 * 2 * ROWS


@pytest.mark.parametrize("name", STEERED)
def test_a_call_with_pushed_and_nudged_samples_reads_one_small_vector_too(name: str) -> None:
    of, context = model(name)
    e = engine(of)
    nudge = Nudge(references=(latent(e, 7),), centre=latent(e, 9), step_size=0.05, iterations=3, until_step=STEPS, enough=0.2)
    pushed = trajectory(e, context, 1, push=push(e, context))
    waits = waits_of_a_call(e, [trajectory(e, context, 0), pushed, trajectory(e, context, 2, nudge=nudge)])
    assert waits.waited == {"copies from": 1}


def test_the_next_call_copies_nothing_to_the_device() -> None:
    of, context = model("SDXL")
    e = engine(of)
    waits_of_a_call(e, [trajectory(e, context, 0)])
    with Waits() as waits:
        e.make_call()
    assert dict(waits.counts) == {"copies from": 1}


@pytest.mark.skipif(not EVERY, reason="9 s: CLEARANCE_TRUE_SIZES=1 runs it")
def test_an_adapted_sample_makes_one_mask_a_call_and_reads_nothing() -> None:
    """SDXL has 722 linear layers that a LoRA may change: a mask at each would be 722 copies."""
    of, context = model("SDXL")
    weights = LowRank("style", empty_pairs(of.network, ("to_q", "to_k", "to_v", "to_out.0", "ff.net", "proj_in", "proj_out")))
    assert len(weights.pairs) > 700
    e = engine(of)
    waits = waits_of_a_call(e, [trajectory(e, context, 0), trajectory(e, context, 1, lowrank=((weights, 0.8),))])
    assert waits.waited == {"copies from": 1}
    with Waits() as waits:
        e.make_call()
    assert dict(waits.counts) == {"copies from": 1, "copies to": 1}


@pytest.mark.skipif(not EVERY, reason="6 s a network: CLEARANCE_TRUE_SIZES=1 runs it")
@pytest.mark.parametrize("name", STEERED)
def test_mates_that_push_one_another_apart_read_nothing(name: str) -> None:
    of, context = model(name)
    e = engine(of)
    group = Group(id="g", size=2, settings=mates_push(DiversityConfig(size=2, resolution="all"), STEPS, context, 0))
    waits = waits_of_a_call(e, [trajectory(e, context, tag, group=group, member=tag) for tag in range(2)])
    assert waits.waited == {"copies from": 1}
