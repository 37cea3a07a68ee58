"""One sample's failure ends one sample: broken on purpose in mid-flight, the others have the bytes of an undisturbed run."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from index.errors import ClearanceError, ModelError, OutOfMemory, SteeringFailed
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.model.adapters.lowrank import LowRank
from pipeline.model.interface import DiffusionModel
from pipeline.steer.diversity import Group
from pipeline.steer.negtome import NegToMe

STEPS = 5
VICTIM = 2
TAGS = range(6)


def engine(model: DiffusionModel) -> Engine:
    return Engine(model, rows=8, steps=STEPS, guidance_scale=3.0)


def sample(e: Engine, tag: int) -> Trajectory:
    """Every other one is pushed from a reference of its own."""
    texts = e.model.encode_prompts([f"a red apple {tag}", ""])
    t = Trajectory(tag=tag, latent=e.initial_noise(tag), step=0, context=texts[0], negative=texts[1])
    if tag % 2:
        t.push = pushed(e, tag)
    return t


def pushed(e: Engine, tag: int, kind: type[NegToMe] = NegToMe) -> NegToMe:
    z = torch.randn(e.model.latent_shape, generator=torch.Generator().manual_seed(50 + tag))
    return kind(latents=(z,), noises=(z,), context=e.model.encode_prompts([""])[0], alpha=0.9, threshold=0.1, until_step=STEPS)


def broken(
    model: DiffusionModel, breaks: Callable[[Engine, Trajectory], None] = lambda *_: None, *, after: int = 0
) -> tuple[dict[int, torch.Tensor], dict[int, Exception], Engine]:
    """Draw six; what ``breaks`` does to the victim happens once it has taken ``after`` steps."""
    e, done, failed = engine(model), dict[int, torch.Tensor](), dict[int, Exception]()
    trajectories = [sample(e, tag) for tag in TAGS]
    for t in trajectories:
        e.submit(t)
    hurt = False
    while e.busy:
        if not hurt and trajectories[VICTIM].step == after:
            breaks(e, trajectories[VICTIM])
            hurt = True
        ended = e.make_call()
        done |= {t.tag: t.latent for t in ended.finished}
        failed |= {t.tag: error for t, error in ended.failed}
    return done, failed, e


@pytest.fixture(scope="module")
def whole(model: DiffusionModel) -> dict[int, torch.Tensor]:
    done, failed, _ = broken(model)
    assert sorted(done) == list(TAGS) and not failed
    return done


def only_the_victim(
    found: tuple[dict[int, torch.Tensor], dict[int, Exception], Engine], whole: dict[int, torch.Tensor]
) -> ClearanceError:
    """The others have their bytes, no hook stays on the network, and the error names failure, place and fix."""
    done, failed, e = found
    assert sorted(done) == [tag for tag in TAGS if tag != VICTIM] and list(failed) == [VICTIM]
    assert all(torch.equal(done[tag], whole[tag]) for tag in done)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in e.model.network.modules())
    error = failed[VICTIM]
    assert isinstance(error, ClearanceError) and error.what and error.where and error.fix
    return error


@dataclass
class Hook:
    """A nudge or guidance that does something of its own at one step."""

    step: int
    act: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, x: torch.Tensor, *args: Any) -> torch.Tensor:
        step, out = (args[0], x) if isinstance(args[0], int) else (args[2], args[1])  # a nudge's arguments, or guidance's
        return self.act(out) if step == self.step else out


def raising(error: BaseException) -> Callable[[torch.Tensor], torch.Tensor]:
    def act(_: torch.Tensor) -> torch.Tensor:
        raise error

    return act


@pytest.mark.parametrize("hook", ["nudge", "guide"])
def test_a_hook_that_raises_at_step_3(model: DiffusionModel, whole: dict[int, torch.Tensor], hook: str) -> None:
    error = only_the_victim(
        broken(model, lambda _, t: setattr(t, hook, Hook(3, raising(ValueError("on purpose\nat length"))))), whole
    )
    assert isinstance(error, SteeringFailed) and isinstance(error.__cause__, ValueError)
    assert str(error).startswith(f"{'nudge' if hook == 'nudge' else 'guidance'}, step 3: ValueError: on purpose. Steer this")


@pytest.mark.parametrize("hook", ["nudge", "guide"])
def test_a_hook_that_wants_to_end_the_process(model: DiffusionModel, whole: dict[int, torch.Tensor], hook: str) -> None:
    error = only_the_victim(broken(model, lambda _, t: setattr(t, hook, Hook(3, raising(SystemExit(0))))), whole)
    assert isinstance(error, SteeringFailed) and "it wants to end the process" in str(error)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (lambda x: x.mean(), r"shape \(\)"), (lambda x: x[:1], "in place of a latent of shape"),
        (lambda x: None, "NoneType"), (lambda x: x.tolist(), "it answers list"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("hook", ["nudge", "guide"])
def test_a_hook_that_answers_no_latent_of_its_shape(
    model: DiffusionModel, whole: dict[int, torch.Tensor], hook: str, answer: Callable[[torch.Tensor], Any], what: str
) -> None:
    """Another shape would be spread over the latent, and nobody would see it."""
    error = only_the_victim(broken(model, lambda _, t: setattr(t, hook, Hook(3, answer))), whole)
    assert isinstance(error, SteeringFailed)
    assert re.search(what, str(error))


def test_a_hook_whose_own_work_does_not_fit_into_memory(exact: DiffusionModel) -> None:
    """Its gradients, for example: half the rows would not help it, and no other sample gives up any."""
    hook = Hook(1, raising(torch.OutOfMemoryError("CUDA out of memory")))
    done, failed, e = broken(exact, lambda _, t: setattr(t, "nudge", hook))
    assert isinstance(failed[VICTIM], OutOfMemory) and "nudge, step 1" in str(failed[VICTIM])
    assert len(done) == 5 and e.rows == 8


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("hook", ["nudge", "guide"])
def test_a_latent_driven_out_of_all_bounds(
    model: DiffusionModel, whole: dict[int, torch.Tensor], hook: str, value: float
) -> None:
    error = only_the_victim(broken(model, lambda _, t: setattr(t, hook, Hook(2, lambda x: x * value))), whole)
    assert isinstance(error, SteeringFailed) and "out of all bounds" in str(error) and "step 2" in error.where


def test_a_network_whose_output_is_not_finite(model: DiffusionModel, whole: dict[int, torch.Tensor]) -> None:
    """NaN goes through the real network beside the others' rows and stays in its own."""
    error = only_the_victim(
        broken(model, lambda _, t: setattr(t, "context", t.context.map(lambda part: part * float("nan")))), whole
    )
    assert isinstance(error, ModelError) and "denoiser, step 0: its output is not finite" in str(error)
    late = only_the_victim(broken(model, lambda _, t: setattr(t, "latent", t.latent * float("nan")), after=3), whole)
    assert isinstance(late, ModelError) and "denoiser, step 3" in str(late) and "model.dtype" in late.fix


def test_not_finite_because_of_what_steers_it(model: DiffusionModel, whole: dict[int, torch.Tensor]) -> None:
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    shape = dict(model.network.named_modules())[name].weight.shape
    weights = LowRank("bad", {name: (torch.full((1, shape[1]), float("nan")), torch.ones(shape[0], 1))})
    error = only_the_victim(broken(model, lambda _, t: setattr(t, "lowrank", ((weights, 1.0),)), after=1), whole)
    assert isinstance(error, SteeringFailed) and "denoiser, step 1, while it is steered" in str(error)


class Breaks(NegToMe):
    """A push that raises inside the forward."""

    def moves(self, *_: Any) -> torch.Tensor | None:
        raise IndexError("no such token")


def test_a_push_that_raises_inside_the_forward(model: DiffusionModel, whole: dict[int, torch.Tensor]) -> None:
    """The shared call fails; each alone, in the same shape, and only the victim fails again, and not without its push."""
    found = broken(model, lambda e, t: setattr(t, "push", pushed(e, VICTIM, Breaks)), after=2)
    error = only_the_victim(found, whole)
    assert isinstance(error, SteeringFailed) and isinstance(error.__cause__, IndexError)
    assert str(error).startswith("denoiser, step 2, while it is steered: IndexError: no such token. ")


class Picky:
    """A denoiser that refuses calls which hold a latent it does not like."""

    def __init__(self, real: Any, disliked: torch.Tensor) -> None:
        self.real, self.disliked, self.refused = real, disliked, 0

    def __call__(self, latents: torch.Tensor, *args: Any) -> torch.Tensor:
        if any(torch.equal(z, self.disliked) for z in latents):
            self.refused += 1
            raise RuntimeError("device-side assert triggered")
        return self.real(latents, *args)


@pytest.mark.parametrize("steered", [False, True])
def test_a_network_that_fails_on_one_sample(
    model: DiffusionModel, whole: dict[int, torch.Tensor], steered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without what steers it: so it is not the steering."""
    picky = Picky(model.denoise, engine(model).initial_noise(VICTIM))
    monkeypatch.setattr(model, "denoise", picky)
    error = only_the_victim(broken(model, lambda e, t: setattr(t, "push", pushed(e, VICTIM)) if steered else None), whole)
    assert isinstance(error, ModelError) and isinstance(error.__cause__, RuntimeError)
    assert str(error).startswith("denoiser, step 0: RuntimeError: device-side assert triggered. ")
    assert picky.refused == 2 + steered  # with the others, alone, and without its push


def failing_once(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch, errors: Sequence[Exception | None]) -> list[int]:
    """The first calls of the denoiser raise these; returns the rows of all calls."""
    real, seen, coming = model.denoise, list[int](), list(errors)

    def denoise(latents: torch.Tensor, *args: Any) -> torch.Tensor:
        seen.append(len(latents))
        if coming and (error := coming.pop(0)) is not None:
            raise error
        return real(latents, *args)

    monkeypatch.setattr(model, "denoise", denoise)
    return seen


def test_a_failure_that_does_not_come_again_ends_no_sample(
    model: DiffusionModel, whole: dict[int, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_once(model, monkeypatch, [None, None, RuntimeError("cuDNN error: execution failed")])
    done, failed, _ = broken(model)
    assert not failed and all(torch.equal(done[tag], whole[tag]) for tag in TAGS)


def test_memory_that_runs_out_meanwhile_concerns_all_samples(exact: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one alone has its answer already; it is computed again, like all, in the smaller shape."""
    seen = failing_once(
        exact, monkeypatch, [RuntimeError("something else"), None, torch.OutOfMemoryError("CUDA out of memory")]
    )
    e = engine(exact)
    done = e.finish([sample(e, tag) for tag in (0, 2, 4)])
    assert seen[:4] == [8, 8, 8, 4] and e.rows == 4
    monkeypatch.undo()
    small = Engine(exact, rows=4, steps=STEPS, guidance_scale=3.0)
    assert all(torch.equal(done[tag], small.finish([sample(small, tag)])[tag]) for tag in done)


def test_a_group_ends_with_its_member_and_no_other_sample(exact: DiffusionModel) -> None:
    def drawn(breaks: bool) -> tuple[dict[int, torch.Tensor], dict[int, Exception]]:
        e, done, failed = engine(exact), dict[int, torch.Tensor](), dict[int, Exception]()
        settings = NegToMe(
            latents=(), noises=None, context=e.model.encode_prompts([""])[0], alpha=0.9, threshold=0.1, until_step=STEPS
        )
        members = [sample(e, tag) for tag in (0, 2, 4)]
        for number, t in enumerate(members):
            t.group, t.member = Group("trio", 3, settings), number
        if breaks:
            members[1].nudge = Hook(2, raising(ValueError("on purpose")))
        for t in (*members, sample(e, 1)):
            e.submit(t)
        while e.busy:
            ended = e.make_call()
            done |= {t.tag: t.latent for t in ended.finished}
            failed |= {t.tag: error for t, error in ended.failed}
        return done, failed

    whole, (done, failed) = drawn(False)[0], drawn(True)
    assert sorted(whole) == [0, 1, 2, 4] and list(done) == [1] and torch.equal(done[1], whole[1])
    assert "nudge, step 2" in str(failed[2]) and sorted(failed) == [0, 2, 4]
    assert all("group 'trio': member 1 of its group failed" in str(failed[tag]) for tag in (0, 4))


def test_a_late_finding_and_a_failure_of_the_same_sample_end_it_once(
    exact: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator: the call after the latent became NaN is made before that is known, and may fail on it."""
    real = exact.denoise

    def denoise(latents: torch.Tensor, *args: Any) -> torch.Tensor:
        if bool(latents.isnan().any()):
            raise RuntimeError("not a number")
        return real(latents, *args)

    monkeypatch.setattr(exact, "denoise", denoise)
    e = engine(exact)
    e.late = True
    bad = sample(e, VICTIM)
    bad.nudge = Hook(1, lambda x: x * float("nan"))
    for t in (sample(e, 0), bad):
        e.submit(t)
    found = [ended.failed for ended in (e.make_call(), e.make_call(), e.make_call())]
    assert [[t.tag for t, _ in failed] for failed in found] == [[], [], [VICTIM]]
    assert "nudge, step 1" in str(found[2][0][1])


def test_a_group_that_misses_a_call_ends_with_a_member_that_is_found_in_it(exact: DiffusionModel) -> None:
    """As on an accelerator: the group waits while the finding of its last call is read."""
    e = Engine(exact, rows=6, steps=STEPS, guidance_scale=3.0)
    e.late = True
    settings = NegToMe(
        latents=(), noises=None, context=e.model.encode_prompts([""])[0], alpha=0.9, threshold=0.1, until_step=STEPS
    )
    for number, tag in enumerate((0, 2, 4)):
        t = sample(e, tag)
        t.group, t.member = Group("trio", 3, settings), number
        t.nudge = Hook(0, lambda x: x * float("nan")) if tag == VICTIM else None
        e.submit(t)
    assert e.make_call().failed == []
    older = sample(e, 6)
    older.turn = -1
    e.submit(older)
    assert sorted(t.tag for t, _ in e.make_call().failed) == [0, 2, 4] and [t.tag for t in e.running] == [6]


def test_finish_raises_the_error_of_a_failed_sample(exact: DiffusionModel) -> None:
    e = engine(exact)
    bad = sample(e, VICTIM)
    bad.nudge = Hook(1, raising(ValueError("on purpose")))
    with pytest.raises(SteeringFailed, match="nudge, step 1"):
        e.finish([sample(e, 0), bad])


def test_no_sample_waits_for_ever_when_none_can_be_chosen(exact: DiffusionModel) -> None:
    class Uncountable(NegToMe):
        def references_at(self, step: int) -> int:
            raise KeyError(step)

    e = engine(exact)
    bad = sample(e, VICTIM)
    bad.push = pushed(e, VICTIM, Uncountable)
    e.submit(sample(e, 0))
    e.submit(bad)
    with pytest.raises(KeyError):
        e.make_call()
    assert {t.tag for t in e.abandon()} == {0, VICTIM} and not e.busy
