"""The answer of nudging: the predicted clean latent, or its embedding, moved away from the references by gradient steps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from index.errors import ConfigError
from pipeline.outcome import Intervention
from pipeline.respond.copies import Failed, NextTry, Tools, reseed, resumed, with_colours
from pipeline.rungs import NudgeRung, Nudging
from pipeline.steer.embedder_space import EmbedderNudge
from pipeline.steer.nudge import Nudge
from pipeline.steer.objective import Objective

if TYPE_CHECKING:
    import torch


def answer(failed: Failed, rung: NudgeRung, tools: Tools) -> NextTry:
    """Resume with a nudge away from the nearest references; without a reference, a new seed."""
    if not failed.latents:
        return reseed(failed, rung, tools)
    failed, again, until = resumed(failed, rung, tools)
    references = with_colours(failed, rung.references)
    if rung.space == "embedder":
        again.nudge = _embedder_nudge(failed, rung, tools, references, until)
    else:
        nudge = nudged(rung, tools, references, until, _of_nudge(rung))
        nudge = replace(nudge, solver=rung.solver, random=failed.seed if rung.direction == "random" else None)
        if rung.space == "noisy":
            sampler = tools.engine.sampler_of(failed.last)
            nudge = replace(nudge, levels=tuple(zip(sampler.signal, sampler.noise, strict=True)))
        again.nudge = nudge
    strength = rung.step_size * rung.iterations
    return NextTry(
        again, Intervention(kind="nudge", strength=strength, ref_ids=failed.nearest(rung.references)[0]), failed.seed
    )


def objective_of(rung: Nudging) -> Objective:
    """What a rung that nudges minimises."""
    return Objective(keep=rung.keep, weights=rung.weights, temperature=rung.temperature, enough=rung.enough)


def _of_nudge(rung: NudgeRung) -> Objective:
    return replace(objective_of(rung), push=rung.push, pull=rung.pull, normalise=rung.normalise, penalty=rung.penalty)


def nudged(rung: Nudging, tools: Tools, references: tuple[torch.Tensor, ...], until: int, objective: Objective) -> Nudge:
    """The hook of a rung that nudges; acts below step ``until``."""
    import torch

    centre = tools.centre if rung.centred else torch.zeros_like(tools.centre)
    return Nudge(
        references=references,
        centre=centre,
        step_size=rung.step_size,
        iterations=rung.iterations,
        until_step=until,
        temperature=rung.temperature,
        keep=rung.keep,
        enough=rung.enough,
        objective=objective,
    )


def _embedder_nudge(
    failed: Failed, rung: NudgeRung, tools: Tools, references: tuple[torch.Tensor, ...], until: int
) -> EmbedderNudge:
    if tools.embedder_space is None or failed.words is None:
        fix = "Name an index in the run file, or use another space"
        raise ConfigError("there is no embedder to nudge in", where='ladder, space = "embedder"', fix=fix)
    space = tools.embedder_space()
    desired = space.text(failed.words.caption)[None] if rung.pull > 0 else None
    return EmbedderNudge(
        features=space.features,
        undesired=space.of_latents(references),
        desired=desired,
        objective=_of_nudge(rung),
        step_size=rung.step_size,
        iterations=rung.iterations,
        until_step=until,
    )
