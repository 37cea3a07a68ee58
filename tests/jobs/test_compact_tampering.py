"""What is changed in a compacted run's parts and their index is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from index import storage
from jobs.compact import compact_run
from jobs.retention import erase_keys
from jobs.run.verdict import verify_run
from pipeline.audit.compacted import PARTS_INDEX, parts_index
from pipeline.audit.events import append_event
from tests.jobs.compacting import (
    WHO,
    compacted,
    contents,
    files_of,
    large,
    run,
    shelf,
    small,
    sound,
)

FIXTURES = (compacted, large, run, shelf, small)  # used by name


def index_edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The index with other columns, written by its own writer, with a digest that no event names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(folder / PARTS_INDEX)
    columns = table.to_pydict()
    change(columns)
    pq.write_table(pa.table(columns, schema=table.schema), folder / PARTS_INDEX)


def moved_on(columns: dict[str, Any]) -> None:
    columns["samples_first"][1] += 1


def another_header(columns: dict[str, Any]) -> None:
    columns["samples_header"][0] = columns["samples_header"][1]


def a_shard_less(columns: dict[str, Any]) -> None:
    for values in columns.values():
        del values[1]


def no_rows(columns: dict[str, Any]) -> None:
    columns["attempts_part"][0] = None


def exchanged(columns: dict[str, Any]) -> None:
    for name in ("samples_part", "samples_first", "samples_rows"):
        columns[name][0], columns[name][1] = columns[name][1], columns[name][0]


@pytest.mark.parametrize("change", [moved_on, another_header, a_shard_less, no_rows, exchanged])
@pytest.mark.parametrize("named", [False, True])
def test_another_index_is_found(large: Path, change: Callable[[dict[str, Any]], None], named: bool) -> None:
    """Also where a further event names it: the chains and the statement do not go with it."""
    index_edited(large, change)
    if named:
        append_event(large, "run.compacted", "forger", "again", index_sha256=storage.digest_of(large, PARTS_INDEX))
    assert not sound(large)


@pytest.fixture
def forged(large: Path) -> Iterator[Callable[[Callable[[Any], Any]], None]]:
    """Another samples part of the first shards, which its index and a further event name."""

    def forge(change: Callable[[Any], Any]) -> None:
        import pyarrow.parquet as pq

        from pipeline.audit.compacted import index_bytes
        from pipeline.audit.shards import write_parquet

        index = parts_index(large)
        assert index is not None
        path = large / index.parts[0].path
        table = change(pq.ParquetFile(path).read())
        with path.open("wb") as stream:
            write_parquet(table, stream)
        first = type(index.parts[0])(
            table="samples", path=index.parts[0].path, sha256=storage.digest_of(large, index.parts[0].path),
            bytes=path.stat().st_size, rows=index.parts[0].rows,
        )  # fmt: skip
        data = index_bytes((first, *index.parts[1:]), index.markers, index.slices)
        (large / PARTS_INDEX).write_bytes(data)
        append_event(large, "run.compacted", "forger", "again", index_sha256=storage.digest_of(large, PARTS_INDEX))

    yield forge
    assert not sound(large)


def test_a_forged_column_is_found_in_a_part(forged: Any, large: Path) -> None:
    import pyarrow as pa

    def change(table: Any) -> Any:
        reasons = table.column("reason").to_pylist()
        place = table.schema.get_field_index("reason")
        return table.set_column(place, table.schema.field(place), pa.array(["forged", *reasons[1:]]))

    forged(change)
    assert any("row 0 column record_sha256" in problem.where for problem in verify_run(large).problems)


def test_exchanged_rows_are_found_in_a_part(forged: Any) -> None:
    forged(lambda table: table.take([1, 0, *range(2, table.num_rows)]))


def test_an_exchanged_picture_is_found_in_a_part(forged: Any, large: Path) -> None:
    import pyarrow as pa

    def change(table: Any) -> Any:
        place = table.schema.get_field_index("image")
        images = table.column("image").to_pylist()
        last = next(image for image in reversed(images) if image)
        return table.set_column(place, table.schema.field(place), pa.array([last, *images[1:]], table.schema.field(place).type))

    forged(change)
    assert any("row 0 column image" in problem.where for problem in verify_run(large).problems)


def test_a_row_less_is_found_in_a_part(forged: Any) -> None:
    forged(lambda table: table.slice(1))


@pytest.mark.parametrize(
    ("which", "how"),
    [("samples", "bit"), ("samples", "gone"), ("attempts", "cut"), ("kept", "empty"), ("kept", "link"), ("index", "bit"),
     ("index", "gone"), ("index", "empty"), ("index", "link")],
)  # fmt: skip
def test_a_damaged_part_is_found_and_named(compacted: Path, tmp_path: Path, which: str, how: str) -> None:
    path = next((compacted / "parts").glob(f"{which}*"))
    data = path.read_bytes()
    if how == "bit":
        path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(data[:-9])
    else:
        path.unlink()
        if how == "link":
            (tmp_path / "elsewhere").write_bytes(data)
            path.symlink_to(tmp_path / "elsewhere")
    problems = verify_run(compacted).problems
    assert not sound(compacted)
    # Without the index the rows themselves are what is missing.
    named = ("commits/", "run.json") if (which, how) == ("index", "gone") else (f"parts/{path.name}",)
    assert any(problem.where.startswith(named) for problem in problems), problems


def test_a_file_among_the_parts_is_found(compacted: Path) -> None:
    shutil.copy(next((compacted / "parts").glob("samples-*")), compacted / "parts" / "samples-00009-00000000.parquet")
    assert not sound(compacted)


def test_a_small_file_that_was_put_back_is_found(compacted: Path, small: Path) -> None:
    path = files_of(small, "samples")[0]
    shutil.copy(path, compacted / "samples" / path.name)
    assert not sound(compacted)
    compact_run(compacted, WHO)
    assert sound(compacted)


def test_an_old_copy_of_an_erased_part_is_found(compacted: Path) -> None:
    before = contents(compacted)
    erase_keys(compacted, ["row-000000"], (), WHO)
    for name, data in before.items():
        if name.startswith("parts/"):
            (compacted / name).write_bytes(data)
    problems = verify_run(compacted).problems
    assert not sound(compacted) and any("names as erased" in problem.what for problem in problems)


def test_the_small_files_put_back_in_the_place_of_erased_parts_are_found(compacted: Path, small: Path) -> None:
    """Otherwise a copy from before the compaction would bring back what was erased since."""
    erase_keys(compacted, ["row-000000"], (), WHO)
    shutil.rmtree(compacted / "parts")
    for name in ("samples", "attempts", "kept", "commits"):
        shutil.copytree(small / name, compacted / name, dirs_exist_ok=True)
    assert not sound(compacted)
