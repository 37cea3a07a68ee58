"""The marks guard: unwanted watermarks, QR codes, text and logos, found by a small convolutional network.

A score of 0.5 is the calibrated operating point of each kind of mark: the network's logit is shifted by the value
that the weights' ``config.json`` records, at which at most one clean held-out picture in two hundred is flagged.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guards.base import Box, Defaults, Finding, Probe, require_pictures
from guards.mark_weights import CARD, WEIGHTS, MarkWeights
from guards.own_label import without_own_label
from index.errors import IntegrityError
from index.padding import PaddedCalls

if TYPE_CHECKING:
    import torch

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
        if not len(pictures):
            return []
        small = self._squeezed(without_own_label(pictures))
        logits, boxes = self._look(small)
        scores = (logits - self.operating_logits).sigmoid().numpy()
        found = np.flatnonzero((scores[:, : len(self.categories)] >= self.threshold).any(1))  # the others need no box
        places = boxes.numpy()
        if len(found):
            places[found] = self._surest(small[found], logits[found], boxes[found]).numpy()
        kinds = range(len(self.categories))  # logos are the last one
        return [[self._finding(k, float(row[k]), places[i, k]) for k in kinds] for i, row in enumerate(scores)]

    def _squeezed(self, pictures: np.ndarray) -> torch.Tensor:
        """Pictures as the network sees them: float (N, 3, 64, 64) in [-1, 1]."""
        import torch

        from guards.mark_network import SIDE

        small = torch.from_numpy(np.stack([squeeze(picture, SIDE) for picture in pictures]))
        return small.permute(0, 3, 1, 2).float() / 127.5 - 1

    def _look(self, small: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the kinds, not shifted (N, 4), and boxes (N, 4, 4)."""
        import torch

        from guards.mark_network import pool, pool_boxes, split

        def run(rows: list[int]) -> torch.Tensor:
            return self.network(small[rows].contiguous().to(self._device)).cpu()  # type: ignore[no-any-return]

        with torch.inference_mode():
            cells, boxes = split(self.calls.run(run, len(small)))
            return pool(cells), pool_boxes(cells, boxes)

    def _surest(self, small: torch.Tensor, logits: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """The boxes (N, 4, 4) of pictures with a mark, of each kind from the turn that is surest of it."""
        import torch

        from guards.mark_network import surest_boxes

        def run(rows: list[int]) -> torch.Tensor:
            given = (part[rows].contiguous().to(self._device) for part in (small, logits, boxes))
            return surest_boxes(self.network, *given).cpu()

        with torch.inference_mode():
            return self.calls.run(run, len(small))

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
