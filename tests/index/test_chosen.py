from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index.chosen import ChosenReferences, IndexWithout
from index.embed import Embedder
from index.errors import InputError
from index.store import ReferenceIndex
from tests.index.conftest import drawing, work


def test_works_get_the_ids_and_vectors_that_an_index_gives_them(tmp_path: Path, embedder: Embedder) -> None:
    works = [work(seed) for seed in range(4)]
    index = ReferenceIndex.build(tmp_path / "index", works, embedder)
    chosen = ChosenReferences.of_works(works, embedder)
    assert sorted(chosen.ref_ids) == [reference.ref_id for reference in index.references()]
    assert all(np.array_equal(chosen.vectors[n], index.embedding(ref_id)) for n, ref_id in enumerate(chosen.ref_ids))


def test_they_are_ranked_as_the_index_ranks_them(tmp_path: Path, embedder: Embedder) -> None:
    works = [work(seed) for seed in range(6)]
    index, chosen = ReferenceIndex.build(tmp_path / "index", works, embedder), ChosenReferences.of_works(works, embedder)
    queries = embedder.images(np.stack([drawing(seed) for seed in range(20, 24)]))
    assert chosen.search(queries, 3) == index.search(queries, 3)
    assert chosen.compare(queries[0], chosen.ref_ids[2]) == index.compare(queries[0], chosen.ref_ids[2])


def test_the_picture_of_a_work_is_at_hand_although_the_index_may_not_keep_it(embedder: Embedder) -> None:
    chosen = ChosenReferences.of_works([work(1, keep_picture=False)], embedder)
    shown = chosen.picture(chosen.ref_ids[0])
    assert shown is not None and np.array_equal(shown, drawing(1))


def test_one_picture_twice_is_one_reference(embedder: Embedder) -> None:
    assert len(ChosenReferences.of_works([work(1), work(1, source_uri="elsewhere")], embedder)) == 1


def test_a_stranger_is_refused(embedder: Embedder) -> None:
    chosen = ChosenReferences.of_works([work(1)], embedder)
    with pytest.raises(InputError, match="not among"):
        chosen.compare(chosen.vectors[0], "feedfeedfeedfeed")


def test_an_index_without_some_references_finds_the_others(tmp_path: Path, embedder: Embedder) -> None:
    index = ReferenceIndex.build(tmp_path / "index", [work(seed) for seed in range(5)], embedder)
    query = embedder.images(drawing(1)[None])
    first, *others = index.search(query, 5)[0]
    without = IndexWithout(index, frozenset({first.ref_id}))
    assert without.search(query, 3) == [others[:3]]
    assert without.compare(query[0], first.ref_id).status == "retired"
