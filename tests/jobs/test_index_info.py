"""``clearance index info``: counts that need no list of the references, and the list for those who want it."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from index.store import ReferenceIndex
from index.vectors import StoredVectors
from jobs.cli import main as cli
from jobs.cli.index_info import NAMED, VALUES, state_data
from tests.index.conftest import GridEmbedder, work

COUNT = int(os.environ.get("CLEARANCE_VECTORS", "6000"))


def info(index: Path, *options: str) -> str:
    done = CliRunner().invoke(cli.app, ["index", "info", str(index), *options])
    assert done.exit_code == 0, done.output
    return done.stdout


def of_vectors(folder: Path, count: int) -> ReferenceIndex:
    np.save(folder / f"{count}.npy", np.random.default_rng(0).normal(size=(count, GridEmbedder.dim)).astype("<f2"))
    source = StoredVectors(folder / f"{count}.npy", GridEmbedder.dim)
    return ReferenceIndex.build_of_vectors(folder / f"i{count}", source, GridEmbedder(), flat_limit=10**9)


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> ReferenceIndex:
    """Six works, two with their picture; one of them retired, one allowed, in two segments."""
    folder = tmp_path_factory.mktemp("info") / "i"
    index = ReferenceIndex.build(folder, [work(n, keep_picture=n < 2) for n in range(4)], GridEmbedder())
    index.add([work(n, keep_picture=False) for n in range(4, 6)], GridEmbedder(), reason="more")
    first, second, *_ = index.ids()
    index.retire([first], reason="claim withdrawn")
    index.set_status(second, "allowed", "licence bought")
    return index


def test_info_counts_what_a_list_of_the_references_counts(changed: ReferenceIndex) -> None:
    shown = json.loads(info(changed.folder, "--json"))
    works = changed.references()
    assert (shown["references"], shown["with_picture"], shown["matching"]) == (6, 2, 4)
    for name in ("status", "rights_basis", "licence"):
        assert shown[name] == Counter(getattr(one, name) for one in works)


def test_info_has_the_history_with_its_ids(changed: ReferenceIndex) -> None:
    history = json.loads(info(changed.folder, "--json"))["history"]
    assert [(event["event"], event["references"]) for event in history] == [
        ("built", 4), ("added", 2), ("retired", 1), ("status", 1),
    ]  # fmt: skip
    assert [event["ref_ids"] for event in history] == [event["ref_ids"] for event in changed.history()]


def test_references_are_listed_one_a_line_with_their_times(changed: ReferenceIndex) -> None:
    lines = [json.loads(line) for line in info(changed.folder, "--references").splitlines()]
    kept = {line["ref_id"]: line.pop("with_picture") for line in lines}
    assert sorted(lines, key=lambda line: str(line["ref_id"])) == [asdict(one) for one in changed.references()]
    assert kept == {ref_id: changed.keeps(ref_id) for ref_id in changed.ids()}
    assert [line["status"] for line in lines if line["retired_at"] is not None] == ["retired"]


def test_moments_are_those_of_the_history(changed: ReferenceIndex) -> None:
    built, added, retired, _ = changed.history()
    found = {one.ref_id: (one.added_at, one.retired_at) for one in changed.references()}
    assert {found[ref_id][0] for ref_id in built["ref_ids"]} == {built["at"]}
    assert {found[ref_id][0] for ref_id in added["ref_ids"]} == {added["at"]}
    assert found[retired["ref_ids"][0]][1] == retired["at"]


def test_a_column_of_many_values_is_counted_by_the_most_frequent(tmp_path: Path) -> None:
    works = [work(n, licence=f"licence {n % (VALUES + 5):03d}") for n in range(VALUES + 6)]
    shown = state_data(ReferenceIndex.build(tmp_path / "i", works, GridEmbedder()))
    assert shown["licence"]["licence 000"] == 2
    assert shown["licence"]["of 5 other values"] == 5
    assert len(shown["licence"]) == VALUES + 1


def test_memory_of_info_does_not_grow_with_the_references(tmp_path: Path) -> None:
    """Each of the second half takes less than 100 bytes, counted or listed. ``CLEARANCE_VECTORS`` sets how many."""
    peaks = {}
    for rows in (64, COUNT // 2, COUNT):  # the first imports what is needed
        index = of_vectors(tmp_path, rows)
        tracemalloc.start()
        shown = state_data(index)
        listed = sum(1 for _ in index.listed())
        peaks[rows] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (shown["references"], listed) == (rows, rows)
    assert len(shown["history"][0]["ref_ids"]) == NAMED
    print(json.dumps(peaks))
    assert (peaks[COUNT] - peaks[COUNT // 2]) / (COUNT - COUNT // 2) < 100
