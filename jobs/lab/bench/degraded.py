"""A worse detector: boxes are moved and resized at random until their mean overlap with the truth falls to a given value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from guards.base import Box
from jobs.erase.dataset import Row, Rows
from pipeline.steer.erase_tokens import overlap

LEAST = 1 / 16  # a box's least side, in pictures
HALVINGS = 20


def jittered(box: Box, amount: float, normal: np.ndarray) -> Box:
    """A box (fractions) whose centre and log sides are moved by ``amount`` standard deviations.

    Args:
        box: x0, y0, x1, y1.
        amount: centres move by that many sides, sides grow or shrink by its exponential; 0 leaves the box as it is.
        normal: four standard normal numbers.

    Returns:
        A box inside the picture.
    """
    if not amount:
        return box
    x0, y0, x1, y1 = box
    dx, dy, wider, higher = (float(number) for number in normal)
    wide, high = (
        max(LEAST, min(1.0, side)) for side in ((x1 - x0) * np.exp(amount * wider), (y1 - y0) * np.exp(amount * higher))
    )
    left = min(max((x0 + x1) / 2 + amount * dx * (x1 - x0) - wide / 2, 0.0), 1 - wide)
    top = min(max((y0 + y1) / 2 + amount * dy * (y1 - y0) - high / 2, 0.0), 1 - high)
    return float(left), float(top), float(left + wide), float(top + high)


def worse(marks: Sequence[Mapping[str, Sequence[Box]]], amount: float, seed: int) -> list[dict[str, list[Box]]]:
    """The worse detector's boxes for our detector's ``marks`` (concept → boxes); picture i depends on (seed, i) alone."""
    out = []
    for number, found in enumerate(marks):
        rng = np.random.default_rng([seed, number])
        out.append({c: [jittered(box, amount, rng.standard_normal(4)) for box in boxes] for c, boxes in found.items()})
    return out


def mean_overlap(seen: Sequence[Mapping[str, Sequence[Box]]], truth: Sequence[Mapping[str, Sequence[Box]]]) -> float:
    """Mean IoU of every true box with the best seen box of its concept; concepts without a seen box do not count."""
    found = [
        max(overlap(box, other) for other in one[concept])
        for one, true in zip(seen, truth, strict=True)
        for concept, boxes in true.items()
        for box in boxes
        if one.get(concept)
    ]
    return float(np.mean(found)) if found else 0.0


def degraded(rows: Rows, target: float, seed: int = 0) -> tuple[list[Row], float, float]:
    """The set with the marks that a detector of mean IoU ``target`` against the truth would have found.

    Returns:
        The rows, the amount of jitter, and the mean IoU reached: at most ``target``, unless no jitter brings it that low.
    """
    kept = list(rows)
    found, truth = [row.found for row in kept], [row.marks for row in kept]
    low, high = 0.0, 2.0
    if mean_overlap(found, truth) <= target:
        high = 0.0
    for _ in range(HALVINGS if high else 0):
        middle = (low + high) / 2
        if mean_overlap(worse(found, middle, seed), truth) > target:
            low = middle
        else:
            high = middle
    seen = worse(found, high, seed)
    return [dataclasses.replace(row, found=one) for row, one in zip(kept, seen, strict=True)], high, mean_overlap(seen, truth)
