"""Find the sample that made a call fail, so that it alone ends and the others continue.

A call that failed is repeated for each of its samples alone. The shape is the same, so the bytes are too. A sample that fails
alone has a reason of its own and ends; the others have their answers. If a steered sample fails, the call is repeated without
its steering: if that succeeds, the steering failed, else the network. A failure that does not come again ends no sample.
Running out of memory concerns all samples and is left to the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from index.errors import ClearanceError, ModelError, OutOfMemory, SteeringFailed
from index.padding import first_line, out_of_memory
from pipeline.engine.packed_call import units

if TYPE_CHECKING:
    import torch

    from pipeline.engine.trajectory import Trajectory

Call = Callable[[Sequence["Trajectory"]], list["torch.Tensor"]]
Failures = list[tuple["Trajectory", Exception]]

LESS_STEERING = "Steer this request in another way (the policy's ladder); the other samples of the call are not affected"
NETWORK = 'Draw it with another seed, or choose model.dtype = "float32"; if every request ends so, look at model and device'


def answers(call: Call, samples: Sequence[Trajectory]) -> tuple[list[tuple[Trajectory, torch.Tensor]], Failures]:
    """Call for all samples together, or, when that fails, for each alone.

    Args:
        call: samples → their answers, in order; changes nothing of theirs that the next call would see.
        samples: those that share the call.

    Returns:
        The samples that have an answer, with it; and those that failed alone, with the error.

    Raises:
        whatever ``call`` raises when memory runs out.
    """
    try:
        return list(zip(samples, call(samples), strict=True)), []
    except Exception as error:
        if out_of_memory(error):
            raise
    answered: list[tuple[Trajectory, torch.Tensor]] = []
    failed: Failures = []
    for unit in units(samples).values():
        try:
            answered += zip(unit, call(unit), strict=True)
        except Exception as error:
            if out_of_memory(error):
                raise
            failed += [(t, blamed(call, unit, described(error), error)) for t in unit]
    return answered, failed


def blamed(call: Call, unit: Sequence[Trajectory], what: str, cause: Exception | None = None) -> ClearanceError:
    """The error that ends a sample (or a group) on which the network fails alone; see :mod:`pipeline.engine.isolate`."""
    where = f"denoiser, step {unit[0].step}"
    error: ClearanceError = ModelError(what, where=where, fix=NETWORK)
    if any(t.push or t.group or t.lowrank for t in unit):
        try:
            plain = call([replace(t, push=None, group=None, lowrank=()) for t in unit])
            innocent = all(bool(output.isfinite().all()) for output in plain)
        except Exception:
            innocent = False
        if innocent:
            error = SteeringFailed(what, where=f"{where}, while it is steered", fix=LESS_STEERING)
    error.__cause__ = cause
    return error


def not_finite(call: Call, t: Trajectory, output: torch.Tensor) -> ClearanceError:
    """Why a sample has no next latent that could become a picture, given the network's output for its rows."""
    if not output.isfinite().all():
        return blamed(call, [t], "its output is not finite")
    if t.guide is None and t.nudge is None:
        return ModelError("its next latent is not finite", where=f"sampler, step {t.step}", fix=NETWORK)
    what, where = "what steers it drove its latent out of all bounds", f"guidance or nudge, step {t.step}"
    return SteeringFailed(what, where=where, fix=f"Lower the rung's strength. {LESS_STEERING}")


@contextmanager
def steering(what: str, step: int) -> Iterator[None]:
    """Mark what is raised inside as a failure of steering, with the name of its part and the step.

    Raises:
        OutOfMemory: the hook's own work did not fit into memory.
        SteeringFailed: it raised anything else, or wants to end the process.
    """
    try:
        yield
    except OutOfMemory:  # its message names what did not fit
        raise
    except SystemExit as error:  # it would end the run, and say nothing
        raise SteeringFailed("it wants to end the process", where=f"{what}, step {step}", fix=LESS_STEERING) from error
    except Exception as error:
        kind = OutOfMemory if out_of_memory(error) else SteeringFailed
        fix = error.fix if isinstance(error, ClearanceError) else ""
        raise kind(described(error), where=f"{what}, step {step}", fix=fix or LESS_STEERING) from error


def shaped(answer: Any, like: torch.Tensor) -> torch.Tensor:
    """What a hook answers, if it is a latent of the shape that it got.

    Raises:
        TypeError: it is not; another shape would be spread over the latent, and nobody would see it.
    """
    import torch

    if not isinstance(answer, torch.Tensor):
        raise TypeError(f"it answers {type(answer).__name__} in place of a latent")
    if answer.shape != like.shape:
        raise TypeError(f"it answers shape {tuple(answer.shape)} in place of a latent of shape {tuple(like.shape)}")
    if not answer.is_floating_point() or answer.layout != like.layout or answer.device != like.device:
        given = f"{answer.dtype}, {answer.layout} on {answer.device}"
        raise TypeError(f"it answers {given} in place of a latent: {like.dtype}, {like.layout} on {like.device}")
    return answer.to(like.dtype)


def mates_of(failed: Failures, under_way: Sequence[Trajectory]) -> Failures:
    """Members of a failed sample's group that are under way: they cannot continue without it."""
    lost, out = {t.group.id: t for t, _ in failed if t.group}, {id(t) for t, _ in failed}
    return [(t, _bereft(lost[t.group.id])) for t in under_way if t.group and t.group.id in lost and id(t) not in out]


def described(error: Exception) -> str:
    """An exception's class and first line, as a row records it."""
    return f"{type(error).__name__}: {error.what if isinstance(error, ClearanceError) else first_line(error)}"


def _bereft(gone: Trajectory) -> SteeringFailed:
    assert gone.group is not None
    what, where = f"member {gone.member} of its group failed, and its bytes depend on all of them", f"group {gone.group.id!r}"
    return SteeringFailed(what, where=where, fix="Draw the group again without that member")
