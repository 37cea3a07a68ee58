"""Make a request's next attempt: the first one, or the one after a catch in mid-flight or a picture that is not accepted.

The policy's ladder answers a copy, its mark ladder a mark. How a rung changes a trajectory is in :mod:`pipeline.respond`;
here it meets the request and the runtime.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from guards.base import is_copy, is_mark
from guards.copies import RECOLOURED
from index.errors import ConfigError
from pipeline.engine.trajectory import Trajectory
from pipeline.model.adapters.opened import denoisers
from pipeline.open_request import OpenRequest
from pipeline.outcome import Caught, Decision, Request
from pipeline.policy import action_of
from pipeline.references import References
from pipeline.respond.copies import RESEED, Failed, Tools, Words, random_references, retry
from pipeline.respond.early import TURNED
from pipeline.respond.marks import Erasure, erase
from pipeline.rungs import EraseRung, FromReferences, NudgeRung, Rung
from pipeline.runtime import Runtime
from pipeline.steer.diversity import Group, mates_push, too_few_rows
from pipeline.steer.erase_tokens import marks_found

if TYPE_CHECKING:
    import torch

    from pipeline.engine.trajectory import Size
    from pipeline.model.sampling.sampler import Sampler


def drawn_with(runtime: Runtime, request: Request) -> tuple[Size, Sampler, bool]:
    """(h, w) of a request's latents, its sampler, and whether it has a negative row.

    Raises:
        ConfigError: what the request states of its picture cannot be drawn.
    """
    engine, scale = runtime.engine, request.stated.guidance_scale
    steps = request.stated.steps
    size, guided = runtime.size_of(request), engine.guides(scale, steps)
    if runtime.standing is not None and not guided:
        where, own = ("steps", steps) if engine.asks_for_guidance(scale) else ("guidance_scale", scale)
        what = f'without guidance there is no negative prompt, which adapters: tokens = "always" needs; {own:g} is stated'
        raise ConfigError(what, where=where, fix=engine.how_to_guide(scale, steps))
    if request.group and guided and 2 * request.group_size > (rows := runtime.config.generation.rows):
        raise too_few_rows(request.group_size, guided=True, rows=rows)
    return size, engine.sampler_for(size, steps), guided


def first(runtime: Runtime, tag: int, request: Request, asked: Collection[str] = ()) -> Trajectory:
    """The trajectory of a request's first attempt; ``asked``: categories of marks that it asks for and the policy keeps.

    Raises:
        ConfigError: what the request states of its picture cannot be drawn.
    """
    engine, scale = runtime.engine, request.stated.guidance_scale
    size, sampler, guided = drawn_with(runtime, request)
    worn = runtime.adapters.worn(request.adapter)
    negative = runtime.negative_of(request.negative_prompt, runtime.standing_for(asked), worn) if guided else None
    context, noise = runtime.context_for(worn)(request.prompt), engine.initial_noise(request.seed, sampler, size)
    return Trajectory(
        tag=tag,
        sampler=sampler,
        guidance_scale=scale,
        latent=noise,
        step=0,
        context=context,
        negative=negative,
        seed=request.seed,
        lowrank=(*runtime.erasers_for(asked).always_lowrank, *denoisers(worn)),
        group=_group(runtime, request, size, len(sampler)) if request.group else None,
        member=request.member,
    )


def _group(runtime: Runtime, request: Request, size: Size, steps: int) -> Group:
    d = runtime.config.generation.diversity
    finest = runtime.most_tokens_at(size) if d.resolution == "finest" else 0
    return Group(request.group, request.group_size, mates_push(d, steps, runtime.context_of(""), finest))


def affordable(runtime: Runtime, open_request: OpenRequest, last: Trajectory) -> bool:
    """Whether the policy's budget has room for a full picture's steps once more; rows of references come on top.

    How many there will be is not known yet: not every reference has a latent, and where the attempt resumes is the rung's.
    """
    spent = [last.evals, *(c.denoiser_evals for c in open_request.catches), *(a.denoiser_evals for a in open_request.attempts)]
    most = runtime.policy.max_evals
    return most is None or sum(spent) + len(runtime.engine.sampler_of(last)) <= most


def steer_caught(runtime: Runtime, last: Trajectory, open_request: OpenRequest, caught: Caught) -> None:
    """Steer a caught sample from where it was, with the ladder's next rung, away from the references it was caught by."""
    open_request.caught.append(replace(caught, denoiser_evals=last.evals, device_seconds=last.device_seconds))
    _steer_away(runtime, last, open_request, caught_at=caught.step)


def steer(runtime: Runtime, last: Trajectory, open_request: OpenRequest, decision: Decision) -> None:
    """Submit the next attempt: the ladder's rung for a copy, the mark ladder's for a mark, a re-seed for anything else."""
    if is_copy(decision.reason):
        return _steer_away(runtime, last, open_request)
    rung: Rung = RESEED
    if runtime.policy.mark_ladder and is_mark(decision.reason):
        answer, open_request.marked = runtime.policy.mark_ladder[open_request.marked], open_request.marked + 1
        if isinstance(answer, EraseRung):
            erasure = _erasure(runtime, open_request, answer)
            if erasure is not None and (last.negative is not None or not erasure.tokens):
                return _erase(runtime, last, open_request, answer, erasure)
        else:
            rung = answer
    _again(runtime, last, open_request, rung, [])


def _steer_away(runtime: Runtime, last: Trajectory, open_request: OpenRequest, *, caught_at: int | None = None) -> None:
    """Submit the next attempt, by the ladder's rung for it."""
    rung = runtime.policy.ladder[open_request.copy_rungs - 1]
    _again(runtime, last, open_request, rung, open_request.nearest_references(), caught_at=caught_at)


def _again(
    runtime: Runtime,
    last: Trajectory,
    open_request: OpenRequest,
    rung: Rung,
    ref_ids: list[str],
    *,
    caught_at: int | None = None,
) -> None:
    attempt = open_request.rungs
    if isinstance(rung, FromReferences) and rung.target == "random" and ref_ids and runtime.index is not None:
        # The control: references that have nothing to do with the sample.
        everything = list(runtime.index.ids())
        ref_ids = random_references(everything, ref_ids, seed=open_request.request.seed, attempt=attempt)[: rung.references]
    references = runtime.references_at(last.size)
    latents = {ref_id: z for ref_id in ref_ids if (z := references.latent(ref_id)) is not None}
    every = list(latents)[: rung.references] if isinstance(rung, NudgeRung) and rung.colours == "all" else []
    words = _words(runtime, open_request)
    failed = Failed(
        last=last, seed=open_request.seed, attempt=attempt, ref_ids=list(latents), latents=list(latents.values()),
        colours=_colours(references, open_request, every), words=words, caught_at=caught_at,
    )  # fmt: skip
    tools = Tools(
        engine=runtime.engine, reference_context=runtime.negative_context_of(""), centre=references.centre,
        embedder_space=runtime.embedder_space, rollback=runtime.policy.early.rollback,
    )  # fmt: skip
    again = retry(failed, rung, tools)
    trajectory, open_request.intervention, open_request.seed = again.trajectory, again.intervention, again.seed
    if (text := words.text_of(trajectory.negative)) is not None:
        open_request.negative_text = text
    if open_request.erasure is not None:
        open_request.intervention = replace(
            open_request.intervention, tokens=open_request.erasure.tokens, adapters=open_request.erasure.adapters
        )
    open_request.resumed_from = trajectory.step
    runtime.engine.submit(trajectory.resumed(last, open_request.seed))


def _erasure(runtime: Runtime, open_request: OpenRequest, rung: EraseRung) -> Erasure | None:
    """The erasure for the marks found, the last attempt's first; None if it was tried before or no adapter has one."""
    found = [finding for attempt in reversed(open_request.attempts) for finding in attempt.findings]
    asked = open_request.asked
    findings = [one for one in found if action_of(runtime.policy, one.guard, one.category, asked) == "steer"]
    room, usual = runtime.model.word_room(), rung.places == "usual"
    erasure = runtime.erasers_for(asked).erasure_for(marks_found(findings), room, rung.strength, usual=usual)
    before = open_request.erasure
    tried = erasure is not None and before is not None and before.same_as(erasure)
    return None if tried and not rung.resume_fraction else erasure


def _erase(runtime: Runtime, last: Trajectory, open_request: OpenRequest, rung: EraseRung, erasure: Erasure) -> None:
    """Submit the next attempt from the same noise, the marks' names and places in its negative conditioning.

    What steered the sample away from a work stays: a push, a nudge, or titles in the negative prompt.
    """
    worn = runtime.adapters.worn(open_request.request.adapter)
    negative = runtime.negative_of(open_request.negative_prompt, erasure, worn) if last.negative is not None else None
    before = open_request.intervention
    trajectory, open_request.intervention = erase(runtime.engine, last, rung, erasure, negative, seed=open_request.seed)
    away = trajectory.push is not None or trajectory.nudge is not None or open_request.negative_text is not None
    if before is not None and away:
        open_request.intervention = replace(open_request.intervention, ref_ids=before.ref_ids)
    if trajectory.lowrank:  # else it goes on with those of the attempt before
        trajectory.lowrank = (*trajectory.lowrank, *denoisers(worn))
    open_request.erasure, open_request.resumed_from = erasure, trajectory.step
    runtime.engine.submit(trajectory.resumed(last, open_request.seed))


def _words(runtime: Runtime, open_request: OpenRequest) -> Words:
    """The texts of a sample."""
    titles = {match.ref_id: match.title for attempt in reversed(open_request.attempts) for match in attempt.nearest}
    titles |= {match.ref_id: match.title for caught in open_request.caught for match in caught.nearest}
    quoted, worn = runtime.adapters.quoted, runtime.adapters.worn(open_request.request.adapter)
    return Words(
        caption=runtime.adapters.plain(open_request.prompt),
        negative_prompt=open_request.request.negative_prompt,
        # Flagged references need not be among the nearest: of these no title is known.
        titles=[quoted(titles.get(ref_id, "")) for ref_id in open_request.nearest_references()],
        encode=lambda text: runtime.negative_of(text, open_request.erasure, worn),
    )


def _colours(references: References, open_request: OpenRequest, every: list[str]) -> dict[str, list[torch.Tensor]]:
    """Latents in other colours, of ``every`` and of those that the sample copied so: the next attempt may copy another one."""
    caught = [caught.nearest[0].ref_id for caught in open_request.caught if caught.signal.endswith(TURNED)]
    found = [
        f.ref_id for attempt in open_request.attempts for f in attempt.findings if f.triggered and f.category == RECOLOURED
    ]
    return {ref_id: references.recoloured(ref_id) for ref_id in dict.fromkeys([*every, *caught, *found])}
