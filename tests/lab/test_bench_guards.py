"""The arithmetic of ``clearance lab bench guards``."""

from __future__ import annotations

import numpy as np
import pytest

from guards.copies import CopiesGuard
from index.calibrate import OperatingPoint
from jobs.lab.bench.guards import DEVICE_SECONDS, DIM, Away, Far, pictures_of, version_4, waiting


@pytest.mark.parametrize(("seconds", "share"), [(0.3, 0.0), (0.89, 0.0), (1.8, 0.5)])
def test_a_denoiser_waits_for_what_its_processes_cannot_do(seconds: float, share: float) -> None:
    assert waiting([seconds]) == pytest.approx(share, abs=0.01)  # two processes do 1 / 0.9 pictures a second of 1.8 s each
    assert DEVICE_SECONDS == 0.45


class Counting(Far):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def search(self, embeddings: np.ndarray, k: int) -> list[list[object]]:
        self.seen.append(len(embeddings))
        return super().search(embeddings, k)


def test_both_ways_of_the_copies_guard_search_for_the_same_number_of_pictures() -> None:
    index, shown = Counting(), pictures_of(64)[:2]
    guard = CopiesGuard(index, Away(), point=OperatingPoint(threshold=0.9), hues=12)  # type: ignore[arg-type]
    guard.check(shown)
    assert index.seen == [2, 22]
    index.seen.clear()
    version_4(guard, shown)
    assert index.seen == [2] * 12


def test_the_embedder_that_is_away_has_one_vector_for_a_picture_and_its_small_form() -> None:
    away, shown = Away(), pictures_of(512)[:1]
    assert np.array_equal(away.images(shown), away.images(away.fitted(shown[0])[None])) and away.images(shown).shape == (1, DIM)
