"""The audit's bench: its synthetic run is one that verifies, and its clocks count what they name."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.lab.bench.audit import ROWS, TimedLoop, synthetic_run, verifier, writer


def test_the_synthetic_run_is_verified_whole(tmp_path: Path) -> None:
    folder = synthetic_run(tmp_path / "run", 5_000, shards=2)
    found = {measure.id: measure for measure in verifier(folder, "x", repeats=1, goal=1.0)}
    speed, rows = found["verifier.x.mb_per_second"], found["verifier.x.rows_per_second"]
    size = sum(path.stat().st_size for path in folder.glob("samples/*")) / 1e6
    assert speed.met and rows.value / speed.value == pytest.approx(2 * ROWS / size)


def test_a_damaged_run_is_not_measured(tmp_path: Path) -> None:
    folder = synthetic_run(tmp_path / "run", 1_000, shards=1)
    path = next(folder.glob("samples/*"))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(RuntimeError, match="does not verify"):
        list(verifier(folder, "x", repeats=1))


def test_the_writer_is_measured_against_the_same_bytes(tmp_path: Path) -> None:
    found = {measure.id: measure for measure in writer(tmp_path / "w", pairs=1)}
    assert found["writer.of_plain_concatenation"].value > 0
    assert (tmp_path / "w" / "plain").stat().st_size == ROWS * 1_000_000
    extra, most = found["writer.extra_ms_per_mb"].value, found["writer.goal_met_below_mb_per_second"].value
    assert most == pytest.approx(250 / extra)


def test_a_timed_loop_counts_the_loop_alone() -> None:
    def work(*_: Any) -> list[Any]:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
        return []

    timed = TimedLoop(SimpleNamespace(submit=work, step=work, room=True, busy=False, runtime=None))  # type: ignore[arg-type]
    work()
    timed.submit(None)  # type: ignore[arg-type]
    timed.step()
    assert 0.1 <= timed.seconds < 0.15 and timed.room and not timed.busy
