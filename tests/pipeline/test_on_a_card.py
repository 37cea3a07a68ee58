"""What only an accelerator can show; skipped where there is none. `make card` runs it, and what else is marked `gpu`.

Bytes in any company, plain calls as graphs, calls that nothing waits for, memory that runs out, and guards on the device.
CLEARANCE_CARD=cpu runs what can be run without a card, which tries the tests and not the card.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guards.marks import MarksGuard
from index.embed import OpenCLIPEmbedder
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.graphs import PlainCalls
from pipeline.model.interface import DiffusionModel
from pipeline.model.machine import machine
from pipeline.steer.negtome import NegToMe
from pipeline.steer.nudge import Nudge
from tests.guards.conftest import drawing
from tests.pipeline.families import FAMILIES, engine_of, finish, load, sample, text

DEVICE = os.environ.get("CLEARANCE_CARD", "cuda:0")
CARD = DEVICE != "cpu"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CARD and not torch.cuda.is_available(), reason="needs a CUDA device"),
]
needs_card = pytest.mark.skipif(not CARD, reason="needs a CUDA device, and no stand-in will do")
RECORDED = [name for name in FAMILIES if name not in ("chroma", "qwen_image")]  # diffusers copies from the host in these two


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny_model: Callable[[str], Path]) -> DiffusionModel:
    return on_device(request.param, tiny_model)


def on_device(name: str, tiny_model: Callable[[str], Path], **more: Any) -> DiffusionModel:
    family = FAMILIES[name]
    return load(family, tiny_model(family.pipeline), "bfloat16", device=DEVICE, **more)


def noise(e: Engine, seed: int) -> torch.Tensor:
    return e.initial_noise(seed)


def some(e: Engine) -> dict[int, Trajectory]:
    """A plain sample, a nudged one, one that is pushed, and a plain one of another size."""
    z = noise(e, 50)
    push = NegToMe(latents=(z,), noises=(z,), context=text(e.model, ""), alpha=0.9, threshold=-0.5, until_step=2)
    ones = torch.ones_like(z)
    nudge = Nudge(references=(ones,), centre=torch.zeros_like(z), step_size=0.1, iterations=2, until_step=2)
    wide = FAMILIES[e.model.family].wide
    return {0: sample(e, 0), 1: sample(e, 1, nudge=nudge), 2: sample(e, 2, push=push), 3: sample(e, 3, size=wide)}


def bytes_of(done: dict[int, torch.Tensor]) -> dict[int, bytes]:
    return {tag: latent.cpu().numpy().tobytes() for tag, latent in done.items()}


def test_bytes_depend_on_no_company_and_no_order(model: DiffusionModel) -> None:
    alone = {}
    for tag in range(4):
        e = engine_of(FAMILIES[model.family], model)
        alone |= finish(e, [some(e)[tag]])
    for order, stagger in (((3, 0, 2, 1), False), ((1, 2, 0, 3), True)):
        e = engine_of(FAMILIES[model.family], model)
        there = some(e)
        assert bytes_of(finish(e, [there[tag] for tag in order], stagger=stagger)) == bytes_of(alone)


@needs_card
@pytest.mark.parametrize("name", RECORDED)
def test_plain_calls_as_graphs_draw_the_same_bytes(name: str, tiny_model: Callable[[str], Path]) -> None:
    model = on_device(name, tiny_model)
    found = []
    for plain in (None, PlainCalls(model)):
        e = engine_of(FAMILIES[name], model)
        e.plain = plain
        found.append(bytes_of(finish(e, list(some(e).values()), stagger=True)))
    assert found[0] == found[1]
    assert plain is not None and 1 <= plain.recorded <= 2  # one a size that had a plain call


@needs_card
def test_compiled_blocks_are_recorded_too(tiny_model: Callable[[str], Path]) -> None:
    model = on_device("sd", tiny_model, compile="blocks")
    found = []
    for plain in (None, PlainCalls(model)):
        e = engine_of(FAMILIES["sd"], model)
        e.plain = plain
        found.append(bytes_of(finish(e, [sample(e, seed) for seed in range(3)])))
    assert found[0] == found[1]


@contextmanager
def nothing_waits() -> Iterator[None]:
    """CUDA raises an error where the host would wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_card
@pytest.mark.parametrize("name", RECORDED)
def test_the_host_waits_for_no_call_of_the_denoiser(name: str, tiny_model: Callable[[str], Path]) -> None:
    model = on_device(name, tiny_model)
    e = engine_of(FAMILIES[name], model)
    context = text(model, "").map(lambda part: part.expand(4, *part.shape).contiguous())
    latents = torch.zeros(4, *model.latent_shape, device=model.device)
    times = e.sampler.time(1, model.device).expand(4).contiguous()
    model.denoise(latents, times, context, 3.5)
    with nothing_waits():
        model.denoise(latents, times, context, 3.5)


@needs_card
def test_memory_that_runs_out_halves_the_rows_and_loses_no_sample(tiny_model: Callable[[str], Path]) -> None:
    model = on_device("sd", tiny_model)
    e = engine_of(FAMILIES["sd"], model)
    real, least = model.denoise, 4

    def crowded(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(latents) > least:
            torch.empty(2**50, device=latents.device)  # a petabyte
        return real(latents, *rest)

    model.denoise = crowded  # type: ignore[method-assign]
    done = finish(e, [sample(e, seed) for seed in range(5)])
    assert e.rows == least and len(done) == 5


def test_text_encoders_leave_the_device(tiny_model: Callable[[str], Path]) -> None:
    kept, left = (on_device("sd", tiny_model, text_encoders=how) for how in ("keep", "offload"))
    both = [model.encode_prompts(["a red apple"])[0] for model in (kept, left)]
    assert both[0].equal(both[1])
    encoder = left.parts.text_encoder  # type: ignore[attr-defined]
    assert next(encoder.parameters()).device.type == "cpu"


def test_guards_and_embedder_find_on_the_device_what_they_find_on_the_host() -> None:
    pictures = np.stack([np.asarray(drawing(seed)) for seed in range(20)])
    here, there = MarksGuard(), MarksGuard()
    there.to(DEVICE)
    scores = [np.array([[f.score for f in row] for row in guard.check(pictures)]) for guard in (here, there)]
    assert np.abs(scores[0] - scores[1]).max() < 1e-3
    alone = np.concatenate([[[f.score for f in there.check(pictures[i : i + 1])[0]]] for i in range(20)])
    assert np.array_equal(scores[1], alone)
    host, device = OpenCLIPEmbedder.open("stickers"), OpenCLIPEmbedder.open("stickers", device=DEVICE)
    assert np.abs(host.images(pictures) - device.images(pictures)).max() < 1e-3


@needs_card
def test_rows_say_what_drew_them() -> None:
    from pipeline.config import ModelConfig

    assert torch.cuda.get_device_name(0) in str(machine(ModelConfig(device=DEVICE)))
