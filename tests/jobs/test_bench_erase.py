"""The eraser's bench: its statistics by hand, and its bookkeeping."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.bench.erase_arms import ARMS, FULL, adapter_folder
from jobs.bench.measures import Measure, corrected, half_samples, kid, ratio


def test_a_rate_is_corrected_for_its_detector() -> None:
    # 30 % seen by a detector of sensitivity .8 and specificity .9: (0.3 − 0.1) / 0.7 = 2/7
    found = corrected("c", Measure("m", 0.3, 0.1, 0.5, 40), 0.8, 0.9)
    assert (found.value, found.low, found.high) == (pytest.approx(2 / 7), 0.0, pytest.approx(4 / 7)) and found.n == 40
    assert corrected("c", Measure("m", 1.0, 0.9, 1.0, 40), 0.8, 0.9).value == 1.0  # never above everything
    blind = corrected("c", Measure("m", 0.3, 0.1, 0.5, 40), 0.2, 0.8)
    assert (blind.low, blind.high) == (0.0, 1.0)  # a coin says nothing


def test_a_ratio_counts_the_same_cases() -> None:
    clusters = [f"c{i // 3}" for i in range(60)]
    before, after = np.tile([1.0, 1.0, 0.0], 20), np.tile([1.0, 0.0, 0.0], 20)
    found = ratio("r", before, after, clusters, 2.0)
    assert (found.value, found.low, found.high, found.met) == (2.0, 2.0, 2.0, True)  # every cluster alike
    assert ratio("r", before, np.zeros(60), clusters).value == 80  # 40 before, none after: half a case stands in
    mixed = ratio("r", before, np.repeat([1.0, 0.0], 30), clusters)
    assert mixed.value == pytest.approx(40 / 30) and mixed.low < mixed.value < mixed.high


def test_kid_by_hand_and_in_expectation() -> None:
    x, y = np.array([[1.0], [-1.0]]), np.array([[1.0], [1.0]])
    # k(1, 1) = 8, k(1, −1) = 0: within x 0, within y 8, across (8 + 8 + 0 + 0) / 4 = 4 → 0 + 8 − 2·4 = 0
    assert kid(x, y) == pytest.approx(0.0)
    assert kid(np.array([[2.0], [2.0]]), y) == pytest.approx(125 + 8 - 2 * 27)
    rng = np.random.default_rng(0)
    same = [kid(rng.normal(size=(40, 8)), rng.normal(size=(60, 8))) for _ in range(200)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(200)  # unbiased
    assert kid(rng.normal(1, 1, (40, 8)), rng.normal(size=(60, 8))) > 10 * np.std(same)


def test_halves_surround_the_whole() -> None:
    rng = np.random.default_rng(1)
    found = half_samples("k", rng.normal(0.5, 1, (80, 4)), rng.normal(size=(50, 4)), kid, scale=1000)
    assert found.low < found.value < found.high and found.better == "lower" and found.n == 80


def test_every_arm_has_a_folder_of_its_own() -> None:
    folders = [adapter_folder(Path("w"), arm, seed) for arm in ARMS for seed in (0, 1)]
    assert len(set(folders)) == 2 * len(ARMS)
    for part in ("model", "data"):
        full = [arm for arm in ARMS if arm.part == part and arm.name == FULL[part]]
        assert len(full) == 1 and full[0].training.a < 1 and full[0].training.mode == "corners"


def test_arms_differ_in_one_thing() -> None:
    """The ablation adds one thing at a time: names, then geometry, then re-weighting."""
    for part in ("model", "data"):
        name, geometry, full = [arm.training for arm in ARMS if arm.part == part and arm.name.startswith("name")]
        assert (name.mode, name.a) == ("none", 1.0) and (geometry.mode, geometry.a) == ("corners", 1.0)
        assert full.a == 0.5 and full.mode == "corners"
        assert name.steps == geometry.steps == full.steps and name.batch == full.batch
