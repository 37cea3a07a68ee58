from __future__ import annotations

import numpy as np
import pytest

from jobs.lab.world.calibrate_copies import Comparisons
from tests.index.conftest import GridEmbedder, drawing


def test_pairs_of_pictures_are_compared_row_by_row() -> None:
    references, pictures = (np.stack([drawing(seed) for seed in seeds]) for seeds in ((1, 2, 3), (1, 5, 3)))
    pairs = Comparisons(references, pictures, np.array([True, False, True]), np.ones(3, bool))
    cosine, second = pairs.measured(GridEmbedder(), lambda a, b: float(np.array_equal(a, b)))
    assert cosine[0] == pytest.approx(1) and cosine[2] == pytest.approx(1) and cosine[1] < 0.95
    assert second.tolist() == [1.0, 0.0, 1.0]
