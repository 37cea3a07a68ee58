"""NegToMe through the engine on SDXL, SD3 and Flux: rungs reach UNet and MMDiT blocks, alone as in a batch, or cached."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.families import load_model
from pipeline.model.interface import DiffusionModel
from pipeline.respond.copies import Failed, Tools, retry
from pipeline.rungs import NegToMeRung, Rung
from pipeline.steer.blocks import steerable_blocks
from pipeline.steer.features import FeatureCache

STEPS, ROWS = 3, 6
RUNG = NegToMeRung(alpha=0.9, token_threshold=0.0, masked=True)


@pytest.fixture(scope="module", params=["tiny_sdxl", "tiny_sd3", "tiny_flux"])
def model(request: pytest.FixtureRequest) -> DiffusionModel:
    # Flux's own size would be 128 latents a side, which is no tiny model any more.
    folder = str(request.getfixturevalue(request.param))
    return load_model(ModelConfig(path=folder, dtype="float32", size=16, text_tokens=8))


def engine(model: DiffusionModel) -> Engine:
    return Engine(model, rows=ROWS, steps=STEPS, guidance_scale=3.0)


def plain(e: Engine, tag: int) -> Trajectory:
    texts = e.model.encode_prompts([f"a red apple {tag}", ""])
    return Trajectory(
        tag=tag, latent=e.initial_noise(tag), step=0, context=texts[0], negative=texts[1] if e.guided else None, seed=tag
    )


def finish(e: Engine, *trajectories: Trajectory) -> list[torch.Tensor]:
    for t in trajectories:
        e.submit(t)
    while e.busy:
        e.step()
    return [t.latent for t in trajectories]


def steered(e: Engine, rung: Rung = RUNG) -> Trajectory:
    first = plain(e, 1)
    finish(e, first)
    reference = torch.randn(e.model.latent_shape, generator=torch.Generator().manual_seed(9))
    failed = Failed(last=first, seed=1, attempt=1, ref_ids=["00000001"], latents=[reference])
    context = e.model.encode_prompts([""])[0]
    found = retry(failed, rung, Tools(engine=e, reference_context=context, centre=torch.zeros(e.model.latent_shape)))
    return found.trajectory.resumed(first, found.seed)


def test_the_models_blocks_are_those_found_by_class(model: DiffusionModel) -> None:
    found = [block for _, block in steerable_blocks(model.network)]  # type: ignore[attr-defined]
    assert [block for _, block in model.attention_blocks()] == found


def test_steered_alone_in_a_batch_and_from_the_cache_are_the_same_bytes(model: DiffusionModel) -> None:
    e = engine(model)
    unsteered, other = (finish(engine(model), plain(e, tag))[0] for tag in (1, 2))
    alone = finish(e, steered(e))[0]
    assert torch.isfinite(alone).all() and not torch.equal(alone, unsteered)
    mate, own = finish(e, plain(e, 2), steered(e))
    assert torch.equal(own, alone) and torch.equal(mate, other)
    cached = engine(model)
    cached.features = FeatureCache(1 << 24)
    for _ in range(2):
        t = steered(cached)
        assert t.rows() == t.own_rows
        assert torch.equal(finish(cached, t)[0], alone)
    assert cached.features.hits > 0 and cached.features.rows_run == STEPS


def test_no_strength_is_no_change(model: DiffusionModel) -> None:
    e = engine(model)
    assert torch.equal(finish(e, steered(e, replace(RUNG, alpha=0.0)))[0], finish(e, plain(e, 1))[0])
