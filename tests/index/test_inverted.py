"""The inverted file: two lists a vector, exact ranks, one mapped file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index import ann, inverted
from index.errors import IntegrityError
from index.ids import Ids, numbers_of
from index.store import ReferenceIndex

from .conftest import GridEmbedder, work


def unit(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, Path]:
    vectors, path = unit(4000, 32), tmp_path_factory.mktemp("inverted") / "file"
    inverted.write(vectors, path)
    return vectors, path


def test_every_vector_stands_in_two_lists(written: tuple[np.ndarray, Path]) -> None:
    vectors, path = written
    at = inverted.table_of(path)
    assert at is not None
    lists = (path.stat().st_size - 16 - at) // 24
    table = np.fromfile(path, "<u8", 3 * lists, offset=at).reshape(-1, 3)
    assert table[:, 0].sum() == 2 * len(vectors)


def test_the_second_list_is_near_where_the_first_is_missed() -> None:
    centroids = np.array([[1, 0, 0], [0.9, 0.44, 0], [0.6, 0, 0.8]], np.float64)
    x = np.array([[0.95, 0.0, 0.312]])
    first, second = inverted.assigned(x, centroids)[:, 0]
    # The second centroid is nearer, but a query that misses the first one departs along the third axis.
    departed = (x[0] - centroids[0]) / np.linalg.norm(x[0] - centroids[0])
    losses = [((x[0] - c) ** 2).sum() + (departed @ (x[0] - c)) ** 2 for c in centroids[1:]]
    assert (first, second) == (0, 1 + int(np.argmin(losses)))


def test_products_kept_beforehand_change_no_list() -> None:
    vectors, centroids = unit(200, 16), unit(20, 16, seed=1)
    plain = inverted.assigned(vectors, centroids)
    assert np.array_equal(plain, inverted.assigned(vectors, centroids, centroids @ centroids.T))


def test_nearest_are_those_of_brute_force_to_the_last_bit(written: tuple[np.ndarray, Path]) -> None:
    vectors, path = written
    queries = vectors[:300] + 0.1 * unit(300, 32, seed=2)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    for query, (rows, cosines) in zip(queries, ann.nearest(ann.mapped(path), vectors, queries, 3), strict=True):
        exact = np.sum(vectors.astype(np.float64) * query.astype(np.float64), axis=1)
        assert rows[0] == exact.argmax() and cosines[0] == exact.max() and (np.diff(cosines) <= 0).all()


# --- works that resemble one another ------------------------------------------------------------------------------------------

ALIKE = 1000


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, Path]:
    """3,000 vectors in any direction, and 1,000 at cosines around 0.9 of one another."""
    near = unit(1, 64, seed=4) + 0.33 * unit(ALIKE, 64, seed=5)
    vectors = np.concatenate([unit(3000, 64, seed=6), near / np.linalg.norm(near, axis=1, keepdims=True)]).astype(np.float32)
    path = tmp_path_factory.mktemp("alike") / "file"
    inverted.write(vectors, path)
    return vectors, path


@pytest.mark.parametrize("every", [0, ann.EVERY], ids=["by codes", "by brute force"])
@pytest.mark.parametrize("cosine", [1.0, 0.9])
def test_works_that_resemble_one_another_are_told_apart(
    alike: tuple[np.ndarray, Path], monkeypatch: pytest.MonkeyPatch, every: int, cosine: float
) -> None:
    monkeypatch.setattr(ann, "EVERY", every)
    vectors, path = alike
    queries = cosine * vectors[-200:] + (1 - cosine**2) ** 0.5 * unit(200, 64, seed=7)
    queries = np.asarray(queries / np.linalg.norm(queries, axis=1, keepdims=True), np.float32)
    allowed = np.random.default_rng(8).random(len(vectors)) < 0.7
    for may, those in ((None, np.ones(len(vectors), bool)), (ann.bits(allowed), allowed)):
        for query, (rows, cosines) in zip(queries, ann.nearest(ann.mapped(path), vectors, queries, 3, may), strict=True):
            exact = np.where(those, np.sum(vectors.astype(np.float64) * query.astype(np.float64), axis=1), -2)
            assert cosines.tolist() == np.sort(exact)[:-4:-1].tolist() and rows[0] == exact.argmax()


def test_other_queries_are_hardly_asked_again(alike: tuple[np.ndarray, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann, "EVERY", 0)
    vectors, path = alike
    index, asked = ann.mapped(path), []

    def counted(turned: np.ndarray, wanted: int, selector: object) -> tuple[np.ndarray, np.ndarray]:
        asked.append(len(turned))
        return inverted.Inverted.search(index, turned, wanted, selector)

    monkeypatch.setattr(index, "search", counted)
    ann.nearest(index, vectors, vectors[:200], 1)  # at cosine 1, and nothing else is near
    assert asked[0] == 200 and sum(asked) <= 204


def test_a_code_hardly_falls_below_what_is_expected_of_it(alike: tuple[np.ndarray, Path]) -> None:
    vectors, path = alike
    index = ann.mapped(path)
    queries = np.asarray(0.9 * vectors[::100] + 0.44 * unit(40, 64, seed=9), np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    turned = index.turned(queries)
    found, scores = index.search(turned, len(vectors), None)
    cosines = np.einsum("qmd,qd->qm", vectors[np.maximum(found, 0)], queries)
    near = (found >= 0) & (cosines > 0.6)
    expected = np.stack([index.expected(turned, cosines[:, n], vectors) for n in range(cosines.shape[1])], axis=1)
    assert near.sum() > 1000 and (scores >= expected)[near].mean() > 0.99


# ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("few", "k"), [(40, 3), (2, 3), (0, 3), (4000, 2500)])
def test_where_few_rows_may_match_none_is_missed(written: tuple[np.ndarray, Path], few: int, k: int) -> None:
    """The lists that a query looks into hold fewer rows than are wanted, and the nearest may stand in another one."""
    vectors, path = written
    allowed = np.zeros(len(vectors), bool)
    allowed[np.random.default_rng(3).choice(len(vectors), few, replace=False)] = True
    queries = 0.62 * vectors[:400] + 0.78 * unit(400, 32, seed=4)
    queries = np.asarray(queries / np.linalg.norm(queries, axis=1, keepdims=True), np.float32)[: 400 if few < 4000 else 4]
    exact = queries.astype(np.float64) @ vectors[allowed].astype(np.float64).T
    found = ann.nearest(ann.mapped(path), vectors, queries, k, ann.bits(allowed))
    for products, (rows, cosines) in zip(exact, found, strict=True):
        assert allowed[rows].all()
        assert cosines == pytest.approx(np.sort(products)[::-1][:k], abs=1e-12)


def test_no_query_has_no_candidates(written: tuple[np.ndarray, Path]) -> None:
    vectors, path = written
    assert ann.candidates(ann.mapped(path), vectors[:0], 3).shape == (0, 0)


def test_no_row_comes_twice(written: tuple[np.ndarray, Path]) -> None:
    vectors, path = written
    found = [rows for rows, _ in ann.nearest(ann.mapped(path), vectors, vectors[:50], 3)]
    assert len(found) == 50 and all(len(set(rows.tolist())) == len(rows) == 3 for rows in found)


def test_cosines_are_the_same_in_blocks(alike: tuple[np.ndarray, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, path = alike
    index, queries = ann.mapped(path), vectors[:40]
    whole = ann.nearest(index, vectors, queries, 3)
    monkeypatch.setattr(ann, "PAIRS", 7)
    for (rows, cosines), (again, parts) in zip(whole, ann.nearest(index, vectors, queries, 3), strict=True):
        assert rows.tolist() == again.tolist() and cosines.tolist() == parts.tolist()


def test_rows_that_tie_with_the_last_are_all_returned() -> None:
    vectors = np.concatenate([unit(1, 8).repeat(5, axis=0), unit(30, 8, seed=3)])
    [(rows, _)] = ann._ranked(vectors, vectors[:1], np.arange(35)[None], 2)
    assert sorted(rows.tolist()) == [0, 1, 2, 3, 4]


def test_a_file_cut_short_is_refused(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [work(n) for n in range(60)], embedder, flat_limit=50)
    [segment] = index._segments
    content = (segment.folder / "vectors.faiss").read_bytes()
    (segment.folder / "vectors.faiss").write_bytes(content[: len(content) // 2] + content[-16:])
    with pytest.raises(IntegrityError, match="holds no vectors"):
        index.search(embedder.images(work(1).picture[None]), 1)


def test_ids_take_eight_bytes_each_and_read_as_texts() -> None:
    texts = ["00000000000000ff", "ffffffffffffffff", "0123456789abcdef"]
    ids = Ids(texts)
    assert (ids == texts, ids[1], ids[1:], len(ids)) == (True, texts[1], texts[1:], 3)
    assert (
        Ids.of_numbers(ids.numbers()) == ids and numbers_of([text + "aa" for text in texts]).tolist() == ids.numbers().tolist()
    )
