"""SPELL, sparse repellency (arXiv 2410.06025), kind ``spell``: a push away from every reference within a radius."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.fields import choice, number
from pipeline.methods import register
from pipeline.outcome import Intervention
from pipeline.respond.copies import Failed, NextTry, Tools, reseed, resumed, with_colours
from pipeline.rungs import KIND, Resumed, SteeringMethod
from pipeline.settings import settings

if TYPE_CHECKING:
    import torch


@settings
class SpellRung(Resumed):
    """Sparse repellency (arXiv 2410.06025): a shell around each reference."""

    kind: Literal["spell"] = choice("spell", KIND)
    radius: float = number(0.8, 0, 100, "of the shell, relative to the reference's distance from the centre")
    strength: float = number(1.0, 0, 1000, "overcompensation")


def repel(clean: torch.Tensor, references: Sequence[torch.Tensor], *, radius: float, strength: float) -> torch.Tensor:
    """SPELL: x̂0 + λ·Σ_k ReLU(r/‖x̂0 − z_k‖ − 1)·(x̂0 − z_k).

    Args:
        clean: x̂0 (C, h, w).
        references: z_k (C, h, w).
        radius: r, a distance between latents.
        strength: λ; 1 moves exactly to the edge of a single ball.

    Returns:
        (C, h, w), ``clean`` itself outside every radius. x̂0 = z_k has no direction to move in, and stays.
    """
    moved = clean
    for z in references:
        away = clean - z
        distance = float(away.norm())
        if 0 < distance < radius:
            moved = moved + strength * (radius / distance - 1) * away
    return moved


@dataclass(frozen=True)
class Repellency:
    """SPELL as a hook of a trajectory.

    Attributes:
        references: z_k (C, h, w).
        radius: r, a distance between latents.
        strength: λ.
        until_step: acts below this step.
    """

    references: tuple[torch.Tensor, ...]
    radius: float
    strength: float
    until_step: int

    def __call__(self, clean: torch.Tensor, step: int, noise: torch.Tensor | None = None) -> torch.Tensor:
        """x̂0 (C, h, w) at ``step`` → x̂0 outside the radii."""
        if step >= self.until_step:
            return clean
        return repel(clean, self.references, radius=self.radius, strength=self.strength)


def answer(failed: Failed, rung: SpellRung, tools: Tools) -> NextTry:
    """Resume with a push away from the nearest references; without a reference, use a new seed."""
    if not failed.latents:
        return reseed(failed, rung, tools)
    failed, again, until = resumed(failed, rung, tools)
    # Relative to the nearest reference's distance from the centre: latents of one model differ in scale from another's.
    radius = rung.radius * float((failed.latents[0] - tools.centre).norm())
    again.nudge = Repellency(with_colours(failed, rung.references), radius, rung.strength, until)
    return NextTry(
        again, Intervention(kind="spell", strength=rung.strength, ref_ids=failed.nearest(rung.references)[0]), failed.seed
    )


METHOD = SteeringMethod(rung=SpellRung, answer=answer)
register(METHOD)
