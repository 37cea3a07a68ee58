"""Delayed classifier-free guidance (arXiv 2411.16738), kind ``delayed_cfg``.

The unconditional branch is followed until the first local minimum of ‖ε_text − ε_empty‖; after it guidance is as usual. The
method needs no other network and no extra evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pipeline.fields import choice, flag, number
from pipeline.methods import register
from pipeline.model.combine import Combine, classifier_free
from pipeline.outcome import Intervention
from pipeline.respond.copies import Failed, NextTry, Tools, from_its_noise, renewed, require_guidance
from pipeline.rungs import KIND, SteeringMethod
from pipeline.settings import settings

if TYPE_CHECKING:
    import torch


@settings
class DelayedCfgRung:
    """Guidance begins late (arXiv 2411.16738); the model is drawn with guidance."""

    kind: Literal["delayed_cfg"] = choice("delayed_cfg", KIND)
    renew: bool = flag(False, "start from new noise instead of the failed attempt's")
    window: float = number(1.0, 0, 1, "share of the steps after which guidance begins at the latest")


def delay_is_over(norms: Sequence[float]) -> bool:
    """Whether the norms ‖ε_text − ε_empty‖ so far contain a local minimum: some step's norm is above the one before."""
    return any(later > earlier for earlier, later in pairwise(norms))


@dataclass
class DelayedGuidance:
    """Guidance that starts late (arXiv 2411.16738). One object per trajectory: it remembers its norms.

    Attributes:
        scale: classifier-free guidance scale after the delay.
        until_step: guidance starts here at the latest.
        combine: the model's own way of guidance.
        norms: ‖ε_text − ε_empty‖ of the steps so far.
    """

    scale: float
    until_step: int
    combine: Combine = classifier_free
    norms: list[float] = field(default_factory=list)

    def __call__(self, latent: torch.Tensor, negative: torch.Tensor, conditional: torch.Tensor, step: int) -> torch.Tensor:
        """Raw outputs (C, h, w) → the guided one."""
        self.norms.append(float((conditional - negative).norm()))
        if step < self.until_step and not delay_is_over(self.norms):
            return negative
        return self.combine(negative, conditional, self.scale)


def answer(failed: Failed, rung: DelayedCfgRung, tools: Tools) -> NextTry:
    """From the same noise, guided late."""
    failed, engine = renewed(failed, rung.renew, tools), tools.engine
    require_guidance(failed, rung, tools)
    again = from_its_noise(failed, tools)
    steps = len(engine.sampler_of(failed.last))
    late = max(1, round(rung.window * steps))
    again.guide = DelayedGuidance(engine.guidance_of(failed.last), late, engine.model.combine)
    return NextTry(again, Intervention(kind="delayed_cfg", strength=rung.window), failed.seed)


METHOD = SteeringMethod(rung=DelayedCfgRung, answer=answer)
register(METHOD)
