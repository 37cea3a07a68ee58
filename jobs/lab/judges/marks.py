"""The mark judge: is there a watermark, a QR code or a text in the picture, even a smeared one?

A small convolutional head on the trunk's fine maps gives a heat map per kind; a picture's score is the mean of its hottest
places, moved so that one half is the operating point.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.lab.judges.own_marks import KINDS
from jobs.lab.judges.trunk import Maps

CELLS = 16  # places along one side: four pixels of a 64-pixel picture each
HOTTEST = 6  # places averaged: a mark covers several
WIDTH = 48


def places(maps: Maps) -> Any:
    """The trunk's maps on one grid, float32 (N, 200, 16, 16): quarter (mean, maximum), eighth, sixteenth (enlarged)."""
    import torch
    from torch.nn import functional

    return torch.cat(
        [
            functional.avg_pool2d(maps.quarter, 2), functional.max_pool2d(maps.quarter, 2), maps.eighth,
            functional.interpolate(maps.sixteenth, scale_factor=2, mode="bilinear"),
        ], 1,
    )  # fmt: skip


def heat(weights: dict[str, Any], grid: Any) -> Any:
    """Logits per place, (N, 200, 16, 16) → (N, 3, 16, 16): mix channels, two 3×3 layers (the second with holes), a last one."""
    from torch.nn import functional

    x = functional.conv2d(grid, weights["mix.weight"], weights["mix.bias"]).relu()
    x = x + functional.conv2d(x, weights["near.weight"], weights["near.bias"], padding=1).relu()
    x = x + functional.conv2d(x, weights["far.weight"], weights["far.bias"], padding=2, dilation=2).relu()
    return functional.conv2d(x, weights["last.weight"], weights["last.bias"])


def hottest(logits: Any) -> Any:
    """Logits per place (N, 3, 16, 16) → per picture (N, 3)."""
    return logits.flatten(2).topk(HOTTEST, 2).values.mean(2)


class MarkJudge:
    """Args:
    weights: the weights of :func:`heat`.
    thresholds: the logit that counts as a mark, per kind (:data:`KINDS`).
    """

    kinds = KINDS

    def __init__(self, weights: dict[str, Any], thresholds: tuple[float, ...]) -> None:
        self.weights = {name: value.float() for name, value in weights.items()}
        self.thresholds = np.array(thresholds, np.float32)

    def score(self, maps: Maps) -> np.ndarray:
        """float32 (N, 3) in [0, 1], ordered as :data:`KINDS`; 0.5 and above is a mark."""
        import torch

        with torch.inference_mode():
            logits = hottest(heat(self.weights, places(maps))).numpy()
        found: np.ndarray = 1 / (1 + np.exp(-np.clip(logits - self.thresholds, -30, 30)))
        return found
