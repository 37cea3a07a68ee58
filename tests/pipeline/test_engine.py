"""The engine on a tiny random Stable Diffusion model: equal to diffusers, byte-equal to itself under any schedule."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from index.errors import ConfigError, ModelError
from pipeline.config import ModelConfig
from pipeline.engine import Engine, Trajectory
from pipeline.model.families import DiffusionModel, load_model
from pipeline.steer.negtome import NegToMe, RowPush, pushing
from pipeline.steer.nudge import Nudge

STEPS = 5


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, tiny_sd: Path) -> DiffusionModel:
    return load_model(ModelConfig(path=str(tiny_sd), dtype=request.param))


@pytest.fixture(scope="module")
def exact(tiny_sd: Path) -> DiffusionModel:
    return load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))


def engine(model: DiffusionModel, rows: int = 8) -> Engine:
    return Engine(model, rows=rows, steps=STEPS, guidance_scale=3.0)


def plain(e: Engine, tag: int) -> Trajectory:
    texts = e.model.encode_prompts([f"a red apple {tag}", ""])
    return Trajectory(tag, e.initial_noise(tag), 0, texts[0], texts[1])


def steered(e: Engine, tag: int) -> Trajectory:
    t = plain(e, tag)
    references = tuple(
        torch.randn(e.model.latent_shape, generator=torch.Generator().manual_seed(50 + tag + i)) for i in range(1 + tag % 2)
    )
    if tag % 3 == 0:
        t.nudge = Nudge(references, torch.zeros_like(references[0]), 0.05, 3, until_step=3)
    else:
        t.push = NegToMe(references, references, e.model.encode_prompts([""])[0], alpha=0.9, threshold=0.1, until_step=3)
    return t


def finish(e: Engine, trajectories: list[Trajectory]) -> dict[int, torch.Tensor]:
    for t in trajectories:
        e.submit(t)
    done: dict[int, torch.Tensor] = {}
    while e.busy:
        done |= {t.tag: t.latent for t in e.step()}
    return done


def test_equals_diffusers_own_pipeline(exact: DiffusionModel, tiny_sd: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe("a red apple 3", num_inference_steps=STEPS, guidance_scale=3.0, generator=torch.Generator().manual_seed(3),
                  output_type="latent").images[0]  # fmt: skip
    e = engine(exact)
    assert torch.allclose(finish(e, [plain(e, 3)])[3], theirs, atol=2e-4, rtol=1e-3)


def test_bytes_do_not_depend_on_schedule_mates_or_slot(model: DiffusionModel) -> None:
    e = engine(model)
    alone = {}
    for tag in range(6):
        alone |= finish(engine(model), [steered(e, tag) if tag % 2 else plain(e, tag)])
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [2, 5, 4, 1, 3, 0]):
        e = engine(model)
        mixed = finish(e, [steered(e, tag) if tag % 2 else plain(e, tag) for tag in order])
        for tag in range(6):
            assert torch.equal(mixed[tag], alone[tag]), f"sample {tag} in order {order}"


def test_samples_join_in_mid_flight(model: DiffusionModel) -> None:
    e = engine(model, rows=4)
    first, second = plain(e, 1), plain(e, 2)
    e.submit(first)
    e.step()
    e.step()
    done = finish(e, [second])
    assert torch.equal(done[1], finish(engine(model, rows=4), [plain(e, 1)])[1])
    assert torch.equal(done[2], finish(engine(model, rows=4), [plain(e, 2)])[2])


def test_resuming_from_the_ring_repeats_the_same_bytes(model: DiffusionModel) -> None:
    e = engine(model)
    t = plain(e, 4)
    whole = finish(e, [t])[4]
    assert sorted(t.ring) == list(range(STEPS))
    again = Trajectory(4, t.ring[2], 2, t.context, t.negative)
    assert torch.equal(finish(e, [again])[4], whole)
    assert again.evals == STEPS - 2 and t.evals == STEPS


def test_steering_changes_the_sample_and_costs_what_it_says(exact: DiffusionModel) -> None:
    e = engine(exact)
    base = finish(e, [plain(e, 1)])[1]
    t = steered(e, 1)
    assert not torch.equal(finish(e, [t])[1], base)
    assert t.evals == STEPS + 3 * 2 / 2  # two reference rows in three steps
    nudged = steered(e, 3)
    assert not torch.equal(finish(e, [nudged])[3], finish(e, [plain(e, 3)])[3])
    assert nudged.evals == STEPS


@pytest.mark.parametrize(("alpha", "threshold", "until"), [(0.0, 0.1, 3), (0.9, 1.0, 3), (0.9, 0.1, 0)])
def test_steering_identities(exact: DiffusionModel, alpha: float, threshold: float, until: int) -> None:
    e = engine(exact)
    t = plain(e, 1)
    z = torch.randn(e.model.latent_shape)
    t.push = NegToMe((z,), None, t.negative, alpha=alpha, threshold=threshold, until_step=until)
    assert torch.equal(finish(e, [t])[1], finish(e, [plain(e, 1)])[1])


def test_hooks_leave_no_trace_even_after_an_error(exact: DiffusionModel) -> None:
    blocks = exact.attention_blocks()
    assert blocks
    push = RowPush(0, (1,), NegToMe((), None, torch.zeros(1), 0.9, 0.5, 1))
    with pytest.raises(RuntimeError, match="on purpose"), pushing(blocks, [push]):
        assert all(block.attn2._forward_hooks for _, block in blocks)
        raise RuntimeError("on purpose")
    assert not any(block.attn2._forward_hooks or block.norm2._forward_pre_hooks for _, block in blocks)


def test_row_accounting(exact: DiffusionModel) -> None:
    e = engine(exact, rows=8)
    finish(e, [plain(e, tag) for tag in range(8)])
    assert e.calls == 2 * STEPS and e.rows_used == 8 * 2 * STEPS


def test_a_sample_that_can_never_fit_is_refused(exact: DiffusionModel) -> None:
    e = engine(exact, rows=4)
    t = plain(e, 1)
    t.push = NegToMe(tuple(itertools.repeat(t.latent, 3)), None, t.negative, 0.9, 0.5, 3)
    with pytest.raises(ConfigError, match="needs 5 rows"):
        e.submit(t)


def test_unknown_models_are_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(ModelConfig(path=str(tmp_path / "nothing")))
    with pytest.raises(ModelError, match=r"model_index\.json"):
        load_model(ModelConfig(path=str(tmp_path)))
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ModelError, match="FluxPipeline"):
        load_model(ModelConfig(path=str(tmp_path)))
    with pytest.raises(ModelError, match="allow_download"):
        load_model(ModelConfig(path="nobody/nothing-of-this-name"))
