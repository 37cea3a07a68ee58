"""The bench of groups that push one another apart: its parts, and what it makes of made-up numbers."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.lab.bench.diversity import ARMS, SEARCH_SEED, SEARCHED, SEEDS, TRIED, form, measures, of_search, pairs, parts

NAMES = [f"caption {i}" for i in range(8)]
OF = ["a", "b", "c", "d"]


def found(mates: float, five: float = 1.0) -> dict[str, np.ndarray]:
    return {"mates": np.full(4, mates), "trunk": np.full(4, mates), "first five": np.full(4, five), "first": np.full(4, five)}


def test_every_caption_is_in_one_part() -> None:
    made = parts(NAMES, 41, "groups", form())
    assert [part.captions for part in made] == [tuple(NAMES[:4]), tuple(NAMES[4:])]


def test_arms_draw_from_the_same_noise() -> None:
    assert len({tuple(part.first_seed for part in parts(NAMES, 41, arm, form())) for arm in ARMS}) == 1


def test_pictures_of_two_parts_have_seeds_of_their_own() -> None:
    first, second = parts(NAMES, 41, "groups", form())
    assert second.first_seed - first.first_seed == 16


def test_another_form_is_drawn_again() -> None:
    places = {part.place for alpha in (0.3, 0.5) for part in parts(NAMES, 41, "groups", form(alpha=alpha))}
    assert len(places) == 4


def test_pictures_that_stand_alone_are_drawn_once_for_all_forms() -> None:
    places = {part.place for alpha in (0.3, 0.5) for part in parts(NAMES, 41, "alone", form(alpha=alpha))}
    assert len(places) == 2


def test_the_search_has_a_seed_and_captions_of_its_own() -> None:
    assert SEARCH_SEED not in SEEDS and SEARCHED <= 30 - 12  # the twelve last ones are measured


@pytest.mark.parametrize("name", TRIED)
def test_every_form_that_was_tried_is_one_of_the_run_file(name: str) -> None:
    assert form(**TRIED[name])["size"] == 4


def test_mates_of_one_direction_are_alike() -> None:
    assert pairs(np.array([[1.0, 0.0]] * 4 + [[1.0, 0.0], [0.0, 1.0]] * 2)) == pytest.approx([1.0, 1 / 3])


def test_the_change_of_groups_is_a_share() -> None:
    made = measures({"alone": found(0.8), "groups": found(0.6, 0.75), "strangers": found(0.8)}, OF)
    values = {m.id: (m.value, m.met) for m in made}
    assert values["similarity of mates, groups against alone (embedder)"] == (pytest.approx(-0.25), True)
    assert values["caption in the top 5, groups minus alone"] == (pytest.approx(-0.25), False)


def test_no_loss_meets_the_goal() -> None:
    made = measures({"alone": found(0.8), "groups": found(0.6), "strangers": found(0.8)}, OF)
    assert next(m.met for m in made if m.id == "caption in the top 5, groups minus alone")


def test_the_search_is_published_without_goals() -> None:
    made = of_search({"alone": found(0.8), "late": found(0.4)}, OF)
    assert made[0].id == "search · late · similarity of mates, change (embedder)"
    assert made[0].value == pytest.approx(-0.5) and {m.goal for m in made} == {None}
