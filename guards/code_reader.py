"""Reads matrix codes with zxing-cpp, for the codes guard, and for the text guard, which covers codes before it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from guards.base import Box

UPSCALES = (1, 2, 4)  # small codes have modules of one pixel; the decoder wants two or more
LARGEST = 1024  # pixels of the longer side beyond which nothing is enlarged
FORMATS = ("QRCode", "MicroQRCode", "RMQRCode", "DataMatrix", "Aztec")  # stripes in drawings pass for linear codes
GROWN = 1.06  # a code is covered with so much of what is around it: its corners are located to about a module
INSTALL = "Install it with `pip install zxing-cpp`"


@dataclass(frozen=True)
class Code:
    """A code that decodes: its payload, and its four corners in turn, x and y in fractions of the picture."""

    payload: str
    corners: tuple[tuple[float, float], ...]

    @property
    def box(self) -> Box:
        """The upright box around it: x0, y0, x1, y1."""
        x, y = zip(*self.corners, strict=True)
        return min(x), min(y), max(x), max(y)


def decoded(picture: np.ndarray) -> list[Code]:
    """The codes in a picture, uint8 RGB (H, W, 3). One that is found at several enlargements is there several times."""
    import zxingcpp

    formats: Any = zxingcpp.barcode_formats_from_str("|".join(FORMATS))
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    grey = (picture.astype(np.float32) @ luma).round().astype(np.uint8)
    found = []
    for times in UPSCALES:
        if times > 1 and times * max(grey.shape) > LARGEST:
            break
        # A quiet zone of white helps codes that touch the border; try_invert covers light-on-dark codes.
        pad = 4 * times
        shown = np.pad(grey.repeat(times, 0).repeat(times, 1), pad, constant_values=255)
        for code in zxingcpp.read_barcodes(shown, formats=formats, try_invert=True, try_rotate=True):
            if code.valid and code.text:
                found.append(Code(code.text, _corners(code.position, pad, times, grey.shape)))
    return found


def covered(picture: np.ndarray, codes: list[Code]) -> np.ndarray:
    """A copy of the picture with white in the place of ``codes``."""
    import cv2

    high, wide = picture.shape[:2]
    out = np.ascontiguousarray(picture).copy()
    for code in codes:
        four = np.array(code.corners) * [wide, high]
        middle = four.mean(0)
        cv2.fillConvexPoly(out, np.rint(middle + GROWN * (four - middle)).astype(np.int32), (255, 255, 255))
    return out


def _corners(position: Any, pad: int, times: int, shape: tuple[int, ...]) -> tuple[tuple[float, float], ...]:
    four = (position.top_left, position.top_right, position.bottom_right, position.bottom_left)
    across, down = times * shape[1], times * shape[0]
    return tuple((min(1.0, max(0.0, (at.x - pad) / across)), min(1.0, max(0.0, (at.y - pad) / down))) for at in four)
