"""From a rung of the policy's ladder to a trajectory: what the next attempt does differently."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from index.errors import ConfigError
from pipeline.blame import steering
from pipeline.config import Rung
from pipeline.engine import Engine
from pipeline.outcome import Intervention
from pipeline.steer.cascade import rollback_step
from pipeline.steer.embedder_space import EmbedderNudge, EmbedderSpace
from pipeline.steer.features import with_features
from pipeline.steer.guidance import DelayedGuidance, Despecification, Repellency
from pipeline.steer.masks import foreground
from pipeline.steer.negtome import NegToMe
from pipeline.steer.nudge import Nudge
from pipeline.steer.objective import Objective
from pipeline.steer.prompt import differentiable_denoiser, optimise_prompt
from pipeline.trajectory import Trajectory

if TYPE_CHECKING:
    import torch

RESEED = Rung(kind="reseed")
FROM_REFERENCES = {"negtome", "nudge", "amg", "spell"}  # kinds that need the latent of a reference
GUIDED = {"negative", "delayed_cfg", "amg"}  # kinds that need classifier-free guidance


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


def next_seed(seed: int, attempt: int) -> int:
    """The seed of a re-seeded attempt: derived from the request's seed and the attempt's number alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{attempt}".encode()).digest()[:8], "big") >> 1


def random_references(everything: Sequence[str], near: Sequence[str], *, seed: int, attempt: int) -> list[str]:
    """All references but the nearest ones, in an order drawn from (seed, attempt): for the control of a random reference."""
    others = set(everything) - set(near)
    return sorted(others, key=lambda ref_id: hashlib.sha256(f"{seed}/{attempt}/{ref_id}".encode()).digest())


def retry(
    engine: Engine,
    last: Trajectory,
    rung: Rung,
    *,
    seed: int,
    attempt: int,
    ref_ids: Sequence[str],
    latents: Sequence[torch.Tensor],
    reference_context: torch.Tensor,
    centre: torch.Tensor,
    colours: Mapping[str, Sequence[torch.Tensor]] = MappingProxyType({}),
    words: Words | None = None,
    embedder_space: Callable[[], EmbedderSpace] | None = None,
    caught_at: int | None = None,
    rollback: float = 0.0,
) -> tuple[Trajectory, Intervention, int]:
    """The next trajectory of a sample, the intervention to record, and the seed in force.

    Args:
        engine: gives the number of steps and the noise of a seed; with a feature cache, references are run there once.
        last: the finished trajectory of the failed attempt; its ring is what is resumed from.
        rung: what to do. Steering away without a reference picture (or title) at hand becomes a re-seed, recorded as one.
        seed: seed of the failed attempt.
        attempt: number of the new attempt.
        ref_ids, latents: the sample's own nearest references, best first, and their clean latents (C, h, w).
        reference_context: text embedding of the reference rows.
        centre: mean reference latent (C, h, w), for nudging.
        colours: reference id → clean latents of its drawing in other colours, to be steered away from as well; token merging
            matches shapes and takes the drawing as it is.
        words: texts, for the kinds that take them.
        embedder_space: opens the embedder's space, for nudging in it.
        caught_at: steps taken when a probe caught ``last``; None when its picture was finished.
        rollback: share of the steps that a caught sample goes back.

    Raises:
        ConfigError: the rung asks for what this model or embedder cannot do.
        OutOfMemory: a call of its references does not fit into memory, however few rows it has.
        SteeringFailed: such a call failed otherwise.
    """
    ref_ids, latents = tuple(ref_ids[: rung.references]), tuple(latents[: rung.references])
    everything = (*latents, *(z for ref_id in ref_ids for z in colours.get(ref_id, ())))
    without = rung.kind in FROM_REFERENCES and not latents
    negative = words.negative_of(rung.references) if words is not None else ""
    unfinished = rung.kind == "renoise" and caught_at is not None  # there is no picture to add noise to
    if rung.kind == "reseed" or without or unfinished or (rung.kind == "negative" and not negative):
        seed = next_seed(seed, attempt)
        return _fresh(engine, last, engine.initial_noise(seed)), Intervention("reseed"), seed
    steps = len(engine.sampler)
    if rung.renew:
        seed = next_seed(seed, attempt)
        last = replace(last, ring={0: engine.initial_noise(seed)})
    if caught_at is None:
        begin = rollback_step(steps, attempt, resume_fraction=rung.resume_fraction, rollback=rung.rollback)
    else:
        begin = rollback_step(steps, attempt, rollback=rollback, fired_at=caught_at)
    if rung.kind == "renoise":
        return _renoised(engine, last, begin, next_seed(seed, attempt)), Intervention("renoise"), seed
    if rung.kind in GUIDED and last.negative is None:
        raise ConfigError(
            "this model is drawn without a negative row", where=f'ladder, kind = "{rung.kind}"', fix="Use another kind of rung"
        )
    if rung.kind in {"negative", "delayed_cfg", "prompt"}:
        again = _fresh(engine, last, last.ring[0] if 0 in last.ring else engine.initial_noise(seed))
        if rung.kind == "negative" and words is not None:
            again.negative = words.context_of(negative)
            return again, Intervention("negative", 1.0, ref_ids), seed
        if rung.kind == "delayed_cfg":
            again.guide = DelayedGuidance(engine.guidance_scale, max(1, round(rung.window * steps)))
            return again, Intervention("delayed_cfg", rung.window), seed
        again.context, norms = optimise_prompt(
            differentiable_denoiser(engine.model, engine.sampler.timesteps[0]), again.latent, last.context, reference_context,
            learning_rate=rung.learning_rate, iterations=rung.iterations, target=rung.norm_target,
        )  # fmt: skip
        # One row each forward, all but the last backward (twice as dear); ∅ once.
        again.evals += (3 * len(norms) - 1) / again.own_rows
        return again, Intervention("prompt", min(norms)), seed
    again = _resumed(last, begin)
    until = again.step + max(1, round(rung.window * steps))
    strength = rung.step_size * rung.iterations
    if rung.kind == "negtome":
        ran = engine.features.rows_run if engine.features is not None else 0
        again.push = _negtome(engine, rung, again.step, until, ref_ids, latents, reference_context, centre)
        if engine.features is not None:  # whoever asks for features first pays for them
            again.evals += (engine.features.rows_run - ran) / again.own_rows
            again.rows_from = [(again.step, engine.rows)]
        strength = rung.alpha
    elif rung.kind == "spell":
        # Relative to the nearest reference's distance from the centre: latents of one model differ in scale from another's.
        radius = rung.radius * float((latents[0] - centre).norm())
        again.nudge = Repellency(everything, radius, rung.strength, until)
        strength = rung.strength
    elif rung.kind == "nudge" and rung.space == "embedder":
        again.nudge = _embedder_nudge(rung, everything, until, words, embedder_space)
    else:
        again.nudge = _nudge(engine, rung, everything, centre, until, seed)
    if rung.kind == "amg":
        again.guide = Despecification(
            engine.guidance_scale, rung.strength, rung.enough, everything, centre, until,
            lambda z, output, step: engine.sampler.clean(z, output, step)[0],
        )  # fmt: skip
        if rung.deduplicate and words is not None and negative:
            again.negative = words.context_of(negative)
    return again, Intervention(rung.kind, strength, ref_ids), seed


def _fresh(engine: Engine, last: Trajectory, latent: torch.Tensor) -> Trajectory:
    return Trajectory(last.tag, latent, 0, last.context, last.negative)


def _resumed(last: Trajectory, begin: int) -> Trajectory:
    """From the latest latent kept at or before ``begin``."""
    begin = max((step for step in last.ring if step <= begin), default=min(last.ring))
    earlier = {step: z for step, z in last.ring.items() if step < begin}
    return Trajectory(last.tag, last.ring[begin], begin, last.context, last.negative, ring=earlier)


def _renoised(engine: Engine, last: Trajectory, begin: int, seed: int) -> Trajectory:
    """The control of every rollback: the failed picture with fresh noise at that step, and nothing else changed."""
    import torch

    noise = torch.randn(last.latent.shape, generator=torch.Generator().manual_seed(seed))
    done = last.step == len(engine.sampler) or last.clean is None
    noisy = engine.sampler.noised(last.latent if done or last.clean is None else last.clean, noise, begin)
    return Trajectory(last.tag, noisy, begin, last.context, last.negative)


def _negtome(
    engine: Engine,
    rung: Rung,
    begin: int,
    until: int,
    ref_ids: Sequence[str],
    latents: tuple[torch.Tensor, ...],
    context: torch.Tensor,
    centre: torch.Tensor,
) -> NegToMe:
    fixed = rung.noise == "fixed"
    noises = tuple(engine.initial_noise(next_seed(int(ref_id[:8], 16), 0)) for ref_id in ref_ids) if fixed else None
    settings = NegToMe(
        latents, noises, context, rung.alpha, rung.token_threshold, until, match=rung.match, placement=rung.placement,
        keep_norm=rung.keep_norm, form=rung.form, temperature=rung.temperature, attention=rung.attention, rows=rung.rows,
        where=rung.blocks, min_tokens=rung.min_tokens, precision=rung.precision,
        masks=tuple(foreground(z, centre) for z in latents) if rung.masked else None,
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


def _objective(rung: Rung) -> Objective:
    return Objective(
        rung.push, rung.pull, rung.keep, rung.weights, rung.normalise, rung.penalty, rung.temperature, rung.enough
    )  # fmt: skip


def _nudge(engine: Engine, rung: Rung, latents: tuple[torch.Tensor, ...], centre: torch.Tensor, until: int, seed: int) -> Nudge:
    import torch

    nudge = Nudge(
        latents, centre if rung.centred else torch.zeros_like(centre), rung.step_size, rung.iterations, until,
        rung.temperature, rung.keep, rung.enough, objective=_objective(rung), solver=rung.solver,
        random=seed if rung.direction == "random" else None,
    )  # fmt: skip
    if rung.space != "noisy":
        return nudge
    return replace(nudge, levels=tuple(zip(engine.sampler.signal, engine.sampler.noise, strict=True)))


def _embedder_nudge(
    rung: Rung,
    latents: tuple[torch.Tensor, ...],
    until: int,
    words: Words | None,
    embedder_space: Callable[[], EmbedderSpace] | None,
) -> EmbedderNudge:
    if embedder_space is None or words is None:
        raise ConfigError("there is no embedder to nudge in", where='ladder, space = "embedder"', fix="Name an index")
    space = embedder_space()
    desired = space.text(words.caption)[None] if rung.pull > 0 else None
    return EmbedderNudge(
        space.features, space.of_latents(latents), desired, _objective(rung), rung.step_size, rung.iterations, until
    )  # fmt: skip
