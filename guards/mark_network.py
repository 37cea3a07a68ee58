"""The small network behind the marks guard: a fully convolutional classifier of 8×8 cells.

It lives in a leaf of its own because training (:mod:`jobs.lab.world.train_marks`) and checking share it.
"""

from __future__ import annotations

import itertools
from typing import Any

KINDS = ("watermark", "qr", "text")  # the order of the output channels
SIDE = 64  # pixels the network sees
CELLS = 8  # cells along one side of the heat map
POOLED = 3  # a picture's logit is the mean of this many strongest cells: one odd cell is not a mark


def make_network(widths: tuple[int, ...] = (16, 32, 64, 128), depth: int = 2) -> Any:
    """Build the untrained network: float (N, 3, 64, 64) in [-1, 1] → cell logits (N, 3, 8, 8).

    Args:
        widths: channels at full, half, quarter and eighth resolution.
        depth: residual blocks per resolution below the first.
    """
    import torch
    from torch import nn

    class Block(nn.Module):
        """Two 3×3 convolutions beside an identity."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
            )  # fmt: skip

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.body(x))

    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    for narrow, wide in itertools.pairwise(widths):
        layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        layers += [Block(wide) for _ in range(depth)]
    layers.append(nn.Conv2d(widths[-1], len(KINDS), 1))
    return nn.Sequential(*layers)


def pool(logits: Any) -> Any:
    """Cell logits (N, 3, 8, 8) → picture logits (N, 3): the mean of each map's strongest cells."""
    return logits.flatten(2).topk(POOLED, dim=2).values.mean(2)
