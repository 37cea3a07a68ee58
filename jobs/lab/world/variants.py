"""Variants of a drawing: in other colours, shifted by a pixel, or placed anew."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from index.colours import turn_hues


def recolour(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same drawing in other colours: all hues turned by one random angle; greys, black and white stay."""
    return Image.fromarray(turn_hues(np.asarray(picture.convert("RGB")), float(rng.integers(256)) / 256))


def shift(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same drawing, shifted by at most one pixel to the side and up or down. White stays white."""
    dx, dy = (int(step) for step in rng.integers(-1, 2, 2))
    return picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, dx, 0, 1, dy), fillcolor="white")


def jitter(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same drawing, slightly mirrored, shifted, scaled or turned. White stays white."""
    from PIL import ImageOps

    if rng.random() < 0.5:
        picture = ImageOps.mirror(picture)
    angle = float(rng.uniform(-12, 12))
    scale = float(rng.uniform(0.82, 1.06))
    side = picture.width
    dx, dy = rng.uniform(-0.06, 0.06, 2) * side
    cos, sin = math.cos(math.radians(angle)) / scale, math.sin(math.radians(angle)) / scale
    centre = side / 2
    matrix = (
        cos,
        sin,
        centre - cos * (centre + dx) - sin * (centre + dy),
        -sin,
        cos,
        centre + sin * (centre + dx) - cos * (centre + dy),
    )
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor="white")
