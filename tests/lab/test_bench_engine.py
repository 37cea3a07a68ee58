"""The engine's benches on a tiny random model: their counts equal counts by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.lab.bench import engine_reruns
from jobs.lab.bench.engine_equality import SAMPLES, equality
from jobs.lab.bench.engine_matching import naive, tiled
from jobs.lab.bench.engine_negtome import step_overhead
from jobs.lab.bench.engine_reruns import BATCH, Coins, Spent, counted, expected, reruns
from jobs.lab.bench.load import load_average, quiet, remark
from jobs.lab.bench.measures import Measure
from pipeline.config import ModelConfig
from pipeline.model.interface import DiffusionModel
from pipeline.model.load import load_model

STEPS = 8


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> DiffusionModel:
    return load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))


def only(measures: list[Measure], *words: str) -> Measure:
    (found,) = [m for m in measures if all(word in m.id for word in words)]
    return found


def attempts(coins: Coins, sample: int) -> int:
    return next(k for k in range(100) if not coins.flagged(sample, k)) + 1


def test_coins_are_the_same_for_all_loops_and_fall_at_their_rate() -> None:
    coins = Coins(1, 0.15)
    flags = [coins.flagged(i, k) for i in range(2000) for k in range(2)]
    assert flags == [Coins(1, 0.15).flagged(i, k) for i in range(2000) for k in range(2)]
    assert 0.13 < sum(flags) / len(flags) < 0.17
    assert 0.88 < sum(coins.caught(i, 0) for i in range(2000)) / 2000 < 0.92
    assert {coins.back(i, 0) for i in range(100)} == {2, 3, 4}
    assert not any(Coins(1, 0.0).flagged(i, 0) for i in range(100))


def evaluations(coins: Coins, samples: int) -> tuple[int, int, int]:
    """Of the three loops, in steps, by the rules that the module gives."""
    needed = [attempts(coins, i) for i in range(samples)]
    whole = sum(BATCH * max(needed[at : at + BATCH]) for at in range(0, samples, BATCH))
    probe, late, spent = STEPS // 4, round(0.4 * STEPS), 0
    for i in range(samples):
        spent += STEPS
        for k in range(needed[i] - 1):
            # After a late restart no sample passes the probe again: the probe lies before the step resumed from.
            early = coins.caught(i, k) and all(coins.caught(i, j) for j in range(k))
            spent += min(probe, coins.back(i, k)) if early else STEPS - late
    return STEPS * whole, STEPS * sum(needed), spent


def test_evaluations_of_the_three_loops(model: DiffusionModel) -> None:
    samples, coins = 2 * BATCH, Coins(2, 0.35)
    measures = reruns(model, 0.35, [2], samples=samples, steps=STEPS)
    whole, partial, spent = evaluations(coins, samples)
    assert only(measures, "evaluations", "whole").value == whole / samples / STEPS
    assert only(measures, "evaluations", "partial").value == partial / samples / STEPS
    assert only(measures, "evaluations", "in flight").value == spent / samples / STEPS
    assert spent < partial < whole


def test_evaluations_to_expect_are_counted_without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_reruns, "THROWN", 5)
    samples = 2 * BATCH
    whole, partial, ours = np.mean([evaluations(Coins(seed, 0.35), samples) for seed in range(5)], axis=0) / samples
    assert counted(0.35, samples, STEPS) == pytest.approx({"whole": whole, "partial": partial, "in flight": ours})
    measured = expected("faster", [Spent(10, 20), Spent(30, 60)], [Spent(5, 11), Spent(5, 10)], (3, 2), None)
    assert (measured.low, measured.high) == pytest.approx((3 / 2 * 2 / 2.2, 3 / 2))
    assert measured.value == pytest.approx(3 / 2 * 2 / 2.1)  # all their time by all their evaluations


def test_without_flags_nothing_is_drawn_twice(model: DiffusionModel) -> None:
    measures = reruns(model, 0.0, [1], samples=BATCH, steps=4)
    assert {m.value for m in measures if "evaluations" in m.id} == {1.0} == {only(measures, "rows in use").value}


def test_byte_equality_is_counted_over_all_schedules(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    equal = only(equality(model, "float32", steps=2), "byte-equal")
    assert (equal.value, equal.n, equal.met) == (1.0, 3 * SAMPLES, True)
    real, calls = model.denoise, []

    def drifting(*args: object) -> torch.Tensor:
        calls.append(1)
        return real(*args) + 1e-6 * len(calls)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "denoise", drifting)
    assert only(equality(model, "float32", steps=2), "byte-equal").met is False


def test_overhead_is_measured_on_samples_that_are_really_steered(
    model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.steer import negtome

    real, pushed = negtome.displacement, []

    def counting(*args: object, **more: object) -> torch.Tensor | None:
        moved = real(*args, **more)  # type: ignore[arg-type]
        pushed.append(moved is not None and bool(moved.any()))
        return moved

    monkeypatch.setattr(negtome, "displacement", counting)
    measures = step_overhead(model, steps=2, rounds=1)
    assert [m.n for m in measures] == [2, 1] and any(pushed)
    sites = len({site.block for site in model.sites()})
    assert len(pushed) == sites * 2 * (2 + 4)  # 2 of 8 samples from features, 4 of 16 from reference rows, 2 steps each


def test_a_busy_machine_is_said_to_be_one() -> None:
    assert remark({"matching": 1.0, "NegToMe": 1.4}, processors=2) == ""
    warning = remark({"matching": 1.2, "NegToMe": 3.04}, processors=2)
    assert "NegToMe (3.0)" in warning and "matching" not in warning and "not worth quoting" in warning
    assert quiet(5.0, processors=64) and not quiet(5.0, processors=8) and load_average() >= 0


def test_both_matchers_match_alike() -> None:
    tokens, reference = (torch.randn(100, 64, generator=torch.Generator().manual_seed(i)) for i in range(2))
    assert torch.allclose(naive(tokens, reference)[0], tiled(tokens, reference)[0], atol=0.02)
