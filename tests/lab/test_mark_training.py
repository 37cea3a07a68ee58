"""The pieces of the mark detectors' training and measuring that numbers depend on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from guards.mark_network import CELLS, make_network, pool, pool_boxes, split, surest_boxes
from jobs.erase.marks.letters import FONTS
from jobs.lab.world import mark_measures
from jobs.lab.world.autoencoder import to_input
from jobs.lab.world.mark_examples import Examples, cells, choose, distract, examples, smear
from jobs.lab.world.mark_measures import (
    Trial,
    average_precision,
    interval,
    marked_drawings,
    operating_logits,
    overlap,
    precision_of,
)
from jobs.lab.world.mark_training import averaged, fit
from jobs.lab.world.train_marks import giou, judge_of, loss_of
from tests.guards.conftest import drawing

absent = [package for package in FONTS if importlib.util.find_spec(package) is None]
needs_fonts = pytest.mark.skipif(bool(absent), reason=f"fonts of the extra 'lab' are not installed: {absent}")


def drawings(count: int) -> np.ndarray:
    return np.stack([np.asarray(drawing(seed)) for seed in range(count)])


def test_average_precision() -> None:
    truth = np.array([True, True, False, False])
    assert average_precision(np.array([3.0, 2.0, 1.0, 0.0]), truth, 2) == 1.0
    assert average_precision(np.array([0.0, 1.0, 2.0, 3.0]), np.array([True, False, False, False]), 1) == pytest.approx(1 / 4)
    assert average_precision(np.array([1.0, 1.0]), np.array([True, False]), 1) == pytest.approx(
        1 / 2
    )  # a tie counts against it
    assert average_precision(np.array([3.0, 2.0]), np.array([True, False]), 2) == pytest.approx(1 / 2)  # one was not found


def test_overlap() -> None:
    a = np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0, 0, 0.5, 1]])
    b = np.array([[0, 0, 1, 1], [0.5, 0.5, 1, 1], [0.25, 0, 0.75, 1]])
    assert overlap(a, b) == pytest.approx([1.0, 0.0, 1 / 3])


def test_a_detection_needs_the_kind_and_half_the_box() -> None:
    kinds = np.array([0, 0, 1, -1])
    truth = np.array([[0, 0, 0.5, 0.5]] * 3 + [[0, 0, 0, 0]], dtype=float)
    boxes = np.tile(truth[:, None], (1, 3, 1))
    logits = np.full((4, 3), -9.0)
    logits[:, 0] = (3, 2, -5, -4)
    assert precision_of(Trial(logits, boxes, kinds, truth), 0) == 1.0
    boxes[1, 0] = (0.4, 0.4, 0.9, 0.9)  # the right kind in the wrong place
    assert precision_of(Trial(logits, boxes, kinds, truth), 0) == pytest.approx(0.5)
    logits[2, 0] = 5  # a code taken for a watermark, surer than both
    assert precision_of(Trial(logits, boxes, kinds, truth), 0) == pytest.approx(0.25)


def test_the_interval_holds_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mark_measures, "BOOTSTRAPS", 60)
    rng = np.random.default_rng(0)
    kinds = np.repeat([0, -1], 60)
    truth = np.where(kinds[:, None] == 0, [0.1, 0.1, 0.6, 0.6], 0.0)
    logits = rng.normal(size=(120, 3)) + 1.2 * (kinds[:, None] == 0)
    trial = Trial(logits, np.tile(truth[:, None], (1, 3, 1)), kinds, truth)
    low, high = interval(trial, (0,))
    assert low < precision_of(trial, 0) < high < low + 0.35


def test_operating_points_allow_the_stated_alarms_under_every_look() -> None:
    rng = np.random.default_rng(0)
    quiet = {"plain": rng.normal(size=(1000, 3)), "smeared": rng.normal(size=(1000, 3)) + np.array([1, 0, -8])}
    points = operating_logits(quiet)
    assert all((q >= np.array(points)).mean(0).max() <= mark_measures.ALARMS / 3 for q in quiet.values())
    assert points[0] > points[1] > mark_measures.FLOOR and (quiet["plain"][:, 1] >= points[1] - 0.2).any()
    assert operating_logits({"plain": rng.normal(size=(100, 3)) - 20}) == [mark_measures.FLOOR] * 3


def test_cells_are_those_a_mark_changed() -> None:
    before = np.full((64, 64, 3), 255, np.uint8)
    after = before.copy()
    after[8:16, 8:24] = 0  # two whole cells
    after[40, 40] = 0  # a single pixel is no mark
    expected = np.zeros((8, 8), bool)
    expected[1, 1:3] = True
    assert np.array_equal(cells(before, after), expected)


def test_distractions_and_unmarked_examples_have_no_target() -> None:
    rng = np.random.default_rng(0)
    stack = drawings(4)
    assert any(not np.array_equal(distract(stack[0], rng), stack[0]) for _ in range(3))
    clean = examples(stack, np.arange(4), 12, rng, marked=0.0)
    assert clean.pictures.shape == (12, 64, 64, 3) and len(clean) == 12
    assert not clean.cells.any() and not clean.boxes.any() and (clean.kinds == -1).all()


@needs_fonts
def test_marked_examples_have_one_kind_with_its_box_and_cells() -> None:
    made = examples(drawings(4), np.arange(4), 40, np.random.default_rng(0), marked=1.0)
    assert set(made.kinds.tolist()) == {0, 1, 2, 3}
    assert (made.boxes[:, 2:] > made.boxes[:, :2]).all() and made.boxes.min() >= 0 and made.boxes.max() <= 64
    for kind, found in zip(made.kinds, made.cells, strict=True):
        assert not np.delete(found, kind, axis=0).any()
    assert made.cells.any((1, 2, 3)).mean() > 0.85


def test_marked_drawings_for_measuring_are_of_the_designs_asked_for() -> None:
    drawn = marked_drawings(drawings(4), np.arange(4), (1,), 2, np.random.default_rng(0))
    assert drawn.kinds.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (drawn.boxes[:2] == [0, 0, 64, 64]).all()  # design 1 of the watermark is a lattice all over
    few = marked_drawings(drawings(4), np.arange(4), (1,), 2, np.random.default_rng(0), ("watermark", "qr"))
    assert few.kinds.tolist() == [0, 0, 1, 1] and np.array_equal(few.pictures, drawn.pictures[:4])


def test_the_three_sets_of_drawings_are_apart() -> None:
    names = ["red-apple", "taxi", "newspaper", "accordion", "abacus", "baby-dark", *[f"thing-{i}" for i in range(200)]]
    world, other, held = (set(part.tolist()) for part in choose(names))
    assert {names[i] for i in world} == {"red-apple", "taxi"}  # the world's own lettered drawings stay
    assert not (world & other or world & held or other & held) and held
    assert not {"newspaper", "abacus", "baby-dark"} & {names[i] for i in world | other | held}


def test_the_network_has_the_stated_shape() -> None:
    network = make_network().eval()
    logits, boxes = split(network(to_input(np.zeros((2, 64, 64, 3), np.uint8))))
    assert logits.shape == boxes.shape == (2, 4, 8, 8) and pool(logits).shape == (2, 4)
    assert pool_boxes(logits, boxes).shape == (2, 4, 4)
    assert sum(p.numel() for p in network.parameters()) <= 1_000_000


def test_a_cell_tells_how_far_the_marks_edges_are() -> None:
    import torch

    out = torch.full((1, 8, CELLS, CELLS), -9.0)
    out[0, 2, 1, 3] = out[0, 2, 1, 4] = out[0, 2, 2, 3] = 5.0  # three cells of the third kind
    reach = torch.logit(torch.tensor([0.0625, 0.0625, 0.25, 0.5]))  # to the left, up, to the right, down
    out[0, 4:] = reach[:, None, None]
    logits, boxes = split(out)
    x, y = torch.tensor([3.5, 4.5, 3.5]).mean() / 8, torch.tensor([1.5, 1.5, 2.5]).mean() / 8
    expected = [x - 0.0625, y - 0.0625, x + 0.25, y + 0.5]
    assert pool_boxes(logits, boxes)[0, 2].tolist() == pytest.approx([float(edge) for edge in expected], abs=1e-6)
    assert boxes.min() >= 0 and boxes.max() <= 1  # cut at the picture's edges


def test_giou_is_one_on_the_box_and_falls_with_the_distance() -> None:
    import torch

    truth = torch.tensor([[0.2, 0.2, 0.6, 0.6]])
    same, half, beside, far = (
        torch.tensor([box]) for box in ((0.2, 0.2, 0.6, 0.6), (0.2, 0.2, 0.4, 0.6), (0.6, 0.2, 1.0, 0.6), (0.9, 0.9, 1, 1))
    )
    values = [float(giou(box, truth)) for box in (same, half, beside, far)]
    assert values[:3] == pytest.approx([1.0, 0.5, 0.0], abs=1e-6) and -1 <= values[3] < 0


def test_the_loss_teaches_kinds_and_boxes() -> None:
    import torch

    torch.manual_seed(0)
    pictures = drawings(4)
    pictures[0, 8:24, 8:40] = pictures[2, 32:56, 16:48] = (255, 0, 200)
    targets = np.zeros((4, 4, 8, 8), bool)
    targets[0, 3, 1:3, 1:5] = targets[2, 3, 4:7, 2:6] = True
    boxes = np.zeros((4, 4), np.float32)
    boxes[0], boxes[2] = (8, 8, 40, 24), (16, 32, 48, 56)
    rows = Examples(pictures, np.array([3, -1, 3, -1]), boxes, targets)
    network = make_network((8, 8, 16, 32), 1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        loss_of(network, to_input(pictures), rows).backward()
        optimiser.step()
    with torch.inference_mode():
        cells, seen = split(network(to_input(pictures)))
    logits, found = pool(cells).numpy(), pool_boxes(cells, seen).numpy()  # of the pictures as they are: it saw no others
    assert logits[[0, 2], 3].min() > logits[[1, 3], 3].max() and (logits[:, :3] < 0).all()
    assert (overlap(found[[0, 2], 3] * 64, boxes[[0, 2]]) > 0.7).all()


def test_the_judge_gives_the_pooled_logits_and_the_surest_boxes() -> None:
    import torch

    torch.manual_seed(0)
    network = make_network((4, 4, 4, 4), 1).eval()
    pictures = drawings(3)
    logits, boxes = judge_of(network)(pictures)
    x = to_input(pictures)
    with torch.inference_mode():
        cells, seen = split(network(x))
        assert np.allclose(logits, pool(cells).numpy(), atol=1e-5)
        assert np.allclose(boxes, surest_boxes(network, x, pool(cells), pool_boxes(cells, seen)).numpy(), atol=1e-5)


@pytest.mark.parametrize("turns", range(4))
def test_a_box_is_that_of_the_surest_turn_turned_back(turns: int) -> None:
    """A network that is sure of lying bars whose left end is bright, and boxes these alone."""
    import torch

    right = torch.tensor([0.25, 0.125, 0.875, 0.25])

    class Lying(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = torch.full((len(x), 8, CELLS, CELLS), -20.0)
            bar = x[0, 0] > 0
            ys, xs = torch.where(bar)
            lying = int(xs.max() - xs.min()) > int(ys.max() - ys.min())
            sure = lying and x[0, 0].argmax() % 64 < 32 and ys.min() < 32
            out[:, :4, 1, 4] = out[:, :4, 1, 3] = out[:, :4, 1, 5] = 9.0 if sure else 1.0 + lying
            middle = (torch.arange(CELLS) + 0.5) / CELLS
            to = [middle[None] - right[0], middle[:, None] - right[1], right[2] - middle[None], right[3] - middle[:, None]]
            out[:, 4:] = torch.logit(torch.stack([edge.expand(CELLS, CELLS) for edge in to]).clamp(1e-4, 1 - 1e-4))
            return out

    x = torch.full((1, 3, 64, 64), -1.0)
    x[:, :, 8:16, 16:56] = 0.5
    x[:, :, 8:16, 16:20] = 1.0
    x = torch.rot90(x, -turns, (2, 3)).contiguous()
    cells, boxes = split(Lying()(x))
    found = surest_boxes(Lying(), x, pool(cells), pool_boxes(cells, boxes))[0, 0]
    ys, xs = torch.where(x[0, 0] > 0)
    expected = [int(xs.min()) / 64, int(ys.min()) / 64, (int(xs.max()) + 1) / 64, (int(ys.max()) + 1) / 64]
    assert found.tolist() == pytest.approx(expected, abs=0.01)


def test_smearing_keeps_shape_and_depends_on_the_seed() -> None:
    x = to_input(drawings(2))
    once, twice = (smear(x, np.random.default_rng(5)) for _ in range(2))
    assert once.shape == x.shape and bool((once == twice).all())
    assert any(not bool((smear(x, np.random.default_rng(seed)) == once).all()) for seed in (6, 7, 8))


def test_a_training_resumes_where_it_stopped(tmp_path: Path) -> None:
    import torch

    targets = np.zeros((6, 4, 8, 8), bool)
    targets[::2, 1, 2:4, 2:4] = True
    rows = Examples(drawings(6), np.array([1, -1] * 3), np.zeros((6, 4), np.float32), targets)

    def run(folder: Path, steps: int) -> dict[str, object]:
        torch.manual_seed(0)
        network = make_network((4, 4, 4, 4), 1)
        return fit(network, loss_of, rows, folder, minutes=0, steps=steps, batch=4, rate=1e-3, seed=0, say=lambda _: None)

    whole = run(tmp_path / "whole", 60)
    run(tmp_path / "parts", 30)
    parts = run(tmp_path / "parts", 60)
    assert whole["steps"] == parts["steps"] == 60
    assert whole["curve"][0]["loss"] == pytest.approx(parts["curve"][0]["loss"], rel=0.02)
    weights, training = averaged(tmp_path / "whole")
    assert training["steps"] == 60 and all(value.dtype == torch.float16 for value in weights.values())
