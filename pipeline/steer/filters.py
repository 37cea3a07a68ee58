"""The adaptive filters of nudging (arXiv 2408.15450), from cheap to dear: only samples on which a filter fires are steered.

1. text: ‖ε_text − ε_empty‖ at the first steps; prompts a model has memorised stand out (arXiv 2407.21720). Free.
2. likeness: cosine of x̂0 to the sample's own nearest references, in mid-flight. A few products.
3. all guards on the finished picture. That one is :func:`pipeline.decide.decide`, and the only one that accepts or rejects: a
   filter of this module may only cause steering.

And what follows a filter: the step to roll back to, earlier after each failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LATE, RESTART = 0.5, 0.4  # found after half of the steps: restart from at most 40 % of them


def text_score(guidance_norms: Sequence[float], steps: int) -> float | None:
    """Mean ‖ε_text − ε_empty‖ over the first steps, None before they are taken (or for no steps)."""
    return sum(guidance_norms[:steps]) / steps if 0 < steps <= len(guidance_norms) else None


def max_cosine(clean: torch.Tensor, references: Sequence[torch.Tensor], centre: torch.Tensor) -> float:
    """Largest cosine between the deviations of x̂0 and of any reference from the centre; all (C, h, w)."""
    import torch

    own = (clean - centre).flatten()
    return max(float(torch.nn.functional.cosine_similarity(own, (u - centre).flatten(), dim=0)) for u in references)


def rollback_step(
    steps: int, attempt: int, *, resume_fraction: float = 0.0, rollback: float = 0.0, fired_at: int | None = None
) -> int:
    """The step to resume from: earlier after each failure.

    A finished picture that failed resumes at ``resume_fraction`` of the steps, and every attempt after the first steered one
    ``rollback`` of the steps earlier. A sample caught in mid-flight goes back from where it was caught, at least one step and
    ``rollback`` of the steps per attempt; caught after half of the steps, from 40 % of them at the latest.

    Args:
        steps: of the sampler.
        attempt: number of the new attempt, from 1.
        resume_fraction: share of the steps kept.
        rollback: share of the steps.
        fired_at: the step a filter fired at, or None for a finished picture.

    Returns:
        A step in [0, steps − 1], never later for a later attempt.
    """
    if fired_at is None:
        begin = min(int(resume_fraction * steps), steps - 1) - round(rollback * steps * (attempt - 1))
    else:
        back = max(1, round(rollback * steps))
        first = fired_at - back
        if fired_at > LATE * steps:
            first = min(first, int(RESTART * steps))
        begin = first - back * (attempt - 1)
    return max(0, min(begin, steps - 1))
