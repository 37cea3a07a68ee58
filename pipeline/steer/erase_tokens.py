"""Geom-Erasing (arXiv 2310.05873): name a mark and its place in tokens, so that the negative prompt can leave it out.

A mark that a model learned from pictures alone (watermark, QR code, text) has no word in its captions. Geom-Erasing gives it
some: a *name* (one new token a concept) and its *geometry* (new tokens for places), learned from pictures in which a detector
found the mark; at sampling the same tokens go into the negative prompt. Here are its pure parts: which tokens name a box, how
the loss is weighed, and which tokens a guard's findings ask for.

Scope: this stops a generator from inventing marks. It is never applied to an existing picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from guards.base import Box, Finding
from index.errors import ConfigError, InputError

Mode = Literal["bins", "corners"]
MODES: tuple[Mode, ...] = ("bins", "corners")
CONCEPTS = {"mark.watermark": "watermark", "mark.qr": "qr", "mark.text": "text", "text.ocr": "text"}  # of guards' findings
WORDS = {"watermark": "watermark", "qr": "QR code", "text": "text"}  # their usual names: a name token starts from these words
SAME = 0.5  # overlap from which two boxes are one mark
SLACK = 1e-6  # of a side: detectors give fractions in float32


def loss_weights(mask: np.ndarray, a: float) -> np.ndarray:
    """Weights of the denoising loss per position: eq. of section 3.3, Σw = T.

    With T positions, K of them inside the concept: w_in = T/(K + a(T−K)) and w_out = aT/(K + a(T−K)). ``a`` below 1 lets the
    concept's positions weigh more, 1 weighs all alike, above 1 lets the rest weigh more.

    Args:
        mask: bool (…, h, w), True inside the concept; leading axes are samples, weighed each for itself.
        a: a ≥ 0, the weight of a position outside in units of one inside; infinite: nothing inside counts.

    Returns:
        float32 like ``mask``. Where a sample has nothing inside (K = 0) or nothing outside (K = T), all its weights are 1.

    Raises:
        InputError: ``mask`` has fewer than two axes or no positions.
        ConfigError: ``a`` is negative or no number.
    """
    if not a >= 0:
        raise ConfigError(f"a must be a number from 0, not {a}", where="loss weights", fix="Use 0.1 to 1")
    inside = np.asarray(mask, bool)
    if inside.ndim < 2 or 0 in inside.shape[-2:]:
        raise InputError(f"a mask has shape (…, h, w), not {inside.shape}", where="loss weights", fix="Give one per picture")
    positions = inside.shape[-1] * inside.shape[-2]
    covered = inside.sum((-2, -1), keepdims=True).astype(np.float64)
    whole = (covered == 0) | (covered == positions)
    if math.isinf(a):
        return np.where(whole, 1, ~inside * positions / np.maximum(1, positions - covered)).astype(np.float32)
    inner = positions / np.where(whole, positions, covered + a * (positions - covered))
    weights: np.ndarray = np.where(inside | whole, inner, a * inner).astype(np.float32)
    return weights


def location_tokens(boxes: Sequence[Box], size: tuple[float, float], grid: int, mode: Mode) -> tuple[str, ...]:
    """The tokens that name the places of boxes.

    Args:
        boxes: (x0, y0, x1, y1) in pixels, x to the right and y down; x1 and y1 are exclusive.
        size: width and height of the picture in the boxes' unit; (1, 1) for fractions.
        grid: the picture is divided into ``grid`` × ``grid`` bins.
        mode: ``bins``: every bin that any box covers, ``<bin-row-column>``, row by row, each once; ``corners``: for each box
            the bin of its upper left and of its lower right corner, ``<tl-row-column> <br-row-column>``, in the boxes' order.

    Raises:
        InputError: a box is empty or reaches outside the picture.
        ConfigError: no such grid or mode.
    """
    if grid < 1 or mode not in MODES:
        raise ConfigError(f"no location tokens for grid {grid}, mode {mode!r}", where="location tokens", fix="bins or corners")
    spans = [_span(box, size, grid) for box in boxes]
    if mode == "bins":
        covered = {(r, c) for r0, c0, r1, c1 in spans for r in range(r0, r1 + 1) for c in range(c0, c1 + 1)}
        return tuple(f"<bin-{r}-{c}>" for r, c in sorted(covered))
    pairs = dict.fromkeys((f"<tl-{r0}-{c0}>", f"<br-{r1}-{c1}>") for r0, c0, r1, c1 in spans)
    return tuple(token for pair in pairs for token in pair)


def check_box(box: Box, size: tuple[float, float]) -> None:
    """Raises InputError unless the box has an area and lies inside the picture."""
    (x0, y0, x1, y1), (width, height) = box, size
    place = f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) in a picture of {width:g} × {height:g}"
    if not all(math.isfinite(edge) for edge in box) or x1 <= x0 or y1 <= y0:
        raise InputError(f"{place} is empty", where="boxes", fix="Give x0 < x1 and y0 < y1; leave out what was not found")
    if x0 < -SLACK * width or y0 < -SLACK * height or x1 > width * (1 + SLACK) or y1 > height * (1 + SLACK):
        fix = "Cut boxes at the picture's edge, and give them in the picture's own pixels"
        raise InputError(f"{place} reaches outside it", where="boxes", fix=fix)


def _span(box: Box, size: tuple[float, float], grid: int) -> tuple[int, int, int, int]:
    """First row and column, last row and column of the bins that a box covers."""
    check_box(box, size)

    def first(edge: float, side: float) -> int:
        return min(grid - 1, max(0, math.floor(edge / side * grid + SLACK * grid)))

    def last(edge: float, side: float) -> int:
        return min(grid - 1, max(0, math.ceil(edge / side * grid - SLACK * grid) - 1))

    (x0, y0, x1, y1), (width, height) = box, size
    row, column = first(y0, height), first(x0, width)
    return row, column, max(row, last(y1, height)), max(column, last(x1, width))


def box_mask(boxes: Iterable[Box], size: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    """Which positions of an (h, w) map the boxes touch, bool; boxes as in :func:`location_tokens`."""
    mask = np.zeros(shape, bool)
    (high, wide), (width, height) = shape, size
    for box in boxes:
        check_box(box, size)
        x0, y0, x1, y1 = box[0] / width * wide, box[1] / height * high, box[2] / width * wide, box[3] / height * high
        rows = slice(max(0, math.floor(y0 + SLACK)), max(1, math.ceil(y1 - SLACK)))
        mask[rows, max(0, math.floor(x0 + SLACK)) : max(1, math.ceil(x1 - SLACK))] = True
    return mask


@dataclass(frozen=True)
class Vocabulary:
    """The new tokens of one adapter: a name for each concept and, with geometry, tokens for places.

    Attributes:
        concepts: ``watermark``, ``qr``, ``text``, or others that a detector knows.
        mode: how places are named; None: only *that* a mark is there (a classifier without boxes teaches no more).
        grid: bins along each side.
    """

    concepts: tuple[str, ...]
    mode: Mode | None = "corners"
    grid: int = 4

    def __post_init__(self) -> None:
        if not self.concepts or len(set(self.concepts)) < len(self.concepts):
            raise ConfigError("an adapter needs concepts, each once", where="concepts", fix="Name watermark, qr or text")
        if self.mode is not None and (self.mode not in MODES or not 1 <= self.grid <= 64):
            raise ConfigError(
                f"mode {self.mode!r} on a grid of {self.grid}", where="tokens", fix="bins or corners, grid 1 to 64"
            )

    @property
    def tokens(self) -> tuple[str, ...]:
        """Every token, names first."""
        cells = [f"{row}-{column}" for row in range(self.grid) for column in range(self.grid)]
        kinds = {None: (), "bins": ("bin",), "corners": ("tl", "br")}[self.mode]
        return (*map(name_token, self.concepts), *(f"<{kind}-{cell}>" for kind in kinds for cell in cells))

    def longest(self, marks: int = 1) -> int:
        """The most tokens that ``marks`` marks of different concepts can take."""
        places = {None: 0, "bins": self.grid**2, "corners": 2}[self.mode]
        return marks * (1 + places)

    def phrase(
        self, marks: Mapping[str, Sequence[Box]], size: tuple[float, float] = (1, 1), room: int | None = None
    ) -> tuple[str, ...]:
        """caption ⊕ *this*: for each concept its name, and the tokens of its boxes (none known: the name alone).

        Args:
            marks: concept → boxes.
            size: of the picture in the boxes' unit.
            room: the most tokens there may be; where they are more, the last boxes are left out, then the last tokens.

        Raises:
            ConfigError: a concept that this vocabulary has no name for.
            InputError: see :func:`location_tokens`.
        """
        if unknown := [concept for concept in marks if concept not in self.concepts]:
            raise ConfigError(f"no token for {unknown[0]!r}", where="erase", fix=f"It knows {', '.join(self.concepts)}")
        found: list[str] = []
        for concept in (concept for concept in self.concepts if concept in marks):
            found.append(name_token(concept))
            if self.mode is not None:
                found += location_tokens(marks[concept], size, self.grid, self.mode)
        if room is None or len(found) <= room:
            return tuple(found)
        most = max(marks, key=lambda concept: len(marks[concept]))
        if not marks[most]:
            return tuple(found[:room])
        return self.phrase({**marks, most: list(marks[most])[:-1]}, size, room)


def name_token(concept: str) -> str:
    """The token that names a concept."""
    return f"<{concept}>"


def marks_found(findings: Iterable[Finding]) -> dict[str, list[Box]]:
    """Triggered findings of marks → concept and where it was found, in fractions; an empty list where no guard has a box.

    Boxes of one concept that overlap by half or more are one mark, seen by two guards: the first is kept.
    """
    found: dict[str, list[Box]] = {}
    for finding in findings:
        if finding.triggered and finding.category in CONCEPTS:
            boxes, box = found.setdefault(CONCEPTS[finding.category], []), finding.box
            if box is not None and box[2] > box[0] and box[3] > box[1] and all(overlap(box, b) < SAME for b in boxes):
                boxes.append(box)
    return found


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    wide = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    high = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)) - wide * high
    return wide * high / area if area > 0 else 0.0
