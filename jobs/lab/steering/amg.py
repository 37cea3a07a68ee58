"""Anti-memorisation guidance (AMG, arXiv 2404.00922), kind ``amg``.

Guidance is reduced (despecification) and the nearest reference's caption becomes the negative prompt (de-duplication), both
gated by similarity. The third term, dissimilarity, is a gated nudge (:mod:`pipeline.steer.nudge`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.fields import choice, flag, number
from pipeline.methods import register
from pipeline.model.combine import Combine, classifier_free
from pipeline.outcome import Intervention
from pipeline.respond.copies import Failed, NextTry, Tools, require_guidance, reseed, resumed, with_colours
from pipeline.respond.nudge import nudged, objective_of
from pipeline.rungs import KIND, Nudging, SteeringMethod
from pipeline.settings import settings
from pipeline.steer.filters import max_cosine

if TYPE_CHECKING:
    import torch

CleanOf = Callable[["torch.Tensor", "torch.Tensor", int], "torch.Tensor"]
"""Latent, raw output, step → x̂0, as the sampler splits it."""


@settings
class AmgRung(Nudging):
    """Anti-memorisation guidance (arXiv 2404.00922); the model is drawn with guidance."""

    kind: Literal["amg"] = choice("amg", KIND)
    strength: float = number(1.0, 0, 1000, "of the despecification")
    deduplicate: bool = flag(True, "the nearest reference's title takes the negative prompt's place")


def despecified_scale(scale: float, similarity: float, *, strength: float, gate: float) -> float:
    """AMG, despecification: guidance reduced by s1 = max(min(c1·σ, s0 − 1), 0), where the similarity σ exceeds the gate.

    Args:
        scale: s0.
        similarity: σ of x̂0 to its nearest reference.
        strength: c1.
        gate: λ; ungated, quality collapses.

    Returns:
        s0 − s1, between 1 and s0 (or s0 itself below 1).
    """
    return scale - max(min(strength * similarity, scale - 1), 0.0) if similarity > gate else scale


@dataclass(frozen=True, kw_only=True)
class Despecification:
    """AMG's guidance. De-duplication uses the negative row: the trajectory's ``negative`` is the nearest reference's caption.
    The paper's third branch would need another row, and a sample has two.

    Attributes:
        scale: s0.
        strength: c1.
        gate: λ, a cosine of deviations from the centre.
        references, centre: clean latents (C, h, w).
        until_step: acts below this step.
        clean_of: the sampler's x̂0.
        combine: the model's own way of guidance.
    """

    scale: float
    strength: float
    gate: float
    references: tuple[torch.Tensor, ...]
    centre: torch.Tensor
    until_step: int
    clean_of: CleanOf
    combine: Combine = classifier_free

    def __call__(self, latent: torch.Tensor, negative: torch.Tensor, conditional: torch.Tensor, step: int) -> torch.Tensor:
        """Raw outputs (C, h, w) → the guided one."""
        plain = self.combine(negative, conditional, self.scale)
        if step >= self.until_step:
            return plain
        similarity = max_cosine(self.clean_of(latent, plain, step), self.references, self.centre)
        scale = despecified_scale(self.scale, similarity, strength=self.strength, gate=self.gate)
        return self.combine(negative, conditional, scale)


def answer(failed: Failed, rung: AmgRung, tools: Tools) -> NextTry:
    """Resume with a gated nudge and less guidance; without a reference, use a new seed."""
    if not failed.latents:
        return reseed(failed, rung, tools)
    require_guidance(failed, rung, tools)
    failed, again, until = resumed(failed, rung, tools)
    sampler, references = tools.engine.sampler_of(failed.last), with_colours(failed, rung.references)
    again.nudge = nudged(rung, tools, references, until, objective_of(rung))
    again.guide = Despecification(
        scale=tools.engine.guidance_of(failed.last),
        strength=rung.strength,
        gate=rung.enough,
        references=references,
        centre=tools.centre,
        until_step=until,
        clean_of=lambda z, output, step: sampler.clean(z, output, step)[0],
        combine=tools.engine.model.combine,
    )
    negative = failed.negative_of(rung.references)
    if rung.deduplicate and failed.words is not None and negative:
        again.negative = failed.words.context_of(negative)
    strength = rung.step_size * rung.iterations
    return NextTry(again, Intervention(kind="amg", strength=strength, ref_ids=failed.nearest(rung.references)[0]), failed.seed)


METHOD = SteeringMethod(rung=AmgRung, answer=answer)
register(METHOD)
