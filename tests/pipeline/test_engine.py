"""The engine on a tiny random Stable Diffusion model: byte-equal to itself under any schedule."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from index.errors import ConfigError, ModelError, OutOfMemory
from pipeline.config import ModelConfig
from pipeline.engine.engine import Engine
from pipeline.engine.packed_call import packed_call
from pipeline.engine.trajectory import Trajectory
from pipeline.model.conditioning import Conditioning
from pipeline.model.interface import DiffusionModel
from pipeline.model.libraries import quiet
from pipeline.model.load import load_model
from pipeline.steer.negtome import NegToMe, RowPush, pushing
from pipeline.steer.nudge import Nudge

STEPS = 5


def engine(model: DiffusionModel, rows: int = 8) -> Engine:
    return Engine(model, rows=rows, steps=STEPS, guidance_scale=3.0)


def plain(e: Engine, tag: int) -> Trajectory:
    texts = e.model.encode_prompts([f"a red apple {tag}", ""])
    return Trajectory(tag=tag, latent=e.initial_noise(tag), step=0, context=texts[0], negative=texts[1])


def steered(e: Engine, tag: int) -> Trajectory:
    t = plain(e, tag)
    references = tuple(
        torch.randn(e.model.latent_shape, generator=torch.Generator().manual_seed(50 + tag + i)) for i in range(1 + tag % 2)
    )
    if tag % 3 == 0:
        t.nudge = Nudge(
            references=references, centre=torch.zeros_like(references[0]), step_size=0.05, iterations=3, until_step=3
        )
    else:
        t.push = NegToMe(
            latents=references,
            noises=references,
            context=e.model.encode_prompts([""])[0],
            alpha=0.9,
            threshold=0.1,
            until_step=3,
        )
    return t


def test_bytes_do_not_depend_on_schedule_mates_or_slot(model: DiffusionModel) -> None:
    e = engine(model)
    alone = {}
    for tag in range(6):
        alone |= engine(model).finish([steered(e, tag) if tag % 2 else plain(e, tag)])
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [2, 5, 4, 1, 3, 0]):
        e = engine(model)
        mixed = e.finish([steered(e, tag) if tag % 2 else plain(e, tag) for tag in order])
        for tag in range(6):
            assert torch.equal(mixed[tag], alone[tag]), f"sample {tag} in order {order}"


def test_samples_join_in_mid_flight(model: DiffusionModel) -> None:
    e = engine(model, rows=4)
    first, second = plain(e, 1), plain(e, 2)
    e.submit(first)
    e.step()
    e.step()
    done = e.finish([second])
    assert torch.equal(done[1], engine(model, rows=4).finish([plain(e, 1)])[1])
    assert torch.equal(done[2], engine(model, rows=4).finish([plain(e, 2)])[2])


def test_resuming_from_the_ring_repeats_the_same_bytes(model: DiffusionModel) -> None:
    e = engine(model)
    t = plain(e, 4)
    whole = e.finish([t])[4]
    assert sorted(t.ring) == list(range(STEPS))
    again = Trajectory(tag=4, latent=t.ring[2], step=2, context=t.context, negative=t.negative)
    assert torch.equal(e.finish([again])[4], whole)
    assert again.evals == STEPS - 2 and t.evals == STEPS


@pytest.mark.parametrize(("scheduler", "eta"), [("dpmpp_2m", 0.0), ("unipc", 0.0), ("ddim", 0.8), ("euler", 0.0)])
def test_every_sampler_resumes_to_the_same_bytes(exact: DiffusionModel, scheduler: str, eta: float) -> None:
    """Second-order memory is restored from beside the ring, and added noise is that of (seed, step)."""
    e = Engine(exact, rows=8, steps=STEPS, guidance_scale=3.0, scheduler=scheduler, eta=eta)
    t = plain(e, 4)
    t.seed = 4
    whole = e.finish([t])[4]
    for step in (1, 3):
        again = Trajectory(tag=4, latent=t.ring[step], step=step, context=t.context, negative=t.negative)
        if scheduler in ("dpmpp_2m", "unipc"):
            with pytest.raises(ValueError, match="call resumed"):
                e.submit(again)
        assert torch.equal(e.finish([again.resumed(t, 4)])[4], whole)
    other = Trajectory(tag=4, latent=t.ring[1], step=1, context=t.context, negative=t.negative).resumed(t, 5)
    assert torch.equal(e.finish([other])[4], whole) == (eta == 0)


@pytest.mark.parametrize("scheduler", ["euler", "dpmpp_2m", "unipc"])
def test_other_samplers_equal_diffusers_too(exact: DiffusionModel, tiny_sd: Path, scheduler: str) -> None:
    import diffusers

    kinds = {"dpmpp_2m": diffusers.DPMSolverMultistepScheduler, "unipc": diffusers.UniPCMultistepScheduler}
    kind = kinds.get(scheduler, diffusers.EulerDiscreteScheduler)
    with quiet():
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
        theirs = pipe("a red apple 3", num_inference_steps=STEPS, guidance_scale=3.0,
                      generator=torch.Generator().manual_seed(3), output_type="latent").images[0]  # fmt: skip
    e = Engine(exact, rows=8, steps=STEPS, guidance_scale=3.0, scheduler=scheduler)
    assert torch.allclose(e.finish([plain(e, 3)])[3], theirs, atol=2e-4, rtol=1e-3)


class Small:
    """A device that holds calls of so many rows, from some call on."""

    def __init__(self, model: DiffusionModel, monkeypatch: pytest.MonkeyPatch, error: Exception, rows: int, after: int) -> None:
        self.real, self.error, self.rows, self.after, self.calls = model.denoise, error, rows, after, 0
        monkeypatch.setattr(model, "denoise", self)

    def __call__(self, latents: torch.Tensor, *args: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls > self.after and len(latents) > self.rows:
            raise self.error
        return self.real(latents, *args)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory: you tried …")]
)
def test_out_of_memory_halves_the_rows_and_goes_on(
    exact: DiffusionModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    e = engine(exact, rows=16)
    with monkeypatch.context() as m:
        Small(exact, m, error, rows=4, after=2)
        trajectories = [plain(e, tag) for tag in range(10)]
        for t in trajectories[:8]:
            e.submit(t)
        e.step()
        e.step()
        done = e.finish(trajectories[8:])
    assert e.rows == 4 and sorted(done) == list(range(10))
    assert all(t.rows_from == [(0, 16), (2, 4)] for t in trajectories[:8])  # on their way when it happened
    assert all(t.rows_from == [(0, 4)] for t in trajectories[8:])
    # What is promised: the same R at every step gives the same bytes, alone too.
    alone = engine(exact, rows=16)
    alone.submit(plain(alone, 3))
    alone.step()
    alone.step()
    alone.rows = 4
    assert torch.equal(alone.finish([])[3], done[3])
    assert torch.equal((small := engine(exact, rows=4)).finish([plain(small, 9)])[9], done[9])


def test_halving_leaves_room_for_one_steered_sample(exact: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    e = Engine(exact, rows=16, steps=STEPS, guidance_scale=3.0, references=3)
    Small(exact, monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), rows=0, after=0)
    e.submit(plain(e, 1))
    assert e.step() == [] and e.step() == [] and e.rows == 5 and e.busy
    with pytest.raises(OutOfMemory, match=r"denoiser: a call of 5 rows .*CUDA out of memory.* fewer references"):
        e.step()
    assert [t.tag for t in e.abandon()] == [1] and not e.busy


def test_other_errors_are_not_taken_for_memory(exact: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    e = engine(exact, rows=16)
    Small(exact, monkeypatch, RuntimeError("shapes do not match"), rows=4, after=0)
    e.submit(plain(e, 1))
    with pytest.raises(ModelError, match=r"denoiser, step 0: RuntimeError: shapes do not match") as raised:
        e.step()
    assert e.rows == 16 and isinstance(raised.value.__cause__, RuntimeError)


def test_guidance_of_one_or_less_takes_one_row(exact: DiffusionModel, tiny_sd: Path) -> None:
    from diffusers import StableDiffusionPipeline

    e = Engine(exact, rows=8, steps=STEPS, guidance_scale=1.0)
    t = plain(e, 3)
    t.negative = None
    ours = e.finish([t])[3]
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe("a red apple 3", num_inference_steps=STEPS, guidance_scale=1.0, generator=torch.Generator().manual_seed(3),
                  output_type="latent").images[0]  # fmt: skip
    assert torch.allclose(ours, theirs, atol=2e-4, rtol=1e-3)
    assert not e.guided and e.rows_used == STEPS and t.evals == STEPS and not t.guidance_norms


def test_guidance_that_stops_gives_its_row_back(exact: DiffusionModel, tiny_sd: Path) -> None:
    """As diffusers' own recipe for it: guidance off from a step on, by a callback."""
    from diffusers import StableDiffusionPipeline

    def stop(pipe: Any, step: int, _timestep: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if step == 2:  # called after the step
            pipe._guidance_scale = 0.0
            given["prompt_embeds"] = given["prompt_embeds"].chunk(2)[-1]
        return given

    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        "a red apple 3",
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        callback_on_step_end=stop,
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
    ).images[0]
    e = Engine(exact, rows=8, steps=STEPS, guidance_scale=3.0, guidance_until=0.6)
    t = plain(e, 3)
    alone = e.finish([t])[3]
    assert torch.allclose(alone, theirs, atol=2e-4, rtol=1e-3)
    assert t.evals == 3 + 2 / 2 and e.rows_used == 3 * 2 + 2 and len(t.guidance_norms) == 3
    # Four rows: two samples guided, and a third as soon as both have handed theirs back.
    e = Engine(exact, rows=4, steps=STEPS, guidance_scale=3.0, guidance_until=0.6)
    done = e.finish([plain(e, tag) for tag in (1, 2, 3)])
    small = Engine(exact, rows=4, steps=STEPS, guidance_scale=3.0, guidance_until=0.6)
    assert torch.equal(done[3], small.finish([plain(small, 3)])[3])
    assert e.rows_used == 3 * 8 and e.calls < 2 * STEPS


def test_a_share_that_rounds_to_no_step_is_no_guidance(exact: DiffusionModel) -> None:
    """The bytes are those of before, when a negative row was prepared and never drawn."""
    e = Engine(exact, rows=4, steps=STEPS, guidance_scale=3.0, guidance_until=0.1)
    assert not e.guided and e.guided_steps() == 0 and e.guides(None, 20) and e.guided_steps(20) == 2 and not e.guides(1.0, 20)
    assert e.how_to_guide() == f"Set generation.guidance_until above 0.1, which is half a step of {STEPS}"
    assert e.how_to_guide(1.0, 20).startswith("Raise the row's guidance_scale above 1")
    given = plain(e, 3)
    assert given.negative is not None
    without = plain(e, 3)
    without.negative = None
    assert torch.equal(e.finish([given])[3], e.finish([without])[3]) and given.guidance_norms == without.guidance_norms == []
    unguided = Engine(exact, rows=4, steps=STEPS, guidance_scale=1.0)
    alone = plain(unguided, 3)
    alone.negative = None
    assert torch.equal(unguided.finish([alone])[3], without.latent)


def test_steering_changes_the_sample_and_costs_what_it_records(exact: DiffusionModel) -> None:
    e = engine(exact)
    base = e.finish([plain(e, 1)])[1]
    t = steered(e, 1)
    assert not torch.equal(e.finish([t])[1], base)
    assert t.evals == STEPS + 3 * 2 / 2  # two reference rows in three steps
    nudged = steered(e, 3)
    assert not torch.equal(e.finish([nudged])[3], e.finish([plain(e, 3)])[3])
    assert nudged.evals == STEPS


@pytest.mark.parametrize(("alpha", "threshold", "until"), [(0.0, 0.1, 3), (0.9, 1.0, 3), (0.9, 0.1, 0)])
def test_steering_identities(exact: DiffusionModel, alpha: float, threshold: float, until: int) -> None:
    e = engine(exact)
    t = plain(e, 1)
    z = torch.randn(e.model.latent_shape)
    t.push = NegToMe(latents=(z,), noises=None, context=t.negative, alpha=alpha, threshold=threshold, until_step=until)
    assert torch.equal(e.finish([t])[1], e.finish([plain(e, 1)])[1])


@pytest.mark.parametrize("rows", ["both", "conditional"])
def test_which_of_its_rows_are_pushed(exact: DiffusionModel, rows: Any) -> None:
    e = engine(exact)
    before, t = plain(e, 1), plain(e, 1)
    z = torch.randn(e.model.latent_shape, generator=torch.Generator().manual_seed(3))
    t.push = NegToMe(latents=(z,), noises=None, context=t.context, alpha=2.0, threshold=-1.0, until_step=3, rows=rows)
    alone, pushed = (packed_call(e.model, e.sampler, [s], e.rows, e.inner_guidance)[0] for s in (before, t))
    assert len(pushed) == 2 and not torch.equal(pushed[1], alone[1])
    assert torch.equal(pushed[0], alone[0]) == (rows == "conditional")


def test_hooks_leave_no_trace_even_after_an_error(exact: DiffusionModel) -> None:
    sites = [site for site in exact.sites() if site.placement == "paper" and site.name == site.block]
    assert sites
    push = RowPush(
        row=0,
        references=(1,),
        settings=NegToMe(latents=(), noises=None, context=Conditioning(torch.zeros(1)), alpha=0.9, threshold=0.5, until_step=1),
    )
    with pytest.raises(RuntimeError, match="on purpose"), pushing(exact.sites(), [push]):
        assert all(site.module._forward_pre_hooks for site in sites)
        raise RuntimeError("on purpose")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in exact.network.modules())


def test_row_accounting(exact: DiffusionModel) -> None:
    e = engine(exact, rows=8)
    e.finish([plain(e, tag) for tag in range(8)])
    assert e.calls == 2 * STEPS and e.rows_used == 8 * 2 * STEPS


def test_a_sample_that_can_never_fit_is_refused(exact: DiffusionModel) -> None:
    e = engine(exact, rows=4)
    t = plain(e, 1)
    t.push = NegToMe(
        latents=tuple(itertools.repeat(t.latent, 3)), noises=None, context=t.negative, alpha=0.9, threshold=0.5, until_step=3
    )
    with pytest.raises(ConfigError, match="needs 5 rows"):
        e.submit(t)


def test_unknown_models_are_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(ModelConfig(path=str(tmp_path / "nothing")))
    with pytest.raises(ModelError, match=r"model_index\.json"):
        load_model(ModelConfig(path=str(tmp_path)))
    with pytest.raises(ModelError, match="allow_download"):
        load_model(ModelConfig(path="nobody/nothing-of-this-name"))
