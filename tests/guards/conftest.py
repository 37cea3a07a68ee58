"""Drawings for the guards' tests: simple shapes on white, with and without real marks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

SIDE = 64


def drawing(seed: int, side: int = SIDE) -> Image.Image:
    """A few coloured shapes in the middle of a white picture, rendered large and averaged down."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (4 * side, 4 * side), "white")
    draw = ImageDraw.Draw(picture)
    for shape in range(4):
        ink = tuple(int(v) for v in rng.integers(30, 230, 3))
        x, y = (int(v) for v in rng.integers(int(1.1 * side), int(2.9 * side), 2))
        r = int(rng.integers(int(0.3 * side), int(0.9 * side)))
        if shape % 2:
            draw.ellipse([x - r, y - r // 2, x + r, y + r // 2], fill=ink)
        else:
            draw.rounded_rectangle([x - r // 2, y - r, x + r // 2, y + r], radius=r // 4, fill=ink)
    return picture.resize((side, side), Image.Resampling.BOX)


@pytest.fixture(scope="session")
def clean() -> np.ndarray:
    """Twelve unmarked drawings, uint8 (12, 64, 64, 3)."""
    return np.stack([np.asarray(drawing(seed)) for seed in range(12)])
