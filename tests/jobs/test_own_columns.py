"""The caller's own columns of a prompt file travel into requests, plan and rows."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.errors import InputError
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.prompts.requests import MOST_COLUMNS, read_prompts
from jobs.run.verdict import verify_run
from pipeline.audit.ledger import sample_rows
from pipeline.config import RunConfig
from pipeline.notes import Note
from pipeline.policy import Policy
from tests.jobs.conftest import fake_identity, open_fake

TRICKY: list[Any] = [
    0, -7, 2**60, 1.5, True, False, None, "", "ä\u2028“\"'\\", "😀", ["a", 1, None], {"deep": {"er": [1.0]}},
]  # fmt: skip


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def own(path: Path, **more: Any) -> list[dict[str, Any] | None]:
    return [json.loads(request.columns) if request.columns else None for request in read_prompts(path, **more)]


def test_types_of_json_are_kept(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"prompt": "cat", "value": value, "n": n}) for n, value in enumerate(TRICKY))
    assert own(write(tmp_path, "p.jsonl", lines)) == [{"value": value, "n": n} for n, value in enumerate(TRICKY)]


def test_fields_of_a_csv_are_text_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "p.csv", 'zone,prompt,id\nnorth,cat,007\n"a, b",owl,\n')
    assert own(path) == [{"zone": "north", "id": "007"}, {"zone": "a, b", "id": ""}]
    assert [list(row or {}) for row in own(path)] == [["zone", "id"]] * 2


def test_types_of_parquet_are_kept_as_json_can(tmp_path: Path) -> None:
    when = dt.datetime(2026, 11, 28, 12, 0, tzinfo=dt.UTC)
    columns = {
        "prompt": ["cat"], "n": [3], "share": [0.25], "gap": [float("nan")], "day": [dt.date(2026, 11, 28)], "at": [when],
        "price": [Decimal("1.10")], "tags": [["a", "b"]], "place": [{"x": 1, "y": None}], "none": pa.nulls(1),
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    assert own(tmp_path / "p.parquet") == [
        {
            "n": 3, "share": 0.25, "gap": None, "day": "2026-11-28", "at": "2026-11-28T12:00:00+00:00", "price": "1.10",
            "tags": ["a", "b"], "place": {"x": 1, "y": None}, "none": None,
        }
    ]  # fmt: skip


def test_columns_of_bytes_are_left_out_and_named(tmp_path: Path) -> None:
    picture = pa.array([{"bytes": b"\x89PNG", "path": "a.png"}])
    pq.write_table(pa.table({"prompt": ["cat"], "image": picture, "raw": [b"x"], "id": [1]}), tmp_path / "p.parquet")
    notes: list[Note] = []
    assert own(tmp_path / "p.parquet", notes=notes) == [{"id": 1}]
    assert [note.text.split(" and")[0] for note in notes] == ["column 'image' holds bytes", "column 'raw' holds bytes"]


@pytest.mark.parametrize("name", ["p.txt", "p.csv"])
def test_a_file_of_prompts_alone_has_none(tmp_path: Path, name: str) -> None:
    assert own(write(tmp_path, name, "prompt\ncat\n"))[-1:] == [None]


@pytest.mark.parametrize("size", [MOST_COLUMNS, MOST_COLUMNS + 1])
def test_too_large_a_row_is_an_error_row_that_names_the_column(tmp_path: Path, size: int) -> None:
    text = "x" * (size - len('{"id":"a","caption":""}'))
    lines = [{"prompt": "cat", "id": "a", "caption": text}, {"prompt": "owl", "id": "b", "caption": ""}]
    large, small = read_prompts(write(tmp_path, "p.jsonl", "\n".join(map(json.dumps, lines))))
    assert small.problem is None
    if size == MOST_COLUMNS:
        assert large.problem is None and len(large.columns) == MOST_COLUMNS
    else:
        assert large.problem is not None and large.columns == ""
        assert large.problem[0] == "input.bad_column"
        assert "16,385 bytes as JSON, more than 16,384; the largest is 'caption'" in large.problem[1]


def test_a_number_that_json_cannot_write_is_a_problem_of_its_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["cat", "owl"], "weight": [float("inf"), 1.0]}), tmp_path / "p.parquet")
    first, second = read_prompts(tmp_path / "p.parquet")
    assert first.problem and first.problem[0] == "input.bad_column" and "'weight'" in first.problem[1]
    assert (second.problem, second.columns) == (None, '{"weight":1.0}')


@pytest.mark.parametrize(
    ("name", "text"), [("p.csv", "prompt,id,id\ncat,1,2\n"), ("p.jsonl", '{"prompt":"cat","id":1,"id":2}')]
)
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(InputError, match="'id' appears twice"):
        read_prompts(write(tmp_path, name, text))


def test_fields_without_a_name_are_no_columns(tmp_path: Path) -> None:
    assert own(write(tmp_path, "p.csv", "prompt,id,,\ncat,1,,\n")) == [{"id": "1"}]


def test_every_picture_of_a_row_has_them(tmp_path: Path) -> None:
    assert own(write(tmp_path, "p.csv", "prompt,id\ncat,1\n"), samples_per_prompt=2) == [{"id": "1"}] * 2


# --- plan and rows ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[[str], Plan]:
    def make(text: str) -> Plan:
        write(tmp_path, "prompts.csv", text)
        config = RunConfig(prompts="prompts.csv", shard_size=2)
        return Plan.make(config, Policy(), tmp_path, identity=fake_identity(config, Policy(), tmp_path))

    return make


def test_they_are_in_the_digest_of_the_plan(plan_of: Callable[[str], Plan]) -> None:
    digests = {plan_of(f"prompt,id\ncat,{n}\n").plan_sha256 for n in (1, 2)} | {plan_of("prompt\ncat\n").plan_sha256}
    assert len(digests) == 3


def test_a_plan_without_them_has_the_digest_it_had_before_there_were_any(plan_of: Callable[[str], Plan]) -> None:
    assert plan_of("prompt\ncat\n").parts["requests"] == ("6fb527ff4834ab3c977d0cf8d9c27b6265c265fd38ee9cb823ba6e293ca519e3")


def test_they_travel_into_the_rows(plan_of: Callable[[str], Plan], tmp_path: Path) -> None:
    plan = plan_of("prompt,key,category\ncat,a,pets\ncopy,b,pets\n,c,none\n")
    folder = run_local(plan, tmp_path / "run", open_loop=open_fake).folder
    assert [(row["request_key"], row["columns"]) for row in sample_rows(folder)] == [
        ("a", '{"category":"pets"}'), ("b", '{"category":"pets"}'), ("c", '{"category":"none"}'),
    ]  # fmt: skip
    assert verify_run(folder).problems == ()


def test_a_stored_plan_reads_them_back(plan_of: Callable[[str], Plan], tmp_path: Path) -> None:
    plan = plan_of("prompt,id\ncat,1\n")
    run_local(plan, tmp_path / "run", open_loop=open_fake)
    assert Plan.load(tmp_path / "run").requests == plan.requests


def test_a_changed_column_is_found(plan_of: Callable[[str], Plan], tmp_path: Path) -> None:
    folder = run_local(plan_of("prompt,id\ncat,1\n"), tmp_path / "run", open_loop=open_fake).folder
    path = next((folder / "samples").iterdir())
    table = pq.ParquetFile(path).read()
    place = table.schema.get_field_index("columns")
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(['{"id":"2"}'])), path)
    found = [(p.where.partition(" ")[2], p.what) for p in verify_run(folder).problems]
    assert ("row 0 column columns", "the columns do not match their commitment") in found
    # Erased rather than changed, the chain of the row stands: it is a payload.
    assert not any("record_sha256" in where for where, _ in found)
