"""Focused guidance, ours: classifier-free guidance that is stronger where a mark is to be left out; what erasers use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from guards.base import Box
from pipeline.model.combine import Combine, classifier_free
from pipeline.steer.erase_tokens import box_mask

if TYPE_CHECKING:
    import torch

MARGIN = 1 / 8  # of the picture's side, around a mark that is focused on: its edges are drawn from beyond its box
FOCUSED = 0.5  # share of the steps with focus: what stands where is settled by then, and more would only burn colours


def focus_mask(places: Sequence[Box], shape: tuple[int, int]) -> torch.Tensor:
    """Latent positions in or near the places (fractions): float32 (h, w), 1 within :data:`MARGIN` of a box, else 0."""
    import torch

    wider = [
        (max(0.0, x0 - MARGIN), max(0.0, y0 - MARGIN), min(1.0, x1 + MARGIN), min(1.0, y1 + MARGIN))
        for x0, y0, x1, y1 in places
    ]
    return torch.from_numpy(box_mask(wider, (1, 1), shape)).float()


@dataclass(frozen=True, kw_only=True)
class FocusedGuidance:
    """Guidance that is f times as strong where something is to be left out: ε = ε_neg + w·(1 + (f − 1)·m)·(ε_text − ε_neg).

    The negative conditioning names what and where; its tokens alone move the whole picture a little, and a mark that fills much
    of it outlasts them. More guidance everywhere would burn the rest of the picture.

    Attributes:
        scale: w.
        focus: f.
        mask: m, float32 (h, w), see :func:`focus_mask`.
        until_step: f = 1 from this step on.
        combine: the model's own way of guidance; the formula above is that of most classes.
    """

    scale: float
    focus: float
    mask: torch.Tensor
    until_step: int
    combine: Combine = classifier_free

    def to(self, device: torch.device) -> FocusedGuidance:
        """The same with its mask on a device."""
        return self if self.mask.device == device else replace(self, mask=self.mask.to(device))

    def __call__(self, latent: torch.Tensor, negative: torch.Tensor, conditional: torch.Tensor, step: int) -> torch.Tensor:
        """Raw outputs (C, h, w) → the guided one."""
        if step >= self.until_step:
            return self.combine(negative, conditional, self.scale)
        return self.combine(negative, conditional, self.scale * (1 + (self.focus - 1) * self.mask))
