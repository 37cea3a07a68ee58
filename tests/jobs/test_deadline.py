"""A request that gets no verdict in time ends as an error row; storage that is away for a moment ends no run."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index import storage
from index.errors import RunStopped
from jobs.run.lease.lock import Process
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.ray.actor import Actor, Driver, Opened
from jobs.run.retries import STORAGE_WAITS, with_retries
from jobs.run.worker import Worker
from pipeline.audit.ledger import sample_rows
from pipeline.audit.shards import committed
from pipeline.audit.verify import verify

MakePlan = Callable[..., Plan]
Open = Callable[..., Any]


def never_ends(open_loop: Open, word: str) -> Open:
    """A loop in which what has the word in its prompt never gets a verdict."""

    def opened(*arguments: Any) -> Any:
        loop = open_loop(*arguments)

        def step() -> list[Any]:
            ready = [request for request in loop.standing if word not in request.prompt]
            if not ready:
                time.sleep(0.05)
                return []
            loop.standing.remove(ready[0])
            return [loop.sample(ready[0])]

        loop.step = step
        return loop

    return opened


def test_a_request_past_its_deadline_ends_as_an_error_row(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    plan = make_plan(["cat", "stuck", "owl", "fox"], deadline_seconds=0.3)
    result = run_local(plan, tmp_path / "run", open_loop=never_ends(open_loop, "stuck"))
    assert result.outcomes == {"accepted": 3, "error": 1}
    (bad,) = [row for row in sample_rows(result.folder) if row["outcome"] == "error"]
    assert (bad["request_key"], bad["reason"]) == ("row-000001", "error.deadline")
    assert bad["error_message"] == "no verdict within 0.3 s (deadline_seconds)"
    assert verify(result.folder).ok


def test_without_a_deadline_slow_requests_are_waited_for(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    def slow(*arguments: Any) -> Any:
        loop = open_loop(*arguments)
        whole = loop.step

        def step() -> list[Any]:
            time.sleep(0.2)
            return list(whole())

        loop.step = step
        return loop

    assert run_local(make_plan(["cat", "owl"]), tmp_path / "run", open_loop=slow).outcomes == {"accepted": 2}


def test_a_call_that_does_not_return_is_seen_to_hang(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the actor's process ends, and its shards are leased again."""
    seen: list[bool] = []

    def watched(*arguments: Any) -> Any:
        loop = open_loop(*arguments)

        def step() -> list[Any]:
            time.sleep(0.1)
            seen.extend([actor.hangs(60.0), actor.hangs(0.05)])
            return [loop.sample(loop.standing.pop())]

        loop.step = step
        return loop

    monkeypatch.setattr("jobs.run.ray.actor.require_folder_of_driver", lambda *_: None)  # no driver has begun one
    actor = Actor(make_plan(["cat"]), tmp_path / "run", "run", "ray-0", watched, Driver(process=Process.this()))
    assert isinstance(actor.open(), Opened) and not actor.hangs(0.0)
    actor.work(0, (), None)  # type: ignore[arg-type]
    assert seen == [False, True] and not actor.hangs(0.0)


class Away(storage.Disk):
    """A network folder that is away for some renames of data files."""

    def __init__(self, times: int, error: int) -> None:
        self.left, self.error = times, error

    def replace(self, old: str, new: str, *, at: int) -> None:
        if self.left and new.endswith(".parquet") and new.startswith("part-"):
            self.left -= 1
            raise OSError(self.error, os.strerror(self.error))
        super().replace(old, new, at=at)


def test_a_commit_is_tried_again_on_storage_that_comes_back(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    waits: list[float] = []
    worker = Worker(make_plan(["cat", "owl"]), tmp_path / "run", "run", "w", open_loop=open_loop, pause=waits.append)
    with storage.using(Away(2, errno.ESTALE)):
        receipt = worker.work(0)
    assert receipt.rows == 2 and committed(tmp_path / "run") == {receipt.shard_id: receipt}
    assert waits == list(STORAGE_WAITS[:2])


def test_storage_that_stays_away_ends_the_run_with_a_sentence(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    waits: list[float] = []
    worker = Worker(make_plan(["cat"]), tmp_path / "run", "run", "w", open_loop=open_loop, pause=waits.append)
    with storage.using(Away(99, errno.ESTALE)), pytest.raises(RunStopped, match="network folder went away"):
        worker.work(0)
    assert waits == list(STORAGE_WAITS) and committed(tmp_path / "run") == {}


def test_a_commit_is_tried_again_where_reading_fails(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    """A commit begins with the question whether its marker is there. Its failure is an InputError."""
    waits: list[float] = []
    worker = Worker(make_plan(["cat", "owl"]), tmp_path / "run", "run", "w", open_loop=open_loop, pause=waits.append)

    class Blind(storage.Disk):
        def open(self, name: str, flags: int, mode: int = 0o666, *, at: int | None = None) -> int:
            if name == "commits" and len(waits) < 2:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return super().open(name, flags, mode, at=at)

    storage.make(tmp_path / "run", "commits")
    with storage.using(Blind()):
        assert worker.work(0).rows == 2
    assert waits == list(STORAGE_WAITS[:2])


def test_a_full_disk_is_not_tried_again() -> None:
    def full() -> None:
        tries.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    tries: list[int] = []
    with pytest.raises(OSError, match="No space"):
        with_retries(full, pause=lambda _: None)
    assert tries == [1]
