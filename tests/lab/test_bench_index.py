"""The index's bench: queries that put decisions at risk, counts of what is missed, parts that run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.reference import Match
from jobs.lab.bench import index_parts as parts
from jobs.lab.bench.index import of_size, power_law, ten_million
from jobs.lab.bench.index_data import DIM, NEAR, queries, threshold, write_references

ROWS = 1200


def real(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, DIM))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bench")
    write_references(made / "vectors.npy", ROWS, real(40, 1))
    asked = queries(np.load(made / "vectors.npy"), 300, np.load(made / "vectors.npy")[:20])
    np.savez(made / "asked.npz", vectors=asked.vectors, real=asked.real)
    return made


def test_six_in_ten_queries_lie_around_the_threshold(folder: Path) -> None:
    asked, vectors = parts.asked_of(folder), parts.vectors_of(folder)
    nearest = (asked.vectors[:240] @ vectors.T).max(1)
    assert np.allclose(np.linalg.norm(asked.vectors, axis=1), 1, atol=1e-6)
    assert (np.abs(nearest - threshold()) <= NEAR + 0.01).mean() > 0.6
    assert 0.2 < (nearest < threshold()).mean() < 0.6


def test_the_same_numbers_are_made_again(folder: Path, tmp_path: Path) -> None:
    write_references(tmp_path / "again.npy", ROWS, real(40, 1))
    assert (tmp_path / "again.npy").read_bytes() == (folder / "vectors.npy").read_bytes()


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, dict[str, Any]]:
    steps = {"build": parts.build, "truth": parts.truth, "search": parts.search, "open": parts.opening, "change": parts.change}
    steps["alike"] = parts.alike
    return {name: step(folder, ROWS, True) for name, step in steps.items()}


def test_every_decision_is_that_of_brute_force(found: dict[str, dict[str, Any]]) -> None:
    search = found["search"]
    assert search["decisions"] == search["queries"] == 320 and search["pairs_found"] == search["pairs"] > 100


def test_works_that_resemble_one_another_are_told_apart(found: dict[str, dict[str, Any]]) -> None:
    alike = found["alike"]
    assert (alike["templated"], alike["best"], alike["pairs_found"]) == (300, alike["queries"], alike["pairs"])


def test_nothing_that_is_retired_is_found(found: dict[str, dict[str, Any]]) -> None:
    change = found["change"]
    assert (
        (change["wrong"], change["added_found"]) == (0, change["added"]) and change["asked"] > 900 and change["retired"] > 100
    )


def test_goals_hold_for_large_sizes_alone(found: dict[str, dict[str, Any]]) -> None:
    small, large = (of_size(ROWS, found, goals=goals) for goals in (False, True))
    assert sum(measure.goal is not None for measure in large) >= 8 and len(small) == len(large)
    assert [m.goal for m in small if m.id.endswith("decisions equal to Flat's")] == [None]


def answer(*pairs: tuple[str, float]) -> list[Match]:
    return [Match(ref_id=ref_id, title="", similarity=cosine) for ref_id, cosine in pairs]


@pytest.mark.parametrize(
    ("mine", "decisions", "found"),
    [
        (answer(("a", 0.9), ("b", 0.8)), 1, 2),
        (answer(("b", 0.8)), 0, 1),  # the nearest was missed: flagged all the same, and for another reference
        (answer(("c", 0.7)), 0, 0),
        (answer(("a", 0.9000001), ("b", 0.8)), 0, 2),  # another last bit
        (answer(), 0, 0),
    ],
)
def test_what_is_missed_is_counted(mine: list[Match], decisions: int, found: int) -> None:
    ids, cosines = np.array([["a", "b", "c"]]), np.array([[0.9, 0.8, 0.7]])
    counted = parts.compare([mine], ids, cosines, np.array([True]))
    assert (counted["decisions"], counted["real_decisions"], counted["pairs_found"], counted["pairs"]) == (
        decisions, decisions, found, 2,
    )  # fmt: skip


def test_a_query_below_the_threshold_must_stay_below() -> None:
    ids, cosines = np.array([["a", "b", "c"]]), np.array([[0.6, 0.5, 0.4]])
    equal = [
        parts.compare([mine], ids, cosines, np.array([False]))["decisions"] for mine in (answer(("b", 0.5)), answer(("a", 0.9)))
    ]
    assert equal == [1, 0]


def test_ten_million_lie_on_the_power_law_through_two_sizes(found: dict[str, dict[str, Any]]) -> None:
    assert power_law((100, 1000), (1.0, 10.0), 10_000) == pytest.approx(100)
    assert power_law((100, 1000), (2.0, 2.0), 10_000) == pytest.approx(2)
    assert ten_million({"20000": found, "200000": found}) == {}
    assert ten_million({"200000": found, "1000000": found})["bytes on disk"] == pytest.approx(found["build"]["bytes_on_disk"])
    none = found | {"build": found["build"] | {"peak_anonymous_bytes": 0}}  # it had all that memory before
    assert "peak of anonymous memory while building, bytes" not in ten_million({"200000": none, "1000000": found})
