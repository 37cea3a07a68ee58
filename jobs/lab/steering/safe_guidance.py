"""Safe Latent Diffusion (arXiv 2211.05105), a control for erasers: a third branch, for the unwanted concept, is subtracted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.model.combine import Combine, classifier_free

if TYPE_CHECKING:
    import torch

NoiseOf = Callable[["torch.Tensor", "torch.Tensor", int], "torch.Tensor"]
"""Latent, raw output, step → ε̂, as the sampler splits it."""


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


@dataclass(kw_only=True)
class SafeGuidance:
    """Safe Latent Diffusion (arXiv 2211.05105, eq. 3 to 8). One object per trajectory: it has momentum.

    ε = ε_∅ + w·(ε_p − ε_∅ − γ_t) from step δ on, γ_t = γ + s_m·ν_t, ν_{t+1} = β·ν_t + (1 − β)·γ_t. The defaults are the paper's
    "strong" (its δ is for 50 steps: scale it to yours). The third branch costs a denoiser row beside the sample's two.

    Attributes:
        scale: w.
        unsafe_of: latent, step → the raw output for the concept's names.
        noise_of: the sampler's ε̂; the formula is in terms of noise, whatever the network predicts.
        warmup: δ.
        strength: s_S.
        threshold: λ.
        momentum: s_m.
        memory: β.
        combine: the model's own way of guidance.
    """

    scale: float
    unsafe_of: Callable[[torch.Tensor, int], torch.Tensor]
    noise_of: NoiseOf
    warmup: int
    strength: float = 2000.0
    threshold: float = 0.025
    momentum: float = 0.5
    memory: float = 0.7
    combine: Combine = classifier_free
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
        plain = self.combine(negative, conditional, self.scale)
        if step < self.warmup:
            return plain
        # ε̂ is affine in the raw output, with one factor for all positions: the subtracted term is divided by that factor.
        factor = float((self.noise_of(latent, torch.ones_like(latent), step) - self.noise_of(latent, 0 * latent, step)).mean())
        return plain - self.scale * gamma / factor if not math.isclose(factor, 0.0, abs_tol=1e-6) else plain
