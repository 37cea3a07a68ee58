"""Geom-Erasing's pure parts, against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.base import Finding
from index.errors import ConfigError, InputError
from pipeline.steer.erase_tokens import Vocabulary, box_mask, location_tokens, loss_weights, marks_found


def test_weights_by_hand() -> None:
    mask = np.zeros((2, 4), bool)
    mask[0, :2] = True  # T = 8, K = 2
    # a = 1/2: K + a(T−K) = 2 + 3 = 5; w_in = 8/5, w_out = 4/5; Σ = 2·1.6 + 6·0.8 = 8
    weights = loss_weights(mask, 0.5)
    assert weights[0].tolist() == pytest.approx([1.6, 1.6, 0.8, 0.8]) and weights[1].tolist() == pytest.approx([0.8] * 4)
    # a = 0: only the inside counts, T/K = 4 each
    assert loss_weights(mask, 0)[0].tolist() == [4, 4, 0, 0]
    # a = 3: 2 + 18 = 20; w_in = 0.4, w_out = 1.2
    assert loss_weights(mask, 3)[0].tolist() == pytest.approx([0.4, 0.4, 1.2, 1.2])
    # a → ∞: only the outside counts, T/(T−K) each
    assert loss_weights(mask, float("inf"))[0].tolist() == pytest.approx([0, 0, 8 / 6, 8 / 6])


@pytest.mark.parametrize("a", [0, 0.25, 1, 7, float("inf")])
@pytest.mark.parametrize("inside", [False, True])
def test_nothing_and_everything_inside_weigh_one(a: float, inside: bool) -> None:
    assert (loss_weights(np.full((3, 5), inside), a) == 1).all()


@given(st.lists(st.booleans(), min_size=12, max_size=12), st.floats(0.01, 10))
def test_weights_sum_to_the_number_of_positions(cells: list[bool], a: float) -> None:
    mask = np.array(cells).reshape(3, 4)
    weights = loss_weights(mask, a)
    assert weights.sum() == pytest.approx(12, rel=1e-5)
    if 0 < mask.sum() < 12:
        assert weights[~mask].max() == pytest.approx(a * weights[mask].max(), rel=1e-5)


def test_samples_of_a_batch_are_weighed_each_for_itself() -> None:
    masks = np.zeros((3, 2, 2), bool)
    masks[1, 0, 0] = masks[2, 0] = True
    together = loss_weights(masks, 0.5)
    assert all((together[i] == loss_weights(masks[i], 0.5)).all() for i in range(3)) and together.dtype == np.float32


@pytest.mark.parametrize("a", [-1, float("nan")])
def test_weights_refuse_what_is_no_weight(a: float) -> None:
    with pytest.raises(ConfigError):
        loss_weights(np.ones((2, 2), bool), a)
    with pytest.raises(InputError):
        loss_weights(np.ones(4, bool), 1)


BINS = [
    ([(0, 0, 16, 16)], 4, ("<bin-0-0>",)),  # exactly one bin of 16 pixels: edges are exclusive
    ([(15, 15, 17, 17)], 4, ("<bin-0-0>", "<bin-0-1>", "<bin-1-0>", "<bin-1-1>")),
    ([(0, 48, 64, 64)], 4, ("<bin-3-0>", "<bin-3-1>", "<bin-3-2>", "<bin-3-3>")),
    ([(40, 0, 41, 1), (0, 0, 1, 1), (2, 2, 3, 3)], 4, ("<bin-0-0>", "<bin-0-2>")),  # once each, row by row
    ([(0, 0, 64, 64)], 1, ("<bin-0-0>",)),
    ([], 4, ()),
]


@pytest.mark.parametrize(("boxes", "grid", "tokens"), BINS)
def test_bins_by_hand(boxes: list, grid: int, tokens: tuple) -> None:
    assert location_tokens(boxes, (64, 64), grid, "bins") == tokens


def test_corners_by_hand() -> None:
    assert location_tokens([(0, 0, 64, 64)], (64, 64), 4, "corners") == ("<tl-0-0>", "<br-3-3>")
    assert location_tokens([(10, 40, 20, 64)], (64, 64), 8, "corners") == ("<tl-5-1>", "<br-7-2>")
    two = location_tokens([(33, 0, 34, 1), (0, 0, 32, 64)], (64, 64), 2, "corners")
    assert two == ("<tl-0-1>", "<br-0-1>", "<tl-0-0>", "<br-1-0>")  # in the boxes' order, a pair each
    assert location_tokens([(1, 1, 2, 2), (3, 3, 4, 4)], (64, 64), 2, "corners") == ("<tl-0-0>", "<br-0-0>")  # said once


def test_pictures_need_not_be_square_and_boxes_may_be_fractions() -> None:
    assert location_tokens([(100, 0, 199, 50)], (200, 50), 2, "bins") == ("<bin-0-1>", "<bin-1-1>")
    thirds = (1 / 3, 1 / 3, 2 / 3, 2 / 3)  # 1/3 is no binary fraction: neither neighbour may be touched by rounding
    assert location_tokens([thirds], (1, 1), 3, "corners") == ("<tl-1-1>", "<br-1-1>")
    in_pixels = tuple(64 * np.float32(edge) for edge in thirds)
    assert location_tokens([in_pixels], (64, 64), 3, "bins") == ("<bin-1-1>",)


@pytest.mark.parametrize(
    "box", [(0, 0, 65, 10), (-1, 0, 5, 5), (0, 0, 10, 64.1), (5, 5, 5, 9), (9, 5, 5, 9), (0, 0, np.nan, 1)]
)
@pytest.mark.parametrize("mode", ["bins", "corners"])
def test_boxes_outside_the_picture_are_refused(box: tuple, mode) -> None:
    with pytest.raises(InputError, match="box") as error:
        location_tokens([box], (64, 64), 4, mode)
    assert error.value.fix


@given(
    st.integers(1, 8), st.sampled_from(["bins", "corners"]),
    st.tuples(st.integers(0, 62), st.integers(0, 62), st.integers(1, 64), st.integers(1, 64)),
)  # fmt: skip
def test_every_token_is_in_the_vocabulary(grid: int, mode, corner: tuple[int, int, int, int]) -> None:
    x0, y0, dx, dy = corner
    box = (x0, y0, min(64, x0 + dx), min(64, y0 + dy))
    vocabulary = Vocabulary(("qr", "text"), mode, grid)
    phrase = vocabulary.phrase({"text": [box]}, (64, 64))
    assert phrase[0] == "<text>" and set(phrase) <= set(vocabulary.tokens) and 1 < len(phrase) <= vocabulary.longest()


def test_mask_touches_what_the_box_touches() -> None:
    mask = box_mask([(0, 0, 4, 4), (60, 62, 64, 64)], (64, 64), (16, 16))
    assert mask.sum() == 2 and mask[0, 0] and mask[15, 15]
    assert box_mask([(3, 0, 5, 4)], (64, 64), (16, 16))[0].tolist() == [True, True] + [False] * 14
    assert not box_mask([], (64, 64), (16, 16)).any() and box_mask([(0, 0, 1, 1)], (1, 1), (3, 5)).all()


def test_phrase_names_each_concept_and_its_places() -> None:
    vocabulary = Vocabulary(("watermark", "qr"), "corners", 2)
    assert vocabulary.tokens == (
        "<watermark>", "<qr>", *(f"<{k}-{r}-{c}>" for k in ("tl", "br") for r in (0, 1) for c in (0, 1))
    )  # fmt: skip
    marks = {"qr": [(0.6, 0.6, 0.9, 0.9)], "watermark": []}  # found by a guard without boxes
    assert vocabulary.phrase(marks) == ("<watermark>", "<qr>", "<tl-1-1>", "<br-1-1>")
    assert Vocabulary(("qr",), None).phrase({"qr": [(0, 0, 1, 1)]}) == ("<qr>",)  # existence only
    with pytest.raises(ConfigError, match="text"):
        vocabulary.phrase({"text": []})
    with pytest.raises(ConfigError):
        Vocabulary(())
    with pytest.raises(ConfigError):
        Vocabulary(("qr",), "bins", 0)


def test_findings_become_concepts_and_boxes() -> None:
    def finding(category: str, score: float, box=None) -> Finding:
        return Finding(guard="g", version="1", category=category, score=score, threshold=0.5, box=box)

    found = marks_found(
        [
            finding("mark.text", 0.9, (0, 0, 0.5, 0.25)), finding("text.ocr", 0.7, (0, 0, 0.4, 0.2)),
            finding("text.ocr", 0.6, (0.5, 0.5, 1, 1)),
            finding("mark.qr", 0.9), finding("mark.watermark", 0.1, (0, 0, 1, 1)), finding("copy.protected", 0.9),
            finding("text.ocr", 0.9, (0.2, 0.2, 0.2, 0.4)),
        ]
    )  # fmt: skip
    # (0, 0, .5, .25) and (0, 0, .4, .2) overlap by .08 / .125 = .64: one mark, seen twice
    assert found == {"text": [(0, 0, 0.5, 0.25), (0.5, 0.5, 1, 1)], "qr": []}
