"""Strange and missing values in a record: a page comes of them, or an error that names the place."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.errors import ClearanceError, IntegrityError
from pipeline.audit.contents import COLUMNS
from pipeline.audit.numbers import ATTEMPT_COLUMNS, SAMPLE_COLUMNS
from pipeline.audit.report import write_report
from pipeline.audit.schema import attempts_schema, samples_schema
from pipeline.audit.showcase import Showcase

from ..counted import one_of_each, sealed

CONTROL = "a\x1b[31mb\x00c\u202ed\x7fe"


def test_control_characters_are_shown_escaped_in_every_place(tmp_path: Path) -> None:
    samples = [
        replace(s, request=replace(s.request, prompt=CONTROL, key=f"{CONTROL}{i}"), error_message=CONTROL)
        for i, s in enumerate(one_of_each())
    ]
    odd = [{"name": CONTROL, "version": CONTROL, "licence": "\ud800"}]
    folder = sealed(tmp_path, samples, policy={"name": CONTROL, "copies": {"action": CONTROL}}, bill_of_materials=odd)
    path, _ = write_report(folder, titles={"ref": f"<b>{CONTROL}"})
    page = path.read_text(encoding="utf-8")
    assert not re.findall("[\x00-\x08\x0b-\x1f\x7f\u202e]", page)
    assert "a\\x1b[31mb" in page and "&lt;b&gt;a" in page
    json.loads((folder / "report.json").read_bytes())


def test_half_a_surrogate_pair_in_a_column_of_the_callers_own_ends_in_a_page(tmp_path: Path) -> None:
    """JSON can spell it, so prompt files can hold it: in a column's name and in its values."""
    own = json.dumps({"a\ud800": "b\udc00"})
    folder = sealed(tmp_path, [replace(s, request=replace(s.request, columns=own)) for s in one_of_each()])
    path, _ = write_report(folder)
    assert "b\\udc00" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("odd", [7, "text", [[]], {"a": []}, None, float("inf")])
@pytest.mark.parametrize("part", ["policy", "bill_of_materials", "copy_check", "runner"])
def test_odd_types_in_the_statement_end_in_a_page(tmp_path: Path, part: str, odd: object) -> None:
    """The statement verifies, and says strange things: a page comes of it, or an error that names the file."""
    folder = sealed(tmp_path, one_of_each(), **{part: odd})
    try:
        page = write_report(folder)[0].read_text(encoding="utf-8")
    except IntegrityError as error:
        assert error.where
    else:
        assert "Clearance report" in page
        json.loads((folder / "report.json").read_bytes())


def nulled(value: Any, place: tuple[str, ...]) -> Any:
    """A value with None in place of one member, wherever lists lead to it."""
    if not place:
        return None
    if isinstance(value, list):
        return [nulled(item, place) for item in value]
    return {**value, place[0]: nulled(value[place[0]], place[1:])} if isinstance(value, dict) else value


def places_of(table: str) -> list[tuple[str, ...]]:
    """Every column of a table that the report reads, and every member of its structs."""
    found: list[tuple[str, ...]] = []

    def walk(kind: pa.DataType, place: tuple[str, ...]) -> None:
        found.append(place)
        if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            kind = kind.value_type
        if pa.types.is_struct(kind):
            for member in kind:
                walk(member.type, (*place, member.name))

    samples, attempts = {*SAMPLE_COLUMNS, *COLUMNS, *Showcase.COLUMNS}, {*ATTEMPT_COLUMNS, "sample_id", "thumbnail"}
    schema, read = (samples_schema(), samples) if table == "samples" else (attempts_schema(), attempts)
    for column in schema:
        if column.name in read:
            walk(column.type, (column.name,))
    return found


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sealed(tmp_path_factory.mktemp("stored"), one_of_each())


@pytest.mark.parametrize(
    ("table", "place"),
    [(t, p) for t in ("samples", "attempts") for p in places_of(t)],
    ids=lambda v: v if isinstance(v, str) else ".".join(v),
)
def test_missing_values_end_in_a_page_or_in_an_error_with_its_place(
    stored: Path, tmp_path: Path, table: str, place: tuple[str, ...]
) -> None:
    folder = shutil.copytree(stored, tmp_path / "run")
    for path in (folder / table).glob("*.parquet"):
        data = pq.ParquetFile(path).read()
        rows = [nulled(row, place) for row in data.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=data.schema), path)
    try:
        page = write_report(folder)[0].read_text(encoding="utf-8")
    except ClearanceError as error:
        assert error.where
    else:
        assert "The record is not whole" in page
        json.loads((folder / "report.json").read_bytes())
