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
from index.segment import FILES
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
    assert len(places) > 20
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
    assert refused > 200


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
    forge(folder, {**snapshot_of(folder), "format": 4})
    with pytest.raises(InputError, match="is an index of format 4"):
        ReferenceIndex.open(folder)


def test_an_index_without_a_recorded_embedder_needs_one_named(folder: Path) -> None:
    forge(folder, {**snapshot_of(folder), "source": {"model": "", "pretrained": ""}})
    with pytest.raises(IndexMismatch) as refused:
        ReferenceIndex.open(folder, "openclip-other")
    assert refused.value.fix.startswith("Name the embedder that it was built with")


def columns_of(table: pa.Table, **changed: Any) -> pa.Table:
    return pa.table({**{name: table.column(name) for name in table.column_names}, **changed})


def write_rows(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_rows(path: Path) -> pa.Table:
    return pa.ipc.open_file(path.read_bytes()).read_all()


def redo(folder: Path, name: str, content: bytes) -> None:
    """Put another file into the segment, and its digest into the snapshot."""
    snapshot = snapshot_of(folder)
    entry = snapshot["segments"][0]
    (folder / "segments" / entry["name"] / name).write_bytes(content)
    entry["files"][name] = hashlib.sha256(content).hexdigest()
    forge(folder, snapshot)


TABLES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a column is missing": lambda t: t.drop_columns(["pdq"]),
    "no mark of the pictures": lambda t: t.drop_columns(["kept"]),
    "numbers for text": lambda t: columns_of(t, title=[1, 2]),
    "nulls": lambda t: columns_of(t, status=["active", None]),
    "an unknown status": lambda t: columns_of(t, status=["active", "Active"]),
    "ids that are none": lambda t: columns_of(t, ref_id=["zz", "yy"]),
    "ids of others": lambda t: columns_of(t, ref_id=["0" * 16, "1" * 16]),
    "pictures that are not there": lambda t: columns_of(t, kept=[False, True]),
    "another title": lambda t: columns_of(t, title=["a", "b"]),
    "another row": lambda t: pa.concat_tables([t, t.slice(0, 1)]),
    "no rows": lambda t: t.slice(0, 0),
}


@pytest.mark.parametrize("how", TABLES)
def test_a_table_of_something_else_is_refused(folder: Path, how: str) -> None:
    [segment] = (folder / "segments").iterdir()
    path = segment / "references.arrow"
    write_rows(path, TABLES[how](read_rows(path)))
    redo(folder, path.name, path.read_bytes())
    with pytest.raises(IntegrityError) as refused:
        use(folder)
    assert refused.value.fix


OTHERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "embeddings that are not finite": ("vectors.f32", lambda b: np.full(len(b) // 4, np.nan, "<f4").tobytes()),
    "other embeddings": ("vectors.f32", lambda b: (np.frombuffer(b, "<f4") * -1).tobytes()),
    "an embedding too few": ("vectors.f32", lambda b: b[: len(b) // 2]),
    "keys of others": ("keys.i64", lambda b: (np.frombuffer(b, "<i8") + 1).tobytes()),
    "keys in another order": ("keys.i64", lambda b: np.frombuffer(b, "<i8").reshape(2, 2)[:, ::-1].tobytes()),
    "rows that are none": ("keys.i64", lambda b: (np.frombuffer(b, "<i8") + 2**40).tobytes()),
    "other digests": ("digests.bin", lambda b: bytes(len(b))),
    "a digest too few": ("digests.bin", lambda b: b[:32]),
}


@pytest.mark.parametrize("how", OTHERS)
def test_a_file_that_does_not_fit_the_others_is_refused(folder: Path, how: str) -> None:
    name, change = OTHERS[how]
    [segment] = (folder / "segments").iterdir()
    redo(folder, name, change((segment / name).read_bytes()))
    with pytest.raises(IntegrityError):
        use(folder)


def test_pictures_that_are_none_are_refused(folder: Path) -> None:
    [segment] = (folder / "segments").iterdir()
    path = segment / "pictures.parquet"
    pq.write_table(pa.table({"picture": pa.array([b"x", b"y"], pa.large_binary())}), path)
    redo(folder, path.name, path.read_bytes())
    with pytest.raises(IntegrityError, match="cannot be read"):
        use(folder)


@pytest.mark.parametrize("content", [b"", b"x", b"\x00" * 200, b"IxM2" + b"\xff" * 60])
@pytest.mark.parametrize("name", sorted(FILES))
def test_files_of_something_else_are_refused(folder: Path, name: str, content: bytes) -> None:
    redo(folder, name, content)
    with pytest.raises(IntegrityError, match=name.replace(".", r"\.")):
        use(folder)


@pytest.mark.parametrize("place", ["CURRENT", "snapshots", "segments", "snapshot", *sorted(FILES)])
@pytest.mark.parametrize("instead", ["a folder", "a file", "nothing"])
def test_something_else_in_the_place_of_a_file_is_refused(folder: Path, place: str, instead: str) -> None:
    current = (folder / "CURRENT").read_text().strip()
    path = {
        "snapshot": folder / "snapshots" / f"{current}.json",
        **{n: next((folder / "segments").iterdir()) / n for n in FILES},
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
