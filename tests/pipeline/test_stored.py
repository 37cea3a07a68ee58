from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.errors import ClearanceError, IntegrityError
from pipeline.audit.stored import chosen_rows, embeddings, rows_of, sample_files, samples_of

DIM = 8


@pytest.fixture
def run(tmp_path: Path, make_run: Callable[..., Any]) -> Any:
    return make_run(tmp_path / "run")


def rewrite(folder: Path, path: str, column: str, value: Any, row: int) -> None:
    """Put another value into one row of one file, as an eraser or a forger does."""
    table = pq.read_table(folder / path)
    values = table.column(column).to_pylist()
    values[row] = value
    place = table.schema.get_field_index(column)
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), folder / path, row_group_size=4)


def first_of(run: Any) -> str:
    return next(sample_files(run.folder))


def test_every_embedding_comes_back_as_it_was_stored(run: Any) -> None:
    expected = {s.request.key: s.final.embedding.astype(np.float16) for s in run.samples if s.final is not None}
    keys = {r["sample_id"]: r["request_key"] for r in _rows(run)}
    found = {
        keys[sample_id]: vector
        for batch in embeddings(run.folder, DIM)
        for sample_id, vector in zip(batch.ids.to_pylist(), batch.vectors, strict=True)
    }
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def _rows(run: Any) -> list[Any]:
    from pipeline.audit.ledger import sample_rows

    return [*sample_rows(run.folder, ["sample_id", "request_key"])]


def test_a_sample_that_never_had_a_picture_is_no_loss(run: Any) -> None:
    absent = [outcome for batch in embeddings(run.folder, DIM) for _, outcome in batch.absent]
    assert absent == ["error"] * 2


def test_an_erased_embedding_is_named_as_erased(run: Any) -> None:
    rewrite(run.folder, first_of(run), "embedding", None, 3)
    batch = next(embeddings(run.folder, DIM))
    assert len(batch.erased) == 1 and not batch.changed
    assert 3 not in batch.rows.tolist()


def test_an_embedding_that_was_exchanged_is_not_believed(run: Any) -> None:
    rewrite(run.folder, first_of(run), "embedding", [1.0] + [0.0] * 7, 2)
    batch = next(embeddings(run.folder, DIM))
    assert len(batch.changed) == 1
    assert 2 not in batch.rows.tolist()


@pytest.mark.parametrize("vector", [[0.5] * 4, [float("nan")] * 8, []])
def test_an_embedding_that_fits_nothing_is_not_believed(run: Any, vector: list[float]) -> None:
    rewrite(run.folder, first_of(run), "embedding", vector, 2)
    assert len(next(embeddings(run.folder, DIM)).changed) == 1


def test_rows_are_found_whatever_row_group_they_are_in(run: Any) -> None:
    path = first_of(run)
    whole = {row: read["request_key"] for row, read in chosen_rows(run.folder, path, range(10), ["request_key"])}
    rewrite(run.folder, path, "worker_id", "x", 0)  # smaller row groups
    some = dict(chosen_rows(run.folder, path, [9, 2, 5], ["request_key", "no such column"]))
    assert {row: read["request_key"] for row, read in some.items()} == {row: whole[row] for row in (2, 5, 9)}


def test_samples_are_found_by_id(run: Any) -> None:
    part = [*samples_of(run.folder)][1]
    found = [*rows_of(run.folder, [part.ids[4]], ["sample_id", "outcome"])]
    assert [(path, row, read["sample_id"]) for path, row, read in found] == [(part.path, 4, part.ids[4])]
    assert found[0][2]["outcome"] == part.outcomes[4] == "accepted_after_steering"


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_read(run: Any) -> None:
    path = first_of(run)
    (run.folder / path).write_bytes(b"PAR1 no more")
    damaged: list[ClearanceError] = []
    assert sum(len(batch.rows) for batch in embeddings(run.folder, DIM, damaged=damaged)) == 9
    assert [error.where for error in damaged] == [path]
    with pytest.raises(IntegrityError, match="cannot be read"):
        [*embeddings(run.folder, DIM)]
    named: list[ClearanceError] = []
    assert len([*samples_of(run.folder, damaged=named)]) == 1 and len(named) == 1
