"""Steering by guidance, and the related forms that nudging is compared with: each a pure function and the hook that carries it.

* delayed classifier-free guidance (arXiv 2411.16738): follow the unconditional branch until the first local minimum of
  ‖ε_text − ε_empty‖, then guide as usual. No other network, no extra cost.
* AMG (arXiv 2404.00922): less specification and less of the nearest reference's caption, gated by similarity. Its third term,
  dissimilarity, is a gated nudge (:mod:`pipeline.steer.nudge`).
* SPELL (arXiv 2410.06025): a push off every reference within a radius, sparse, zero outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from pipeline.steer.cascade import max_cosine

if TYPE_CHECKING:
    import torch

CleanOf = Callable[["torch.Tensor", "torch.Tensor", int], "torch.Tensor"]
"""Latent, raw output, step → x̂0, as the sampler splits it."""


def delay_is_over(norms: Sequence[float]) -> bool:
    """Whether the norms ‖ε_text − ε_empty‖ seen so far hold a local minimum: some step's norm rose above the one before."""
    return any(later > earlier for earlier, later in pairwise(norms))


@dataclass
class DelayedGuidance:
    """Guidance that starts late (arXiv 2411.16738). One object per trajectory: it remembers its norms.

    Attributes:
        scale: classifier-free guidance scale after the delay.
        until_step: guidance starts here at the latest.
        norms: ‖ε_text − ε_empty‖ of the steps so far.
    """

    scale: float
    until_step: int
    norms: list[float] = field(default_factory=list)

    def __call__(self, latent: torch.Tensor, negative: torch.Tensor, conditional: torch.Tensor, step: int) -> torch.Tensor:
        """Raw outputs (C, h, w) → the guided one."""
        self.norms.append(float((conditional - negative).norm()))
        if step < self.until_step and not delay_is_over(self.norms):
            return negative
        return negative + self.scale * (conditional - negative)


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


@dataclass(frozen=True)
class Despecification:
    """AMG's guidance. De-duplication takes the negative row: give it the caption of the nearest reference (its trajectory's
    ``negative``), since a sample owns two rows and the paper's third branch would cost another.

    Attributes:
        scale: s0.
        strength: c1.
        gate: λ, a cosine of deviations from the centre.
        references, centre: clean latents (C, h, w).
        until_step: acts below this step.
        clean_of: the sampler's x̂0.
    """

    scale: float
    strength: float
    gate: float
    references: tuple[torch.Tensor, ...]
    centre: torch.Tensor
    until_step: int
    clean_of: CleanOf

    def __call__(self, latent: torch.Tensor, negative: torch.Tensor, conditional: torch.Tensor, step: int) -> torch.Tensor:
        """Raw outputs (C, h, w) → the guided one."""
        plain = negative + self.scale * (conditional - negative)
        if step >= self.until_step:
            return plain
        similarity = max_cosine(self.clean_of(latent, plain, step), self.references, self.centre)
        scale = despecified_scale(self.scale, similarity, strength=self.strength, gate=self.gate)
        return negative + scale * (conditional - negative)


def repel(clean: torch.Tensor, references: Sequence[torch.Tensor], *, radius: float, strength: float) -> torch.Tensor:
    """SPELL: x̂0 + λ·Σ_k ReLU(r/‖x̂0 − z_k‖ − 1)·(x̂0 − z_k).

    Args:
        clean: x̂0 (C, h, w).
        references: z_k (C, h, w).
        radius: r, a distance between latents.
        strength: λ; 1 moves exactly to the edge of a single ball.

    Returns:
        (C, h, w), ``clean`` itself outside every radius. x̂0 = z_k has no direction to leave in, and stays.
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
