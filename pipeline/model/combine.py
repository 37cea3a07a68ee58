"""How a model's unconditional and conditional outputs become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Combine = Callable[["torch.Tensor", "torch.Tensor", "float | torch.Tensor"], "torch.Tensor"]
"""Unconditional and conditional raw output (C, h, w), and the scale: a number, or one a position (h, w) → the guided output."""


def classifier_free(negative: torch.Tensor, conditional: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6, in the form of most pipelines): ε_neg + w·(ε_text − ε_neg)."""
    return negative + scale * (conditional - negative)
