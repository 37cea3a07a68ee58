"""Lay a reference drawing over a picture, at the place where a copy of it would be.

A copy may be mirrored, moved, resized, turned and put on another ground. :mod:`jobs.lab.judges.copies` compares place by place,
so the reference is first aligned with the picture: its figure is cut out, moved until the outlines agree (the enhanced
correlation coefficient of Evangelidis and Psarakis, 2008, from several starts), and set on the picture's ground.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

SIDE = 64  # pictures are compared at this size
TOLERANCE = 18  # largest distance (of 255) from the ground's colour that still counts as ground
BLURS = (9, 5, 3)  # of the outlines, from coarse to fine, while the placement is refined


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A reference aligned with a picture.

    Attributes:
        picture: the reference in the picture's place and on its ground, uint8 (SIDE, SIDE, 3).
        cover: share of each pixel that the reference's figure covers, float32 (SIDE, SIDE) in [0, 1].
        agreement: correlation of the outlines, in [-1, 1].
        overlap: intersection over union of the two figures, in [0, 1].
        stretch: distortion of the drawing's proportions (log of the ratio of its two scales).
        size: log of the scale.
    """

    picture: np.ndarray
    cover: np.ndarray
    agreement: float
    overlap: float
    stretch: float
    size: float


def fitted(picture: np.ndarray) -> np.ndarray:
    """uint8 (SIDE, SIDE, 3): the picture, resized if it must be."""
    import cv2

    if picture.shape[:2] == (SIDE, SIDE):
        return np.ascontiguousarray(picture)
    how = cv2.INTER_AREA if picture.shape[0] > SIDE else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (SIDE, SIDE), interpolation=how), np.uint8)


def ground(picture: np.ndarray) -> np.ndarray:
    """Median colour of the border, float (3,)."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    colour: np.ndarray = np.median(border, axis=0)
    return colour


def figure(picture: np.ndarray) -> np.ndarray:
    """The figure: float32 (SIDE, SIDE), 1 where it is not ground; ground-coloured parts within the figure belong to it."""
    import cv2

    colour = tuple(int(v) for v in ground(picture))
    framed = cv2.copyMakeBorder(picture, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=colour)
    mask = np.zeros((SIDE + 4, SIDE + 4), np.uint8)
    flags = 4 | cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY
    cv2.floodFill(framed, mask, (0, 0), (0, 0, 0), (TOLERANCE,) * 3, (TOLERANCE,) * 3, flags)
    inside = (mask[2:-2, 2:-2] == 0).astype(np.float32)
    return np.asarray(cv2.morphologyEx(inside, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8)), np.float32)


def outlines(picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Strength of edges in any channel or of the figure, compressed, float32 (SIDE, SIDE)."""
    import cv2

    seen = np.dstack([picture.astype(np.float32) / 255, inside])
    seen = cv2.GaussianBlur(seen, (0, 0), 0.8)
    across, down = cv2.Sobel(seen, cv2.CV_32F, 1, 0), cv2.Sobel(seen, cv2.CV_32F, 0, 1)
    strength = np.sqrt(np.sqrt((across * across + down * down).max(2)))
    return np.asarray(strength, np.float32)


def placements(picture: np.ndarray, reference: np.ndarray) -> list[Placed]:
    """The best placement of the reference and of its mirror image, uint8 (SIDE, SIDE, 3) both."""
    inside = figure(picture)
    lines = outlines(picture, inside)
    found = []
    for side in (reference, np.ascontiguousarray(reference[:, ::-1])):
        cut = figure(side)
        if cut.sum() < 9:  # nothing but ground: the whole picture is the figure
            cut = np.ones_like(cut)
        found.append(_place(picture, inside, lines, side, cut))
    return found


def _place(picture: np.ndarray, inside: np.ndarray, lines: np.ndarray, reference: np.ndarray, cut: np.ndarray) -> Placed:
    cv2: Any = importlib.import_module("cv2")  # its type hints refuse the None that findTransformECC takes for "no mask"
    other = outlines(reference, cut)
    starts = [np.eye(2, 3, dtype=np.float32)]
    if inside.sum() >= 9:
        starts.append(_boxes(inside, cut))
    best, chosen = -2.0, starts[0]
    for start in starts:
        agreement, warp = -1.0, start
        for blur in BLURS:
            criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 25, 1e-4)
            try:
                agreement, refined = cv2.findTransformECC(lines, other, warp.copy(), cv2.MOTION_AFFINE, criteria, None, blur)
            except cv2.error:
                break  # no convergence from here: the previous placement is kept
            if not 0.25 < abs(float(np.linalg.det(refined[:, :2]))) < 5:
                break
            warp = np.asarray(refined, np.float32)
        if agreement > best:
            best, chosen = float(agreement), warp
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cover = cv2.warpAffine(cv2.GaussianBlur(cut, (3, 3), 0.5), chosen, (SIDE, SIDE), flags=flags)
    drawn = cv2.warpAffine(reference, chosen, (SIDE, SIDE), flags=flags, borderValue=ground(reference).tolist())
    laid = drawn * cover[..., None] + ground(picture) * (1 - cover[..., None])
    scales = np.linalg.svd(chosen[:, :2], compute_uv=False)
    both, either = np.minimum(inside, cover).sum(), np.maximum(inside, cover).sum()
    return Placed(
        picture=np.clip(np.rint(laid), 0, 255).astype(np.uint8), cover=np.asarray(cover, np.float32), agreement=best,
        overlap=float(both / max(either, 1.0)), stretch=float(np.log(scales[0] / max(scales[1], 1e-3))),
        size=float(np.log(max(scales[0] * scales[1], 1e-3)) / 2),
    )  # fmt: skip


def _boxes(inside: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """The warp (places of the picture to places of the reference) that lays one figure's box on the other's."""
    corners = []
    for mask in (inside, cut):
        ys, xs = np.nonzero(mask > 0.5)
        corners.append((np.quantile(xs, 0.01), np.quantile(xs, 0.99), np.quantile(ys, 0.01), np.quantile(ys, 0.99)))
    (px0, px1, py0, py1), (rx0, rx1, ry0, ry1) = corners
    scale = float(np.sqrt(max(rx1 - rx0, 1) * max(ry1 - ry0, 1) / (max(px1 - px0, 1) * max(py1 - py0, 1))))
    scale = min(2.0, max(0.5, scale))
    shift = ((rx0 + rx1) / 2 - scale * (px0 + px1) / 2, (ry0 + ry1) / 2 - scale * (py0 + py1) / 2)
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], np.float32)
