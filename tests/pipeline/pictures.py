"""Pictures large enough for a watermark: flat shapes as in drawings, and detail of every size as in photographs."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw


def flat(seed: int, wide: int, high: int) -> np.ndarray:
    """A few coloured shapes on white, uint8 (high, wide, 3)."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (wide, high), "white")
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y = rng.uniform(0.1, 0.7, 2) * (wide, high)
        box = [x, y, x + rng.uniform(0.1, 0.3) * wide, y + rng.uniform(0.1, 0.3) * high]
        draw.ellipse(box, fill=tuple(int(v) for v in rng.integers(30, 230, 3)))
    return np.asarray(picture)


def rough(seed: int, wide: int, high: int) -> np.ndarray:
    """Noise whose power falls with frequency as in photographs, uint8 (high, wide, 3)."""
    rng = np.random.default_rng(seed)
    fx, fy = np.fft.fftfreq(wide), np.fft.fftfreq(high)
    fall = 1 / np.maximum(np.hypot(fy[:, None], fx[None]), 2 / max(wide, high)) ** 1.3
    planes = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(high, wide))) * fall).real for _ in range(3)]
    planes = [planes[0] + 0.3 * plane for plane in planes]  # channels of one picture go together
    stack = np.stack([(plane - plane.mean()) / plane.std() for plane in planes], 2)
    return np.clip(128 + 45 * stack, 0, 255).astype(np.uint8)
