"""The bench of Ray: its arithmetic, and the loop that stands for work."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from jobs.lab.bench.ray_runs import Clock, _plan, _Sleeping, _Work, attempts_of, started
from jobs.run.event import Event
from jobs.run.local_runner import run_local

pytestmark = pytest.mark.lab


def event(kind: str) -> Event:
    return Event(kind=kind, done=0, total=0, outcomes={})  # type: ignore[arg-type]


def test_every_seventh_row_needs_another_attempt() -> None:
    assert [attempts_of(row) for row in (1, 6, 7, 48, 49, 343, 2401, 0)] == [1, 1, 2, 1, 3, 4, 4, 4]
    assert Counter(map(attempts_of, range(1, 344))) == {1: 294, 2: 42, 3: 6, 4: 1}


def test_both_ways_ask_for_the_same_attempts() -> None:
    ended = _Work()({"row": [7, 7, 1], "attempt": [1, 2, 1]})["ended"]
    assert ended == [False, True, True]


def test_the_loop_that_sleeps_ends_every_row_once(tmp_path: Path) -> None:
    plan = _plan(tmp_path / "base", 64)
    result = run_local(plan, tmp_path / "run", open_loop=lambda *_: _Sleeping())
    assert (result.requests, result.outcomes, len(plan.shards)) == (64, {"error": 64}, 8)


def test_the_clock_counts_from_the_last_worker_to_the_last_commit() -> None:
    clock = Clock()
    for kind in ("started", "worker", "shard", "worker"):
        clock(event(kind))
    ready = clock.ready
    clock(event("shard"))
    last = clock.last
    clock(event("finished"))
    assert 0 <= clock.seconds == last - ready


def test_the_start_is_that_of_the_last_worker(tmp_path: Path) -> None:
    clock = Clock()
    clock.began = 100.0
    for pid, at in (("7", "103.5"), ("8", "104.5")):
        (tmp_path / f"opened-{pid}").write_text(at)
    assert started(tmp_path, clock) == 4.5
