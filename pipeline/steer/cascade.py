"""The adaptive filters of nudging (arXiv 2408.15450), cheap to dear: steering is for samples a filter fires on.

1. ``text``: ‖ε_text − ε_empty‖ at the first steps; prompts a model has memorised stand out (arXiv 2407.21720). Free.
2. ``likeness``: cosine of x̂0 to the sample's own nearest references, in mid-flight. A few products.
3. all guards on the finished picture. That one is :func:`pipeline.decide.decide`, and the only one that accepts or rejects: a
   filter of this module may only cause steering.

And what follows a filter: the step to roll back to, earlier after each failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from index.errors import ConfigError

if TYPE_CHECKING:
    import torch

LATE, RESTART = 0.5, 0.4  # found after half of the steps: restart from at most 40 % of them


@dataclass(frozen=True)
class Fired:
    """A filter that fired: which stage, at which step, on what score against what threshold."""

    stage: Literal["text", "likeness"]
    step: int
    score: float
    threshold: float


@dataclass(frozen=True)
class Cascade:
    """Which filter looks when, and from what score it fires.

    Attributes:
        text_steps: number of first steps whose mean ‖ε_text − ε_empty‖ is taken; 0 switches the stage off.
        text_threshold: fires above it.
        likeness: (share of the steps, cosine) pairs: at that share, fires above that cosine.
        text_arms: the likeness stage looks only at samples that the text stage fired on (cheaper, and blinder).
    """

    text_steps: int = 0
    text_threshold: float = 0.0
    likeness: tuple[tuple[float, float], ...] = ()
    text_arms: bool = False

    def __post_init__(self) -> None:
        if any(not 0 < share < 1 for share, _ in self.likeness):
            raise ConfigError("shares of the steps lie between 0 and 1", where="cascade.likeness", fix="Mend them")
        if self.text_arms and not self.text_steps:
            raise ConfigError("nothing would ever be looked at", where="cascade.text_arms", fix="Set text_steps")

    def look(
        self,
        step: int,
        steps: int,
        guidance_norms: Sequence[float],
        clean: torch.Tensor,
        references: Sequence[torch.Tensor],
        centre: torch.Tensor,
    ) -> Fired | None:
        """Look at one sample after one step.

        Args:
            step: the step just taken, from 0.
            steps: of the sampler.
            guidance_norms: ‖ε_text − ε_empty‖ of every step so far.
            clean: x̂0 (C, h, w) at this step.
            references: its nearest references' clean latents (C, h, w).
            centre: cosines are taken from here.

        Returns:
            The first stage that fired, or None. Pure: the same arguments, the same answer.
        """
        armed = text_score(guidance_norms, self.text_steps)
        text = armed is not None and armed > self.text_threshold
        if text and not self.text_arms and step == self.text_steps - 1 and armed is not None:
            return Fired("text", step, armed, self.text_threshold)
        if self.text_arms and not text:
            return None
        for share, threshold in self.likeness:
            if step == max(1, round(share * steps)) - 1 and references:
                score = max_cosine(clean, references, centre)
                return Fired("likeness", step, score, threshold) if score > threshold else None
        return None


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
