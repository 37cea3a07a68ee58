"""Commits beside the denoiser: the same record, made while the loop goes on; a failure ends the run as it does in its place."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from index import storage
from index.errors import RunStopped
from index.storage import Disk
from jobs.run.commits import MOST, Commits
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.worker import Worker
from pipeline.audit.content import content_root
from pipeline.audit.shards import committed
from pipeline.outcome import Sample

MakePlan = Callable[..., Plan]
Open = Callable[..., Any]
PROMPTS = [f"owl {i}" for i in range(9)]


class Held(Disk):
    """Markers wait until something is let go; counts those that stand."""

    def __init__(self) -> None:
        self.let_go, self.late = threading.Event(), False

    def link(self, old: str, new: str, *, at: int) -> None:
        if new.endswith(".json"):
            self.late |= not self.let_go.wait(20)
        super().link(old, new, at=at)


class Full(Disk):
    def fsync(self, handle: int) -> None:
        raise OSError(28, os.strerror(28))


def test_the_loop_goes_on_while_a_shard_is_committed(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    """The first marker waits for a sample of the next shard. In the loop's own thread that sample would never come."""
    plan, disk = make_plan(PROMPTS), Held()

    def ended(sample: Sample) -> None:
        if sample.request.row_no >= len(plan.shards[0].requests):
            disk.let_go.set()

    commits = Commits(beside=True)
    with storage.using(disk), closing(
        Worker(plan, tmp_path / "run", "run", "w", open_loop=open_loop, on_sample=ended, commits=commits)
    ) as worker:  # fmt: skip
        assert worker.work(0, (1, 2)).shard_id == plan.shards[0].shard_id
    assert not disk.late


def test_the_record_is_that_of_commits_in_the_loop(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    plan = make_plan(PROMPTS)
    run_local(plan, tmp_path / "local", open_loop=open_loop)
    with closing(Worker(plan, tmp_path / "run", "run", "w", open_loop=open_loop, commits=Commits(beside=True))) as worker:
        numbers = range(len(plan.shards))
        receipts = [worker.work(number, [other for other in numbers if other > number][:2]) for number in numbers]
    assert [receipt.shard_id for receipt in receipts] == [shard.shard_id for shard in plan.shards]
    assert committed(tmp_path / "run") == {receipt.shard_id: receipt for receipt in receipts}
    assert content_root(tmp_path / "run") == content_root(tmp_path / "local")


def test_a_commit_that_fails_beside_ends_the_work(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    with storage.using(Full()), closing(
        Worker(make_plan(PROMPTS), tmp_path / "run", "run", "w", open_loop=open_loop, commits=Commits(beside=True))
    ) as worker, pytest.raises(RunStopped, match="the disk is full"):  # fmt: skip
        worker.work(0, (1, 2))
    assert committed(tmp_path / "run") == {}


def test_the_pictures_of_a_few_shards_wait_at_most() -> None:
    """Whoever adds one more waits for the oldest."""
    commits, go = Commits(beside=True), threading.Event()
    for number in range(MOST):
        commits.add(number, (), lambda: go.wait(20))  # type: ignore[arg-type, return-value]
    assert commits.ended() == []
    threading.Timer(0.1, go.set).start()
    commits.add(MOST, (), lambda: go.wait(20))  # type: ignore[arg-type, return-value]
    assert commits.ended()[0].shard_no == 0 and go.is_set()
    commits.close()


def test_what_waits_is_not_begun_once_they_are_closed() -> None:
    commits, begun = Commits(beside=True), list[int]()
    go = threading.Event()
    commits.add(0, (), lambda: go.wait(20))  # type: ignore[arg-type, return-value]
    commits.add(1, (), lambda: begun.append(1))  # type: ignore[arg-type, return-value, func-returns-value]
    threading.Timer(0.1, go.set).start()
    commits.close()
    assert begun == []


class Where(Disk):
    """Which threads give markers their names."""

    def __init__(self) -> None:
        self.threads: set[threading.Thread] = set()

    def link(self, old: str, new: str, *, at: int) -> None:
        self.threads.add(threading.current_thread())
        super().link(old, new, at=at)


@pytest.mark.parametrize("beside", [None, True])
def test_by_default_a_processor_makes_them_in_the_loop(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open, beside: bool | None
) -> None:
    commits, disk = Commits(beside=beside) if beside else None, Where()
    with storage.using(disk), closing(
        Worker(make_plan(["cat"]), tmp_path / "run", "run", "w", open_loop=open_loop, commits=commits)
    ) as worker:  # fmt: skip
        worker.work(0)
    assert disk.threads and (threading.main_thread() in disk.threads) is (beside is None)
