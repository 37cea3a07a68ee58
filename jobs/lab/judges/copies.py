"""The copy judge: is a picture a copy of a given drawing, or another drawing of the same thing?

The reference is laid over the picture (:mod:`jobs.lab.judges.placing`), both go through the frozen trunk, and their maps are
compared place by place within the figure, as LPIPS does (Zhang et al., 2018, eq. 1): the squared difference of
channel-normalised maps, averaged over places, one number per channel. A logistic model of those numbers and of the fit of the
placement gives the probability of a copy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.lab.judges.placing import Placed, fitted, placements
from jobs.lab.judges.trunk import Trunk

LEVELS = ("quarter", "eighth", "sixteenth", "last")
SCALARS = 17  # numbers before the channels' differences, see :func:`evidence`
BATCH = 16  # pairs that go through the trunk together


def evidence(trunk: Trunk, pictures: np.ndarray, references: np.ndarray) -> np.ndarray:
    """The inputs of the logistic model, float32 (N, SCALARS + 496), for the mirroring that fits better.

    Args:
        pictures, references: uint8 (N, S, S, 3), compared row by row; any sizes.
    """
    rows = []
    for at in range(0, len(pictures), BATCH):
        seen = np.stack([fitted(p) for p in pictures[at : at + BATCH]])
        tried = [placements(p, fitted(r)) for p, r in zip(seen, references[at : at + BATCH], strict=True)]
        sides = [_compare(trunk, seen, [pair[side] for pair in tried]) for side in (0, 1)]
        better = sides[0][:, 0] >= sides[1][:, 0]
        rows.append(np.where(better[:, None], sides[0], sides[1]))
    return np.concatenate(rows) if rows else np.zeros((0, SCALARS + 496), np.float32)


def _compare(trunk: Trunk, seen: np.ndarray, placed: list[Placed]) -> np.ndarray:
    """(N, SCALARS + 496): overall similarity first, then the other scalars, then squared differences per channel."""
    import torch
    from torch.nn import functional

    laid = np.stack([p.picture for p in placed])
    cover = torch.from_numpy(np.stack([p.cover for p in placed]))[:, None]
    with torch.inference_mode():
        mine, theirs = trunk.look(seen), trunk.look(laid)
        scalars, channels = [], []
        for level in LEVELS:
            a, b = (functional.normalize(getattr(maps, level), dim=1) for maps in (mine, theirs))
            weight = functional.adaptive_max_pool2d(cover, a.shape[-1]) + 0.02
            weight = weight / weight.sum((2, 3), keepdim=True)
            channels.append(((a - b).square() * weight).sum((2, 3)))
            cosine = (a * b).sum(1)
            scalars += [(cosine * weight[:, 0]).sum((1, 2)), _lower(cosine, weight[:, 0], 0.25)]
        scalars.append(functional.cosine_similarity(mine.pooled, theirs.pooled))
        pixels, likeness = _colours(seen, laid, cover)
        geometry = torch.tensor([[p.agreement, p.overlap, p.stretch, abs(p.size)] for p in placed])
        overall = sum(scalars[0:8:2]) / 4
        assert isinstance(overall, torch.Tensor)
        columns = [overall[:, None], torch.stack(scalars, 1), likeness[:, None], pixels, geometry, *channels]
        found: np.ndarray = torch.cat(columns, 1).float().numpy()
    return found


def _lower(cosine: Any, weight: Any, share: float) -> Any:
    """The weighted quantile of similarities over places, (N,): the similarity of the less similar places."""
    value, order = cosine.flatten(1).sort(1)
    reached = weight.flatten(1).gather(1, order).cumsum(1) >= share
    return value.gather(1, reached.int().argmax(1, keepdim=True))[:, 0]


def _colours(seen: np.ndarray, laid: np.ndarray, cover: Any) -> tuple[Any, Any]:
    """Within the figure: mean colour difference and its spread (N, 2), and the correlation of brightness (N,)."""
    import torch

    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 for x in (seen, laid))
    weight = cover / cover.sum((2, 3), keepdim=True).clamp_min(1)
    shift = ((a - b) * weight).sum((2, 3), keepdim=True)
    spread = ((a - b - shift).square() * weight).sum((1, 2, 3)).sqrt()
    one, two = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
    one, two = one - (one * weight).sum((2, 3), keepdim=True), two - (two * weight).sum((2, 3), keepdim=True)
    energy = (one.square() * weight).sum((1, 2, 3)) * (two.square() * weight).sum((1, 2, 3))
    likeness = (one * two * weight).sum((1, 2, 3)) / energy.sqrt().clamp_min(1e-4)
    return torch.stack([shift.abs().mean((1, 2, 3)), spread], 1), likeness


class CopyJudge:
    """Args:
    weight, bias: the logistic model, float (SCALARS + 496,) and a number, for the values of :func:`evidence` unscaled.
    """

    def __init__(self, weight: Any, bias: float) -> None:
        self.weight, self.bias = np.asarray(weight, np.float32), float(bias)

    def score(self, trunk: Trunk, pictures: np.ndarray, references: np.ndarray) -> np.ndarray:
        """Probability that each picture copies its reference, float32 (N,), with copies and near misses equally frequent."""
        logit = evidence(trunk, pictures, references) @ self.weight + self.bias
        found: np.ndarray = 1 / (1 + np.exp(-np.clip(logit, -30, 30)))
        return found.astype(np.float32)
