"""From a rung of the policy's ladder to a trajectory: what the next attempt does differently."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from index.errors import ConfigError
from pipeline.engine.engine import Engine
from pipeline.engine.isolate import steering
from pipeline.engine.trajectory import Trajectory
from pipeline.outcome import Intervention
from pipeline.rungs import (
    AmgRung,
    DelayedCfgRung,
    NegativeRung,
    NegToMeRung,
    NudgeRung,
    Nudging,
    PromptRung,
    RenoiseRung,
    ReseedRung,
    Resumed,
    Rung,
    SpellRung,
)
from pipeline.steer.embedder_space import EmbedderNudge, EmbedderSpace
from pipeline.steer.features import with_features
from pipeline.steer.filters import rollback_step
from pipeline.steer.guidance import DelayedGuidance, Despecification, Repellency
from pipeline.steer.masks import foreground
from pipeline.steer.negtome import NegToMe
from pipeline.steer.nudge import Nudge
from pipeline.steer.objective import Objective
from pipeline.steer.prompt import differentiable_denoiser, optimise_prompt

if TYPE_CHECKING:
    import torch

RESEED = ReseedRung()


@dataclass(frozen=True)
class Words:
    """The texts a rung may need.

    Attributes:
        caption: the request's prompt.
        negative_prompt: the request's.
        titles: of the sample's nearest references, best first.
        context_of: text of a negative prompt → embedding (T, D).
    """

    caption: str
    negative_prompt: str
    titles: Sequence[str]
    context_of: Callable[[str], torch.Tensor]

    def negative_of(self, references: int) -> str:
        """The negative prompt with the nearest references' titles behind it; empty where none of them has one."""
        titles = [title for title in self.titles[:references] if title]
        return ", ".join([text for text in (self.negative_prompt, *titles) if text]) if titles else ""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The attempt that failed, and what is known of the references it was too near to.

    Attributes:
        last: its trajectory; what was kept of it (its ring) is what is resumed from.
        seed: its seed.
        attempt: number of the new attempt.
        ref_ids, latents: the sample's own nearest references, best first, and their clean latents (C, h, w).
        colours: reference id → clean latents of its drawing in other colours, to be steered away from as well; token merging
            matches shapes and takes the drawing as it is.
        words: texts, for the kinds that take them.
        caught_at: steps taken when a probe caught it; None when its picture was finished.
    """

    last: Trajectory
    seed: int
    attempt: int
    ref_ids: Sequence[str] = ()
    latents: Sequence[torch.Tensor] = ()
    colours: Mapping[str, Sequence[torch.Tensor]] = field(default_factory=dict)
    words: Words | None = None
    caught_at: int | None = None

    def nearest(self, references: int) -> tuple[tuple[str, ...], tuple[torch.Tensor, ...]]:
        """Ids and clean latents of the nearest references."""
        return tuple(self.ref_ids[:references]), tuple(self.latents[:references])

    def negative_of(self, references: int) -> str:
        """See :meth:`Words.negative_of`; empty without texts."""
        return self.words.negative_of(references) if self.words is not None else ""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What a rung works with, the same for every sample.

    Attributes:
        engine: gives the number of steps and the noise of a seed; with a feature cache, references are run there once.
        reference_context: text embedding of the reference rows.
        centre: mean reference latent (C, h, w), for nudging.
        embedder_space: opens the embedder's space, for nudging in it; None without an embedder.
        rollback: share of the steps that a caught sample goes back.
    """

    engine: Engine
    reference_context: torch.Tensor
    centre: torch.Tensor
    embedder_space: Callable[[], EmbedderSpace] | None = None
    rollback: float = 0.0


@dataclass(frozen=True)
class NextTry:
    """The next trajectory of a sample, the intervention to record, and the seed in force."""

    trajectory: Trajectory
    intervention: Intervention
    seed: int


def next_seed(seed: int, attempt: int) -> int:
    """The seed of a re-seeded attempt: derived from the request's seed and the attempt's number alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{attempt}".encode()).digest()[:8], "big") >> 1


def random_references(everything: Sequence[str], near: Sequence[str], *, seed: int, attempt: int) -> list[str]:
    """All references but the nearest ones, in an order drawn from (seed, attempt): for the control of a random reference."""
    others = set(everything) - set(near)
    return sorted(others, key=lambda ref_id: hashlib.sha256(f"{seed}/{attempt}/{ref_id}".encode()).digest())


def retry(failed: Failed, rung: Rung, tools: Tools) -> NextTry:
    """What the rung makes of a failed attempt.

    Steering away without a reference picture (or title) at hand becomes a re-seed, recorded as one.

    Raises:
        ConfigError: the rung asks for what this model or embedder cannot do.
        OutOfMemory: a call of its references does not fit into memory, however few rows it has.
        SteeringFailed: such a call failed otherwise.
    """
    return _ANSWERS[type(rung)](failed, rung, tools)


# --- one answer a kind -----------------------------------------------------------------------------------------------------


def _reseed(failed: Failed, _: Rung, tools: Tools) -> NextTry:
    seed = next_seed(failed.seed, failed.attempt)
    return NextTry(_fresh(failed.last, tools.engine.initial_noise(seed)), Intervention("reseed"), seed)


def _renoise(failed: Failed, rung: RenoiseRung, tools: Tools) -> NextTry:
    if failed.caught_at is not None:  # there is no picture to add noise to
        return _reseed(failed, rung, tools)
    begin = _begin(failed, rung, tools)
    again = _renoised(tools.engine, failed.last, begin, next_seed(failed.seed, failed.attempt))
    return NextTry(again, Intervention("renoise"), failed.seed)


def _negative(failed: Failed, rung: NegativeRung, tools: Tools) -> NextTry:
    negative = failed.negative_of(rung.references)
    words = failed.words
    if not negative or words is None:
        return _reseed(failed, rung, tools)
    failed = _renewed(failed, rung.renew, tools)
    _require_guidance(failed, rung)
    again = _from_its_noise(failed, tools)
    again.negative = words.context_of(negative)
    return NextTry(again, Intervention("negative", 1.0, failed.nearest(rung.references)[0]), failed.seed)


def _delayed_cfg(failed: Failed, rung: DelayedCfgRung, tools: Tools) -> NextTry:
    failed, engine = _renewed(failed, rung.renew, tools), tools.engine
    _require_guidance(failed, rung)
    again = _from_its_noise(failed, tools)
    again.guide = DelayedGuidance(engine.guidance_scale, max(1, round(rung.window * len(engine.sampler))))
    return NextTry(again, Intervention("delayed_cfg", rung.window), failed.seed)


def _prompt(failed: Failed, rung: PromptRung, tools: Tools) -> NextTry:
    failed, engine = _renewed(failed, rung.renew, tools), tools.engine
    again = _from_its_noise(failed, tools)
    again.context, norms = optimise_prompt(
        differentiable_denoiser(engine.model, engine.sampler.timesteps[0]), again.latent, failed.last.context,
        tools.reference_context, learning_rate=rung.learning_rate, iterations=rung.iterations, target=rung.norm_target,
    )  # fmt: skip
    # One row each forward, all but the last backward (twice as dear); ∅ once.
    again.evals += (3 * len(norms) - 1) / again.own_rows
    return NextTry(again, Intervention("prompt", min(norms)), failed.seed)


def _negtome(failed: Failed, rung: NegToMeRung, tools: Tools) -> NextTry:
    if not failed.latents:
        return _reseed(failed, rung, tools)
    failed, again, until = _resumed(failed, rung, tools)
    features = tools.engine.features
    ran = features.rows_run if features is not None else 0
    again.push = _push(failed, rung, tools, again.step, until)
    if features is not None:  # whoever asks for features first pays for them
        again.evals += (features.rows_run - ran) / again.own_rows
        again.rows_from = [(again.step, tools.engine.rows)]
    return NextTry(again, Intervention("negtome", rung.alpha, failed.nearest(rung.references)[0]), failed.seed)


def _nudge(failed: Failed, rung: NudgeRung, tools: Tools) -> NextTry:
    if not failed.latents:
        return _reseed(failed, rung, tools)
    failed, again, until = _resumed(failed, rung, tools)
    references = _with_colours(failed, rung.references)
    if rung.space == "embedder":
        again.nudge = _embedder_nudge(failed, rung, tools, references, until)
    else:
        nudge = _nudged(rung, tools, references, until, _of_nudge(rung))
        nudge = replace(nudge, solver=rung.solver, random=failed.seed if rung.direction == "random" else None)
        if rung.space == "noisy":
            sampler = tools.engine.sampler
            nudge = replace(nudge, levels=tuple(zip(sampler.signal, sampler.noise, strict=True)))
        again.nudge = nudge
    strength = rung.step_size * rung.iterations
    return NextTry(again, Intervention("nudge", strength, failed.nearest(rung.references)[0]), failed.seed)


def _amg(failed: Failed, rung: AmgRung, tools: Tools) -> NextTry:
    if not failed.latents:
        return _reseed(failed, rung, tools)
    _require_guidance(failed, rung)
    failed, again, until = _resumed(failed, rung, tools)
    engine, references = tools.engine, _with_colours(failed, rung.references)
    again.nudge = _nudged(rung, tools, references, until, _objective(rung))
    again.guide = Despecification(
        engine.guidance_scale, rung.strength, rung.enough, references, tools.centre, until,
        lambda z, output, step: engine.sampler.clean(z, output, step)[0],
    )  # fmt: skip
    negative = failed.negative_of(rung.references)
    if rung.deduplicate and failed.words is not None and negative:
        again.negative = failed.words.context_of(negative)
    strength = rung.step_size * rung.iterations
    return NextTry(again, Intervention("amg", strength, failed.nearest(rung.references)[0]), failed.seed)


def _spell(failed: Failed, rung: SpellRung, tools: Tools) -> NextTry:
    if not failed.latents:
        return _reseed(failed, rung, tools)
    failed, again, until = _resumed(failed, rung, tools)
    # Relative to the nearest reference's distance from the centre: latents of one model differ in scale from another's.
    radius = rung.radius * float((failed.latents[0] - tools.centre).norm())
    again.nudge = Repellency(_with_colours(failed, rung.references), radius, rung.strength, until)
    return NextTry(again, Intervention("spell", rung.strength, failed.nearest(rung.references)[0]), failed.seed)


_ANSWERS: dict[type[Rung], Callable[[Failed, Any, Tools], NextTry]] = {
    ReseedRung: _reseed, RenoiseRung: _renoise, NegativeRung: _negative, DelayedCfgRung: _delayed_cfg, PromptRung: _prompt,
    NegToMeRung: _negtome, NudgeRung: _nudge, AmgRung: _amg, SpellRung: _spell,
}  # fmt: skip


# --- where the next attempt begins -----------------------------------------------------------------------------------------


def _renewed(failed: Failed, renew: bool, tools: Tools) -> Failed:
    """The failed attempt, or one that has nothing but new noise."""
    if not renew:
        return failed
    seed = next_seed(failed.seed, failed.attempt)
    return replace(failed, seed=seed, last=replace(failed.last, ring={0: tools.engine.initial_noise(seed)}))


def _begin(failed: Failed, rung: RenoiseRung | Resumed, tools: Tools) -> int:
    """The step from which the failed attempt is resumed."""
    steps = len(tools.engine.sampler)
    if failed.caught_at is not None:
        return rollback_step(steps, failed.attempt, rollback=tools.rollback, fired_at=failed.caught_at)
    return rollback_step(steps, failed.attempt, resume_fraction=rung.resume_fraction, rollback=rung.rollback)


def _resumed(failed: Failed, rung: Resumed, tools: Tools) -> tuple[Failed, Trajectory, int]:
    """The failed attempt (renewed, where the rung says so), its trajectory resumed, and the step at which steering ends."""
    failed = _renewed(failed, rung.renew, tools)
    last, begin = failed.last, _begin(failed, rung, tools)
    begin = max((step for step in last.ring if step <= begin), default=min(last.ring))  # the latest latent kept by then
    earlier = {step: z for step, z in last.ring.items() if step < begin}
    again = Trajectory(last.tag, last.ring[begin], begin, last.context, last.negative, ring=earlier)
    return failed, again, again.step + max(1, round(rung.window * len(tools.engine.sampler)))


def _from_its_noise(failed: Failed, tools: Tools) -> Trajectory:
    ring = failed.last.ring
    return _fresh(failed.last, ring[0] if 0 in ring else tools.engine.initial_noise(failed.seed))


def _fresh(last: Trajectory, latent: torch.Tensor) -> Trajectory:
    return Trajectory(last.tag, latent, 0, last.context, last.negative)


def _renoised(engine: Engine, last: Trajectory, begin: int, seed: int) -> Trajectory:
    """The control of every rollback: the failed picture with fresh noise at that step, and nothing else changed."""
    import torch

    noise = torch.randn(last.latent.shape, generator=torch.Generator().manual_seed(seed))
    done = last.step == len(engine.sampler) or last.clean is None
    noisy = engine.sampler.noised(last.latent if done or last.clean is None else last.clean, noise, begin)
    return Trajectory(last.tag, noisy, begin, last.context, last.negative)


def _require_guidance(failed: Failed, rung: Rung) -> None:
    if failed.last.negative is None:
        fix = "Set generation.guidance_scale above 1 (Flux: true_guidance_scale), or use another kind of rung"
        raise ConfigError("this model is drawn without a negative row", where=f'ladder, kind = "{rung.kind}"', fix=fix)


# --- what steers it --------------------------------------------------------------------------------------------------------


def _with_colours(failed: Failed, references: int) -> tuple[torch.Tensor, ...]:
    """The nearest references' latents, and those of their drawings in other colours."""
    ref_ids, latents = failed.nearest(references)
    return (*latents, *(z for ref_id in ref_ids for z in failed.colours.get(ref_id, ())))


def _push(failed: Failed, rung: NegToMeRung, tools: Tools, begin: int, until: int) -> NegToMe:
    engine, (ref_ids, latents) = tools.engine, failed.nearest(rung.references)
    fixed = rung.noise == "fixed"
    noises = tuple(engine.initial_noise(next_seed(int(ref_id[:8], 16), 0)) for ref_id in ref_ids) if fixed else None
    settings = NegToMe(
        latents, noises, tools.reference_context, rung.alpha, rung.token_threshold, until, match=rung.match,
        placement=rung.placement, keep_norm=rung.keep_norm, form=rung.form, temperature=rung.temperature,
        attention=rung.attention, rows=rung.rows, where=rung.blocks, min_tokens=rung.min_tokens, precision=rung.precision,
        masks=tuple(foreground(z, tools.centre) for z in latents) if rung.masked else None,
    )  # fmt: skip
    if engine.features is None:
        return settings
    steps = [step for step in range(begin, len(engine.sampler)) if settings.acts_at(step)]
    while True:
        try:
            return with_features(
                settings, steps, cache=engine.features, model=engine.model.digest, of_steps=len(engine.sampler),
                rows=engine.rows, blocks=engine.model.attention_blocks(), noised=engine.reference_latents,
                denoise=lambda *rows: _reference_call(engine, *rows),
            )  # fmt: skip
        except Exception as error:
            with steering("references' features", begin):
                engine.make_room(error)  # everybody goes on with fewer rows, and these features are worked out with as many


def _reference_call(
    engine: Engine, latents: list[torch.Tensor], steps: list[int], contexts: list[torch.Tensor]
) -> torch.Tensor:
    """One denoiser call of reference rows alone, padded as the engine pads."""
    import torch

    pad = engine.rows - len(latents)
    timesteps: list[float] = [engine.sampler.timesteps[step] for step in steps] + [0] * pad
    output = engine.model.denoise(
        torch.stack(latents + [torch.zeros_like(latents[0])] * pad), torch.tensor(timesteps),
        torch.stack(contexts + [torch.zeros_like(contexts[0])] * pad), engine.told_guidance,
    )  # fmt: skip
    engine.calls += 1
    engine.rows_used += len(latents)
    return output


def _objective(rung: Nudging) -> Objective:
    return Objective(keep=rung.keep, weights=rung.weights, temperature=rung.temperature, enough=rung.enough)


def _of_nudge(rung: NudgeRung) -> Objective:
    return replace(_objective(rung), push=rung.push, pull=rung.pull, normalise=rung.normalise, penalty=rung.penalty)


def _nudged(rung: Nudging, tools: Tools, references: tuple[torch.Tensor, ...], until: int, objective: Objective) -> Nudge:
    import torch

    centre = tools.centre if rung.centred else torch.zeros_like(tools.centre)
    return Nudge(
        references, centre, rung.step_size, rung.iterations, until, rung.temperature, rung.keep, rung.enough,
        objective=objective,
    )  # fmt: skip


def _embedder_nudge(
    failed: Failed, rung: NudgeRung, tools: Tools, references: tuple[torch.Tensor, ...], until: int
) -> EmbedderNudge:
    if tools.embedder_space is None or failed.words is None:
        fix = "Name an index in the run file, or use another space"
        raise ConfigError("there is no embedder to nudge in", where='ladder, space = "embedder"', fix=fix)
    space = tools.embedder_space()
    desired = space.text(failed.words.caption)[None] if rung.pull > 0 else None
    return EmbedderNudge(
        space.features, space.of_latents(references), desired, _of_nudge(rung), rung.step_size, rung.iterations, until
    )  # fmt: skip
