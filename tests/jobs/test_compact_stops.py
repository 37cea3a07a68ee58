"""A compaction that was stopped: readers see every row once, and the same command ends it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from index import storage
from index.errors import ClearanceError, InputError, RunStopped
from index.places import schemes
from index.places.objects import ObjectStore
from jobs.compact import compact_run
from jobs.retention import erase_keys
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from pipeline.audit.compacted import parts_index
from pipeline.audit.events import append_event, read_events
from pipeline.audit.ledger import sample_rows
from pipeline.audit.verify import verify
from tests.jobs.compacting import (
    PROMPTS,
    WHO,
    Dying,
    compacted,
    files_of,
    large,
    run,
    shelf,
    small,
    sound,
    stored_bytes,
)
from tests.jobs.retained import Sticky

FIXTURES = (compacted, large, run, shelf, small)  # used by name


@pytest.fixture
def two_shards(make_plan: Callable[..., Plan], open_loop: Callable[..., Any], tmp_path: Path) -> Path:
    return run_local(make_plan(["cat", "copy", "steered fox"]), tmp_path / "short", open_loop=open_loop).folder


# 3 parts, the event, its head, the index, the card, then 7 small files.
STEPS = range(15) if os.environ.get("CLEARANCE_KILLS") else (2, 3, 4, 5, 6, 7, 10, 13, 14)


@pytest.mark.parametrize("steps", STEPS)
def test_stopped_anywhere_readers_see_every_row_once_and_the_next_time_it_ends(two_shards: Path, steps: int) -> None:
    folder = two_shards
    rows, small = list(sample_rows(folder, ["sample_id", "record_sha256"])), ("samples", "attempts", "kept", "commits")
    with storage.using(Dying(steps)), suppress(ClearanceError):
        compact_run(folder, WHO)
    left, switched = len(files_of(folder, *small)), parts_index(folder) is not None
    assert (switched, left) == (steps > 5, 7 - max(0, steps - 7))
    assert list(sample_rows(folder, ["sample_id", "record_sha256"])) == rows
    assert sound(folder) == (not switched or left == 0)
    if switched and left:
        assert all("clearance compact" in problem.what for problem in verify(folder).problems)
    done = compact_run(folder, WHO)
    assert sound(folder) and not files_of(folder, *small)
    assert len(files_of(folder, "parts")) == 4 and (done.event is None) == switched


def test_a_run_on_an_object_store_is_compacted_there(
    make_plan: Callable[..., Plan], open_loop: Any, memory: str, tmp_path: Path
) -> None:
    plan, folder = make_plan(PROMPTS), storage.place(memory) / "run"
    run_local(plan, folder, open_loop=open_loop)
    before, roots = list(sample_rows(folder)), verify(folder).roots
    done = compact_run(folder, WHO, part_bytes=60_000)
    found = verify(folder)
    assert found.ok and found.roots == roots and list(sample_rows(folder)) == before
    assert done.removed == 15
    assert [entry.name for name in ("samples", "attempts", "kept", "commits") for entry in storage.entries(folder, name)] == []
    erase_keys(folder, ["row-000000"], (), WHO)
    assert verify(folder).ok and verify(folder).counts["erased"] > 4


def test_two_appends_at_one_moment_lose_no_event_on_an_object_store(memory: str) -> None:
    """A part is put if absent. Without hard links a local folder cannot promise it."""
    folder = storage.place(memory) / "run"
    append_event(folder, "run.started", "runner", "first")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: append_event(folder, "run.noted", f"writer-{n}", "at once"), range(8)))
    events = read_events(folder)
    assert {event["actor"] for event in events} == {"runner", *(f"writer-{n}" for n in range(8))} and len(events) == 9


def test_an_erasure_reaches_what_a_stopped_compaction_left(run: Path, tmp_path: Path) -> None:
    picture = next(repr(row["image"]["bytes"]).encode() for row in sample_rows(run) if row["image"])
    key = next(row["request_key"] for row in sample_rows(run) if row["image"])
    for steps in (3, 6, 8):  # before the event, behind it, while the small files go
        folder = Path(shutil.copytree(run, tmp_path / f"stopped-{steps}"))
        with storage.using(Dying(steps)), suppress(ClearanceError):
            compact_run(folder, WHO)
        assert len(files_of(folder, "parts")) > 0
        erase_keys(folder, [key], (), WHO)
        assert picture not in stored_bytes(folder), steps
        assert sound(folder), steps


# --- what cannot be removed ------------------------------------------------------------------------------------------------


def test_small_files_that_cannot_be_removed_are_named_and_the_next_time_they_go(two_shards: Path) -> None:
    with (
        storage.using(Sticky("part-000002")),
        pytest.raises(RunStopped, match="cannot be removed: samples/part-000002") as caught,
    ):
        compact_run(two_shards, WHO)
    assert "the right to delete" in caught.value.fix and "run the same command again" in caught.value.fix
    assert parts_index(two_shards) is not None and len(files_of(two_shards, "samples", "attempts", "kept", "commits")) == 2
    assert compact_run(two_shards, WHO).removed == 2 and sound(two_shards)


def test_an_erasure_is_no_success_while_a_second_copy_cannot_be_removed(run: Path) -> None:
    with storage.using(Sticky("part-000000")), pytest.raises(RunStopped):
        compact_run(run, WHO)
    before = [row["image"] for row in sample_rows(run)]
    with storage.using(Sticky("part-000000")), pytest.raises(RunStopped, match="cannot be removed: samples/part-000000"):
        erase_keys(run, ["row-000000"], (), WHO)
    assert [row["image"] for row in sample_rows(run)] == before
    assert not any(event["kind"] == "payload.erased" for event in read_events(run))
    erase_keys(run, ["row-000000"], (), WHO)
    assert repr(before[0]["bytes"]).encode() not in stored_bytes(run) and sound(run)


class Keeping(ObjectStore):
    """A store in memory whose credentials may not delete what lies in some folder."""

    def __init__(self, root: str) -> None:
        from obstore.store import MemoryStore

        super().__init__(root, MemoryStore())
        self.kept = ""

    def delete(self, key: str) -> None:
        if self.kept and self.kept in key:
            raise InputError("the object store denies access", where=key)
        super().delete(key)


def test_objects_that_cannot_be_removed_are_named(make_plan: Callable[..., Plan], open_loop: Any) -> None:
    store = Keeping("keeping://bucket")
    with schemes.using({"keeping": lambda _: store}):
        folder = run_local(make_plan(PROMPTS), storage.place("keeping://bucket/run"), open_loop=open_loop).folder
        store.kept = "/commits/"
        with pytest.raises(RunStopped, match=r"cannot be removed: commits/000000-\w+\.json, .* and 1 more") as caught:
            compact_run(folder, WHO)
        assert caught.value.where == "keeping://bucket/run"
        store.kept = ""
        assert compact_run(folder, WHO).removed == 4 and verify(folder).ok
