"""An index folder that is not what it should be is refused in a sentence, even where every digest was computed again."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.errors import ClearanceError, IndexMismatch, InputError, IntegrityError
from index.store import ReferenceIndex

from .conftest import GridEmbedder, drawing, work

ODD: list[Any] = [None, True, 3, -1, 1.5, float("nan"), "", "x", "../..", [], {}, [[]], {"a": {}}, [None]]


@pytest.fixture
def folder(tmp_path: Path, embedder: GridEmbedder) -> Path:
    index = ReferenceIndex.build(tmp_path / "i", [work(1), work(2)], embedder)
    index.set_status(index.references()[0].ref_id, "disputed", "asked")
    return tmp_path / "i"


def snapshot_of(folder: Path) -> dict[str, Any]:
    current = (folder / "CURRENT").read_text().strip()
    return dict(json.loads((folder / "snapshots" / f"{current}.json").read_text()))


def forge(folder: Path, snapshot: Any) -> None:
    """Put any snapshot in force, under its right digest."""
    content = json.dumps(snapshot).encode()
    digest = hashlib.sha256(content).hexdigest()
    (folder / "snapshots" / f"{digest}.json").write_bytes(content)
    (folder / "CURRENT").write_text(digest)


def use(folder: Path) -> None:
    index = ReferenceIndex.open(folder)
    index.verify()
    index.references()
    index.history()
    index.search(GridEmbedder().images(drawing(1)[None]), 2)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [deeper for key, below in inside for deeper in paths_in(below, (*path, key))]


def test_any_value_of_another_kind_is_refused_or_harmless(folder: Path) -> None:
    whole = snapshot_of(folder)
    places, refused = paths_in(whole), 0
    assert len(places) > 25
    for place in places:
        for value in ODD:
            changed = copy.deepcopy(whole)
            target = changed
            for key in place[:-1]:
                target = target[key]
            target[place[-1]] = value
            forge(folder, changed)
            try:
                use(folder)
            except ClearanceError:
                refused += 1
    assert refused > 250


@pytest.mark.parametrize("snapshot", ODD)
def test_a_snapshot_that_is_none_is_refused(folder: Path, snapshot: Any) -> None:
    forge(folder, snapshot)
    with pytest.raises(IntegrityError, match="is not a snapshot"):
        ReferenceIndex.open(folder)


@pytest.mark.parametrize("status", ["Active", "retired", ""])
def test_a_status_that_would_match_nothing_is_refused(folder: Path, status: str) -> None:
    changed = snapshot_of(folder)
    next(iter(changed["amendments"].values()))["status"] = status
    forge(folder, changed)
    with pytest.raises(IntegrityError):
        ReferenceIndex.open(folder)


def test_a_segment_does_not_lie_outside_the_folder(folder: Path, tmp_path: Path) -> None:
    changed = snapshot_of(folder)
    shutil.move(folder / "segments" / changed["segments"][0]["name"], tmp_path / "elsewhere")
    changed["segments"][0]["name"] = "../../elsewhere"
    forge(folder, changed)
    with pytest.raises(IntegrityError, match="is not a segment"):
        ReferenceIndex.open(folder)


def test_an_index_of_a_later_format_is_refused_by_name(folder: Path) -> None:
    forge(folder, {**snapshot_of(folder), "format": 3})
    with pytest.raises(InputError, match="is an index of format 3"):
        ReferenceIndex.open(folder)


def test_an_index_of_the_first_format_is_still_read(folder: Path) -> None:
    old = snapshot_of(folder)
    for later in ("amendments", "source"):
        del old[later]
    old["index_id"] = old["history"][0]["index_id"]
    forge(folder, {**old, "format": 1})
    use(folder)
    assert {reference.status for reference in ReferenceIndex.open(folder).references()} == {"active"}


def test_an_index_without_a_recorded_embedder_needs_one_named(folder: Path) -> None:
    forge(folder, {**snapshot_of(folder), "source": {"model": "", "pretrained": ""}})
    with pytest.raises(IndexMismatch) as refused:
        ReferenceIndex.open(folder, "openclip-other")
    assert refused.value.fix.startswith("Name the embedder that it was built with")


def columns_of(table: pa.Table, **changed: Any) -> pa.Table:
    return pa.table({**{name: table.column(name) for name in table.column_names}, **changed})


TABLES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a column is missing": lambda t: t.drop_columns(["pdq"]),
    "no embeddings": lambda t: t.drop_columns(["embedding"]),
    "numbers for text": lambda t: columns_of(t, title=[1, 2]),
    "nulls": lambda t: columns_of(t, status=["active", None]),
    "an unknown status": lambda t: columns_of(t, status=["active", "Active"]),
    "ids that are none": lambda t: columns_of(t, ref_id=["zz", "yy"]),
    "embeddings of another length": lambda t: columns_of(t, embedding=[[1.0], [0.5]]),
    "embeddings of two lengths": lambda t: columns_of(t, embedding=[[1.0, 2.0], [0.5]]),
    "embeddings that are not finite": lambda t: columns_of(t, embedding=[[np.nan] * 48] * 2),
    "embeddings of text": lambda t: columns_of(t, embedding=["a", "b"]),
    "pictures that are none": lambda t: columns_of(t, picture=pa.array([b"x", b"y"], pa.large_binary())),
    "another row": lambda t: pa.concat_tables([t, t.slice(0, 1)]),
    "no rows": lambda t: t.slice(0, 0),
}


@pytest.mark.parametrize("how", TABLES)
def test_a_table_of_something_else_is_refused(folder: Path, how: str) -> None:
    snapshot = snapshot_of(folder)
    entry = snapshot["segments"][0]
    path = folder / "segments" / entry["name"] / "references.parquet"
    pq.write_table(TABLES[how](pq.read_table(path)), path)
    entry["files"]["references.parquet"] = hashlib.sha256(path.read_bytes()).hexdigest()
    forge(folder, snapshot)
    with pytest.raises(IntegrityError) as refused:
        use(folder)
    assert refused.value.fix


@pytest.mark.parametrize("content", [b"", b"x", b"\x00" * 200, b"IxM2" + b"\xff" * 60])
@pytest.mark.parametrize("name", ["references.parquet", "vectors.faiss"])
def test_files_of_something_else_are_refused(folder: Path, name: str, content: bytes) -> None:
    snapshot = snapshot_of(folder)
    entry = snapshot["segments"][0]
    (folder / "segments" / entry["name"] / name).write_bytes(content)
    entry["files"][name] = hashlib.sha256(content).hexdigest()
    forge(folder, snapshot)
    with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
        use(folder)


@pytest.mark.parametrize("place", ["CURRENT", "snapshots", "segments", "snapshot", "references.parquet", "vectors.faiss"])
@pytest.mark.parametrize("instead", ["a folder", "a file", "nothing"])
def test_something_else_in_the_place_of_a_file_is_refused(folder: Path, place: str, instead: str) -> None:
    current = (folder / "CURRENT").read_text().strip()
    path = {
        "snapshot": folder / "snapshots" / f"{current}.json",
        **{n: next((folder / "segments").iterdir()) / n for n in ("references.parquet", "vectors.faiss")},
    }.get(place, folder / place)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if instead == "a folder":
        path.mkdir()
    elif instead == "a file":
        path.write_bytes(b"\xff\xfe not text")
    with pytest.raises(ClearanceError):
        ReferenceIndex.open(folder)


def test_a_file_in_the_place_of_the_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "i").write_bytes(b"")
    with pytest.raises(InputError, match="is not a reference index"):
        ReferenceIndex.open(tmp_path / "i")
