"""The marks guard: unwanted watermarks, QR codes and text, found by a small convolutional network.

A score of 0.5 is the calibrated operating point of each kind of mark: the network's logit is shifted by the value
that the weights' ``config.json`` records, at which at most one clean held-out picture in a hundred is flagged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from guards.base import Box, Defaults, Finding, Probe, require_pictures
from guards.mark_weights import WEIGHTS, MarkWeights
from guards.own_label import without_own_label
from index.errors import IntegrityError
from index.padding import PaddedCalls

BATCH = 8  # rows of every call of the network: a kernel chosen by batch size never changes a score; fewer when memory runs out
LESS = "Leave the guard out (the policy's `enabled = false`), or use a machine with more memory"


class MarksGuard:
    """Watermarks, QR codes and text by the convolutional network; one finding per picture and kind.

    Args:
        folder: "stickers" or a folder with ``model.safetensors`` and ``config.json``.
        threshold: the operating point for every kind; None: 0.5, the calibrated one.

    Raises:
        GuardUnavailable: weights missing.
        IntegrityError: weights are not the ones the configuration was written for, or do not fit its network.

    Attributes:
        calls: of the network; ``calls.shapes`` counts their rows. The last bits of a score belong to the shape.
    """

    name: str = "marks"
    categories: tuple[str, ...] = ("mark.watermark", "mark.qr", "mark.text")
    licence: str = "Apache-2.0"
    defaults = Defaults()

    @classmethod
    def probe(cls, settings: Any) -> Probe:
        return _weights("stickers").probe()

    @classmethod
    def open(cls, settings: Any) -> MarksGuard:
        return cls("stickers", settings.threshold)

    def __init__(self, folder: str | Path = "stickers", threshold: float | None = None) -> None:
        import torch

        from guards.mark_network import make_network

        weights = _weights(folder)
        tensors = weights.load()
        self.version = weights.version
        self.threshold = 0.5 if threshold is None else threshold
        self.operating_logits = torch.tensor(weights.operating_logits, dtype=torch.float32)
        try:
            self.network = make_network(tuple(weights.card["widths"]), weights.card["depth"])
            self.network.load_state_dict(tensors, assign=True)
        except (RuntimeError, TypeError, ValueError, LookupError) as error:
            what = f"the weights do not fit the network of config.json: {str(error).splitlines()[0]}"
            fix = f"Restore the folder, or train it again with `{weights.command}`"
            raise IntegrityError(what, where=str(weights.folder / WEIGHTS), fix=fix) from None
        self.network.eval().requires_grad_(False)
        self.calls = PaddedCalls(BATCH, "guard marks", LESS)
        self._device = "cpu"

    def to(self, device: str) -> None:
        """Run the network on that torch device from now on."""
        self.network.to(device)
        self._device = device

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        """Check uint8 RGB (N, H, W, 3): three findings per picture; a box where a mark is found. Our own label is none.

        Raises:
            OutOfMemory: not even one picture fits into memory.
        """
        require_pictures(pictures, guard=self.name)
        scores, logits = self._score(without_own_label(pictures))
        cells = sigmoid(logits)  # not shifted: the operating point decides whether to act, not where the mark is
        return [[self._finding(k, float(row[k]), cells[i, k]) for k in range(3)] for i, row in enumerate(scores)]

    def heat(self, pictures: np.ndarray) -> np.ndarray:
        """The places of marks: float32 (N, 3, 8, 8), per cell the calibrated score of watermark, QR code and text."""
        require_pictures(pictures, guard=self.name)
        return sigmoid(self._score(pictures)[1] - self.operating_logits.numpy()[:, None, None])

    def _score(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Calibrated scores (N, 3) and the cells' logits, not shifted, (N, 3, 8, 8)."""
        import torch

        from guards.mark_network import CELLS, KINDS, SIDE, pool

        if not len(pictures):
            return np.empty((0, len(KINDS)), np.float32), np.empty((0, len(KINDS), CELLS, CELLS), np.float32)
        small = np.stack([squeeze(picture, SIDE) for picture in pictures])

        def run(rows: list[int]) -> torch.Tensor:
            x = torch.from_numpy(small[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1
            logits = self.network(x.contiguous().to(self._device)).cpu()
            return torch.cat([torch.sigmoid(pool(logits) - self.operating_logits), logits.flatten(1)], 1)

        with torch.inference_mode():
            out = self.calls.run(run, len(pictures)).numpy()
        return out[:, : len(KINDS)], out[:, len(KINDS) :].reshape(-1, len(KINDS), CELLS, CELLS)

    def _finding(self, kind: int, score: float, cells: np.ndarray) -> Finding:
        box = bounding_box(cells) if score >= self.threshold else None
        category = self.categories[kind]
        return Finding(guard=self.name, version=self.version, category=category, score=score, threshold=self.threshold, box=box)


def _weights(folder: str | Path) -> MarkWeights:
    return MarkWeights.find(folder, guard="marks", architecture="cells", needs={"widths": list, "depth": int})


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    scores: np.ndarray = np.exp(-np.logaddexp(0, -logits))
    return scores


def bounding_box(heat: np.ndarray) -> Box:
    """The box, in fractions, around the cells joined to the hottest one; cells count from half its heat."""
    warm = heat >= min(0.5, float(heat.max()) / 2)
    todo = [divmod(int(heat.argmax()), heat.shape[1])]
    seen = set(todo)
    while todo:
        row, column = todo.pop()
        for near in [(row + dy, column + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
            if near not in seen and 0 <= near[0] < heat.shape[0] and 0 <= near[1] < heat.shape[1] and warm[near]:
                seen.add(near)
                todo.append(near)
    rows, columns = [r for r, _ in seen], [c for _, c in seen]
    high, wide = heat.shape
    return min(columns) / wide, min(rows) / high, (max(columns) + 1) / wide, (max(rows) + 1) / high


def squeeze(picture: np.ndarray, side: int) -> np.ndarray:
    """One picture squeezed to side × side; boxes are fractions, so they stay right."""
    if picture.shape[:2] == (side, side):
        return picture
    from PIL import Image

    much_larger = min(picture.shape[:2]) >= 2 * side
    how = Image.Resampling.BOX if much_larger else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((side, side), how))
