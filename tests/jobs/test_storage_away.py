"""A store that fails while Parquet is parsed is named as away, with the cause by which a caller tries again; not as damage."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from index import storage
from index.errors import InputError, IntegrityError, OutOfMemory
from index.places import schemes
from jobs.by import By
from jobs.retention import erase_keys
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.retries import passes
from pipeline.audit.compact import compact
from pipeline.audit.compacted import COMPACTED, parts_index
from pipeline.audit.events import NewEvent, read_events
from pipeline.audit.kept import kept_pictures
from pipeline.audit.layout import data_files
from pipeline.audit.ledger import attempt_rows, sample_rows
from pipeline.audit.requests import ended_requests
from pipeline.audit.stored import chosen_rows, embeddings, samples_of
from pipeline.audit.verify import verify
from tests.object_stores import Failing

PROMPTS = ["cat", "copy of an owl", "steered fox", "elk", "stubborn ape", "lemon", "copy of a bat", "emu"]


@pytest.fixture
def store() -> Iterator[Failing]:
    found = Failing("failing://bucket")
    with schemes.using({"failing": lambda _: found}):
        yield found


@pytest.fixture
def run(store: Failing, make_plan: Callable[..., Plan], open_loop: Any) -> Path:
    """One shard of eight requests."""
    return run_local(make_plan(PROMPTS, shard_size=8), storage.place("failing://bucket/run"), open_loop=open_loop).folder


def failures(store: Failing, do: Callable[[], Any]) -> int:
    """Do it with a store that is away from the first range on, from the second, and so on until it succeeds."""
    for number in range(200):
        store.ranges_left = number
        try:
            do()
        except Exception as error:
            assert type(error) is InputError and error.what == "the object store does not answer", (number, error)
            assert passes(error), number
        else:
            return number
        finally:
            store.ranges_left = None
    raise AssertionError("it never succeeds")


def path_of(run: Path, table: str = "samples") -> str:
    return next(data_files(run, table))


READERS: dict[str, Callable[[Path], Any]] = {
    "samples": lambda run: [*sample_rows(run)],
    "attempts": lambda run: [*attempt_rows(run)],
    "requests": lambda run: [*ended_requests(run, ["image"], ["thumbnail"])],
    "kept": lambda run: [*kept_pictures(run)],
    "embeddings": lambda run: [*embeddings(run, 4)],
    "ids": lambda run: [*samples_of(run)],
    "some rows": lambda run: [*chosen_rows(run, path_of(run), [1, 7], ["image"])],
}


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_of_rows_names_the_store(run: Path, store: Failing, reader: str) -> None:
    store.watched = ".parquet"
    assert failures(store, lambda: READERS[reader](run)) >= 2


@pytest.mark.parametrize("watched", ["/samples/", "/parts/samples"])
def test_a_compaction_names_the_store_and_changes_nothing(run: Path, store: Failing, watched: str) -> None:
    """While the small files are read, and while the parts are read back."""
    store.watched = watched
    event, before = NewEvent(kind=COMPACTED, actor="operator", reason="fewer files"), len(read_events(run))
    store.ranges_left = 1
    with pytest.raises(InputError):
        compact(run, event)
    store.ranges_left = None
    assert parts_index(run) is None and len(read_events(run)) == before and verify(run).problems == ()
    assert failures(store, lambda: compact(run, event)) >= 2
    assert parts_index(run) is not None


def test_an_erasure_names_the_store_and_is_done_by_the_same_command(run: Path, store: Failing) -> None:
    store.watched = ".parquet"
    assert failures(store, lambda: erase_keys(run, ["row-000000"], (), By(role="privacy", reason="asked"))) > 4
    assert verify(run).ok and next(sample_rows(run))["image"] is None


def test_a_verifier_names_the_store_and_no_damage(run: Path, store: Failing) -> None:
    store.watched = path_of(run)
    for number in range(2):
        store.ranges_left = number
        found = verify(run)
        store.ranges_left = None
        named = {problem.what for problem in found.problems if problem.where.startswith("samples/")}
        assert named == {"the object store does not answer; shard 000000-d896b07a committed it"}, number
    assert verify(run).ok


def test_what_is_left_out_as_damaged_says_that_the_store_was_away(run: Path, store: Failing) -> None:
    store.watched, store.ranges_left, damaged = path_of(run), 1, []
    list(ended_requests(run, ["image"], [], damaged=damaged))
    assert [error.what for error in damaged] == ["the object store does not answer"]


class Broken(io.BytesIO):
    """A file of a network folder that went away."""

    def __init__(self, data: bytes, number: int | None) -> None:
        super().__init__(data)
        self.number = number

    def read(self, size: int | None = -1) -> bytes:
        if self.number is not None:
            raise OSError(self.number, "Stale file handle")
        return super().read(size)


def parsed(data: bytes, number: int | None = None) -> None:
    from pipeline.audit.blocks import read_blocks

    with storage.parsing("samples/x.parquet", fix="Restore it"):
        list(read_blocks(Broken(data, number)))


def test_a_file_of_a_folder_that_went_away_is_not_damaged(run: Path) -> None:
    data = storage.read_file(run, path_of(run))
    parsed(data)
    with pytest.raises(InputError, match="Stale file handle") as caught:
        parsed(data, errno.ESTALE)
    assert passes(caught.value)


@pytest.mark.parametrize("said", ["", "malloc of size 1048576 failed"])
def test_a_file_for_which_memory_ran_out_is_not_damaged(said: str) -> None:
    with pytest.raises(OutOfMemory, match="memory ran out") as caught, storage.parsing("samples/x.parquet", fix="Restore it"):
        raise MemoryError(said)
    assert "nothing shows that the file is damaged" in caught.value.fix


def test_a_length_beyond_the_machine_s_memory_is_damage() -> None:
    with (
        pytest.raises(IntegrityError, match="size 1152921504606846976"),
        storage.parsing("samples/x.parquet", fix="Restore it"),
    ):
        pa.allocate_buffer(2**60)


def test_a_file_that_holds_something_else_is_damaged_and_not_tried_again(run: Path) -> None:
    data = storage.read_file(run, path_of(run))
    for damaged in (b"", data[:-9], data[:200] + bytes(2000) + data[2200:]):
        with pytest.raises(IntegrityError, match="cannot be read") as caught:
            parsed(damaged)
        assert not passes(caught.value) and caught.value.fix == "Restore it"
