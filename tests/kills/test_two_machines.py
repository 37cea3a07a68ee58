"""A cluster that grows and loses a machine: GPUs are shared, machines used while they are there, and a loss costs little."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from jobs.run.verdict import verify_run
from pipeline.audit.events import read_events
from pipeline.audit.ledger import sample_rows

from .two_machines import PROMPTS

ROOT = Path(__file__).resolve().parents[2]


def ran(base: Path, victim: str = "") -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(Path(__file__).with_name("two_machines.py")), str(base), victim]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_machines_are_used_while_they_are_there(tmp_path: Path) -> None:
    said = ran(tmp_path)
    where = [path.read_text().split() for path in tmp_path.glob("worker-*")]
    machines = Counter(raylet for raylet, _, _ in where)
    # Two workers on each; on the first, others in place of those that were lost, or of those let go before the loss.
    assert len(machines) == 2 and min(machines.values()) == 2, said
    assert {gpu for _, _, gpu in where} == {"0"}  # of one GPU each
    assert {int(niceness) for _, niceness, _ in where} == {os.nice(0)}
    assert len({row["request_key"] for row in sample_rows(tmp_path / "run")}) == PROMPTS and verify_run(tmp_path / "run").ok
    events = read_events(tmp_path / "run")
    lost = [event["reason"] for event in events if event["kind"] == "shard.retried"]
    assert 1 <= len(lost) <= 2 and all("its machine" in reason for reason in lost), lost
    assert events[-1]["kind"] == "run.sealed"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif("CLEARANCE_KILLS" not in os.environ, reason="takes a minute; set CLEARANCE_KILLS")
@pytest.mark.parametrize(
    ("victim", "sentence"), [("head", "Ray's process raylet of this machine died"), ("control", "has not answered for 15 s")]
)
def test_a_cluster_that_ray_address_names_dies_with_a_sentence(tmp_path: Path, victim: str, sentence: str) -> None:
    said = ran(tmp_path, victim)
    last = read_events(tmp_path / "run")[-1]
    assert sentence in said and "state-dump" not in said
    assert last["kind"] == "run.stopped" and sentence in last["reason"]
