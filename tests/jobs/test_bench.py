from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.bench.measures import Measure, clustered, publish, share
from jobs.bench.sheet import CAPTION, GAP, TILE, arrange, stack, strip


def test_a_clustered_mean_knows_that_seeds_of_one_caption_are_not_independent() -> None:
    clusters = [f"c{i}" for i in range(20) for _ in range(10)]
    same = [float(i % 2) for i in range(20) for _ in range(10)]  # all seeds of a caption alike
    spread = [float(j % 2) for _ in range(20) for j in range(10)]  # every caption alike
    tied, free = clustered("m", same, clusters), clustered("m", spread, clusters)
    assert tied.value == free.value == 0.5
    assert tied.high - tied.low > 0.3 and free.high - free.low < 0.01
    assert clustered("m", same, clusters) == tied


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 0.15), (1.0, 0.85, 1.0)])
def test_never_and_always_have_an_interval_too(value: float, low: float, high: float) -> None:
    found = clustered("m", [value] * 40, [f"c{i // 2}" for i in range(40)])
    assert (found.value, found.low, found.high) == (value, pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize(
    ("measure", "met"),
    [
        (Measure("m", 0.9, 0, 1, 9), None),
        (Measure("m", 0.9, 0, 1, 9, 0.8), True),
        (Measure("m", 0.9, 0, 1, 9, 0.8, "lower"), False),
        (Measure("m", 0.3, 0, 1, 9, 0.15, most=0.4), True),
        (Measure("m", 0.5, 0, 1, 9, 0.15, most=0.4), False),
    ],
)
def test_goals(measure: Measure, met: bool | None) -> None:
    assert measure.met is met


def test_published_json_has_every_measure_and_whether_its_goal_was_met(tmp_path: Path) -> None:
    publish("x", [share("a", 3, 4, 0.9), share("b", 0, 0)], tmp_path, seeds=(1, 2), quick=True)
    body = json.loads((tmp_path / "x-quick.json").read_text())
    assert body["seeds"] == [1, 2] and [m["met"] for m in body["measures"]] == [False, None]
    assert {"id", "value", "low", "high", "n", "goal", "better", "met"} <= set(body["measures"][0])


def test_contact_sheets_keep_every_picture_in_its_place() -> None:
    red, blue = np.full((64, 64, 3), (255, 0, 0), np.uint8), np.full((64, 64, 3), (0, 0, 255), np.uint8)
    row = strip("apple", [red, None, blue])
    assert row.shape == (TILE + CAPTION, 3 * TILE, 3)
    assert (row[CAPTION + 5, 5] == (255, 0, 0)).all() and (row[CAPTION + 5, TILE + 5] == 255).all()
    laid = arrange([row] * 3, 2)
    assert laid.shape == (2 * (TILE + CAPTION), 6 * TILE + GAP, 3)
    assert (laid[-5, 2 * TILE + 5] == (0, 0, 255)).all() and (laid[-5, 5 * TILE] == 255).all()
    assert stack([("one", laid), ("two", row)]).size[0] == laid.shape[1] + 2 * GAP
