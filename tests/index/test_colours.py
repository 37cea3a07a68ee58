"""Turning hues: what changes and what does not."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from index.colours import hue_shares, in_hues, turn_hues

RNG = np.random.default_rng(7)


def test_a_third_of_the_circle_makes_red_green_and_three_bring_it_back() -> None:
    red = np.zeros((2, 3, 3), np.uint8)
    red[..., 0] = 200
    green = turn_hues(red, 1 / 3)
    assert green.shape == red.shape and green.dtype == np.uint8
    assert (np.abs(green.astype(int) - [0, 200, 0]) <= 2).all()
    assert (np.abs(turn_hues(turn_hues(green, 1 / 3), 1 / 3).astype(int) - red) <= 6).all()


def test_greys_stay_and_saturation_and_value_are_kept() -> None:
    grey = np.repeat(RNG.integers(0, 256, (5, 4, 1)), 3, axis=2).astype(np.uint8)
    assert (turn_hues(grey, 0.4) == grey).all()
    picture = RNG.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    turned = turn_hues(picture, 0.25)
    assert (turned.max(2) == picture.max(2)).all()  # value
    assert (np.abs(turned.min(2).astype(int) - picture.min(2)) <= 2).all()  # saturation


def test_the_shares_leave_out_what_changes_nothing() -> None:
    assert hue_shares(1) == [] and hue_shares(4) == [0.25, 0.5, 0.75]


def test_turns_made_together_are_those_made_alone() -> None:
    picture = np.random.default_rng(3).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    shares = [0.0, *hue_shares(5)]
    assert [turned.tobytes() for turned in in_hues(picture, shares)] == [turn_hues(picture, s).tobytes() for s in shares]


def test_turning_a_shrunk_picture_changes_little_against_shrinking_a_turned_one() -> None:
    rng = np.random.default_rng(1)
    large = cv2.GaussianBlur(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8), (0, 0), 6)
    large = np.clip((large.astype(np.float32) - 128) * 6 + 128, 0, 255).astype(np.uint8)

    def shrunk(picture: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(picture).resize((224, 224), Image.Resampling.BICUBIC), np.float32)

    after = turn_hues(shrunk(large).astype(np.uint8), 1 / 3).astype(np.float32)
    assert float(np.abs(after - shrunk(turn_hues(large, 1 / 3))).mean()) < 1.5  # of 255
