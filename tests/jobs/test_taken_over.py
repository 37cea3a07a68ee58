"""A run on a network folder whose machine stood still while another session came and ended the run: it writes nothing more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index.errors import RunStopped
from jobs.by import By
from jobs.compact import compact_run
from jobs.run.event import Event
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.worker import Worker
from pipeline.audit.events import read_events
from pipeline.audit.shards import committed
from pipeline.audit.verify import verify


@pytest.mark.parametrize("left", [b'{"pid": 4242, "host": "elsewhere"}', b""])
def test_a_run_that_was_taken_over_neither_goes_on_nor_records_its_stop(
    make_plan: Callable[..., Plan], tmp_path: Path, open_loop: Any, left: bytes
) -> None:
    def take_over(event: Event) -> None:
        if event.kind == "shard" and event.done == 4:
            (tmp_path / "run" / ".lease").write_bytes(left)

    plan = make_plan(["cat", "owl", "fox", "dog", "bee", "elk"])
    with pytest.raises(RunStopped, match="another run took this folder over"):
        run_local(plan, tmp_path / "run", take_over, open_loop=open_loop)
    assert [event["kind"] for event in read_events(tmp_path / "run")] == ["run.started"]
    assert len(committed(tmp_path / "run")) == 2 and (tmp_path / "run" / ".lease").read_bytes() == left


def test_a_run_that_was_taken_over_after_its_last_shard_is_not_sealed(
    make_plan: Callable[..., Plan], tmp_path: Path, open_loop: Any
) -> None:
    def take_over(event: Event) -> None:
        if event.kind == "shard" and event.done == 4:
            (tmp_path / "run" / ".lease").write_bytes(b"")

    with pytest.raises(RunStopped, match="another run took this folder over"):
        run_local(make_plan(["cat", "owl", "fox", "dog"]), tmp_path / "run", take_over, open_loop=open_loop)
    assert [event["kind"] for event in read_events(tmp_path / "run")] == ["run.started"]


def test_a_worker_that_was_cut_off_adds_nothing_to_a_run_that_was_compacted(
    make_plan: Callable[..., Plan], tmp_path: Path, open_loop: Any
) -> None:
    """Its markers are gone, and the shard's place looks free."""
    plan = make_plan(["cat", "owl", "fox", "dog"])
    late = Worker(plan, tmp_path / "run", "run", "ray-0", open_loop=open_loop)
    receipts = run_local(plan, tmp_path / "run", open_loop=open_loop).shards
    compact_run(tmp_path / "run", By(role="operator", reason="fewer files"))
    before = sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert late.work(1) == receipts[1]
    assert sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file()) == before
    assert verify(tmp_path / "run").ok
