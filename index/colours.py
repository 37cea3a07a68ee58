"""The same picture in other colours: hues turned round their circle; greys, black and white stay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


def turn_hues(picture: np.ndarray, share: float) -> np.ndarray:
    """Turn every hue by a share of the whole circle.

    Args:
        picture: uint8 RGB (H, W, 3).
        share: 0 changes nothing (but rounding), 1/3 makes red green.

    Returns:
        uint8 RGB (H, W, 3); saturation and value are kept.
    """
    return next(in_hues(picture, [share]))


def in_hues(picture: np.ndarray, shares: Iterable[float]) -> Iterator[np.ndarray]:
    """The picture once for every share, as :func:`turn_hues` turns it; its hues are found once for all of them."""
    from PIL import Image

    hue, saturation, value = Image.fromarray(picture).convert("HSV").split()
    hues = np.asarray(hue)
    for share in shares:
        turned = hues + np.uint8(round(share * 256) % 256)  # uint8 wraps round the circle
        yield np.asarray(Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB"))


def hue_shares(turns: int) -> list[float]:
    """The turns of a circle cut in ``turns`` parts, without the one that changes nothing."""
    return [turn / turns for turn in range(1, turns)]
