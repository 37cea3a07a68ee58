"""The bench of negative token merging: what it draws, its shares and changes on made-up numbers, and its chart."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from jobs.lab.bench.measures import change, paired
from jobs.lab.bench.negtome import SEEDS, chart, drawn_on, grounds, measures, price, taken_by_control
from jobs.lab.bench.negtome_arms import SEARCH, Arm
from jobs.lab.bench.negtome_draw import Drawer, Ground
from jobs.lab.bench.trade import Line, Point, trade

OF = ["cat", "cat", "dog", "dog"]
GROUND = Ground("ordinary", ("cat", "dog"), (1, 2))


def found(cosine: Sequence[float], five: Sequence[float] = (1, 1, 1, 1)) -> dict[str, np.ndarray]:
    return {"cosine": np.array(cosine), "judge": np.array(cosine), "first five": np.array(five), "first": np.array(five)}


def value(arm: str, what: str, ground: str = "ordinary") -> float:
    parts = {("", False): found([0.8] * 4), ("a", False): found([0.4] * 4, [1, 1, 1, 0]), ("a", True): found([0.6] * 4)}
    return next(m.value for m in measures(GROUND, [Arm("a")], parts) if m.id == f"{ground} · {arm} · {what}")


def test_the_search_draws_every_form_and_no_control() -> None:
    assert drawn_on(grounds(False)[0]) == [(None, False), *((arm, False) for arm in SEARCH)]


def test_elsewhere_every_chosen_form_is_drawn_beside_its_control() -> None:
    drawn = drawn_on(grounds(False)[1])[1:]
    assert [control for _, control in drawn] == [False, True] * (len(drawn) // 2)
    assert {arm.name for arm, _ in drawn if arm} == {arm.name for arm in SEARCH if arm.measured}


def test_the_search_has_seeds_of_its_own() -> None:
    search, *others = grounds(False)
    assert not {seed for ground in others for seed in ground.seeds} & set(search.seeds)


def test_all_ordinary_captions_are_measured() -> None:
    ordinary = grounds(False)[1]
    assert len(ordinary.captions) == 30 and ordinary.seeds == SEEDS


def test_forms_have_names_of_their_own() -> None:
    assert len({arm.name for arm in SEARCH}) == len(SEARCH)


def test_few_captions_are_drawn_with_all_seeds_at_once() -> None:
    assert Ground("x", ("cat",) * 10, (1, 2)).parts == [(1, 2)]
    assert Ground("x", ("cat",) * 11, (1, 2)).parts == [(1,), (2,)]


def test_pictures_of_a_part_come_by_seed_and_caption() -> None:
    assert GROUND.pictures((3,)) == [(0, "cat", 3000), (1, "dog", 3001)]


def test_the_change_is_a_share_of_the_unsteered_similarity() -> None:
    assert value("a", "similarity, change") == pytest.approx(-0.5)


def test_the_control_has_a_change_of_its_own() -> None:
    assert value("a", "similarity, change by a random reference") == pytest.approx(-0.25)


def test_a_random_reference_makes_half_of_the_change() -> None:
    assert value("a", "share of the change that a random reference makes") == pytest.approx(0.5)


def test_a_lost_caption_is_a_loss() -> None:
    assert value("a", "captions in the top 5, change") == pytest.approx(-0.25)


@pytest.mark.parametrize(("ground", "goal"), [("ordinary", -0.3457), ("templates", None)])
def test_goals_are_of_ordinary_captions_alone(ground: str, goal: float | None) -> None:
    parts = {("", False): found([0.8] * 4), ("a", False): found([0.4] * 4), ("a", True): found([0.6] * 4)}
    made = measures(Ground(ground, ("cat", "dog"), (1, 2)), [Arm("a")], parts)
    assert next(m.goal for m in made if m.id.endswith("similarity, change")) == goal


@pytest.mark.parametrize(
    ("own", "control", "share"),
    [([0.4] * 4, [0.9] * 4, -0.25), ([0.4] * 4, [0.8] * 4, 0.0), ([0.9] * 4, [0.8] * 4, 1.0)],
)
def test_the_control_s_share(own: list[float], control: list[float], share: float) -> None:
    made = taken_by_control("", np.full(4, 0.8), np.array(own), np.array(control), OF, None)
    assert made.value == pytest.approx(share)


def test_the_interval_of_a_change_holds_captions_together() -> None:
    made = change("", np.ones(4), np.array([0.2, 0.2, 0.8, 0.8]), OF)
    assert (made.value, made.low, made.high) == pytest.approx((-0.5, -0.8, -0.2))


def test_where_nothing_changed_the_interval_reaches_to_both_sides() -> None:
    made = paired("", np.ones(60), np.ones(60), [str(i) for i in range(60)])
    assert (made.value, made.low, made.high) == (0.0, -0.05, 0.05)


def test_where_something_changed_the_interval_is_the_bootstraps() -> None:
    made = paired("", np.ones(4), np.array([1, 1, 0, 0]), OF)
    assert (made.value, made.low, made.high) == (-0.5, -1.0, 0.0)


@pytest.mark.parametrize(("change", "evaluations"), [({}, 1.5), ({"end": 6}, 1.15), ({"first": 10}, 1.25)])
def test_the_price_counts_the_reference_s_row(change: dict[str, Any], evaluations: float) -> None:
    assert price(Arm("a", change)) == pytest.approx(evaluations)


def drawer() -> Drawer:
    """With two vendors' drawings of two subjects, and a protected one of the first; nothing is opened."""
    made = object.__new__(Drawer)
    made.subjects = np.array(["cat", "cat", "dog", "dog", "cat"])
    made.shielded = np.array([False] * 4 + [True])
    made.vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
    return made


def test_the_reference_is_the_nearest_drawing_of_the_subject() -> None:
    assert drawer().nearest(GROUND, "cat", np.array([0.1, 0.9])) == 1


def test_of_a_protected_subject_it_is_the_protected_drawing() -> None:
    assert drawer().nearest(Ground("verbatim", ("cat",), (1,), protected=True), "cat", np.array([1.0, 0.0])) == 4


def test_a_random_reference_shows_another_subject() -> None:
    drawn = {drawer().random(GROUND, 0, seed) for seed in range(40)}
    assert drawn == {2, 3}


def test_a_random_reference_is_the_same_in_every_form() -> None:
    assert [drawer().random(GROUND, 0, 7) for _ in range(3)] == [drawer().random(GROUND, 0, 7)] * 3


def point(effect: float, cost: float) -> Point:
    return Point((effect, effect - 0.1, effect + 0.1), (cost, cost - 0.02, cost + 0.02))


def circles(svg: str) -> list[tuple[float, float]]:
    tree = ElementTree.fromstring(svg)
    return [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in tree.iter("{http://www.w3.org/2000/svg}circle")]


def test_more_effect_stands_further_right_and_more_loss_further_down() -> None:
    lines = [Line("a", point(-0.2, 0.0), point(-0.1, 0.0)), Line("b <", point(-0.4, -0.2), point(0.0, -0.1))]
    (control, own), (other_control, other) = (circles(trade(lines, effect=-0.35, loss=-0.05))[i : i + 2] for i in (0, 2))
    assert control[0] < own[0] < other[0] and other_control[0] < control[0]
    assert own[1] == control[1] < other_control[1] < other[1]


def test_the_chart_shows_every_form_that_was_measured() -> None:
    parts = {("", False): found([0.8] * 4), ("a", False): found([0.4] * 4), ("a", True): found([0.6] * 4)}
    svg = chart(measures(GROUND, [Arm("a")], parts))
    assert ">a</text>" in svg and len(circles(svg)) == 3  # its control, itself, and in the legend
