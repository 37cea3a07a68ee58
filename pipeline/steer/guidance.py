"""Steering by guidance, and the related forms that nudging is compared with: each a pure function and the hook that carries it.

* delayed classifier-free guidance (arXiv 2411.16738): follow the unconditional branch until the first local minimum of
  ‖ε_text − ε_empty‖, then guide as usual. No other network, no extra cost.
* AMG (arXiv 2404.00922): less specification and less of the nearest reference's caption, gated by similarity. Its third term,
  dissimilarity, is a gated nudge (:mod:`pipeline.steer.nudge`).
* SPELL (arXiv 2410.06025): a push off every reference within a radius, sparse, zero outside.
* Safe Latent Diffusion (arXiv 2211.05105): a third branch, conditioned on what is not wanted, is subtracted where the prompt
  leads to it; a control for erasers.
* focused guidance, ours: classifier-free guidance that is stronger where a mark is to be left out; what erasers use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from guards.base import Box
from pipeline.steer.erase_tokens import box_mask
from pipeline.steer.filters import max_cosine

if TYPE_CHECKING:
    import torch

MARGIN = 1 / 8  # of the picture's side, around a mark that is focused on: its edges are drawn from beyond its box
FOCUSED = 0.5  # share of the steps with focus: what stands where is settled by then, and more would only burn colours
CleanOf = Callable[["torch.Tensor", "torch.Tensor", int], "torch.Tensor"]
"""Latent, raw output, step → x̂0, as the sampler splits it."""
NoiseOf = CleanOf
"""The same for ε̂."""


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


def focus_mask(places: Sequence[Box], shape: tuple[int, int]) -> torch.Tensor:
    """Latent positions in or near the places (fractions): float32 (h, w), 1 within :data:`MARGIN` of a box, else 0."""
    import torch

    wider = [
        (max(0.0, x0 - MARGIN), max(0.0, y0 - MARGIN), min(1.0, x1 + MARGIN), min(1.0, y1 + MARGIN))
        for x0, y0, x1, y1 in places
    ]
    return torch.from_numpy(box_mask(wider, (1, 1), shape)).float()


@dataclass(frozen=True)
class FocusedGuidance:
    """Guidance that is f times as strong where something is to be left out: ε = ε_neg + w·(1 + (f − 1)·m)·(ε_text − ε_neg).

    The negative conditioning says what and where; its tokens alone move the whole picture a little, and a mark that fills much
    of it outlasts them. More guidance everywhere would burn the rest of the picture.

    Attributes:
        scale: w.
        focus: f.
        mask: m, float32 (h, w), see :func:`focus_mask`.
        until_step: f = 1 from this step on.
    """

    scale: float
    focus: float
    mask: torch.Tensor
    until_step: int

    def __call__(self, latent: torch.Tensor, negative: torch.Tensor, conditional: torch.Tensor, step: int) -> torch.Tensor:
        """Raw outputs (C, h, w) → the guided one."""
        if step >= self.until_step:
            return negative + self.scale * (conditional - negative)
        return negative + self.scale * (1 + (self.focus - 1) * self.mask) * (conditional - negative)


def safe_guidance(
    negative: torch.Tensor, conditional: torch.Tensor, unsafe: torch.Tensor, *, strength: float, threshold: float
) -> torch.Tensor:
    """SLD, eq. 5 and 6: γ = μ ⊙ (ε_S − ε_∅), μ = min(1, |s_S·(ε_p − ε_S)|) where ε_p − ε_S < λ, else 0.

    The paper prints max(1, |·|), its code takes min; the code is followed.

    Args:
        negative: ε_∅.
        conditional: ε_p, of the prompt.
        unsafe: ε_S, of the concept's names.
        strength: s_S.
        threshold: λ.
    """
    import torch

    away = conditional - unsafe
    scale = (strength * away).abs().clamp(max=1.0)
    return torch.where(away >= threshold, torch.zeros_like(scale), scale) * (unsafe - negative)


@dataclass
class SafeGuidance:
    """Safe Latent Diffusion (arXiv 2211.05105, eq. 3 to 8). One object per trajectory: it has momentum.

    ε = ε_∅ + w·(ε_p − ε_∅ − γ_t) from step δ on, γ_t = γ + s_m·ν_t, ν_{t+1} = β·ν_t + (1 − β)·γ_t. The defaults are the paper's
    "strong" (its δ is of 50 steps: give a share of yours). The third branch costs a denoiser row beside the sample's two.

    Attributes:
        scale: w.
        unsafe_of: latent, step → the raw output for the concept's names.
        noise_of: the sampler's ε̂; the formula is about noise, whatever the network predicts.
        warmup: δ.
        strength: s_S.
        threshold: λ.
        momentum: s_m.
        memory: β.
    """

    scale: float
    unsafe_of: Callable[[torch.Tensor, int], torch.Tensor]
    noise_of: NoiseOf
    warmup: int
    strength: float = 2000.0
    threshold: float = 0.025
    momentum: float = 0.5
    memory: float = 0.7
    _velocity: torch.Tensor | None = None

    def __call__(self, latent: torch.Tensor, negative: torch.Tensor, conditional: torch.Tensor, step: int) -> torch.Tensor:
        """Raw outputs (C, h, w) → the guided one."""
        import torch

        branches = [negative, conditional, self.unsafe_of(latent, step)]
        empty, text, unsafe = (self.noise_of(latent, raw, step) for raw in branches)
        gamma = safe_guidance(empty, text, unsafe, strength=self.strength, threshold=self.threshold)
        velocity = torch.zeros_like(gamma) if self._velocity is None else self._velocity
        gamma = gamma + self.momentum * velocity
        self._velocity = self.memory * velocity + (1 - self.memory) * gamma
        plain = negative + self.scale * (conditional - negative)
        if step < self.warmup:
            return plain
        # ε̂ is affine in the raw output, with one factor for all positions: what is subtracted of it is divided by that.
        factor = float((self.noise_of(latent, torch.ones_like(latent), step) - self.noise_of(latent, 0 * latent, step)).mean())
        return plain - self.scale * gamma / factor if not math.isclose(factor, 0.0, abs_tol=1e-6) else plain
