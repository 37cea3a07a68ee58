"""Whoever is killed, and wherever: nothing is missing, nothing is twice, and the content is that of a quiet run.

Driver, worker and raylet are killed at points between drawing, accepting, marking, signing and committing. The suite does a
few; ``CLEARANCE_KILLS=20`` does as many on a local folder and as many on an object store (moto's server), and
``CLEARANCE_KILLS_SEED`` chooses others.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from index.storage import place
from jobs.keys import new_keys
from jobs.run.local_runner import run_local
from jobs.run.verdict import verify_run
from jobs.run.worker import shards_ahead
from pipeline.audit.events import read_events
from pipeline.audit.ledger import sample_rows, stated_roots
from pipeline.audit.shards import committed

from .under_fire import IN_DRIVER, IN_WORKER, SHARD, WORKERS, Kill, command, drawn, opener, plan_in

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 180
FEW = [
    ("local", "local", Kill("driver", "signed", 3)),
    ("local", "local", Kill("driver", "placed", 6)),
    ("s3", "local", Kill("driver", "committing", 4)),
]


def many(count: int, seed: int) -> Iterator[tuple[str, str, Kill]]:
    """Random ones, by turns of driver, worker and raylet; every third without Ray."""
    for where in ("local", "s3"):
        rng = random.Random(seed)
        for number in range(count):
            victim = ("driver", "worker", "raylet")[number % 3]
            point = rng.choice(IN_WORKER + IN_DRIVER if victim == "driver" else IN_WORKER)
            runner = "local" if victim == "driver" and number % 2 else "ray"
            yield where, runner, Kill(victim, point, 1 if point in IN_DRIVER else rng.randint(1, 8))


COUNT = int(os.environ.get("CLEARANCE_KILLS", "0"))
KILLS = list(many(COUNT, int(os.environ.get("CLEARANCE_KILLS_SEED", "0")))) if COUNT else FEW


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployment") / "keys"
    new_keys(folder)
    return folder


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> dict[str, str]:
    """The roots of a run that nothing happened to."""
    base = tmp_path_factory.mktemp("quiet")
    (base / "keys").symlink_to(keys)
    run_local(plan_in(base), base / "run", open_loop=opener(base, Kill()))
    return stated_roots(base / "run")


@pytest.fixture
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "local":
        return tmp_path / "run"
    return place(request.getfixturevalue("s3")) / "run"


@contextmanager
def under_fire(base: Path, out: Path, runner: str, kill: Kill) -> Iterator[tuple[int, str]]:
    """The run's exit code and what it wrote, once it has ended; nothing of it is left behind."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    environment.pop("RAY_ADDRESS", None)
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    process = subprocess.Popen(command(base, out, runner, kill), env=environment, **pipes)
    try:
        said, _ = process.communicate(timeout=SECONDS)
        yield process.returncode, said
    finally:
        process.kill()
        process.wait()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("out", "runner", "kill"), KILLS, ids=lambda one: str(one), indirect=["out"])
def test_nothing_is_lost_and_nothing_is_twice(
    tmp_path: Path, keys: Path, quiet: dict[str, str], out: Path, runner: str, kill: Kill,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    (tmp_path / "keys").symlink_to(keys)
    with under_fire(tmp_path, out, runner, kill) as (code, said):
        assert (tmp_path / "fired").exists(), said
        ends = kill.victim == "worker" and runner == "ray"  # its shards are leased again; whoever else is killed ends the run
        assert (code == 0) is ends, said
        before, drawn_before = committed(out), drawn(tmp_path)
        if not ends:
            run_local(plan_in(tmp_path), out, open_loop=opener(tmp_path, Kill()))
    plan, kinds = plan_in(tmp_path), [event["kind"] for event in read_events(out)]
    assert kinds.count("shard.retried") + kinds.count("run.worker_lost") == (1 if ends else 0)
    assert [row["request_key"] for row in sample_rows(out)] == [request.key for request in plan.requests]
    assert verify_run(out).ok
    assert stated_roots(out)["content_root"] == quiet["content_root"]

    again = {row for row, times in Counter(drawn(tmp_path)).items() if times > 1}
    shards = {row // SHARD for row in again}
    record_property("rows_drawn_again", len(again))  # in the file of --junitxml: what the death cost
    record_property("shards_begun_again", len(shards))
    under_way = (1 + shards_ahead(plan.config)) * (1 if ends else WORKERS)
    assert max(Counter(drawn(tmp_path)).values()) <= 2 and len(shards) <= under_way
    if not ends:
        kept = {number for number, shard in enumerate(plan.shards) if shard.shard_id in before}
        assert again <= {row for row in drawn_before if row // SHARD not in kept}
