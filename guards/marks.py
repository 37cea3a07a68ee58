"""The marks guard: unwanted watermarks, QR codes, text and logos, found by a small convolutional network.

A score of 0.5 is the calibrated operating point of each kind of mark: the network's logit is shifted by the value
that the weights' ``config.json`` records, at which at most one clean held-out picture in two hundred is flagged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from guards.base import Box, Defaults, Finding, Probe, require_pictures
from guards.mark_weights import CARD, WEIGHTS, MarkWeights
from guards.own_label import without_own_label
from index.errors import IntegrityError
from index.padding import PaddedCalls

LOGO = "mark.logo"
BATCH = 8  # rows of every call of the network: a kernel chosen by batch size never changes a score; fewer when memory runs out
LESS = "Leave the guard out (the policy's `enabled = false`), or use a machine with more memory"


class MarksGuard:
    """Watermarks, QR codes, text and, where asked, logos by the convolutional network; one finding per picture and kind.

    Args:
        folder: "stickers" or a folder with ``model.safetensors`` and ``config.json``.
        threshold: the operating point for every kind; None: 0.5, the calibrated one.
        logos: whether logos are reported, too.

    Raises:
        GuardUnavailable: weights missing.
        IntegrityError: weights are not the ones the configuration was written for, or do not fit its network.

    Attributes:
        calls: of the network; ``calls.shapes`` counts their rows. The last bits of a score belong to the shape.
    """

    name: str = "marks"
    categories: tuple[str, ...] = ("mark.watermark", "mark.qr", "mark.text", LOGO)
    licence: str = "Apache-2.0"
    defaults = Defaults()

    @classmethod
    def probe(cls, settings: Any) -> Probe:
        return _weights("stickers").probe()

    @classmethod
    def open(cls, settings: Any) -> MarksGuard:
        return cls("stickers", settings.threshold, logos=bool(getattr(settings, "logos", False)))

    def __init__(self, folder: str | Path = "stickers", threshold: float | None = None, *, logos: bool = False) -> None:
        import torch

        from guards.mark_network import KINDS, make_network

        weights = _weights(folder)
        if weights.kinds != KINDS:
            what, fix = f"the network knows {', '.join(KINDS)}, and the card has not all of them", "Restore the folder"
            raise IntegrityError(what, where=str(weights.folder / CARD), fix=fix)
        tensors = weights.load()
        self.version = weights.version
        self.categories = tuple(category for category in weights.categories if logos or category != LOGO)
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
        """Check uint8 RGB (N, H, W, 3): a finding of each kind per picture; a box where a mark is found. Our own label is none.

        Raises:
            OutOfMemory: not even one picture fits into memory.
        """
        require_pictures(pictures, guard=self.name)
        scores, boxes, _ = self._score(without_own_label(pictures))
        kinds = range(len(self.categories))  # logos are the last one
        return [[self._finding(k, float(row[k]), boxes[i, k]) for k in kinds] for i, row in enumerate(scores)]

    def heat(self, pictures: np.ndarray) -> np.ndarray:
        """The places of marks: float32 (N, 4, 8, 8), per cell the calibrated score of each kind."""
        require_pictures(pictures, guard=self.name)
        return sigmoid(self._score(pictures)[2] - self.operating_logits.numpy()[:, None, None])

    def _score(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Calibrated scores (N, 4), boxes (N, 4, 4), and the cells' logits, not shifted, (N, 4, 8, 8)."""
        import torch

        from guards.mark_network import CELLS, KINDS, SIDE, pool, pool_boxes, split

        shapes = ((len(KINDS),), (len(KINDS), 4), (len(KINDS), CELLS, CELLS))
        if not len(pictures):
            scores, boxes, cells = (np.empty((0, *shape), np.float32) for shape in shapes)
            return scores, boxes, cells
        small = np.stack([squeeze(picture, SIDE) for picture in pictures])

        def run(rows: list[int]) -> torch.Tensor:
            x = torch.from_numpy(small[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1
            logits, boxes = split(self.network(x.contiguous().to(self._device)).cpu())
            scores = torch.sigmoid(pool(logits) - self.operating_logits)
            return torch.cat([scores, pool_boxes(logits, boxes).flatten(1), logits.flatten(1)], 1)

        with torch.inference_mode():
            out = self.calls.run(run, len(pictures)).numpy()
        ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
        scores, boxes, cells = (part.reshape(-1, *shape) for part, shape in zip(np.split(out, ends, 1), shapes, strict=True))
        return scores, boxes, cells

    def _finding(self, kind: int, score: float, edges: np.ndarray) -> Finding:
        box = inside(edges) if score >= self.threshold else None
        category = self.categories[kind]
        return Finding(guard=self.name, version=self.version, category=category, score=score, threshold=self.threshold, box=box)


def _weights(folder: str | Path) -> MarkWeights:
    return MarkWeights.find(folder, guard="marks", architecture="boxed cells", needs={"widths": list, "depth": int})


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    scores: np.ndarray = np.exp(-np.logaddexp(0, -logits))
    return scores


def inside(edges: np.ndarray) -> Box | None:
    """The part of a predicted box that lies in the picture, in fractions; None when none does."""
    x0, y0, x1, y1 = (min(1.0, max(0.0, float(edge))) for edge in edges)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def squeeze(picture: np.ndarray, side: int) -> np.ndarray:
    """One picture squeezed to side × side; boxes are fractions, so they stay right."""
    if picture.shape[:2] == (side, side):
        return picture
    from PIL import Image

    much_larger = min(picture.shape[:2]) >= 2 * side
    how = Image.Resampling.BOX if much_larger else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((side, side), how))
