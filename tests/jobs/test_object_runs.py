"""Runs on object stores: drawn, stopped, resumed, verified and reported as in a local folder; one driver at a time."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from index import storage
from index.errors import IntegrityError, PlanMismatch, RunStopped
from index.places import schemes
from index.places.objects import ObjectStore
from index.places.schemes import backend_of
from index.storage import ObjectFolder
from jobs.report import report_run
from jobs.run.event import ignore
from jobs.run.lease import objects
from jobs.run.lease.lock import holder, lease
from jobs.run.lease.objects import Lease
from jobs.run.lease.process import Process
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.ray.runner import run_ray
from jobs.run.session import Session
from jobs.run.verdict import compare_runs, verify_run
from jobs.run.worker import Worker
from pipeline.audit.coverage import LEASE_FILE
from pipeline.audit.ledger import read_events, sample_rows, stated_roots
from pipeline.audit.shards import committed, sweep
from tests.jobs import object_driver
from tests.object_stores import Dying, Killed

MakePlan = Callable[..., Plan]
Open = Callable[..., Any]
PROMPTS = ["cat", "a copy", "a steered owl", "", "fox"]
ELSEWHERE = Process(pid=4242, host="elsewhere", since="2026-01-01T00:00:00Z", boot="other", space="other", started="1")


@pytest.fixture(params=["memory", "s3"])
def folder(request: pytest.FixtureRequest) -> Path:
    return storage.place(request.getfixturevalue(request.param)) / "run"


@pytest.fixture
def in_memory(memory: str) -> Path:
    return storage.place(memory) / "run"


def check_whole(folder: Path, plan: Plan) -> None:
    assert [row["request_key"] for row in sample_rows(folder)] == [request.key for request in plan.requests]
    found = verify_run(folder)
    assert found.ok, found.problems
    assert holder(folder) == ""


# --- a run -----------------------------------------------------------------------------------------------------------------


def test_a_run_has_the_content_of_one_in_a_local_folder(
    make_plan: MakePlan, tmp_path: Path, folder: Path, open_loop: Open
) -> None:
    plan = make_plan(PROMPTS)
    here, there = run_local(plan, tmp_path / "run", open_loop=open_loop), run_local(plan, folder, open_loop=open_loop)
    check_whole(folder, plan)
    assert there.outcomes == here.outcomes
    assert stated_roots(folder)["content_root"] == stated_roots(tmp_path / "run")["content_root"]
    assert compare_runs(tmp_path / "run", folder).ok
    names = {entry.name for entry in storage.entries(folder)}
    assert names == {entry.name for entry in storage.entries(tmp_path / "run")}


def copied(folder: Path, to: Path, name: str = "") -> Path:
    """Every object of a place as a file of a local folder."""
    for entry in storage.entries(folder, name):
        path = f"{name}/{entry.name}".lstrip("/")
        if entry.kind == "folder":
            copied(folder, to, path)
        else:
            storage.write_file(to, path, storage.read_file(folder, path))
    return to


def test_its_report_and_verdict_are_those_of_its_copy(
    make_plan: MakePlan, tmp_path: Path, folder: Path, open_loop: Open
) -> None:
    run_local(make_plan(PROMPTS), folder, open_loop=open_loop)
    copy = copied(folder, tmp_path / folder.name)
    assert verify_run(folder) == verify_run(copy)
    page, there, _ = report_run(folder)
    _, here, _ = report_run(copy)
    assert str(page) == f"{folder}/report.html"
    assert {**there, "generated_at": ""} == {**here, "generated_at": ""}
    assert storage.read_object(folder, "report.json") == there
    assert verify_run(folder).ok


def test_a_stopped_run_resumes_with_what_is_open(make_plan: MakePlan, tmp_path: Path, folder: Path, open_loop: Open) -> None:
    plan = make_plan(["cat", "owl", "disk-full", "dog", "fox"])
    with pytest.raises(RunStopped, match="No space left"):
        run_local(plan, folder, open_loop=open_loop)
    before = committed(folder)
    assert len(before) == 1 and storage.entry_of(folder, "run.json") is None
    (tmp_path / "space").touch()
    run_local(plan, folder, open_loop=open_loop)
    check_whole(folder, plan)
    assert before.items() <= committed(folder).items()
    kinds = [event["kind"] for event in read_events(folder)]
    assert kinds == ["run.started", "run.stopped", "run.resumed", "run.finished", "run.sealed"]


def test_a_folder_of_another_plan_is_refused(make_plan: MakePlan, in_memory: Path, open_loop: Open) -> None:
    run_local(make_plan(PROMPTS), in_memory, open_loop=open_loop)
    with pytest.raises(PlanMismatch, match="belongs to another plan"):
        run_local(make_plan(["another"]), in_memory, open_loop=open_loop)
    with pytest.raises(PlanMismatch, match="already holds this plan"):
        run_local(make_plan(PROMPTS), in_memory, open_loop=open_loop, resume=False)


def test_a_plan_of_which_nothing_was_committed_gives_way(
    make_plan: MakePlan, tmp_path: Path, in_memory: Path, open_loop: Open
) -> None:
    with pytest.raises(RunStopped):
        run_local(make_plan(["disk-full"]), in_memory, open_loop=open_loop)
    plan = make_plan(PROMPTS)
    run_local(plan, in_memory, open_loop=open_loop)
    check_whole(in_memory, plan)


def test_a_changed_byte_is_named(make_plan: MakePlan, in_memory: Path, open_loop: Open) -> None:
    run_local(make_plan(PROMPTS), in_memory, open_loop=open_loop)
    name = f"samples/{storage.entries(in_memory, 'samples')[0].name}"
    data = bytearray(storage.read_file(in_memory, name))
    data[len(data) // 2] ^= 1
    storage.write_file(in_memory, name, bytes(data))
    found = verify_run(in_memory)
    assert not found.ok and found.problems[0].where.startswith(name)


@pytest.mark.slow
def test_workers_of_ray_commit_to_it(make_plan: MakePlan, s3: str, open_loop: Open, small_ray: None) -> None:
    plan = make_plan(["cat", "die-once", "owl", "fox", "bee"], workers=2)
    result = run_ray(plan, storage.place(s3), open_loop=open_loop)
    assert sum(result.deaths.values()) >= 1
    check_whole(storage.place(s3), plan)


def test_requests_of_a_shard_are_few(make_plan: MakePlan, s3: str, open_loop: Open) -> None:
    store = backend_of(storage.place(s3).store)  # type: ignore[attr-defined]
    assert isinstance(store, ObjectStore)
    seen: list[Counter[str]] = []
    run_local(
        make_plan([f"owl {number}" for number in range(12)]),
        storage.place(s3),
        lambda event: seen.append(Counter(store.requests)) if event.kind == "shard" else None,
        open_loop=open_loop,
    )
    each = [later - earlier for earlier, later in itertools.pairwise(seen)]
    assert each == [Counter(head=1, put=3, get=1)] * 5  # is there a marker? two files, the lease, the marker


# --- what is left behind ---------------------------------------------------------------------------------------------------


def test_nothing_is_swept_before_every_shard_is_committed(
    make_plan: MakePlan, tmp_path: Path, folder: Path, open_loop: Open
) -> None:
    plan = make_plan(["cat", "owl", "disk-full", "dog", "fox"])
    with pytest.raises(RunStopped):
        run_local(plan, folder, open_loop=open_loop)
    late = f"samples/part-{plan.shards[1].shard_id}-0123456789abcdef-01234567.parquet"
    storage.write_file(folder, late, b"of a worker that has not put its marker yet")
    assert sweep(folder) == []
    (tmp_path / "space").touch()
    seen: list[bool] = []
    run_local(plan, folder, lambda _: seen.append(storage.entry_of(folder, late) is not None), open_loop=open_loop)
    assert set(seen[:-1]) == {True} and storage.entry_of(folder, late) is None
    check_whole(folder, plan)


def kills(calls: int) -> list[int]:
    """At which requests a driver dies: some of them in the suite, all with CLEARANCE_KILLS."""
    every = 1 if "CLEARANCE_KILLS" in os.environ else 23
    return list(range(1, calls + 1, every))


@pytest.mark.parametrize("carried_out", [False, True], ids=["before", "after"])
def test_wherever_a_driver_dies_a_resumed_run_is_whole(make_plan: MakePlan, open_loop: Open, carried_out: bool) -> None:
    plan, whole = make_plan(["cat", "", "a steered owl", "fox"]), Dying("dying://whole")
    with schemes.using({"dying": lambda _: whole}):
        run_local(plan, storage.place("dying://whole/run"), open_loop=open_loop)
        root = stated_roots(storage.place("dying://whole/run"))["content_root"]
    for number in kills(whole.count):
        store, folder = Dying("dying://store"), ObjectFolder("dying://store", "run")
        with schemes.using({"dying": lambda _, store=store: store}):  # type: ignore[misc]
            store.dies_at, store.carried_out = number, carried_out
            with suppress(Killed, RunStopped):
                run_local(plan, folder, open_loop=open_loop)
            store.revive()
            if (there := objects.current(folder)) is not None:  # the process that died is this one, and lives
                gone = replace(there, process=replace(there.process, pid=2**22 - 1, started="1"))
                storage.write_file(folder, LEASE_FILE, gone.content)
            kept = committed(folder)
            run_local(plan, folder, open_loop=open_loop)
            check_whole(folder, plan)
            assert kept.items() <= committed(folder).items(), number
            assert stated_roots(folder)["content_root"] == root, number


def test_a_killed_driver_leaves_a_run_that_resumes(make_plan: MakePlan, tmp_path: Path, s3: str) -> None:
    """With CLEARANCE_KILLS=20, twenty at random moments."""
    plan, times = make_plan(object_driver.PROMPTS), int(os.environ.get("CLEARANCE_KILLS") or 1)
    run_local(plan, tmp_path / "whole", open_loop=object_driver.FAKES.open_fake)
    script, chance = Path(__file__).with_name("object_driver.py"), random.Random(0)
    for number in range(times):
        uri = f"{s3}/{number}"
        folder = storage.place(uri)
        command = [sys.executable, str(script), str(tmp_path), uri]
        environment = {**os.environ, "PYTHONPATH": str(script.parents[2])}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
            assert process.stdout is not None and process.stdout.readline() == b"shard\n"
            time.sleep(chance.random() * 0.8)
            process.kill()
        kept = committed(folder)
        assert 1 <= len(kept) < len(plan.shards) and storage.entry_of(folder, "run.json") is None
        run_local(plan, folder, open_loop=object_driver.FAKES.open_fake)
        check_whole(folder, plan)
        assert kept.items() <= committed(folder).items()
        assert compare_runs(tmp_path / "whole", folder).ok


# --- the lease -------------------------------------------------------------------------------------------------------------


def write(folder: Path, **changes: Any) -> Lease:
    made = replace(Lease(process=ELSEWHERE, token="theirs", epoch=7), **changes)
    storage.write_file(folder, LEASE_FILE, made.content)
    return made


def now(folder: Path) -> Lease:
    found = objects.current(folder)
    assert found is not None
    return found


def test_a_lease_names_its_holder_and_gives_signs_of_life(folder: Path) -> None:
    with lease(folder, beat=0.05):
        first = now(folder)
        assert "epoch 1" in holder(folder) and str(Process.this().pid) in holder(folder)
        with pytest.raises(RunStopped, match="another run is writing to this folder"), lease(folder):
            pass
        time.sleep(0.3)
        assert now(folder).beat > first.beat
    assert holder(folder) == "" and not now(folder).held
    with lease(folder):
        assert now(folder).epoch == 2


def test_the_lease_of_a_process_that_ended_here_is_taken_over_at_once(in_memory: Path) -> None:
    write(in_memory, process=replace(Process.this(), pid=2**22 - 1, started="1"))
    notes: list[str] = []
    with lease(in_memory, note=notes.append, patience=60):
        assert now(in_memory).epoch == 8 and notes == []


def test_the_lease_of_a_silent_machine_is_taken_over_after_patience(folder: Path) -> None:
    write(folder)
    notes: list[str] = []
    assert "process 4242 on elsewhere" in holder(folder)
    with lease(folder, note=notes.append, patience=0.3):
        assert now(folder).epoch == 8
    assert "waiting" in notes[0] and "epoch 8" in notes[1]


def test_the_lease_of_a_living_machine_is_not(in_memory: Path) -> None:
    theirs, ended = write(in_memory), threading.Event()

    def live() -> None:
        beat = 0
        while not ended.wait(0.05):
            beat += 1
            storage.write_file(in_memory, LEASE_FILE, replace(theirs, beat=beat).content)

    other = threading.Thread(target=copy_context().run, args=(live,))
    other.start()
    try:
        with pytest.raises(RunStopped, match="a run on another machine holds this folder"), lease(in_memory, patience=5):
            pass
    finally:
        ended.set()
        other.join()
    assert now(in_memory).token == "theirs"


def test_of_several_that_take_over_one_wins(folder: Path) -> None:
    write(folder, held=False)
    begin, won, done = threading.Barrier(8), list[int](), threading.Event()

    def start(number: int) -> None:
        me = replace(ELSEWHERE, host=f"machine-{number}")
        begin.wait()
        try:
            with lease(storage.fenced(folder, LEASE_FILE, f"token-{number}"), me=me, beat=0.02, patience=0.5):
                won.append(number)
                done.wait(5)
        except RunStopped:
            pass

    threads = [threading.Thread(target=copy_context().run, args=(start, number)) for number in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        if sum(thread.is_alive() for thread in threads) <= 1:
            break
        time.sleep(0.05)
    done.set()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and now(folder).epoch == 8


def test_a_copy_of_a_local_run_that_ended_is_held_by_nobody(folder: Path, tmp_path: Path) -> None:
    with lease(tmp_path):
        pass
    storage.write_file(folder, LEASE_FILE, (tmp_path / LEASE_FILE).read_bytes())  # it is there, and empty
    notes: list[str] = []
    assert holder(folder) == ""
    with lease(folder, note=notes.append):
        assert now(folder).epoch == 1 and now(folder).held and notes == []


def test_a_copy_of_a_local_run_that_went_is_taken_over_after_patience(in_memory: Path, tmp_path: Path) -> None:
    with lease(tmp_path, me=ELSEWHERE):
        storage.write_file(in_memory, LEASE_FILE, (tmp_path / LEASE_FILE).read_bytes())
    notes: list[str] = []
    with lease(in_memory, note=notes.append, patience=0.3):
        assert now(in_memory).epoch == 1
    assert "process 4242 on elsewhere" in notes[0] and "epoch 1" in notes[1]


def test_what_is_no_lease_is_left_alone(in_memory: Path) -> None:
    storage.write_file(in_memory, LEASE_FILE, b"years of work")
    with pytest.raises(IntegrityError, match="is not the lease of a run"), lease(in_memory):
        pass
    assert storage.read_file(in_memory, LEASE_FILE) == b"years of work" and holder(in_memory) == ""


def test_a_driver_that_lost_its_lease_stops_and_commits_nothing_more(
    make_plan: MakePlan, folder: Path, open_loop: Open
) -> None:
    plan = make_plan([f"owl {number}" for number in range(8)])

    def stolen(event: Any) -> None:
        if event.kind == "shard" and len(committed(folder)) == 2:
            write(folder)

    with pytest.raises(RunStopped, match="another run took this folder over"):
        run_local(plan, folder, stolen, open_loop=open_loop)
    assert len(committed(folder)) == 2
    assert [event["kind"] for event in read_events(folder)] == ["run.started"]
    assert len(storage.entries(folder, "samples")) == 2


def test_a_session_that_lost_its_lease_does_not_seal(make_plan: MakePlan, in_memory: Path, open_loop: Open) -> None:
    plan = make_plan(["owl", "cat"])

    def stolen(event: Any) -> None:
        if event.kind == "shard":
            write(in_memory)

    with pytest.raises(RunStopped, match="another run took this folder over"):
        run_local(plan, in_memory, stolen, open_loop=open_loop)
    assert storage.entry_of(in_memory, "run.json") is None


def test_a_driver_notices_by_its_heartbeat(make_plan: MakePlan, in_memory: Path) -> None:
    with lease(storage.fenced(in_memory, LEASE_FILE, "mine"), beat=0.02) as held:
        held.require()
        write(in_memory)
        time.sleep(0.3)
        with pytest.raises(RunStopped, match=r"process 4242 on elsewhere.*epoch 7"):
            held.require()
    assert now(in_memory).token == "theirs"


def test_a_heartbeat_that_goes_on_failing_is_noted_once() -> None:
    store, folder, notes = Dying("dying://store"), ObjectFolder("dying://store", "run"), list[str]()
    with schemes.using({"dying": lambda _: store}), lease(folder, note=notes.append, beat=0.02, patience=0.2):
        store.count = store.dies_at = 1
        time.sleep(0.1)
        assert notes == [], "it may be away for a moment"
        time.sleep(0.5)
        assert len(notes) == 1 and "no sign of life could be given for 0 s" in notes[0] and "does not answer" in notes[0]
        store.revive()
        before = now(folder).beat
        time.sleep(0.2)
        assert now(folder).beat > before and len(notes) == 1


def test_a_late_worker_of_an_older_session_is_refused(
    make_plan: MakePlan, tmp_path: Path, folder: Path, open_loop: Open
) -> None:
    plan = make_plan(["cat", "owl", "disk-full", "dog", "fox"])
    old = Session(plan, folder, "local", ignore, open_loop, resume=True)
    worker = Worker(plan, old.folder, old.run_id, "late", open_loop=open_loop)
    old.ready(worker.context, "late")
    old.committed(worker.work(0, (), old.anchors))
    write(folder, held=False)  # cut off from the store for long: another one took over
    (tmp_path / "space").touch()
    with pytest.raises(RunStopped, match="another run took this folder over"):
        worker.work(1, (), old.anchors)
    run_local(plan, folder, open_loop=open_loop)
    check_whole(folder, plan)
    old.close(None)
    assert json.loads(storage.read_file(folder, LEASE_FILE))["epoch"] == 8
