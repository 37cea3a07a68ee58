"""The caption judge: which of the world's concepts does a picture show?

A linear probe (multinomial logistic regression) on pooled maps of the frozen trunk. It knows the concepts of the world and
nothing else: a picture of none of them still gets a most likely one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.lab.judges.trunk import Maps


def describe(maps: Maps) -> Any:
    """One vector per picture, float32 (N, 2224): means and maxima over places, coarse maps to fine ones."""
    import torch

    parts = [maps.pooled, maps.last.mean((2, 3)), maps.last.amax((2, 3))]
    for grid in (maps.sixteenth, maps.eighth):
        parts += [grid.mean((2, 3)), grid.amax((2, 3))]
    return torch.cat(parts, 1)


class CaptionJudge:
    """Args:
    weight, bias: the probe, float (C, 2224) and (C,), for vectors as :func:`describe` gives them.
    names: the concepts, in the order of the columns of ``weight`` and of the scores.
    """

    def __init__(self, weight: Any, bias: Any, names: tuple[str, ...]) -> None:
        self.weight, self.bias, self.names = weight.float(), bias.float(), names

    def score(self, maps: Maps) -> np.ndarray:
        """Log-probabilities float32 (N, C)."""
        import torch

        with torch.inference_mode():
            logits = torch.nn.functional.linear(describe(maps), self.weight, self.bias)
            found: np.ndarray = logits.log_softmax(1).numpy()
        return found
