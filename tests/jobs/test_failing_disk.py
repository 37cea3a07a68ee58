"""A run on a disk that fails: every failing system call is a sentence, and nothing that was committed is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index import storage
from index.errors import ClearanceError, RunStopped
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.verdict import verify_run
from pipeline.audit.ledger import sample_rows
from pipeline.audit.shards import committed

MakePlan = Callable[..., Plan]
Open = Callable[..., Any]


def test_a_start_whose_disk_is_full_leaves_nothing(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    class Full(storage.Disk):
        def replace(self, old: str, new: str, *, at: int) -> None:
            if new == "plan.json":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().replace(old, new, at=at)

    with storage.using(Full()), pytest.raises(RunStopped, match="disk is full"):
        run_local(make_plan(["cat"]), tmp_path / "run", open_loop=open_loop)
    assert not (tmp_path / "run").exists()


class FailsOnce(storage.Disk):
    """The n-th system call fails; all calls are counted."""

    def __init__(self, number: int = 0, error: int = errno.EIO) -> None:
        self.number, self.error, self.calls = number, error, 0

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self.number:
            raise OSError(self.error, os.strerror(self.error))

    def open(self, name: str, flags: int, mode: int = 0o666, *, at: int | None = None) -> int:
        self._call()
        return super().open(name, flags, mode, at=at)

    def fsync(self, handle: int) -> None:
        self._call()

    def replace(self, old: str, new: str, *, at: int) -> None:
        self._call()
        super().replace(old, new, at=at)

    def link(self, old: str, new: str, *, at: int) -> None:
        self._call()
        super().link(old, new, at=at)

    def make_folder(self, name: str, *, at: int | None = None) -> None:
        self._call()
        super().make_folder(name, at=at)


@pytest.mark.slow
def test_whatever_system_call_fails_is_a_sentence_and_nothing_is_lost(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open
) -> None:
    plan, counted = make_plan(["cat", "", "a steered owl"]), FailsOnce()
    with storage.using(counted):
        run_local(plan, tmp_path / "whole", open_loop=open_loop)
    assert counted.calls > 150
    errors = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS]
    stops = 0
    for number in range(1, counted.calls + 1, 7):
        folder = tmp_path / str(number)
        with storage.using(FailsOnce(number, errors[number % len(errors)])):
            try:
                run_local(plan, folder, open_loop=open_loop)
            except ClearanceError as error:
                stops += 1
                assert error.where.startswith(str(tmp_path)) and error.fix and "Errno" not in error.what, error
        kept = dict(committed(folder))
        result = run_local(plan, folder, open_loop=open_loop)
        assert [row["request_key"] for row in sample_rows(folder)] == [request.key for request in plan.requests]
        assert kept.items() <= committed(folder).items() and result.outcomes["accepted"] == 1
        assert verify_run(folder).ok, (number, verify_run(folder).problems)
    assert stops > 15


def test_a_folder_that_cannot_be_written_is_refused_before_models_are_loaded(
    make_plan: MakePlan, tmp_path: Path, open_refusing: Open
) -> None:
    class Forbidden(storage.Disk):  # the tests may run as root, who may write anywhere
        def writable(self, folder: Path) -> bool:
            return False

    with storage.using(Forbidden()), pytest.raises(RunStopped, match="permission denied") as caught:
        run_local(make_plan(["cat"]), tmp_path / "runs" / "one", open_loop=open_refusing)
    assert caught.value.where == str(tmp_path) and "--out" in caught.value.fix
