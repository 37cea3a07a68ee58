"""A second look for photographs: the same points at the same places, up to a turn, a stretch and a mirror.

Points that can be found again (SIFT, Lowe 2004, in OpenCV; the patent ended in 2020) are described by the square roots of their
normalised histograms (RootSIFT, Arandjelović and Zisserman 2012) and matched where the best match is clearly better than the
second. One affine map is fitted to the matches by RANSAC; the score counts the places at which picture and reference agree with
it. A crop or an inset keeps its points, so this sees what alignment of whole pictures does not. A smooth reference has few
points: nothing could agree with it, so there is no score (NaN), and the embedder alone decides.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from functools import cache, lru_cache
from typing import Any

import numpy as np

SIDE = 512  # longer side at which points are looked for
LEAST = 256  # smaller pictures are enlarged to it
POINTS = 1000  # the strongest
CONTRAST = 0.01  # of a point, lower than SIFT's own 0.04: a worn copy is soft
LOCAL, TILES = 4.0, 8  # local contrast is evened out first (CLAHE): a soft part of a photograph has points too
RATIO = 0.85  # of the distances to the best and to the second match
NEAR = 4.0  # pixels between a point and where the map sends its match
TRIES = 3000
HALF = 8.0  # agreeing places that score one half
CELL = 6.0  # pixels; matches within one cell of the reference count once
STRETCH, SHRINK = 2.5, 8.0  # the most that a map may distort, and that it may change sizes
FEWEST = 8  # points of a reference; with fewer even the same picture would hardly score one half
VERSION = 2  # raise it when anything below changes a score


def keypoints_id() -> str:
    """Digest of the numbers that decide every score."""
    numbers = [VERSION, SIDE, LEAST, POINTS, CONTRAST, LOCAL, TILES, RATIO, NEAR, TRIES, HALF, CELL, STRETCH, SHRINK, FEWEST]
    return hashlib.sha256(json.dumps(["keypoints", *numbers]).encode()).hexdigest()


class Keypoints:
    """The look: (picture, reference) → score in [0, 1], or NaN. What it found in the last references it keeps."""

    def __init__(self) -> None:
        self._points = lru_cache(maxsize=64)(_points_of)

    def __call__(self, picture: np.ndarray, reference: np.ndarray) -> float:
        """Score that the picture shows what the reference shows: 0 for no agreeing places, ½ for :data:`HALF` of them.

        NaN where the reference has fewer than :data:`FEWEST` points: a 0 would clear every copy of it.
        """
        if len(self._points(Shown(reference))[0]) < FEWEST:
            return math.nan
        seen = self._points(Shown(picture))
        sides = (reference, np.ascontiguousarray(reference[:, ::-1]))
        places = max(agreeing(seen, self._points(Shown(side))) for side in sides)
        return places / (places + HALF)


class Shown:
    """A picture, equal to another one with the same pixels: what was made of it can be kept."""

    def __init__(self, picture: np.ndarray) -> None:
        self.picture = picture
        self._key = picture.shape, hashlib.sha256(picture.tobytes()).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shown) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def _points_of(shown: Shown) -> tuple[np.ndarray, np.ndarray]:
    return points(shown.picture)


def points(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places float32 (N, 2), in pixels of the picture at :data:`SIDE`, and descriptions float32 (N, 128) of unit length.

    Args:
        picture: uint8 RGB (H, W, 3).
    """
    import cv2

    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    longer = max(grey.shape)
    factor = SIDE / longer if longer > SIDE else max(1.0, LEAST / longer)
    if factor != 1:
        size = (max(1, round(grey.shape[1] * factor)), max(1, round(grey.shape[0] * factor)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    if min(grey.shape) < 8:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    even = cv2.createCLAHE(LOCAL, (TILES, TILES)).apply(grey)
    found, described = _sift().detectAndCompute(even, None)
    if not found:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    places = np.array([point.pt for point in found], np.float32)
    total = np.maximum(described.sum(1, keepdims=True), 1e-9)
    return places, np.sqrt(described / total).astype(np.float32)


def agreeing(seen: tuple[np.ndarray, np.ndarray], wanted: tuple[np.ndarray, np.ndarray]) -> int:
    """In how many places of the reference two sets of points agree with one affine map.

    Args:
        seen: places and descriptions of the picture (see :func:`points`). wanted: the reference's.
    """
    import cv2

    if len(seen[0]) < 4 or len(wanted[0]) < 4:
        return 0
    alike = seen[1] @ wanted[1].T
    order = np.argpartition(-alike, 1, axis=1)[:, :2]
    two = np.take_along_axis(alike, order, 1)
    swapped = two[:, 0] < two[:, 1]
    best = np.where(swapped, order[:, 1], order[:, 0])
    first, second = two.max(1), two.min(1)
    clear = np.sqrt(np.maximum(2 - 2 * first, 0)) < RATIO * np.sqrt(np.maximum(2 - 2 * second, 1e-12))
    if int(clear.sum()) < 4:
        return 0
    here, there = seen[0][clear], wanted[0][best[clear]]
    found, inside = cv2.estimateAffine2D(
        there, here, method=cv2.RANSAC, ransacReprojThreshold=NEAR, maxIters=TRIES, confidence=0.999
    )
    if found is None or not np.isfinite(found).all():
        return 0
    stretch = np.linalg.svd(found[:, :2], compute_uv=False)
    if (
        np.linalg.det(found[:, :2]) <= 0
        or stretch[0] > STRETCH * stretch[1]
        or not 1 / SHRINK < stretch[1] <= stretch[0] < SHRINK
    ):
        return 0
    agree = inside.ravel().astype(bool)
    cells = {side: len(np.unique(np.floor(at[agree] / CELL), axis=0)) for side, at in (("here", here), ("there", there))}
    return min(cells.values())


@cache
def _sift() -> Any:
    cv2: Any = importlib.import_module("cv2")  # untyped: the stubs of some builds leave SIFT out
    return cv2.SIFT_create(nfeatures=POINTS, contrastThreshold=CONTRAST)
