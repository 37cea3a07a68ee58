"""What ends a run from outside ends it with one sentence, an event and an exit code, and keeps what was committed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from jobs import signals
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from pipeline.audit.events import read_events
from pipeline.audit.shards import committed

ROOT = Path(__file__).resolve().parents[2]
MakePlan = Callable[..., Plan]
Open = Callable[..., Any]
ENDING = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


def _default_signals() -> None:
    """A suite that a shell runs in the background has SIGINT ignored, and so would the command."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal() -> Iterator[None]:
    """A suite that was started with nohup, or by a shell in the background, has some of them ignored."""
    before = {number: signal.getsignal(number) for number in ENDING}
    _default_signals()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextmanager
def running(folder: Path, runner: str = "local", *before: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, until its first shard is committed."""
    command = [*before, sys.executable, str(Path(__file__).with_name("ended_by_signal.py")), "run", str(folder), runner]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "COLUMNS": "300"}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
        preexec_fn=_default_signals,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("shard"):
                break
        else:
            raise AssertionError(process.communicate()[1])
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def end(process: subprocess.Popen[str], number: int) -> tuple[int, list[str]]:
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, [line for line in stderr.splitlines() if line.strip()]


def check_ended(folder: Path, number: int, code: int, lines: list[str]) -> None:
    name = signal.Signals(number).name
    assert code == 128 + number, lines
    kept = "What was committed is kept; continue a run with --resume, a build by the same command"
    assert lines == [f"error: stopped by {name}", f"  fix: {kept}"]
    last = read_events(folder)[-1]
    assert last["kind"] == "run.stopped" and re.fullmatch(rf"{name}: \d+ of 20 shards are committed", last["reason"])
    assert (folder / ".lease").read_bytes() == b"" and committed(folder)


@pytest.mark.parametrize("number", ENDING, ids=lambda n: n.name)
def test_a_signal_ends_a_run_with_a_sentence_and_an_event(tmp_path: Path, number: int) -> None:
    with running(tmp_path / "run") as process:
        check_ended(tmp_path / "run", number, *end(process, number))


@pytest.mark.ray
@pytest.mark.slow
def test_a_signal_ends_a_run_on_ray_alike(tmp_path: Path) -> None:
    """Its workers are as nice as it is, and end with it."""
    with running(tmp_path / "run", "ray") as process:
        workers = of_ray(tmp_path)
        assert {(tmp_path / f"worker-{pid}").read_text() for pid in workers} == {str(os.nice(0))}
        assert all(lives(pid) for pid in workers)
        check_ended(tmp_path / "run", signal.SIGTERM, *end(process, signal.SIGTERM))
        assert have_ended(workers)


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    with running(tmp_path / "run", "local", "nohup") as process:
        os.kill(process.pid, signal.SIGHUP)
        time.sleep(1)
        assert process.poll() is None
        assert end(process, signal.SIGTERM)[0] == 143


def test_a_second_hangup_does_not_cut_the_first_short(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    def twice(event: Any) -> None:
        if event.kind == "shard":
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGHUP)

    before = [signal.getsignal(number) for number in ENDING]
    with signals.ending(), pytest.raises(KeyboardInterrupt):
        run_local(make_plan([f"owl {i}" for i in range(9)]), tmp_path / "run", twice, open_loop=open_loop)
    assert signals.received() == signal.SIGHUP and read_events(tmp_path / "run")[-1]["reason"].startswith("SIGHUP: 1 of 5")
    assert [signal.getsignal(number) for number in ENDING] == before


def test_a_signal_whose_exception_was_lost_ends_the_run_at_the_next_sample(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open
) -> None:
    """Python drops what is raised in a callback of a library's."""
    seen: list[str] = []

    def swallow(event: Any) -> None:
        seen.append(event.kind)
        if seen.count("sample") == 1 and event.kind == "sample":
            with suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.1)

    with signals.ending(), pytest.raises(signals.Interrupted):
        run_local(make_plan([f"owl {i}" for i in range(9)]), tmp_path / "run", swallow, open_loop=open_loop)
    assert seen.count("sample") == 1 and read_events(tmp_path / "run")[-1]["reason"].startswith("SIGTERM: 0 of 5")


def test_a_run_after_one_that_was_ended_is_not_ended(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    with signals.ending(), pytest.raises(signals.Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert run_local(make_plan(["an owl"]), tmp_path / "run", open_loop=open_loop).requests == 1


# --- Ray -------------------------------------------------------------------------------------------------------------------


def of_ray(base: Path) -> list[int]:
    return [int(path.name.removeprefix("worker-")) for path in base.glob("worker-*")]


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def have_ended(pids: list[int]) -> bool:
    deadline = time.monotonic() + 5
    while any(lives(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not [pid for pid in pids if lives(pid)]


def children(pid: int) -> dict[int, str]:
    """Processes started by one, with their command lines."""
    found: dict[int, str] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found[int(path.name)] = path.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])  # the latter as `ray stop`: Ray tells its nodes that it goes
def test_a_ray_that_dies_ends_the_run_with_a_sentence_and_an_event(tmp_path: Path, how: signal.Signals) -> None:
    name = "raylet"  # gcs_server takes ten seconds longer and ends alike
    with running(tmp_path / "run", "ray") as process:
        victim = next(pid for pid, command in children(process.pid).items() if f"/{name} " in command)
        os.kill(victim, how)
        began = time.monotonic()
        stdout, stderr = process.communicate(timeout=60)
        seconds = time.monotonic() - began
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert process.returncode == 2 and len(lines) == 2, stderr
    assert f"Ray's process {name} died in the middle of the run" in lines[0] and "--resume" in lines[1]
    assert "state-dump" not in stdout + stderr and seconds < 40
    last = read_events(tmp_path / "run")[-1]
    assert last["kind"] == "run.stopped" and f"Ray's process {name} died" in last["reason"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif("CLEARANCE_KILLS" not in os.environ, reason="the test below sees it without Ray; set CLEARANCE_KILLS")
def test_workers_end_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    with running(tmp_path / "run", "ray") as process:
        workers = of_ray(tmp_path)
        assert workers and all(lives(pid) for pid in workers)
        process.kill()
        assert have_ended(workers)


# A worker's watch, in a process of its own that has no Ray: it ends with the process whose number it is given.
WATCH = """
import math, sys, types
from jobs.run.lease.process import Process
from jobs.run.ray.actor import ActorProcess

driver = Process.this()
driver = type(driver)(pid=int(sys.argv[1]), host=driver.host, boot=driver.boot, space=driver.space)
print("watching", flush=True)
ActorProcess._watch(types.SimpleNamespace(hangs=lambda seconds: False), driver, math.inf)
"""


def test_a_worker_ends_with_a_driver_that_is_killed() -> None:
    driver = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WATCH, str(driver.pid)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert worker.stdout is not None and worker.stdout.readline() == "watching\n"
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(1.5)  # it looks every second
        driver.kill()  # nobody has waited for the driver yet: it is seen to have ended all the same
        assert worker.wait(60) == 1
    finally:
        for process in (worker, driver):
            process.kill()
            process.communicate()
