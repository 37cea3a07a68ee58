"""The visible label: a few words in the lower right corner of an accepted picture, for people who read no metadata.

The guards know how it looks (:mod:`guards.own_label`), so that a finished picture that is checked again is not flagged for the
label that we drew.
"""

from __future__ import annotations

import numpy as np

from guards.own_label import LABELS, draw

OFF = "off"
CHOICES = (OFF, *LABELS)


def labelled(picture: np.ndarray, text: str) -> tuple[np.ndarray, bool]:
    """The picture with the label, and whether it is there: below 64 pixels of the shorter side nobody could read it.

    Args:
        picture: uint8 RGB (H, W, 3).
        text: one of :data:`CHOICES`.
    """
    if text == OFF:
        return picture, False
    made = draw(picture, text)
    return (picture, False) if made is None else (made, True)
