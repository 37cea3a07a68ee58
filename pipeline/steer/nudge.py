"""Embedding nudging (arXiv 2408.15450) of the predicted clean latent, or of the noisy one.

Per sample and denoising step, with its own references; the objective and its forms are in :mod:`pipeline.steer.objective`.
Cosines are taken between deviations from a centre (the mean of the index's references): what all pictures share, such as a
white ground, is no likeness. Without it the push goes into the ground first and the picture falls apart (measured; see
``infra/docs/experiments/nudging.md``). The caller then advances with the same ε, never fresh noise: a nudge costs no
evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from index.errors import ConfigError
from pipeline.steer.objective import USABLE, Objective, closed_form, descend

if TYPE_CHECKING:
    import torch

Solver = Literal["steps", "closed_form"]


@dataclass(frozen=True, kw_only=True)
class Nudge:
    """Pushes a predicted clean latent away from reference latents.

    Attributes:
        references: clean reference latents U, (C, h, w).
        centre: latent (C, h, w) that cosines and lengths are taken from; zeros for the plain cosine.
        step_size: length of a gradient step, relative to ‖x̂0 − centre‖; 0 is the identity.
        iterations: gradient steps k per denoising step.
        until_step: acts in denoising steps below this one.
        temperature, keep, enough: as in the objective, and in its place where they are given here.
        objective: what is minimised.
        desired: latents D to pull towards, (C, h, w).
        solver: ``steps`` or ``closed_form``.
        levels: (√ᾱ, √(1−ᾱ)) of every denoising step. Given, the noisy latent z_t is nudged, from √ᾱ·u, and x̂0 follows with ε
            held; empty: x̂0 is nudged. Where √ᾱ is 0 (the first step of a flow, or of a schedule with zero terminal SNR) the
            noisy latent is noise alone, which has nothing of a reference: x̂0 stays as it is.
        random: a control: the move has the same length as the nudge would have, in a direction drawn from this seed.
    """

    references: tuple[torch.Tensor, ...]
    centre: torch.Tensor
    step_size: float
    iterations: int
    until_step: int
    temperature: float = 0.1
    keep: float = 0.1
    enough: float = -1.0
    objective: Objective = USABLE
    desired: tuple[torch.Tensor, ...] = ()
    solver: Solver = "steps"
    levels: tuple[tuple[float, float], ...] = ()
    random: int | None = None

    def to(self, device: torch.device) -> Nudge:
        """The same with its latents on a device."""
        if self.centre.device == device and all(z.device == device for z in (*self.references, *self.desired)):
            return self
        references, desired = (tuple(z.to(device) for z in latents) for latents in (self.references, self.desired))
        return replace(self, references=references, centre=self.centre.to(device), desired=desired)

    def __call__(self, clean: torch.Tensor, step: int, noise: torch.Tensor | None = None) -> torch.Tensor:
        """x̂0 float32 (C, h, w) at ``step``, and ε → nudged x̂0; the identity outside the window."""
        if step >= self.until_step or (self.solver == "steps" and self.step_size == 0) or not self.references:
            return clean
        if not self.levels:
            nudged = self._move(clean, self.centre, self.references, self.desired)
        else:
            if noise is None:
                raise ConfigError("the noisy latent cannot be nudged without its noise", where="nudge", fix='space = "clean"')
            signal, spread = self.levels[step]
            if signal == 0:
                return clean
            noisy = same_noise(clean, noise, signal, spread)
            scaled = [tuple(signal * z for z in latents) for latents in (self.references, self.desired)]
            nudged = (self._move(noisy, signal * self.centre, *scaled) - spread * noise) / signal
        return nudged if self.random is None else _random_move(clean, nudged, self.random, step)

    def _move(
        self,
        point: torch.Tensor,
        centre: torch.Tensor,
        references: tuple[torch.Tensor, ...],
        desired: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        objective = replace(self.objective, temperature=self.temperature, keep=self.keep, enough=self.enough)
        start, undesired = point - centre, tuple(u - centre for u in references)
        wanted = tuple(d - centre for d in desired)
        if self.solver == "closed_form":
            return centre + closed_form(start, undesired, wanted, objective=objective)
        away = descend(
            start, undesired, wanted, objective=objective, step_size=self.step_size, iterations=self.iterations
        )  # fmt: skip
        return centre + away


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
    """k normalised gradient steps of the usable form; float32 (C, h, w) → float32 (C, h, w)."""
    objective = Objective(temperature=temperature, keep=keep, enough=enough)
    return descend(clean, references, objective=objective, step_size=step_size, iterations=iterations)


def same_noise(clean: torch.Tensor, noise: torch.Tensor, signal: float, spread: float) -> torch.Tensor:
    """z = √ᾱ·x̂0 + √(1−ᾱ)·ε: the noisy latent of a (nudged) clean one with the same ε, never fresh noise."""
    return signal * clean + spread * noise


def _random_move(clean: torch.Tensor, nudged: torch.Tensor, seed: int, step: int) -> torch.Tensor:
    """As far as the nudge went, in a direction that depends on (seed, step) alone."""
    import torch

    distance = (nudged - clean).norm()
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    direction = torch.randn(clean.shape, generator=generator).to(clean.device)
    return torch.where(distance == 0, clean, clean + distance * direction / direction.norm())
