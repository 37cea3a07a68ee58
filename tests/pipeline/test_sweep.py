"""A sweep beside a late commit: whatever the order of their steps, a marker never stands without its files."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from index import storage
from index.errors import IntegrityError, RunStopped
from index.storage import Disk
from pipeline.audit.context import RunContext
from pipeline.audit.records import attempt_table, sample_table
from pipeline.audit.shards import commit_shard, committed, sweep
from pipeline.outcome import Sample

Make = Callable[..., RunContext]


class Stepping(Disk):
    """Stops before every system call until it is let go."""

    def __init__(self) -> None:
        self.go, self.stopped = threading.Semaphore(0), threading.Semaphore(0)

    def _wait(self) -> None:
        self.stopped.release()
        self.go.acquire()

    def open(self, name: str, flags: int, mode: int = 0o666, *, at: int | None = None) -> int:
        self._wait()
        return super().open(name, flags, mode, at=at)

    def fsync(self, handle: int) -> None:
        pass  # nothing depends on it here

    def replace(self, old: str, new: str, *, at: int) -> None:
        self._wait()
        super().replace(old, new, at=at)

    def link(self, old: str, new: str, *, at: int) -> None:
        self._wait()
        super().link(old, new, at=at)

    def unlink(self, name: str, *, at: int) -> None:
        self._wait()
        super().unlink(name, at=at)


class Stepped:
    """Work in a thread, a system call at a time."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.disk, self.error = Stepping(), None
        self.steps, self.done = 0, threading.Event()

        def run() -> None:
            try:
                with storage.using(self.disk):
                    work()
            except RunStopped as error:
                self.error = error
            finally:
                self.done.set()
                self.disk.stopped.release()

        self.thread = threading.Thread(target=copy_context().run, args=(run,))
        self.thread.start()
        self.disk.stopped.acquire()

    def step(self, most: int | None = None) -> None:
        """Take so many steps, or all that are left."""
        while not self.done.is_set() and (most is None or most > 0):
            self.steps += 1
            most = None if most is None else most - 1
            self.disk.go.release()
            self.disk.stopped.acquire()
        if self.done.is_set():
            self.thread.join()


def check(folder: Path) -> set[str]:
    """Every marker has its files; returns the shards there are."""
    for receipt in committed(folder).values():
        for file in receipt.files:
            assert (folder / file.path).is_file(), f"the marker of {receipt.shard_id} stands without {file.path}"
            assert storage.digest_of(folder, file.path) == file.sha256
    return set(committed(folder))


@pytest.mark.slow
def test_whatever_the_order_of_their_steps(tmp_path: Path, samples: list[Sample], context: Make) -> None:
    made = sample_table(samples[:1], context(), "1"), attempt_table(samples[:1], context(), "1")

    def late(folder: Path) -> Callable[[], Any]:
        return lambda: commit_shard(folder, "1", *made)

    whole, swept = Stepped(late(tmp_path / "a")), Stepped(lambda: sweep(tmp_path / "a"))
    whole.step()
    swept.step()
    assert check(tmp_path / "a") == {"1"} and whole.steps > 15 and swept.steps > 5
    outcomes: dict[bool, int] = {True: 0, False: 0}
    for first in range(0, whole.steps + 1):
        for then in range(0, swept.steps + 1, 1 if first > whole.steps - 8 else 3):
            folder = tmp_path / f"{first}-{then}"
            folder.mkdir()
            commit, sweeping = Stepped(late(folder)), None
            commit.step(first)
            sweeping = Stepped(lambda folder=folder: sweep(folder))  # type: ignore[misc]
            sweeping.step(then)
            commit.step()
            sweeping.step()
            there = check(folder)
            assert there == (set() if commit.error else {"1"}), "a commit that says it succeeded is there"
            outcomes[bool(there)] += 1
            assert sweep(folder) == [] or not there  # what a swept commit left goes with the next sweep
    assert outcomes[True] > 20 and outcomes[False] > 5, "both orders were tried"


@pytest.mark.parametrize("name", ["samples", "attempts", "commits"])
def test_a_sweep_does_not_follow_a_linked_folder(tmp_path: Path, samples: list[Sample], context: Make, name: str) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    commit_shard(run, "0", sample_table(samples, context(), "0"), attempt_table(samples, context(), "0"))
    outside.mkdir()
    for leaf in ("part-0-theirs.parquet", ".tmp-theirs", "0.json"):
        (outside / leaf).write_bytes(b"theirs")
    for path in (run / name).iterdir():
        path.unlink()
    (run / name).rmdir()
    (run / name).symlink_to(outside)
    with pytest.raises(IntegrityError, match="is a link"):
        sweep(run)
    with pytest.raises(IntegrityError, match="is a link"):
        commit_shard(run, "1", sample_table(samples, context(), "1"), attempt_table(samples, context(), "1"))
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {
        "part-0-theirs.parquet": b"theirs", ".tmp-theirs": b"theirs", "0.json": b"theirs",
    }  # fmt: skip


def test_a_sweep_leaves_links_and_other_peoples_files(tmp_path: Path, samples: list[Sample], context: Make) -> None:
    commit_shard(tmp_path, "0", sample_table(samples, context(), "0"), attempt_table(samples, context(), "0"))
    (tmp_path / "victim").write_bytes(b"theirs")
    for place in ("samples/part-x.parquet", "samples/notes.txt", ".tmp-notes", "commits/readme"):
        (tmp_path / place).symlink_to(tmp_path / "victim") if "part" in place else (tmp_path / place).write_bytes(b"mine")
    assert sweep(tmp_path) == []
    assert (tmp_path / "victim").read_bytes() == b"theirs" and (tmp_path / "samples/part-x.parquet").is_symlink()
    assert [(tmp_path / place).read_bytes() for place in ("samples/notes.txt", ".tmp-notes", "commits/readme")] == [b"mine"] * 3
