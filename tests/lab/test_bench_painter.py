"""The painter's measures on features of known distance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.lab.bench.drawing import Drawn
from jobs.lab.bench.painter import distinguishable, nearness


class Features:
    """Judges whose features are the pictures themselves."""

    def features(self, pictures: np.ndarray) -> np.ndarray:
        return pictures.reshape(len(pictures), -1).astype(np.float64)


def drawn(pictures: np.ndarray, captions: list[str]) -> Drawn:
    samples: list[Any] = [
        SimpleNamespace(final=SimpleNamespace(picture=picture), request=SimpleNamespace(prompt=caption))
        for picture, caption in zip(pictures, captions, strict=True)
    ]
    return Drawn(samples)


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.35, 0.65), (3.0, 0.95, 1.0)])
def test_accuracy_of_the_two_sample_classifier_grows_with_the_difference(shift: float, low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    ours, real = rng.normal(size=(90, 40)) + shift, rng.normal(size=(120, 40))
    found = distinguishable("x", Features(), drawn(ours, ["cat"] * 90), real, 0.65)  # type: ignore[arg-type]
    assert low <= found.value <= high
    assert found.n == 180


def test_the_nearest_drawing_is_right_when_it_shows_the_subject() -> None:
    vectors = np.eye(3)[[0, 1, 2]]
    drawings = np.array([[1.0, 0, 0], [0, 0.6, 0], [0, 0, 0.9]])
    ours = drawn(np.zeros((3, 2)), ["cat", "dog", "dog"])
    right, cosine = nearness("x", ours, vectors, drawings, np.array(["cat", "dog", "cat"]))
    assert right.value == pytest.approx(2 / 3)  # the third is nearest to a cat
    assert cosine.value == pytest.approx((1.0 + 0.6 + 0.0) / 3)
