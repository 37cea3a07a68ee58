"""The bench of faithfulness: its policy climbs every way of steering, and its numbers are right on data made for it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from jobs.lab.bench.faithfulness import WAYS, area, auc, climbing, measures


def test_every_request_climbs_every_way() -> None:
    policy = climbing()
    assert len(policy.ladder) == len(WAYS)
    assert policy.copies.threshold == pytest.approx(1e-4)


ORDERS = [([0.9, 0.8, 0.1, 0.2], 1.0), ([0.1, 0.2, 0.8, 0.9], 0.0), ([0.5, 0.5, 0.5, 0.5], 0.5), ([0.9, 0.1, 0.5, 0.0], 0.75)]


@pytest.mark.parametrize(("score", "expected"), ORDERS)
def test_the_area_is_the_probability_of_the_right_order(score: list[float], expected: float) -> None:
    assert area(np.array(score), np.array([True, True, False, False])) == pytest.approx(expected)


def test_an_area_has_an_interval_over_captions() -> None:
    rng = np.random.default_rng(0)
    lost = rng.random(120) < 0.3
    captions = np.array([f"caption {i % 20}" for i in range(120)])
    found = auc("x", lost + rng.normal(0, 0.7, 120), lost, captions, np.ones(120, bool), 0.9)
    assert found.low < found.value < found.high
    assert found.n == 120


def test_without_both_kinds_nothing_is_claimed() -> None:
    found = auc("x", np.zeros(4), np.zeros(4, bool), np.array(list("abcd")), np.ones(4, bool))
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


def test_only_steered_pictures_count() -> None:
    number = np.array([0, 1, 2, 3, 4] * 4)
    right = np.array(([True] * 5 + [True, False, False, False, False]) * 2)
    captions = [f"c{i // 5}" for i in range(20)]
    found = SimpleNamespace(number=number, right=right, captions=captions)
    by = {m.id: m for m in measures(found, (~right).astype(float), 0.5)}  # type: ignore[arg-type]
    first = by["steered pictures: lost against kept captions, AUC"]
    assert (first.value, first.n) == (1.0, 16)
    assert by["kept captions flagged, at a score of 0.5"].value == 0.0
    assert by["lost captions found, at a score of 0.5"].value == 1.0
