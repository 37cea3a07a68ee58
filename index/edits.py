"""Make edited copies of a picture, like those that hide a copy and those that a denoiser draws from imperfect memory.

The world's embedder is trained on them, and they stand for copies when a threshold is calibrated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# Lengths below are in pixels of a picture of this size; other sizes scale them.
SIDE = 64


def foregrounds(pictures: np.ndarray) -> np.ndarray:
    """Which pixels belong to a drawing on white: uint8 (N, H, W, 3) → float32 (N, H, W) in [0, 1].

    The white that touches the border does not belong to it. A picture that fills its frame is all foreground.
    """
    import cv2

    high, wide = pictures.shape[1:3]
    out = np.empty(pictures.shape[:3], np.float32)
    for i, picture in enumerate(pictures):
        framed = cv2.copyMakeBorder(picture, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        mask = np.zeros((high + 4, wide + 4), np.uint8)
        cv2.floodFill(
            framed, mask, (0, 0), (0, 0, 0), (14,) * 3, (14,) * 3, cv2.FLOODFILL_FIXED_RANGE | cv2.FLOODFILL_MASK_ONLY
        )
        out[i] = cv2.GaussianBlur(1.0 - mask[2:-2, 2:-2].astype(np.float32), (3, 3), 0.5)
    return out


def edit(
    picture: np.ndarray,
    inside: np.ndarray,
    rng: np.random.Generator,
    *,
    mark: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
) -> np.ndarray:
    """An edited copy of a picture, several edits at once.

    Mirrored, placed, scaled 0.7 to 1.15, turned, bent, put on a colour, recoloured, marked, partly covered, blurred or
    shrunk, made noisy, compressed; each with its own probability.

    Args:
        picture: uint8 RGB (H, W, 3).
        inside: its foreground, float32 (H, W), from :func:`foregrounds`.
        rng: source of every random choice.
        mark: draws a mark on one picture in five; None: no marks.

    Returns:
        uint8 (H, W, 3).
    """
    import cv2

    high, wide = picture.shape[:2]
    side = max(high, wide)
    unit = side / SIDE
    x: Any = picture.astype(np.float32)
    ground = np.full(3, 255.0, np.float32)
    if rng.random() < 0.25:
        ground = (255 * rng.uniform(0.15, 1.0, 3)).astype(np.float32)
        x = x * inside[..., None] + ground * (1 - inside[..., None])
    if rng.random() < 0.9:
        angle = rng.normal(0, 8) if rng.random() < 0.7 else 0.0
        scale = float(np.exp(rng.uniform(np.log(0.7), np.log(1.15))))
        matrix = cv2.getRotationMatrix2D((wide / 2 - 0.5, high / 2 - 0.5), angle, scale)
        matrix[:, 2] += rng.uniform(-0.1, 0.1, 2) * np.array([wide, high])
        if rng.random() < 0.4:
            mirror = np.array([[-1, 0, wide - 1], [0, 1, 0], [0, 0, 1]], np.float64)
            matrix = matrix @ mirror
        x = cv2.warpAffine(x, matrix, (wide, high), flags=cv2.INTER_LINEAR, borderValue=ground.tolist())
    if rng.random() < 0.25:  # bend a little: a denoiser does not place every line exactly
        bend = (unit * rng.normal(0, 1.3, (5, 5, 2))).astype(np.float32)
        flow = cv2.resize(bend, (wide, high), interpolation=cv2.INTER_CUBIC)
        grid = np.mgrid[0:high, 0:wide].astype(np.float32)
        x = cv2.remap(x, grid[1] + flow[..., 0], grid[0] + flow[..., 1], cv2.INTER_LINEAR, borderValue=ground.tolist())
    if rng.random() < 0.5:
        grey = x.mean(2, keepdims=True)
        x = grey + (x - grey) * (rng.uniform(0.6, 1.35) if rng.random() < 0.96 else 0.0)
        x = (x - 128) * rng.uniform(0.75, 1.12) + 128 + rng.normal(0, 9)
        x = x * rng.normal(1, 0.05, 3).astype(np.float32)
    if rng.random() < 0.2 and mark is not None:
        x = mark(np.clip(x, 0, 255).astype(np.uint8), rng).astype(np.float32)
    if rng.random() < 0.06:
        x0, y0 = int(rng.integers(0, wide * 2 // 3)), int(rng.integers(0, high * 2 // 3))
        w, h = rng.integers(side // 8, side // 3, 2)
        x[y0 : y0 + h, x0 : x0 + w] = rng.uniform(0, 255, 3)
    if rng.random() < 0.45:
        x = cv2.GaussianBlur(x, (0, 0), float(unit * rng.uniform(0.4, 1.4)))
    elif rng.random() < 0.25:
        factor = rng.uniform(0.4, 0.8)
        small = (max(1, int(wide * factor)), max(1, int(high * factor)))
        x = cv2.resize(cv2.resize(x, small, interpolation=cv2.INTER_AREA), (wide, high), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.15:
        x = x + rng.normal(0, rng.uniform(2, 9), x.shape).astype(np.float32)
    out = np.clip(x, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        _, coded = cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 90))])
        out = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return np.asarray(out, np.uint8)
