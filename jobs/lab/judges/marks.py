"""The mark judge: is there a watermark, a QR code or a text in the picture, even a smeared one?

A network of its own, trained from end to end on the judges' own marks, gives a heat map per kind. A picture is looked at in
eight ways, turned by quarters and mirrored. Its score is the mean of the hottest places, moved so that one half is the
operating point. A head on the trunk's maps found 40 % of the faint watermarks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.lab.judges.errors import JudgeUnavailable
from jobs.lab.judges.own_marks import KINDS

SIDE = 64  # pixels it sees
CELLS = 16  # places along one side: four pixels of a 64-pixel picture each
HOTTEST = 6  # places averaged: a mark covers several
ROWS = 8  # pictures in every call, so that a kernel chosen by batch size cannot change a score
WIDTHS = (24, 40, 80)  # channels at full, half and quarter resolution


def make_network() -> Any:
    """The untrained network: float (N, 3, 64, 64) in [-1, 1] → logits per place, (N, 3, 16, 16).

    Residual blocks with batch normalisation (He et al. 2016), some with holes, so that a place sees a whole word.
    """
    import torch
    from torch import nn

    def layer(into: int, out: int, stride: int = 1, holes: int = 1) -> nn.Sequential:
        convolution = nn.Conv2d(into, out, 3, stride=stride, padding=holes, dilation=holes, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(out))

    class Block(nn.Module):
        def __init__(self, width: int, holes: int = 1) -> None:
            super().__init__()
            self.a, self.b = layer(width, width, 1, holes), layer(width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.b(torch.relu(self.a(x))))

    full, half, quarter = WIDTHS
    last = nn.Conv2d(quarter, len(KINDS), 1)
    nn.init.constant_(last.bias, -3)  # type: ignore[arg-type]
    return nn.Sequential(
        layer(3, full), nn.ReLU(), layer(full, half, 2), nn.ReLU(), Block(half), Block(half),
        layer(half, quarter, 2), nn.ReLU(), *(Block(quarter, holes) for holes in (1, 2, 4, 2, 1)), last,
    )  # fmt: skip


def hottest(logits: Any) -> Any:
    """Logits per place (N, 3, 16, 16) → per picture (N, 3)."""
    return logits.flatten(2).topk(HOTTEST, 2).values.mean(2)


def look(network: Any, pictures: np.ndarray) -> np.ndarray:
    """Logits of uint8 pictures (N, S, S, 3): float32 (N, 3), the mean of eight looks. They do not depend on neighbours."""
    import torch
    from torch.nn import functional

    found = []
    with torch.inference_mode():
        for at in range(0, len(pictures), ROWS):
            some = pictures[at : at + ROWS]
            padded = some if len(some) == ROWS else np.concatenate([some, np.repeat(some[-1:], ROWS - len(some), 0)])
            x = torch.from_numpy(np.ascontiguousarray(padded)).permute(0, 3, 1, 2).float() / 127.5 - 1
            if x.shape[-2:] != (SIDE, SIDE):
                x = functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True).clamp(-1, 1)
            views = [torch.rot90(side, turns, (2, 3)).contiguous() for side in (x, x.flip(3)) for turns in range(4)]
            found.append(torch.stack([hottest(network(view)) for view in views]).mean(0)[: len(some)])
    return np.asarray(torch.cat(found).numpy() if found else np.zeros((0, len(KINDS)), np.float32))


class MarkJudge:
    """Args:
    weights: of :func:`make_network`, without the batch counters.
    thresholds: the logit that counts as a mark, per kind (:data:`KINDS`).

    Raises:
        JudgeUnavailable: the weights are those of another network.
    """

    kinds = KINDS

    def __init__(self, weights: dict[str, Any], thresholds: tuple[float, ...]) -> None:
        self.network = make_network()
        left = self.network.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
        if left.unexpected_keys or any(not name.endswith("num_batches_tracked") for name in left.missing_keys):
            fix = "Fit them again: clearance lab judges fit --work WORLD"
            raise JudgeUnavailable("the mark judge's weights are those of another network", where="judges", fix=fix)
        self.network.eval()
        self.thresholds = np.array(thresholds, np.float32)

    def score(self, pictures: np.ndarray) -> np.ndarray:
        """float32 (N, 3) in [0, 1], ordered as :data:`KINDS`; 0.5 and above is a mark."""
        found: np.ndarray = 1 / (1 + np.exp(-np.clip(look(self.network, pictures) - self.thresholds, -30, 30)))
        return found
