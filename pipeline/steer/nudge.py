"""Embedding nudging (arXiv 2408.15450) in its usable form, on the predicted clean latent.

The printed objective pushes from the mean of all undesired references, however near each is, and is degenerate with an
un-squared norm. Here, per sample and denoising step, with its own references u (see ``infra/docs/decisions.md``):

    p_u = softmax(cos(x̂0, u)/τ);   minimise  β·Σ p_u·cos(x̂0, u) + λ·‖x̂0 − x̂0⁰‖²/‖x̂0⁰‖²   in k normalised gradient steps

Cosines are taken between deviations from a centre (the mean of the index's references): what all pictures share, such as a
white ground, is no likeness. Without it the push goes into the ground first and the picture falls apart (measured; see
the decisions). The caller then advances with the same ε, never fresh noise, so a nudge costs no denoiser evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Nudge:
    """Pushes a predicted clean latent away from reference latents.

    Attributes:
        references: clean reference latents (C, h, w).
        centre: latent (C, h, w) that cosines and lengths are taken from; zeros for the plain cosine.
        step_size: length of a gradient step, relative to ‖x̂0 − centre‖; 0 is the identity.
        iterations: gradient steps k per denoising step.
        until_step: acts in denoising steps below this one.
        temperature: τ of the softmax over references.
        keep: λ, the pull back to the unnudged latent.
        enough: cosine to the nearest reference at which pushing stops; −1 pushes always. A gate keeps the drawing: what is
            already another expression is left to the model (compare the radius in SPELL, arXiv 2410.06025).
    """

    references: tuple[torch.Tensor, ...]
    centre: torch.Tensor
    step_size: float
    iterations: int
    until_step: int
    temperature: float = 0.1
    keep: float = 0.1
    enough: float = -1.0

    def __call__(self, clean: torch.Tensor, step: int) -> torch.Tensor:
        """x̂0 float32 (C, h, w) at ``step`` → nudged x̂0; the identity outside the window."""
        if step >= self.until_step or self.step_size == 0 or not self.references:
            return clean
        away = nudge(
            clean - self.centre,
            tuple(u - self.centre for u in self.references),
            step_size=self.step_size,
            iterations=self.iterations,
            temperature=self.temperature,
            keep=self.keep,
            enough=self.enough,
        )
        return self.centre + away


def nudge(
    clean: torch.Tensor,
    references: tuple[torch.Tensor, ...],
    *,
    step_size: float,
    iterations: int,
    temperature: float,
    keep: float,
    enough: float = -1.0,
) -> torch.Tensor:
    """k normalised gradient steps on the objective above; returns float32 (C, h, w)."""
    import torch

    undesired = torch.stack([u.flatten() / u.norm() for u in references])
    start = clean.flatten()
    scale = start.norm()
    x = start.clone()
    for _ in range(iterations):
        norm = x.norm()
        cosine = undesired @ (x / norm)
        if cosine.max() <= enough:
            break
        weight = torch.softmax(cosine / temperature, 0)
        # Gradient of p·cos with p held fixed, as in expectation–maximisation: the nearest reference leads.
        along = weight @ undesired - (weight @ cosine) * x / norm
        gradient = along / norm + 2 * keep * (x - start) / scale**2
        length = gradient.norm()
        if length == 0:
            break
        x = x - step_size * scale * gradient / length
    return x.view_as(clean)
