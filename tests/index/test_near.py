from __future__ import annotations

import numpy as np
import pytest

from index.calibrate import OperatingPoint
from index.embed import Embedder
from index.errors import IndexMismatch
from index.near import COLOUR_MARGIN, ROUNDING, Views, near
from tests.index.conftest import drawing

POINT = OperatingPoint(threshold=0.9, look_from=0.8)


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def views_of(vectors: np.ndarray, least: float) -> Views:
    n = len(vectors)
    return Views(
        ref_ids=tuple(str(i) for i in range(n)), vectors=vectors, turned=np.zeros(n, bool), least=np.full(n, least, np.float32)
    )


@pytest.mark.parametrize("dim", [8, 128, 512])
def test_float16_moves_no_cosine_further_than_the_bar_allows_for(dim: int) -> None:
    a, b = unit(400, dim, 0), unit(400, dim, 1)
    stored = a.astype(np.float16)
    exact = np.sum(a.astype(np.float64) * b, axis=1)
    rounded = np.sum(stored.astype(np.float32) * b, axis=1)
    assert np.abs(exact - rounded).max() <= ROUNDING


def test_the_worst_rounding_there_is_stays_within_the_bar() -> None:
    """Every component half a unit in the last place too large, and the reference the same vector."""
    x = np.full(512, 1 / np.sqrt(512))
    step = 2.0 ** (np.floor(np.log2(x)) - 10)
    moved = np.float64(x) + step / 2
    assert abs(float(moved @ x) - 1) <= ROUNDING


def test_pairs_at_the_bar_are_kept_and_others_are_not() -> None:
    stored, vectors = unit(50, 16, 2).astype(np.float16), unit(7, 16, 3)
    rows, columns, cosines = near(stored, views_of(vectors, 0.4))
    scores = stored.astype(np.float32) @ vectors.T
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [*map(tuple, np.argwhere(scores >= 0.4).tolist())]
    assert np.allclose(cosines, scores[rows, columns])


def test_many_views_are_compared_in_blocks() -> None:
    stored, views = unit(40, 16, 4), views_of(unit(11, 16, 5), 0.3)
    whole, parts = near(stored, views), near(stored, views, at_once=3)
    assert {*zip(*(x.tolist() for x in whole[:2]), strict=True)} == {*zip(*(x.tolist() for x in parts[:2]), strict=True)}
    assert (np.diff(parts[0]) >= 0).all()


def test_embeddings_of_another_length_are_refused() -> None:
    with pytest.raises(IndexMismatch, match="16 dimensions"):
        near(unit(3, 8, 0), views_of(unit(2, 16, 0), 0.5))


def test_without_references_nothing_is_near() -> None:
    assert [len(part) for part in near(unit(3, 8, 0), views_of(np.zeros((0, 8), np.float32), 0.5))] == [0, 0, 0]


def test_a_reference_is_compared_in_all_its_colours(embedder: Embedder) -> None:
    picture = drawing(1)
    views = Views.of(["a"], embedder.images(picture[None]), lambda ref_id: picture, embedder, point=POINT, hues=4)
    assert views.ref_ids == ("a",) * 4
    assert views.turned.tolist() == [False, True, True, True]
    assert views.least == pytest.approx([0.8 - ROUNDING, *[0.9 - COLOUR_MARGIN] * 3])


def test_a_reference_without_picture_is_compared_as_it_is(embedder: Embedder) -> None:
    views = Views.of(["a"], embedder.images(drawing(1)[None]), lambda ref_id: None, embedder, point=POINT, hues=4)
    assert views.ref_ids == ("a",)
