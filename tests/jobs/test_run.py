from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from index.errors import ClearanceError, InputError, ModelError, PlanMismatch, RunStopped
from jobs.run.event import Event
from jobs.run.folder import failed_keys, open_folder
from jobs.run.lease.lock import holder, lease
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.planning.stored_plan import stored_plan
from jobs.run.ray.runner import run_ray
from jobs.run.session import RunResult
from jobs.run.worker import Worker, shards_ahead
from pipeline.audit.ledger import attempt_rows, read_events, sample_rows
from pipeline.audit.verify import verify

PROMPTS = ["cat", "a copy", "a steered owl", "", "fox"]
EXPECTED = {"accepted": 2, "accepted_after_steering": 1, "error": 1, "rejected": 1}
MakePlan = Callable[..., Plan]
Open = Callable[..., Any]


def started(plan: Plan, folder: Path, *, resume: bool = False) -> Path:
    return open_folder(folder, plan, resume=resume)[0]


def rows(folder: Path) -> list[tuple[object, ...]]:
    """What must not depend on the runner: keys, outcomes, reasons and pixels, in order."""
    return [(r["request_key"], r["outcome"], r["reason"], r["pixel_sha256"], r["attempts"]) for r in sample_rows(folder)]


def check_whole(result: RunResult, plan: Plan) -> None:
    """Exactly one row per request and per picture, sealed and verified."""
    keys = [row["request_key"] for row in sample_rows(result.folder)]
    assert keys == [request.key for request in plan.requests]
    made = Counter(row["request_key"] for row in attempt_rows(result.folder))
    assert made == Counter({row["request_key"]: row["attempts"] for row in sample_rows(result.folder) if row["attempts"]})
    assert sum(result.outcomes.values()) == result.requests == len(plan.requests)
    verification = verify(result.folder)
    assert verification.ok, verification.problems
    assert holder(result.folder) == ""


def latest_first(open_loop: Open) -> Open:
    """Of those that stand the latest ends first: shards overlap as far as they can."""

    def open_latest_first(*arguments: Any) -> Any:
        loop = open_loop(*arguments)
        loop.step = lambda: [loop.sample(loop.standing.pop())]
        return loop

    return open_latest_first


def kinds(folder: Path) -> list[str]:
    return [event["kind"] for event in read_events(folder)]


def test_local_run_is_whole(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    plan, events = make_plan(PROMPTS), list[Event]()
    result = run_local(plan, started(plan, tmp_path / "run"), events.append, open_loop=open_loop)
    (ready,) = (event.detail for event in events if event.kind == "worker")
    assert re.fullmatch(r"worker local-0 is ready: \w.*, \d+ steps, guidance [\d.]+", ready), ready
    check_whole(result, plan)
    assert result.outcomes == EXPECTED and result.attempts == 5
    assert kinds(result.folder) == ["run.started", "run.finished", "run.sealed"]
    assert [e.done for e in events if e.kind == "sample"] == [1, 2, 3, 4, 5]
    assert events[-1].kind == "finished" and dict(events[-1].outcomes) == EXPECTED
    bad = next(row for row in sample_rows(result.folder) if row["outcome"] == "error")
    assert (bad["request_key"], bad["reason"]) == ("row-000003", "input.empty_prompt")


def test_finished_run_stays_as_it_is(make_plan: MakePlan, tmp_path: Path, open_loop: Open, open_refusing: Open) -> None:
    plan = make_plan(PROMPTS)
    first = run_local(plan, started(plan, tmp_path / "run"), open_loop=open_loop)
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    again = run_local(plan, started(plan, first.folder, resume=True), open_loop=open_refusing)
    assert again == first
    assert before == {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}


def test_resume_does_only_what_is_open(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    plan = make_plan(["cat", "owl", "disk-full", "dog", "fox"])
    folder = started(plan, tmp_path / "run")
    with pytest.raises(RunStopped, match="No space left") as caught:
        run_local(plan, folder, open_loop=open_loop)
    assert "--resume" in caught.value.fix and holder(folder) == ""
    committed = sorted(folder.glob("commits/*.json"))
    times = [path.stat().st_mtime_ns for path in committed]
    assert len(committed) == 1 and not (folder / "run.json").exists()
    (tmp_path / "space").touch()
    result = run_local(plan, folder, open_loop=open_loop)
    check_whole(result, plan)
    assert [path.stat().st_mtime_ns for path in committed] == times
    assert kinds(folder) == ["run.started", "run.stopped", "run.resumed", "run.finished", "run.sealed"]


def reworded(plan: Plan, code: str = "") -> Plan:
    """The plan as a version would make it that describes problems of rows in other words."""
    bad = [(one.row_no, (code or one.problem[0], "as it was worded once")) for one in plan.requests if one.problem]
    requests = list(plan.requests)
    for row_no, problem in bad:
        requests[row_no] = replace(requests[row_no], problem=problem)
    assert bad
    return replace(plan, requests=tuple(requests))


def test_another_wording_of_a_problem_does_not_stop_a_resume(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    plan = make_plan(["cat", "owl", "disk-full", "", "fox", ""])
    before = reworded(plan)
    assert before.plan_sha256 != plan.plan_sha256
    with pytest.raises(RunStopped, match="No space left"):
        run_local(before, tmp_path / "run", open_loop=open_loop)
    (tmp_path / "space").touch()
    result = run_local(plan, tmp_path / "run", open_loop=open_loop)
    check_whole(result, plan)
    assert result.plan_sha256 == before.plan_sha256
    texts = {row["error_message"] for row in sample_rows(result.folder) if row["outcome"] == "error"}
    assert texts == {"as it was worded once"}  # one run, one wording: the one that its plan binds


def test_another_problem_stops_a_resume(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    plan = make_plan(["cat", "owl", "disk-full", "", "fox"])
    with pytest.raises(RunStopped, match="No space left"):
        run_local(reworded(plan, "input.bad_prompt"), tmp_path / "run", open_loop=open_loop)
    with pytest.raises(PlanMismatch, match="changed: requests"):
        run_local(plan, tmp_path / "run", open_loop=open_loop)


def test_run_that_was_stopped_before_its_seal_is_sealed(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    plan = make_plan(PROMPTS)
    folder = started(plan, tmp_path / "run")
    worker = Worker(plan, folder, stored_plan(folder)["run_id"], "w", open_loop=open_loop)
    for number in range(len(plan.shards)):
        worker.work(number)
    check_whole(run_local(plan, folder, open_loop=open_loop), plan)


def test_next_shards_begin_where_the_first_leaves_room(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    plan = make_plan(["cat", "owl", "fox", "bee", "ant"])
    folder, ended = started(plan, tmp_path / "run"), list[int]()
    opened = latest_first(open_loop)
    worker = Worker(plan, folder, "r", "w", open_loop=opened, on_sample=lambda s: ended.append(s.request.row_no))
    assert worker.work(0, (1, 2)).shard_id == plan.shards[0].shard_id
    assert ended == [1, 2, 3, 4, 0]
    assert sorted(path.stem for path in folder.glob("commits/*.json")) == [shard.shard_id for shard in plan.shards]
    assert [worker.work(number, (2,)).shard_id for number in (1, 2)] == [shard.shard_id for shard in plan.shards[1:]]
    assert len(ended) == 5


def test_progress_never_goes_back(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    plan, events = make_plan([f"owl {i}" for i in range(9)]), list[Event]()
    check_whole(run_local(plan, started(plan, tmp_path / "run"), events.append, open_loop=open_loop), plan)
    done = [event.done for event in events]
    assert done == sorted(done) and done[-1] == 9


def test_shards_ahead_fill_the_calls(make_plan: MakePlan) -> None:
    def ahead(rows: int, size: int) -> int:
        config = make_plan(["cat"], shard_size=size).config
        return shards_ahead(replace(config, generation=replace(config.generation, rows=rows)))

    assert [ahead(16, 16), ahead(16, 64), ahead(64, 16), ahead(16, 1)] == [1, 1, 4, 16]


def test_bug_in_a_shard_stops_the_run_with_the_traceback_behind(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    plan = make_plan(["cat", "crash"])
    with pytest.raises(RunStopped, match="ZeroDivisionError: a bug") as caught:
        run_local(plan, started(plan, tmp_path / "run"), open_loop=open_loop)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_runtime_that_does_not_open_is_refused_with_its_reason(
    make_plan: MakePlan, tmp_path: Path, open_refusing: Open
) -> None:
    plan = make_plan(PROMPTS)
    with pytest.raises(ModelError, match="weights are missing"):
        run_local(plan, started(plan, tmp_path / "run"), open_loop=open_refusing)


def test_worker_with_another_index_is_refused(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    plan = make_plan(PROMPTS)
    plan = replace(plan, identity={**plan.identity, "index_id": "other"})
    with pytest.raises(PlanMismatch, match=r"worker local-0 .*index_id other there"):
        run_local(plan, started(plan, tmp_path / "run"), open_loop=open_loop)


def test_lost_sample_is_noticed(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    plan = make_plan(PROMPTS)

    def forgetful(*arguments: Any) -> Any:
        loop = open_loop(*arguments)
        loop.step = lambda: loop.standing.clear() or []
        return loop

    with pytest.raises(RunStopped, match="2 requests went in, 0 samples came out"):
        run_local(plan, started(plan, tmp_path / "run"), open_loop=forgetful)


def test_two_runs_do_not_share_a_folder(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    plan = make_plan(PROMPTS)
    folder = started(plan, tmp_path / "run")
    with lease(folder):
        assert f"process {os.getpid()}" in holder(folder)
        with pytest.raises(RunStopped, match=f"process {os.getpid()}"):
            run_local(plan, folder, open_loop=open_loop)


def test_failed_requests_become_a_plan_of_their_own(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    plan = make_plan(PROMPTS)
    folder = started(plan, tmp_path / "run")
    with pytest.raises(InputError, match="not finished"):
        failed_keys(folder)
    run_local(plan, folder, open_loop=open_loop)
    assert failed_keys(folder) == ["row-000003"]
    mended = make_plan(["cat", "a copy", "a steered owl", "a bee", "fox"])
    part = Plan.make(
        mended.config, mended.policy, tmp_path, identity=plan.identity, only=failed_keys(folder), parent=plan.plan_sha256
    )
    result = run_local(part, started(part, tmp_path / "again"), open_loop=open_loop)
    check_whole(result, part)
    assert result.outcomes == {"accepted": 1}
    assert result.statement["predicate"]["plan"]["parent_plan_sha256"] == plan.plan_sha256
    assert failed_keys(result.folder) == []


def test_errors_cross_processes() -> None:
    import pickle

    for kind in ClearanceError.__subclasses__():
        error = pickle.loads(pickle.dumps(kind("what", where="where", fix="fix")))
        assert (type(error), error.what, error.where, error.fix) == (kind, "what", "where", "fix")


@pytest.mark.ray
def test_ray_gives_what_local_gives(make_plan: MakePlan, tmp_path: Path, open_loop: Open, small_ray: None) -> None:
    plan = make_plan(PROMPTS, workers=2)
    local = run_local(plan, started(plan, tmp_path / "local"), open_loop=open_loop)
    events: list[Event] = []
    result = run_ray(plan, started(plan, tmp_path / "ray"), events.append, open_loop=open_loop)
    check_whole(result, plan)
    assert rows(result.folder) == rows(local.folder)
    assert (result.outcomes, result.attempts, result.deaths) == (local.outcomes, local.attempts, {})
    assert [e.kind for e in events].count("shard") == 3
    one = make_plan(PROMPTS, workers=1)
    assert rows(run_ray(one, started(one, tmp_path / "one"), open_loop=open_loop).folder) == rows(local.folder)


@pytest.mark.ray
def test_worker_that_dies_once_is_replaced(make_plan: MakePlan, tmp_path: Path, open_loop: Open, small_ray: None) -> None:
    plan = make_plan(["cat", "owl", "die-once", "fox"], workers=2)
    result = run_ray(plan, started(plan, tmp_path / "run"), open_loop=open_loop)
    check_whole(result, plan)
    assert result.outcomes == {"accepted": 4}
    assert result.deaths == {plan.shards[1].shard_id: 1}
    assert kinds(result.folder) == ["run.started", "shard.retried", "run.finished", "run.sealed"]


@pytest.mark.ray
def test_shard_that_kills_every_worker_ends_as_errors(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open, small_ray: None
) -> None:
    plan = make_plan(["cat", "owl", "die-always", "fox"], workers=1)
    result = run_ray(plan, started(plan, tmp_path / "run"), open_loop=open_loop)
    check_whole(result, plan)
    assert result.outcomes == {"accepted": 2, "error": 2} and result.deaths == {plan.shards[1].shard_id: 3}
    assert {row["reason"] for row in sample_rows(result.folder) if row["outcome"] == "error"} == {"worker.died"}
    assert kinds(result.folder).count("shard.retried") == 2 and "shard.given_up" in kinds(result.folder)
    assert failed_keys(result.folder) == ["row-000002", "row-000003"]


@pytest.mark.ray
def test_shard_beside_a_deadly_one_is_not_blamed_for_it(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open, small_ray: None
) -> None:
    plan = make_plan(["cat", "owl", "die-always", "fox"], workers=1)
    result = run_ray(plan, started(plan, tmp_path / "run"), open_loop=latest_first(open_loop))
    check_whole(result, plan)
    assert result.outcomes == {"accepted": 2, "error": 2}
    # The deadly one had begun beside the shard before it; from then on each is alone, and only one of them dies.
    assert result.deaths == {plan.shards[0].shard_id: 1, plan.shards[1].shard_id: 3}


def test_what_a_dying_worker_of_the_run_before_leaves_is_swept_before_the_seal(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open
) -> None:
    """It was stopped in the middle of a commit, after this run had swept."""
    plan = make_plan(["cat", "owl"], workers=1)
    folder = started(plan, tmp_path / "run")
    late = folder / "commits" / ".tmp-000000-1.json-0"

    def leave(event: Event) -> None:
        if event.kind == "shard":
            late.write_text("{")

    check_whole(run_local(plan, folder, leave, open_loop=open_loop), plan)
    assert not late.exists()


@pytest.mark.ray
def test_killed_worker_is_replaced(make_plan: MakePlan, tmp_path: Path, open_loop: Open, small_ray: None) -> None:
    def with_pid(config: Any, policy: Any, base: Path) -> Any:
        loop = open_loop(config, policy, base)
        whole = loop.step

        def step() -> Any:
            if not (base / "pid").exists():
                (base / "pid").write_text(str(os.getpid()))
                time.sleep(60)
            return whole()

        loop.step = step
        return loop

    def kill(event: Event) -> None:
        if event.kind == "shard" and not killed:
            killed.append(int((tmp_path / "pid").read_text()))
            os.kill(killed[0], signal.SIGKILL)

    killed: list[int] = []
    plan = make_plan(["cat", "owl", "fox", "bee"], workers=2)
    result = run_ray(plan, started(plan, tmp_path / "run"), kill, open_loop=with_pid)
    check_whole(result, plan)
    assert result.outcomes == {"accepted": 4} and sum(result.deaths.values()) == 1


@pytest.mark.ray
def test_ray_failures_are_those_of_local(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open, open_refusing: Open, small_ray: None
) -> None:
    plan = make_plan(["cat", "owl", "disk-full", "dog"], workers=2)
    folder = started(plan, tmp_path / "run")
    with pytest.raises(ModelError, match="weights are missing") as refused:
        run_ray(plan, folder, open_loop=open_refusing)
    assert (refused.value.where, refused.value.fix) == ("pipeline/weights", "Fetch them")
    with pytest.raises(RunStopped, match="No space left"):
        run_ray(plan, folder, open_loop=open_loop)
    assert holder(folder) == ""
    (tmp_path / "space").touch()
    check_whole(run_ray(plan, folder, open_loop=open_loop), plan)
