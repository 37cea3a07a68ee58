"""The pieces of the mark detector's training that numbers depend on."""

from __future__ import annotations

import numpy as np
import pytest

from guards.mark_network import KINDS, make_network, pool
from jobs.world.train_marks import average_precision, cells, choose, distract, examples, to_input, vary

from .conftest import drawing


def test_average_precision() -> None:
    assert average_precision(np.array([3.0, 2.0]), np.array([1.0, 0.0])) == 1.0
    assert average_precision(np.array([0.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(1 / 4)
    assert average_precision(np.array([1.0]), np.array([1.0])) == pytest.approx(1 / 2)  # a tie counts against it


def test_cells_are_those_a_mark_changed() -> None:
    before = np.full((64, 64, 3), 255, np.uint8)
    after = before.copy()
    after[8:16, 8:24] = 0  # two whole cells
    after[40, 40] = 0  # a single pixel is no mark
    expected = np.zeros((8, 8), bool)
    expected[1, 1:3] = True
    assert np.array_equal(cells(before, after), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_variations_mark_the_picture(kind: str) -> None:
    rng = np.random.default_rng(0)
    pairs = [(drawing(seed), vary(drawing(seed), kind, rng)) for seed in range(20)]
    assert all(after.size == (64, 64) and after.mode == "RGB" for _, after in pairs)
    covered = [cells(np.asarray(before), np.asarray(after)).sum() for before, after in pairs]
    assert np.median(covered) >= 4 and sum(c > 0 for c in covered) >= 18


def test_distractions_and_unmarked_examples_have_no_target() -> None:
    rng = np.random.default_rng(0)
    stack = np.stack([np.asarray(drawing(seed)) for seed in range(4)])
    assert any(not np.array_equal(distract(stack[0], rng), stack[0]) for _ in range(3))
    pictures, targets = examples(stack, np.arange(4), 12, rng, marked=0.0, designs=(0,))
    assert pictures.shape == (12, 64, 64, 3) and not targets.any()
    _, targets = examples(stack, np.arange(4), 30, rng, marked=1.0, designs=(0, 1, 2))
    assert (targets.any((2, 3)).sum(1) <= 1).all() and targets.any((1, 2, 3)).mean() > 0.8


def test_the_three_sets_of_drawings_are_apart() -> None:
    names = ["red-apple", "taxi", "newspaper", "accordion", "abacus", "baby-dark", *[f"thing-{i}" for i in range(200)]]
    world, other, held = (set(part.tolist()) for part in choose(names))
    assert {names[i] for i in world} == {"red-apple", "taxi"}  # the world's own lettered drawings stay
    assert not (world & other or world & held or other & held) and held
    assert not {"newspaper", "abacus", "baby-dark"} & {names[i] for i in world | other | held}


def test_the_network_has_the_stated_shape() -> None:
    network = make_network().eval()
    logits = network(to_input(np.zeros((2, 64, 64, 3), np.uint8)))
    assert logits.shape == (2, 3, 8, 8) and pool(logits).shape == (2, 3)
    assert sum(p.numel() for p in network.parameters()) <= 1_000_000
