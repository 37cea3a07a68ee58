"""The small network behind the marks guard: for each of 8×8 cells, whether a mark of each kind covers it, and the mark's box.

It lives in a leaf of its own because training (:mod:`jobs.lab.world.train_marks`) and checking share it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

KINDS = ("watermark", "qr", "text", "logo")  # the order of the first output channels; four more are the box
SIDE = 64  # pixels the network sees
CELLS = 8  # cells along one side of the heat map
POOLED = 3  # a picture's logit is the mean of this many strongest cells: one odd cell is not a mark; so is its box


def make_network(widths: tuple[int, ...] = (16, 32, 64, 128), depth: int = 2) -> nn.Module:
    """Build the untrained network: float (N, 3, 64, 64) in [-1, 1] → (N, 8, 8, 8), see :func:`split`.

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
    layers.append(nn.Conv2d(widths[-1], len(KINDS) + 4, 1))
    return nn.Sequential(*layers)


def split(out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The network's output (N, 8, 8, 8) → cell logits (N, 4, 8, 8) per kind, and boxes (N, 4, 8, 8) as each cell sees them.

    A cell tells how far, in sides of the picture, the mark's left, upper, right and lower edges are from the cell's middle.
    Boxes are x0, y0, x1, y1 in fractions of the picture.
    """
    import torch

    logits, reach = out[:, : len(KINDS)], torch.sigmoid(out[:, len(KINDS) :])
    middle = (torch.arange(CELLS, device=out.device) + 0.5) / CELLS
    x, y = middle[None, None, :].expand(1, CELLS, CELLS), middle[None, :, None].expand(1, CELLS, CELLS)
    left, upper, right, lower = reach.unbind(1)
    return logits, torch.stack([x - left, y - upper, x + right, y + lower], 1).clamp(0, 1)


def pool(logits: torch.Tensor) -> torch.Tensor:
    """Cell logits (N, 4, 8, 8) → picture logits (N, 4): the mean of each map's strongest cells."""
    return logits.flatten(2).topk(POOLED, dim=2).values.mean(2)


def pool_boxes(logits: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Cell logits and boxes, (N, 4, 8, 8) each → one box of each kind, (N, 4, 4): the mean of what its strongest cells see."""
    strongest = logits.flatten(2).topk(POOLED, dim=2).indices  # (N, kinds, POOLED)
    seen = boxes.flatten(2)[:, None].expand(-1, logits.shape[1], -1, -1)  # (N, kinds, 4, cells)
    return seen.gather(3, strongest[:, :, None].expand(-1, -1, 4, -1)).mean(3)


def surest_boxes(
    network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, logits: torch.Tensor, boxes: torch.Tensor
) -> torch.Tensor:
    """The boxes (N, 4, 4) of pictures (N, 3, 64, 64), of each kind from the one of four quarter turns that is surest of it.

    ``logits`` (N, 4) and ``boxes`` are of the pictures as they are. A network that learned from lying words does not see where
    one ends that runs upwards. Only boxes come from the turns: with the logits of four looks more clean pictures are flagged.
    """
    import torch

    for turns in (1, 2, 3):
        cells, seen = split(network(torch.rot90(x, turns, (2, 3)).contiguous()))
        again, found = pool(cells), pool_boxes(cells, seen)
        for _ in range(turns):  # back by a quarter: anticlockwise (x, y) had become (y, 1 - x)
            left, upper, right, lower = found.unbind(2)
            found = torch.stack([1 - lower, left, 1 - upper, right], 2)
        boxes = torch.where((again > logits)[:, :, None], found, boxes)
        logits = torch.maximum(again, logits)
    return boxes
