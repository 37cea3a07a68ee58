"""Marks nobody asked for: watermark, QR code, text, found by a small convolutional network.

A score of 0.5 is the calibrated operating point of each kind of mark: the network's logit is shifted by the value
that the weights' ``config.json`` records, at which at most one clean held-out picture in a hundred is flagged.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from guards.base import Box, Finding, require_pictures
from index.errors import GuardUnavailable, IntegrityError
from index.padding import PaddedCalls

STICKERS = Path(__file__).resolve().parents[1] / "pipeline" / "weights" / "stickers" / "marks"  # data, not an import
BATCH = 8  # rows of every call of the network: a kernel chosen by batch size never changes a score; fewer when memory runs out
LESS = "Leave the guard out (the policy's `enabled = false`), or use a machine with more memory"


def weights_folder(folder: str | Path) -> Path:
    """The folder meant by "stickers" (the weights that ship) or by a path."""
    return STICKERS if str(folder) == "stickers" else Path(folder)


def read_card(folder: str | Path) -> dict[str, Any]:
    """Read the ``config.json`` beside the weights, without loading them.

    Raises:
        GuardUnavailable: when the folder, the weights or the configuration are missing or not of this guard.
    """
    path = weights_folder(folder)
    for name in ("config.json", "model.safetensors"):
        if not (path / name).exists():
            fix = "Train them with `clearance world marks`, or name a folder that holds them"
            raise GuardUnavailable(f"{path / name} does not exist", where="guard marks", fix=fix)
    try:
        card: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if card["architecture"] != "cells" or set(card["operating_logits"]) != {"watermark", "qr", "text"}:
            raise ValueError("architecture or operating_logits")
        _ = card["version"], card["weights_sha256"], card["widths"], card["depth"]
    except (ValueError, KeyError, TypeError) as error:
        fix = "Use a folder written by `clearance world marks`"
        raise GuardUnavailable(f"not a marks configuration ({error})", where=str(path / "config.json"), fix=fix) from None
    return card


class MarksGuard:
    """Watermarks, QR codes and text by the convolutional network; one finding per picture and kind.

    Args:
        folder: "stickers" or a folder with ``model.safetensors`` and ``config.json``.
        threshold: the operating point for every kind; None: 0.5, the calibrated one.

    Raises:
        GuardUnavailable: weights missing.
        IntegrityError: weights are not the ones the configuration was written for.

    Attributes:
        calls: of the network; ``calls.shapes`` says how many rows they have had. The last bits of a score belong to the shape.
    """

    name = "marks"
    categories: tuple[str, ...] = ("mark.watermark", "mark.qr", "mark.text")

    def __init__(self, folder: str | Path = "stickers", threshold: float | None = None) -> None:
        import torch
        from safetensors.torch import load

        from guards.mark_network import KINDS, make_network

        card = read_card(folder)
        raw = (weights_folder(folder) / "model.safetensors").read_bytes()
        digest = hashlib.sha256(raw).hexdigest()
        if digest != card["weights_sha256"]:
            where = str(weights_folder(folder) / "model.safetensors")
            raise IntegrityError("weights do not match the digest in config.json", where=where, fix="Fetch or train them again")
        self.version = f"{card['version']}+{digest[:8]}"
        self.threshold = 0.5 if threshold is None else threshold
        self._shift = torch.tensor([card["operating_logits"][kind] for kind in KINDS], dtype=torch.float32)
        self.network = make_network(tuple(card["widths"]), card["depth"])
        self.network.load_state_dict({key: value.float() for key, value in load(raw).items()}, assign=True)
        self.network.eval().requires_grad_(False)
        self.calls = PaddedCalls(BATCH, "guard marks", LESS)

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        """Check uint8 RGB (N, H, W, 3): three findings per picture; a box where a mark is found.

        Raises:
            OutOfMemory: not even one picture fits into memory.
        """
        require_pictures(pictures, guard=self.name)
        scores, logits = self._score(pictures)
        cells = sigmoid(logits)  # not shifted: where the mark is, is another question than whether to act on it
        return [[self._finding(k, float(row[k]), cells[i, k]) for k in range(3)] for i, row in enumerate(scores)]

    def heat(self, pictures: np.ndarray) -> np.ndarray:
        """Where marks are: float32 (N, 3, 8, 8), per cell the calibrated score of watermark, QR code and text."""
        require_pictures(pictures, guard=self.name)
        return sigmoid(self._score(pictures)[1] - self._shift.numpy()[:, None, None])

    def _score(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Calibrated scores (N, 3) and the cells' logits, not shifted, (N, 3, 8, 8)."""
        import torch

        from guards.mark_network import CELLS, KINDS, SIDE, pool

        if not len(pictures):
            return np.empty((0, len(KINDS)), np.float32), np.empty((0, len(KINDS), CELLS, CELLS), np.float32)
        small = np.stack([squeeze(picture, SIDE) for picture in pictures])

        def run(rows: list[int]) -> torch.Tensor:
            x = torch.from_numpy(small[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1
            logits = self.network(x.contiguous())
            return torch.cat([torch.sigmoid(pool(logits) - self._shift), logits.flatten(1)], 1)

        with torch.inference_mode():
            out = self.calls.run(run, len(pictures)).numpy()
        return out[:, : len(KINDS)], out[:, len(KINDS) :].reshape(-1, len(KINDS), CELLS, CELLS)

    def _finding(self, kind: int, score: float, cells: np.ndarray) -> Finding:
        box = bounding_box(cells) if score >= self.threshold else None
        category = self.categories[kind]
        return Finding(guard=self.name, version=self.version, category=category, score=score, threshold=self.threshold, box=box)


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
