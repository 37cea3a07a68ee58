"""Turn a rung of the policy's ladder into the trajectory of the next attempt.

The module holds :func:`retry`, the arguments and the result of an answer, the steps that answers share, and the answers that
need no more than these steps. A steering method with arithmetic of its own has its own module, such as
:mod:`pipeline.respond.nudge`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from index.errors import ConfigError, SteeringFailed
from index.printable import short
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.methods import answer_of
from pipeline.outcome import Intervention
from pipeline.rungs import NegativeRung, RenoiseRung, ReseedRung, Resumed, Rung
from pipeline.steer.embedder_space import EmbedderSpace
from pipeline.steer.filters import rollback_step

if TYPE_CHECKING:
    import torch

    from pipeline.model.conditioning import Conditioning

RESEED = ReseedRung()


@dataclass(frozen=True, kw_only=True)
class Words:
    """The texts a rung may need.

    Attributes:
        caption: the request's prompt.
        negative_prompt: the request's.
        titles: of the sample's nearest references, best first.
        encode: text of a negative prompt → conditioning.
    """

    caption: str
    negative_prompt: str
    titles: Sequence[str]
    encode: Callable[[str], Conditioning]
    _encoded: list[tuple[Conditioning, str]] = field(default_factory=list, init=False, repr=False)

    def context_of(self, text: str) -> Conditioning:
        """The conditioning of a negative prompt; :meth:`text_of` knows it again."""
        self._encoded.append((self.encode(text), text))
        return self._encoded[-1][0]

    def text_of(self, negative: Conditioning | None) -> str | None:
        """The text of a conditioning that :meth:`context_of` made; None for any other, as the request's own."""
        return next((text for conditioning, text in reversed(self._encoded) if conditioning is negative), None)

    def negative_of(self, references: int) -> str:
        """The negative prompt with the nearest references' titles behind it; empty where none of them has one."""
        titles = [title for title in self.titles[:references] if title]
        return ", ".join([text for text in (self.negative_prompt, *titles) if text]) if titles else ""


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The attempt that failed, and the references it was too near to.

    Attributes:
        last: its trajectory; the next one resumes from its ring.
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
    """The tools of a rung, the same for every sample.

    Attributes:
        engine: gives a sample's sampler and the noise of a seed; with a feature cache, references are run there once.
        reference_context: conditioning of the reference rows.
        centre: mean reference latent (C, h, w), for nudging.
        embedder_space: opens the embedder's space, for nudging in it; None without an embedder.
        rollback: share of the steps that a caught sample goes back.
    """

    engine: Engine
    reference_context: Conditioning
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
    """The next try of a failed attempt, by this rung.

    A rung that needs a reference's picture (or title) and has none becomes a re-seed, and is recorded as one.

    Raises:
        ConfigError: the rung needs what this model or embedder cannot do.
        OutOfMemory: a call of its references does not fit into memory, however few rows it has.
        SteeringFailed: such a call failed otherwise, or a method of another package answers what none should.
    """
    where, fix = f"ladder, kind {rung.kind!r}", "Ask the method's author; pipeline/respond/copies.py says what it may answer"
    try:
        again = answer_of(rung)(failed, rung, tools)
    except SystemExit as error:  # it would end the run, and say nothing
        raise SteeringFailed(f"it wants to end the process ({short(error.code)})", where=where, fix=fix) from error
    if wrong := _wrong(again, failed, rung, tools.engine):
        raise SteeringFailed(wrong, where=where, fix=fix)
    return again  # type: ignore[no-any-return]


def _wrong(again: Any, failed: Failed, rung: Rung, engine: Engine) -> str:
    """What is wrong with an answer: it would break the run, or stand in a row as something that it is not; else empty."""
    if not isinstance(again, NextTry) or not isinstance(again.trajectory, Trajectory):
        return f"it answers {short(again)} and no NextTry with a trajectory"
    trajectory, seed = again.trajectory, again.seed
    if trajectory is failed.last or not 0 <= trajectory.step < len(engine.sampler_of(trajectory)):
        return f"it answers a trajectory at step {trajectory.step}, which has no step to take"
    if trajectory.latent.shape != failed.last.latent.shape:
        return f"it answers a latent of shape {tuple(trajectory.latent.shape)} for one of {tuple(failed.last.latent.shape)}"
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        return f"it answers the seed {short(seed)}, no whole number from 0 to 2^63 - 1"
    return _wrong_record(again.intervention, failed, rung)


def _wrong_record(done: Any, failed: Failed, rung: Rung) -> str:
    """What is wrong with the intervention of an answer, which the row and the report show; else empty."""
    if not isinstance(done, Intervention) or done.kind not in (rung.kind, RESEED.kind):
        return f"it answers the intervention {short(done)}, which is of another kind"
    if isinstance(done.strength, bool) or not isinstance(done.strength, int | float) or not math.isfinite(done.strength):
        return f"it answers the strength {short(done.strength)}, no finite number"
    if strange := [ref_id for ref_id in done.ref_ids if ref_id not in failed.ref_ids]:
        return f"it names the reference {short(strange[0])}, which is none of the sample's"
    return ""


# --- answers of three kinds ---------------------------------------------------------------------------------------------------


def reseed(failed: Failed, _: Rung, tools: Tools) -> NextTry:
    """A new seed; also the answer of every kind that has no reference to steer by."""
    seed = next_seed(failed.seed, failed.attempt)
    return NextTry(_fresh(failed.last, tools.engine.noise_like(failed.last, seed)), Intervention(kind="reseed"), seed)


def renoise(failed: Failed, rung: RenoiseRung, tools: Tools) -> NextTry:
    """Fresh noise on the failed picture."""
    if failed.caught_at is not None:  # there is no picture to add noise to
        return reseed(failed, rung, tools)
    begin = _begin(failed, rung, tools)
    again = _renoised(tools.engine, failed.last, begin, next_seed(failed.seed, failed.attempt))
    return NextTry(again, Intervention(kind="renoise"), failed.seed)


def negative(failed: Failed, rung: NegativeRung, tools: Tools) -> NextTry:
    """The references' titles behind the negative prompt."""
    text, words = failed.negative_of(rung.references), failed.words
    if not text or words is None:
        return reseed(failed, rung, tools)
    failed = renewed(failed, rung.renew, tools)
    require_guidance(failed, rung, tools)
    again = from_its_noise(failed, tools)
    again.negative = words.context_of(text)
    return NextTry(again, Intervention(kind="negative", strength=1.0, ref_ids=failed.nearest(rung.references)[0]), failed.seed)


# --- where the next attempt begins -----------------------------------------------------------------------------------------


def renewed(failed: Failed, renew: bool, tools: Tools) -> Failed:
    """The failed attempt, or one that has nothing but new noise."""
    if not renew:
        return failed
    seed = next_seed(failed.seed, failed.attempt)
    return replace(failed, seed=seed, last=replace(failed.last, ring={0: tools.engine.noise_like(failed.last, seed)}))


def _begin(failed: Failed, rung: RenoiseRung | Resumed, tools: Tools) -> int:
    """The step from which the failed attempt is resumed."""
    steps = len(tools.engine.sampler_of(failed.last))
    if failed.caught_at is not None:
        return rollback_step(steps, failed.attempt, rollback=tools.rollback, fired_at=failed.caught_at)
    return rollback_step(steps, failed.attempt, resume_fraction=rung.resume_fraction, rollback=rung.rollback)


def resumed(failed: Failed, rung: Resumed, tools: Tools) -> tuple[Failed, Trajectory, int]:
    """The failed attempt (renewed, where the rung is set so), its trajectory resumed, and the step at which steering ends."""
    failed = renewed(failed, rung.renew, tools)
    last, begin = failed.last, _begin(failed, rung, tools)
    begin = max((step for step in last.ring if step <= begin), default=min(last.ring))  # the latest latent kept by then
    earlier = {step: z for step, z in last.ring.items() if step < begin}
    again = Trajectory(
        tag=last.tag, latent=last.ring[begin], step=begin, context=last.context, negative=last.negative, ring=earlier
    )
    return failed, again, again.step + max(1, round(rung.window * len(tools.engine.sampler_of(last))))


def from_its_noise(failed: Failed, tools: Tools) -> Trajectory:
    """A trajectory from the noise that the failed attempt began with."""
    ring = failed.last.ring
    return _fresh(failed.last, ring[0] if 0 in ring else tools.engine.noise_like(failed.last, failed.seed))


def _fresh(last: Trajectory, latent: torch.Tensor) -> Trajectory:
    return Trajectory(tag=last.tag, latent=latent, step=0, context=last.context, negative=last.negative)


def _renoised(engine: Engine, last: Trajectory, begin: int, seed: int) -> Trajectory:
    """The control of every rollback: the failed picture with fresh noise at that step, otherwise unchanged."""
    import torch

    noise = torch.randn(last.latent.shape, generator=torch.Generator().manual_seed(seed)).to(last.latent.device)
    sampler = engine.sampler_of(last)
    done = last.step == len(sampler) or last.clean is None
    noisy = sampler.noised(last.latent if done or last.clean is None else last.clean, noise, begin)
    return Trajectory(tag=last.tag, latent=noisy, step=begin, context=last.context, negative=last.negative)


def require_guidance(failed: Failed, rung: Rung, tools: Tools) -> None:
    """Refuse a rung that needs a negative row where the sample is drawn without one.

    Raises:
        ConfigError: it is.
    """
    if failed.last.negative is None:
        guide = tools.engine.how_to_guide(failed.last.guidance_scale, len(tools.engine.sampler_of(failed.last)))
        what = "the sample is drawn without a negative row" if guide else "this model never has a negative row"
        fix = f"{guide}, or use another kind of rung" if guide else "Use another kind of rung"
        raise ConfigError(what, where=f'ladder, kind = "{rung.kind}"', fix=fix)


def with_colours(failed: Failed, references: int) -> tuple[torch.Tensor, ...]:
    """The nearest references' latents, and those of their drawings in other colours."""
    ref_ids, latents = failed.nearest(references)
    return (*latents, *(z for ref_id in ref_ids for z in failed.colours.get(ref_id, ())))
