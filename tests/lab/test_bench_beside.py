"""The bench of guards beside the denoiser: the rate of flags is what it is set to, and no second picture is flagged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from guards.base import Finding
from index.reference import Match
from jobs.lab.bench.beside import GOALS, Flagging, Job, _compared
from pipeline.looking.study import Study


def look(latents: Sequence[Any], own: Sequence[Sequence[str]]) -> list[Study]:
    finding = Finding(guard="copies", version="1", category="copy.protected", score=0.9, threshold=0.8, confirmed=False)
    mark = Finding(guard="marks", version="1", category="mark.qr", score=1.0, threshold=0.5)
    near = (Match(ref_id="ref", title="grey", similarity=0.9),)
    study = Study(picture=np.zeros((2, 2, 3), np.uint8), embedding=np.ones(2), findings=(finding, mark), nearest=near)
    return [study for _ in latents]


def flagged(rate: float, own: Sequence[str]) -> list[bool]:
    latents = [np.full((4, 2, 2), i, np.float32) for i in range(1000)]
    studies = Flagging(look, rate)(latents, [own] * 1000)
    assert not any(f.triggered for study in studies for f in study.findings if f.category != "copy.protected")
    return [study.findings[0].triggered for study in studies]


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.35])
def test_first_pictures_are_flagged_at_the_rate(rate: float) -> None:
    assert np.mean(flagged(rate, [])) == pytest.approx(rate, abs=0.04)


def test_second_pictures_are_not_flagged() -> None:
    assert not any(flagged(1.0, ["ref"]))


def test_a_flag_names_the_nearest_reference_and_is_confirmed() -> None:
    (study,) = Flagging(look, 1.0)([np.zeros((4, 2, 2), np.float32)], [[]])
    assert study.findings[0].ref_id == "ref" and study.findings[0].confirmed


def job(busy: float, digests: dict[int, list[str]]) -> Job:
    return Job(busy=busy, whole=busy - 0.1, processor=busy, blocked=0.0, rate=busy, flagged=0.0, digests=digests)


def test_pictures_that_differ_miss_the_goal() -> None:
    same, other = {0: ["a"], 1: ["b", "c"]}, {0: ["a"], 1: ["b", "d"]}
    for digests, met in ((same, True), (other, False)):
        found = {m.id.partition(",")[0]: m for m in _compared(0.0, job(0.8, same), job(0.98, digests))}
        assert found["requests with the same pictures"].met is met
    assert found["accepted pictures a second"].value == pytest.approx(0.98 / 0.8)


@pytest.mark.parametrize(
    ("rate", "busy", "met"), [(0.0, 0.971, True), (0.0, 0.969, False), (0.15, 0.951, True), (0.35, 0.1, None)]
)
def test_goals_of_each_rate(rate: float, busy: float, met: bool | None) -> None:
    measures = _compared(rate, job(0.8, {0: ["a"]}), job(busy, {0: ["a"]}))
    assert measures[0].met is met and measures[0].goal == GOALS.get(rate)
