"""The second look: the same drawing moved about is confirmed, another drawing is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from index.confirm import BIAS, FEATURES, WEIGHTS, confirm, evidence, second_look_id

from .conftest import drawing


def moved(picture: np.ndarray, *, scale: float = 1.0, turn: float = 0.0, shift: tuple[float, float] = (0, 0)) -> np.ndarray:
    side = picture.shape[0]
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), turn, scale)
    matrix[:, 2] += shift
    return np.asarray(cv2.warpAffine(picture, matrix, (side, side), borderValue=(255, 255, 255)), np.uint8)


COPIES = {
    "itself": lambda p: p,
    "shifted": lambda p: moved(p, shift=(5, -4)),
    "mirrored": lambda p: np.ascontiguousarray(p[:, ::-1]),
    "smaller": lambda p: moved(p, scale=0.8, shift=(3, 2)),
    "turned": lambda p: moved(p, turn=9),
    "smeared": lambda p: cv2.GaussianBlur(p, (0, 0), 1.1),
    "larger file": lambda p: cv2.resize(p, (150, 150), interpolation=cv2.INTER_CUBIC),
    "brighter": lambda p: (255 - (255 - p.astype(int)) * 0.8).astype(np.uint8),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_confirmed(how: str) -> None:
    for seed in range(4):
        assert confirm(COPIES[how](drawing(seed)), drawing(seed)) >= 0.5, seed


def test_another_drawing_is_not() -> None:
    # One in twelve near misses is confirmed wrongly (8 % measured on the world's drawings): blocks on white can look alike.
    scores = [confirm(drawing(seed), drawing(seed + 50)) for seed in range(12)]
    assert sum(score >= 0.5 for score in scores) <= 1 and np.median(scores) < 0.2
    copies = [confirm(moved(drawing(seed), turn=6, shift=(2, 3)), drawing(seed)) for seed in range(12)]
    assert min(copies) > max(scores)


def test_an_identical_picture_has_full_evidence() -> None:
    found = dict(zip(FEATURES, evidence(drawing(1), drawing(1)), strict=True))
    assert min(found.values()) > 0.97 and len(WEIGHTS) == len(FEATURES)


@pytest.mark.parametrize("side", [1, 7, 64, 300])
def test_empty_and_odd_pictures_give_a_score(side: int) -> None:
    blank = np.full((side, side, 3), 255, np.uint8)
    for pair in ((blank, drawing(1)), (drawing(2)[:40], drawing(2)[:, :20])):
        assert 0 <= confirm(*pair) <= 1
    assert confirm(blank, drawing(1)) < 0.5 and np.isnan(confirm(drawing(1), blank)) and np.isnan(confirm(blank, blank))


FIELDS = {
    "one colour": np.full((512, 512, 3), (0, 47, 167), np.uint8),
    "grain": (np.array([0, 47, 167]) + np.random.default_rng(0).integers(-3, 4, (512, 512, 3))).clip(0, 255).astype(np.uint8),
    "gradient": np.linspace(0, 255, 512).astype(np.uint8)[None, :, None].repeat(512, axis=0).repeat(3, axis=2),
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_reference_without_edges_cannot_be_judged(field: str) -> None:
    work = FIELDS[field]
    coded = cv2.imdecode(cv2.imencode(".jpg", work, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], cv2.IMREAD_COLOR)
    assert np.isnan(confirm(work, work)) and np.isnan(confirm(np.asarray(coded, np.uint8), work))


def test_scores_that_can_be_judged_are_those_of_before() -> None:
    for seed in range(3):
        picture, reference = drawing(seed), moved(drawing(seed), turn=5)
        logit = np.dot(WEIGHTS, evidence(picture, reference)) + BIAS
        assert confirm(picture, reference) == float(1 / (1 + np.exp(-np.clip(float(logit), -30, 30))))
    assert second_look_id().startswith("c01dfb181f65")


def test_it_is_deterministic() -> None:
    assert confirm(moved(drawing(5), turn=5), drawing(5)) == confirm(moved(drawing(5), turn=5), drawing(5))


def test_the_mirror_image_is_laid_over_too() -> None:
    for seed in range(6):
        found = dict(zip(FEATURES, evidence(np.ascontiguousarray(drawing(seed)[:, ::-1]), drawing(seed)), strict=True))
        assert found["edges"] > 0.95, seed
