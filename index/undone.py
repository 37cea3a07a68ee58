"""A picture with an edit undone that hides a copy from the embedder: turned back, inverted, or cut out of what is round it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

TURNED, NEGATIVE, INSET = "turned", "negative", "inset"
EDITS = (TURNED, NEGATIVE, INSET)
# Shares of the picture's sides, and how many places along each; chosen on drawings in frames, on pages and in scenes.
WINDOWS = ((0.75, 1), (0.6, 3), (0.42, 6))
FORMS = {TURNED: 3, NEGATIVE: 1, INSET: sum(places**2 for _, places in WINDOWS)}  # how many :func:`undone` yields


def undone(picture: np.ndarray, edit: str) -> Iterator[np.ndarray]:
    """What the picture was before an edit, once for every form that the edit may have had.

    Args:
        picture: uint8 RGB (H, W, 3).
        edit: ``turned`` (by a quarter, a half or three quarters), ``negative``, or ``inset``: put into a larger picture.

    Yields:
        uint8 RGB. Of ``inset`` the parts of the picture, each of its shape, in :data:`WINDOWS`.

    Raises:
        ValueError: there is no such edit.
    """
    if edit == TURNED:
        yield from (np.ascontiguousarray(np.rot90(picture, turns)) for turns in (1, 2, 3))
    elif edit == NEGATIVE:
        yield 255 - picture
    elif edit == INSET:
        high, wide = picture.shape[:2]
        for share, places in WINDOWS:
            size = max(1, round(share * high)), max(1, round(share * wide))
            for top in _places(high - size[0], places):
                for left in _places(wide - size[1], places):
                    yield np.ascontiguousarray(picture[top : top + size[0], left : left + size[1]])
    else:
        raise ValueError(f"there is no edit {edit!r}")


def _places(room: int, places: int) -> list[int]:
    """Evenly from one border to the other; one place is the middle."""
    return [round(room / 2)] if places == 1 else [round(room * i / (places - 1)) for i in range(places)]
