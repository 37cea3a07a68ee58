"""The objective of embedding nudging (arXiv 2408.15450), with the choices it leaves open made explicit.

    min over L of  −α·mean(s(D, L)) + β·Σ p_u·s(U, L) + λ·penalty(L − L0)

As printed s is the dot product, p is uniform and the penalty an un-squared norm; then, with g = βŪ − αD̄, nothing moves while
|g| ≤ λ and there is no minimum beyond. With a squared norm there is a closed form, L0 − g/(2λ). The form that works takes the
cosine for s, weighs the references by a softmax over their cosines, so that the nearest leads, and stops at a gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from index.errors import ConfigError

if TYPE_CHECKING:
    import torch

Weights = Literal["softmax", "mean", "nearest"]
Normalise = Literal["cosine", "none"]
Penalty = Literal["l2_squared", "l2"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised.

    Attributes:
        push: β, away from the undesired U.
        pull: α, towards the desired D.
        keep: λ, the pull back to where it started.
        weights: p over the undesired: ``softmax`` of their cosines over ``temperature``, ``mean``, or the ``nearest`` alone.
        normalise: s is the ``cosine``, or the dot product (``none``).
        penalty: ``l2_squared``: ‖L − L0‖²/‖L0‖²; ``l2``: ‖L − L0‖/‖L0‖. (In the closed form, as printed: not divided.)
        temperature: of the softmax.
        enough: cosine to the nearest undesired at or below which nothing is pushed; −1 pushes always. A gate keeps the
            drawing: what is already another expression is left to the model (compare SPELL's radius, arXiv 2410.06025).
    """

    push: float = 1.0
    pull: float = 0.0
    keep: float = 0.1
    weights: Weights = "softmax"
    normalise: Normalise = "cosine"
    penalty: Penalty = "l2_squared"
    temperature: float = 0.1
    enough: float = -1.0


USABLE = Objective()
LITERAL = Objective(push=1.0, pull=1.0, keep=1.0, weights="mean", normalise="none", penalty="l2_squared")


def value(
    point: torch.Tensor, start: torch.Tensor, undesired: torch.Tensor, desired: torch.Tensor | None, objective: Objective
) -> torch.Tensor:
    """The objective at a point, differentiable; weights p are held fixed (see :func:`gradient`).

    Args:
        point, start: L and L0, flat (P,).
        undesired: U (n, P).
        desired: D (m, P), or None.

    Returns:
        A scalar.
    """
    import torch
    import torch.nn.functional as F

    def likeness(others: torch.Tensor) -> torch.Tensor:
        return F.cosine_similarity(point[None], others, dim=1) if objective.normalise == "cosine" else others @ point

    with torch.no_grad():
        p = weigh(F.cosine_similarity(point[None], undesired, dim=1), objective)
    total: torch.Tensor = objective.push * (p * likeness(undesired)).sum()
    if desired is not None and objective.pull:
        total = total - objective.pull * likeness(desired).mean()
    moved = (point - start).norm() / start.norm()
    total = total + objective.keep * (moved**2 if objective.penalty == "l2_squared" else moved)
    return total


def weigh(cosines: torch.Tensor, objective: Objective) -> torch.Tensor:
    """Weights p over the undesired (n,) from their cosines (n,); they sum to one."""
    import torch

    if objective.weights == "mean":
        return torch.full_like(cosines, 1 / len(cosines))
    if objective.weights == "nearest":
        return torch.zeros_like(cosines).scatter(0, cosines.argmax()[None], 1.0)
    return torch.softmax(cosines / objective.temperature, 0)


def descend(
    start: torch.Tensor,
    undesired: tuple[torch.Tensor, ...],
    desired: tuple[torch.Tensor, ...] = (),
    *,
    objective: Objective,
    step_size: float,
    iterations: int,
) -> torch.Tensor:
    """k gradient steps, each of the same length, until the gate closes.

    Args:
        start: L0, any shape; cosines and lengths are taken from its origin (subtract a centre first).
        undesired, desired: U and D, of the same shape.
        objective: what is minimised.
        step_size: length of a step, relative to ‖L0‖.
        iterations: steps k.

    Returns:
        L of the same shape; no further from L0 than k·step_size·‖L0‖.
    """
    import torch

    directions = torch.stack([u.flatten() / u.norm() for u in undesired])
    sizes = torch.stack([u.norm() for u in undesired]) if objective.normalise == "none" else None
    wanted = torch.stack([d.flatten() for d in desired]) if desired and objective.pull else None
    origin = start.flatten()
    scale = origin.norm()
    going = scale != 0  # at the centre itself there is no direction away from anything
    x = origin.clone()
    for _ in range(iterations):
        norm = x.norm()
        cosines = directions @ (x / norm)
        going = going & ~(cosines.max() <= objective.enough)
        if x.device.type == "cpu" and not going:  # elsewhere to look would wait for the device: the rest is not taken over
            break
        downhill = gradient(x, origin, directions, cosines, objective, sizes=sizes, desired=wanted)
        length = downhill.norm()
        going = going & (length != 0)
        x = torch.where(going, x - step_size * scale * downhill / length, x)
    return x.view_as(start)


def gradient(
    x: torch.Tensor,
    start: torch.Tensor,
    directions: torch.Tensor,
    cosines: torch.Tensor,
    objective: Objective,
    *,
    sizes: torch.Tensor | None = None,
    desired: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gradient (P,) of the objective with p held fixed, as in expectation-maximisation: the nearest reference leads.

    Args:
        x, start: L and L0, flat (P,).
        directions: U, unit length (n, P).
        cosines: of L to each (n,).
        sizes: ‖u‖ (n,), for the dot product.
        desired: D (m, P), or None.
    """
    import torch

    norm, scale = x.norm(), start.norm()
    p = weigh(cosines, objective)
    total: torch.Tensor
    if objective.normalise == "cosine":
        total = (p @ directions - (p @ cosines) * x / norm) / norm
    else:
        total = (p if sizes is None else p * sizes) @ directions
    if objective.push != 1:
        total = objective.push * total
    if desired is not None:
        if objective.normalise == "cosine":
            units = desired / desired.norm(dim=1, keepdim=True)
            total = total - objective.pull * (units.mean(0) - (units @ (x / norm)).mean() * x / norm) / norm
        else:
            total = total - objective.pull * desired.mean(0)
    moved = x - start
    if objective.penalty == "l2_squared":
        total = total + 2 * objective.keep * moved / scale**2
    else:
        length = moved.norm()
        total = torch.where(length > 0, total + objective.keep * moved / (length * scale), total)
    return total


def closed_form(
    start: torch.Tensor,
    undesired: tuple[torch.Tensor, ...],
    desired: tuple[torch.Tensor, ...] = (),
    *,
    objective: Objective,
) -> torch.Tensor:
    """The minimum of the printed objective (dot products, means): L0 + (αD̄ − βŪ)/(2λ) with a squared norm.

    With the un-squared norm it is L0 while ‖βŪ − αD̄‖ ≤ λ, and does not exist beyond.

    Args:
        start, undesired, desired: L0, U and D, of one shape.
        objective: ``push``, ``pull``, ``keep``, ``penalty`` and ``enough`` count; the rest is what is printed.

    Raises:
        ConfigError: there is no minimum.
    """
    import torch

    cosines = torch.stack([torch.nn.functional.cosine_similarity(start.flatten(), u.flatten(), dim=0) for u in undesired])
    near = ~(cosines.max() <= objective.enough)
    slope = objective.push * torch.stack(undesired).mean(0)
    if desired and objective.pull:
        slope = slope - objective.pull * torch.stack(desired).mean(0)
    if objective.penalty == "l2":  # whether there is a minimum has to be known now, on whatever device
        if not near or float(slope.norm()) <= objective.keep:
            return start
        raise ConfigError(
            f"the printed objective has no minimum: its slope {float(slope.norm()):.3g} exceeds λ = {objective.keep:g}",
            where="nudge, solver closed_form, penalty l2",
            fix='Use penalty = "l2_squared", or solver = "steps"',
        )
    return torch.where(near, start - slope / (2 * objective.keep), start)
