"""What an eraser wrote, held against what it was to write."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from index.errors import IntegrityError
from pipeline.audit import erase
from pipeline.audit.blocks import emptied_alike, write_blocks

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ROWS = [
    {"sample_id": "a", "image": {"bytes": b"A", "path": "a.png"}, "score": 1.0, "prompt": "cat"},
    {"sample_id": "b", "image": {"bytes": b"B", "path": "b.png"}, "score": float("nan"), "prompt": "owl"},
    {"sample_id": "c", "image": {"bytes": b"C", "path": "c.png"}, "score": None, "prompt": "elk"},
]
SCHEMA = pa.schema([("sample_id", pa.string()), ("image", IMAGE), ("score", pa.float64()), ("prompt", pa.string())])
CELLS = {"image": [1], "prompt": [1, 2]}


def table(change: Callable[[list[dict[str, Any]]], Any] = list, *, schema: pa.Schema = SCHEMA) -> pa.Table:
    rows = [dict(row) for row in ROWS]
    change(rows)
    return pa.Table.from_pylist(rows, schema=schema)


def emptied(rows: list[dict[str, Any]]) -> None:
    rows[1]["image"] = rows[1]["prompt"] = rows[2]["prompt"] = None


def test_a_table_whose_cells_were_emptied_is_as_it_was_to_be() -> None:
    assert emptied_alike(table(emptied), table(), CELLS)
    assert emptied_alike(table(), table(), {})
    assert emptied_alike(table(emptied), table(emptied), {})


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[0]["image"].update(bytes=b"X"),
        lambda rows: rows[2].update(image=None),
        lambda rows: rows[0].update(prompt=None),
        lambda rows: rows[0].update(prompt="dog"),
        lambda rows: rows[1].update(image={"bytes": None, "path": None}),
        lambda rows: rows[1].update(image={"bytes": b"B", "path": "b.png"}),
        lambda rows: rows[2].update(prompt="elk"),
        lambda rows: rows[0].update(score=2.0),
        lambda rows: rows.pop(),
        lambda rows: rows.append(dict(rows[0])),
        lambda rows: rows.insert(0, rows.pop(1)),
    ],
    ids=[
        "another picture in an emptied column", "a picture less in an emptied column", "a prompt less", "another prompt",
        "a struct left in an emptied cell", "a picture that was to go", "a prompt that was to go", "another score",
        "a row less", "a row more", "rows exchanged",
    ],
)  # fmt: skip
def test_any_other_difference_is_found(change: Callable[[list[dict[str, Any]]], Any]) -> None:
    def both(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["image"] = dict(row["image"])
        emptied(rows)
        change(rows)

    assert not emptied_alike(table(both), table(), CELLS)


def test_another_schema_is_found() -> None:
    assert not emptied_alike(table(emptied, schema=SCHEMA.with_metadata({"k": "v"})), table(), CELLS)


def stored(*blocks: pa.Table) -> io.BytesIO:
    stream = io.BytesIO()
    write_blocks(stream, iter(blocks))
    return stream


def test_an_eraser_refuses_a_file_in_which_another_row_of_an_emptied_column_changed_blocks_later() -> None:
    first = pa.concat_tables([table()] * 22).slice(0, 64)

    def cells(block: pa.Table) -> erase.Cells:
        return {"image": {1: "b"}} if block.num_rows < 64 else {}

    def another(rows: list[dict[str, Any]]) -> None:
        rows[1]["image"], rows[0]["image"] = None, {"bytes": b"X", "path": "a.png"}

    erase._require_same(stored(first, table()), stored(first, table(lambda rows: rows[1].update(image=None))), cells, "x")
    with pytest.raises(IntegrityError, match="more than its payloads"):
        erase._require_same(stored(first, table()), stored(first, table(another)), cells, "x")
    with pytest.raises(IntegrityError, match="more than its payloads"):
        erase._require_same(stored(first, table()), stored(first), cells, "x")
