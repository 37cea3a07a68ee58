"""The second look at a hit: whether the picture is geometrically the same drawing, or only the same idea.

The embedder's cosine is learned. The second look is not: the reference is laid over the picture, mirrored or not,
at several sizes, turns and places; the best fit is refined to an affine alignment; then brightness, edges and small
patches (each free to move a little) are compared where the reference is not empty ground. Meta's PDQ hash is compared too: it
is useless for strongly edited copies and good for plain ones. A logistic model of those numbers, fitted on drawings by
:mod:`jobs.lab.world.calibrate_copies`, gives the score. A reference almost without edges (one colour, fine grain, a smooth
gradient) has nothing to be laid over: there is no score (NaN), and the embedder alone decides.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from index.fingerprint import pdq

SIDE = 64  # both pictures are compared at this size
SCALES = (0.62, 0.7, 0.79, 0.89, 1.0, 1.12, 1.26)
TURNS = (-14.0, 0.0, 14.0)  # degrees; the refinement does the rest
FEATURES = ("brightness", "edges", "patches", "worst_patches", "pdq")
WEIGHTS = (1.2360, 6.9211, -0.2521, 0.6775, 3.3111)
BIAS = -6.6186
VERSION = 1  # raise it when anything below changes a score
# Strongest edge of a reference that can be judged. The weakest of the world's 6,013 drawings has 0.46, and 99 in 100 have 0.85;
# grain of ±16 has 0.38, a gradient from black to white 0.35. It is no part of the id: the scores that there are stay the same.
FAINT = 0.4


def second_look_id() -> str:
    """Digest of the numbers that decide every score."""
    numbers = [VERSION, SIDE, SCALES, TURNS, FEATURES, WEIGHTS, BIAS]
    return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()


def confirm(picture: np.ndarray, reference: np.ndarray) -> float:
    """The score that the picture shows the same drawing as the reference.

    Args:
        picture: uint8 RGB (H, W, 3), any size.
        reference: uint8 RGB (H, W, 3), any size.

    Returns:
        Score in [0, 1]; 0.5 and above means the same drawing. NaN where no edge of the reference reaches :data:`FAINT`: a score
        would clear copies of it.
    """
    if float(_edges(_fitted(reference)).max()) < FAINT:
        return math.nan
    logit = float(np.dot(WEIGHTS, evidence(picture, reference)) + BIAS)
    return float(1 / (1 + np.exp(-np.clip(logit, -30, 30))))


def evidence(picture: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The numbers the score is made of, float64, each at most 1 (see :data:`FEATURES`).

    About 1 for an identical picture, unless the reference is too faint to be judged: what cannot be correlated counts as 0.
    """
    seen, wanted = _fitted(picture), _fitted(reference)
    edges = _edges(seen)
    best: tuple[float, Any, Any] = (-2.0, None, None)
    for side in (wanted, np.ascontiguousarray(wanted[:, ::-1])):
        for placed, cover in _placements(seen, side):
            agreement = _correlation(edges, _edges(placed), cover)
            if agreement > best[0]:
                best = (agreement, placed, cover)
    agreement, placed, cover = best
    brightness = _correlation(_grey(seen), _grey(placed), cover)
    local, worst = _patches(seen, placed, cover)
    return np.array([brightness, agreement, local, worst, max(0.0, _pdq_similarity(picture, reference))])


def _fitted(picture: np.ndarray) -> np.ndarray:
    """float32 (SIDE, SIDE, 3) in [0, 1], aspect kept, padded with the picture's own border colour."""
    import cv2

    high, wide = picture.shape[:2]
    factor = SIDE / max(high, wide)
    size = (max(1, round(wide * factor)), max(1, round(high * factor)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    top, left = (SIDE - size[1]) // 2, (SIDE - size[0]) // 2
    padded = cv2.copyMakeBorder(
        small, top, SIDE - size[1] - top, left, SIDE - size[0] - left, cv2.BORDER_CONSTANT, value=_ground(small).tolist()
    )
    return np.asarray(padded, np.float32) / 255


def _ground(picture: np.ndarray) -> np.ndarray:
    """Median colour of the border pixels."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    middle: np.ndarray = np.median(border, axis=0)
    return middle


def _shape(picture: np.ndarray) -> np.ndarray:
    """How far each pixel is from the ground colour, float32 (SIDE, SIDE) in [0, 1], saturating early."""
    distance = np.abs(picture - _ground(picture).astype(np.float32)).max(2)
    out: np.ndarray = np.clip(distance / 0.25, 0, 1).astype(np.float32)
    return out


def _grey(picture: np.ndarray) -> np.ndarray:
    grey: np.ndarray = (picture @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.float32)
    return grey


def _edges(picture: np.ndarray) -> np.ndarray:
    """Strength of the strongest channel's gradient, a little blurred so that a smeared line still meets a sharp one."""
    import cv2

    soft = cv2.GaussianBlur(picture, (0, 0), 1.0)
    across, down = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    strength = np.sqrt((across * across + down * down).max(2))
    return np.asarray(cv2.GaussianBlur(np.sqrt(strength), (0, 0), 0.8), np.float32)


def _placements(seen: np.ndarray, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Lay ``wanted`` over ``seen``, roughly and then refined: (the reference placed, where it has something to show)."""
    cv2 = _opencv()
    seen_map = np.stack([_edges(seen), _shape(seen)], 2)
    wanted_map = np.stack([_edges(wanted), _shape(wanted)], 2)
    shape = wanted_map[..., 1] > 0.3
    if not shape.any():
        yield wanted, np.ones((SIDE, SIDE), np.float32)
        return
    half = SIDE // 2  # the rough search is done at half size
    small_seen = cv2.resize(seen_map, (half, half), interpolation=cv2.INTER_AREA)
    small_wanted = cv2.resize(wanted_map, (half, half), interpolation=cv2.INTER_AREA)
    ys, xs = np.nonzero(shape)
    x0, x1, y0, y1 = xs.min() / 2, (xs.max() + 1) / 2, ys.min() / 2, (ys.max() + 1) / 2
    room = half // 2
    field = cv2.copyMakeBorder(small_seen, room, room, room, room, cv2.BORDER_CONSTANT, value=(0, 0))
    best: tuple[float, Any] = (-2.0, None)
    for scale in SCALES:
        for turn in TURNS:
            centre = ((x0 + x1) / 2, (y0 + y1) / 2)
            side = min(2 * half, int(np.ceil(scale * max(x1 - x0, y1 - y0) + 3)))
            matrix = cv2.getRotationMatrix2D(centre, turn, scale)
            matrix[:, 2] += side / 2 - np.array(centre)
            stamp = cv2.warpAffine(small_wanted, matrix, (side, side), flags=cv2.INTER_LINEAR)
            fits = cv2.matchTemplate(field, stamp, cv2.TM_CCOEFF_NORMED)
            y, x = divmod(int(np.argmax(fits)), fits.shape[1])
            if fits[y, x] > best[0]:
                placed = matrix.copy()
                placed[:, 2] += (x - room, y - room)
                best = (float(fits[y, x]), placed)
    rough = best[1]
    # From half to full size: p_full = 2 p_half + 1/2 for pixel centres, on both sides.
    rough[:, 2] = 2 * rough[:, 2] + 0.5 - rough[:, :2] @ np.array([0.5, 0.5])
    coarse = cv2.invertAffineTransform(rough).astype(np.float32)
    warps = [coarse]
    template, image = np.ascontiguousarray(seen_map[..., 0]), np.ascontiguousarray(wanted_map[..., 0])
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-4)
    for blur in (7, 3):  # the warp maps places of the picture to places of the reference
        try:
            _, warp = cv2.findTransformECC(template, image, warps[-1].copy(), cv2.MOTION_AFFINE, criteria, None, blur)
        except cv2.error:
            continue  # no convergence: the previous placement is kept
        if 0.3 < abs(float(np.linalg.det(warp[:, :2]))) < 4:
            warps.append(np.asarray(warp, np.float32))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    ground = _ground(wanted).tolist()
    for warp in warps:
        placed = cv2.warpAffine(wanted, warp, (SIDE, SIDE), flags=flags, borderValue=ground)
        cover = cv2.warpAffine(wanted_map[..., 1], warp, (SIDE, SIDE), flags=flags)
        cover = cv2.dilate((cover > 0.2).astype(np.float32), np.ones((5, 5), np.uint8))
        yield np.asarray(placed, np.float32), np.asarray(cover, np.float32)


def _patches(seen: np.ndarray, placed: np.ndarray, cover: np.ndarray) -> tuple[float, float]:
    """Mean and lower quartile of the best local correlation of patches, each free to move by two pixels."""
    import cv2

    side, reach = 14, 2
    found, weights = [], []
    field = cv2.copyMakeBorder(cv2.GaussianBlur(seen, (0, 0), 0.7), reach, reach, reach, reach, cv2.BORDER_REPLICATE)
    soft = cv2.GaussianBlur(placed, (0, 0), 0.7)
    for y in range(0, SIDE - side + 1, 10):
        for x in range(0, SIDE - side + 1, 10):
            stamp = soft[y : y + side, x : x + side]
            weight = float(stamp.std(axis=(0, 1)).mean()) * float(cover[y : y + side, x : x + side].mean())
            if weight < 0.02:
                continue
            window = field[y : y + side + 2 * reach, x : x + side + 2 * reach]
            score = float(cv2.matchTemplate(window, stamp, cv2.TM_CCOEFF_NORMED).max())
            found.append(score if np.isfinite(score) else 0.0)
            weights.append(min(weight, 0.15))
    if not found:
        return 0.0, 0.0
    order = np.argsort(found)
    heavy = np.cumsum(np.array(weights)[order]) / sum(weights)
    return float(np.average(found, weights=weights)), float(np.array(found)[order][int(np.searchsorted(heavy, 0.25))])


def _correlation(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> float:
    """Weighted normalised cross-correlation of two maps (SIDE, SIDE); 0 where either is constant."""
    total = float(weight.sum())
    if total < 1:
        return 0.0
    a = a - float((a * weight).sum()) / total
    b = b - float((b * weight).sum()) / total
    norm = float((a * a * weight).sum() * (b * b * weight).sum()) ** 0.5
    return float((a * b * weight).sum()) / norm if norm > 1e-9 else 0.0


def _pdq_similarity(picture: np.ndarray, reference: np.ndarray) -> float:
    """1 for equal PDQ hashes, 0 at half the bits (unrelated pictures), the better of the reference and its mirror image."""
    bits = pdq(picture)[0]
    distance = min(int((bits != pdq(side)[0]).sum()) for side in (reference, reference[:, ::-1]))
    return 1 - distance / 128


def _opencv() -> Any:
    """OpenCV, untyped: its type hints refuse the None that ``findTransformECC`` takes for "no mask"."""
    import importlib

    return importlib.import_module("cv2")
