"""Shares with their interval: one formula, one way to write them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from index.rate import Rate, percent, wilson

ROOT = Path(__file__).resolve().parents[2]


def test_wilson() -> None:
    # Values of the closed form computed elsewhere (Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29).
    for k, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(7, 7)[1] == 1.0


def test_rate_has_the_interval_of_wilson() -> None:
    low, high = wilson(15, 148)
    assert Rate.of(15, 148) == Rate(value=15 / 148, low=low, high=high, hits=15, n=148)
    assert Rate.of(0, 0) == Rate(value=0.0, low=0.0, high=1.0, hits=0, n=0)


@pytest.mark.parametrize(
    ("hits", "n", "text"),
    [
        (0, 47, "0 of 47 (≤ 7.6 %, 95 %)"),
        (47, 47, "47 of 47 (≥ 92.4 %, 95 %)"),
        (23, 24, "23 of 24 (95.8 %; 80 %–99.3 %, 95 %)"),
        (12, 24, "12 of 24 (50 %; 31 %–69 %, 95 %)"),
        (0, 0, "nothing to count"),
    ],
)
def test_a_share_is_written_with_its_bound(hits: int, n: int, text: str) -> None:
    assert str(Rate.of(hits, n)).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0 %"),
        (0.0001, "< 0.1 %"),
        (0.076, "7.6 %"),
        (0.5, "50 %"),
        (0.9136, "91.4 %"),
        (0.9999, "> 99.9 %"),
        (1.0, "100 %"),
    ],
)
def test_only_nothing_is_written_as_nothing(share: float, text: str) -> None:
    assert percent(share).replace("\u00a0", " ") == text


def test_the_interval_is_worked_out_in_one_place() -> None:
    """1.96 and its digits are the mark of a second Wilson."""
    found = []
    for package in ("index", "guards", "pipeline", "jobs"):
        for path in (ROOT / package).rglob("*.py"):
            numbers = [
                node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Constant)
            ]
            found += [path.name for value in numbers if isinstance(value, float) and 1.9599 < value < 1.9601]
    assert found == ["rate.py"]
