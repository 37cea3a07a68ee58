"""The visible label that Clearance itself draws: how it looks and where, and the pictures in which it stands and nothing else.

The label is opaque, and its place and size follow from the picture's. A guard can therefore tell it from every other text by
comparing pixels: where exactly this label stands it is ours, and the guards that look for text and marks look past it. With a
word more, another text or a scratch it is not ours, and they see it; in a copy of another size it is not recognised either.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

LABELS = ("AI generated", "KI-generiert", "Généré par IA", "Generado por IA", "Generato con IA")
LEAST_SIDE = 64  # pixels of the shorter side; in a smaller picture nobody could read it
HEIGHT, LEAST_HEIGHT = 0.055, 12  # of the shorter side, and in pixels
MARGIN = 0.02  # of the shorter side, to the right and below
PAPER, INK = (16, 16, 16), (255, 255, 255)
NEAR = 14.0  # grey levels of 255 by which encoders change the label on average
NEAR_ANYWHERE = 70.0  # and at most, averaged over a stroke's surroundings

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@lru_cache(maxsize=64)
def label_of(text: str, wide: int, high: int) -> tuple[Box, np.ndarray] | None:
    """Where a label stands in a picture of this size, and its pixels, uint8 RGB; None where the picture is too small for it."""
    from PIL import Image, ImageDraw

    side = min(wide, high)
    if side < LEAST_SIDE:
        return None
    margin = max(1, round(MARGIN * side))
    tall = max(LEAST_HEIGHT, round(HEIGHT * side))
    drawn = None
    while drawn is None and tall >= LEAST_HEIGHT - 4:
        font = _font(0.68 * tall)
        length = round(font.getlength(text) + 0.7 * tall)
        drawn = (font, length) if length <= wide - 2 * margin else None
        tall -= drawn is None
    if drawn is None:
        return None
    font, length = drawn
    label = Image.new("RGB", (length, tall), PAPER)
    ImageDraw.Draw(label).text((length / 2, tall / 2), text, INK, font=font, anchor="mm")
    left, top = wide - margin - length, high - margin - tall
    pixels = np.asarray(label)
    pixels.setflags(write=False)
    return (left, top, left + length, top + tall), pixels


def draw(picture: np.ndarray, text: str) -> np.ndarray | None:
    """The picture, uint8 RGB (H, W, 3), with the label in its lower right corner; None where it is too small for it."""
    found = label_of(text, picture.shape[1], picture.shape[0])
    if found is None:
        return None
    (left, top, right, bottom), pixels = found
    made = picture.copy()
    made[top:bottom, left:right] = pixels
    return made


def own_label(picture: np.ndarray) -> Box | None:
    """The place of our label in uint8 RGB (H, W, 3); None where it does not stand, or not exactly as we draw it."""
    import cv2

    for text in LABELS:
        found = label_of(text, picture.shape[1], picture.shape[0])
        if found is None:
            continue
        (left, top, right, bottom), pixels = found
        seen = picture[top:bottom, left:right]
        if abs(float(seen.mean()) - float(pixels.mean())) > NEAR:  # almost every picture ends here
            continue
        apart = np.abs(seen.astype(np.float32) - pixels).mean(2)
        if apart.mean() <= NEAR and cv2.blur(apart, (5, 5)).max() <= NEAR_ANYWHERE:
            return left, top, right, bottom
    return None


def without_own_label(pictures: np.ndarray) -> np.ndarray:
    """The pictures, uint8 RGB (N, H, W, 3), with our label painted over by its surroundings; the same array without one."""
    boxes: Sequence[Box | None] = [own_label(picture) for picture in pictures]
    if not any(boxes):
        return pictures
    import cv2

    made = pictures.copy()
    for picture, box in zip(made, boxes, strict=True):
        if box is not None:
            hidden = np.zeros(picture.shape[:2], np.uint8)
            left, top, right, bottom = box
            hidden[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = 255  # encoders smear its border
            picture[:] = cv2.inpaint(picture, hidden, 3, cv2.INPAINT_TELEA)
    return made


@lru_cache(maxsize=8)
def _font(size: float) -> FreeTypeFont | ImageFont:
    """Pillow's own font, which needs no file beside it."""
    from PIL import ImageFont

    return ImageFont.load_default(size)
