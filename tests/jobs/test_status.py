"""How far a run is: while it goes, stopped and sealed; from its folder alone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.cli import main as cli
from jobs.run.event import Event
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.status import RUNNING, SEALED, STOPPED, Look, Watched

Open = Callable[..., Any]


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], terminal_width=200)


def looks_while_it_runs(plan: Plan, folder: Path, open_loop: Open) -> list[Look]:
    """A look after every commit."""
    watched, looks = Watched(folder), list[Look]()

    def look(event: Event) -> None:
        if event.kind == "shard":
            looks.append(watched.look())

    run_local(plan, folder, look, open_loop=open_loop)
    return looks


def test_a_run_that_goes_has_holder_rate_time_left_and_workers(
    make_plan: Callable[..., Plan], tmp_path: Path, open_loop: Open
) -> None:
    looks = looks_while_it_runs(make_plan(["cat", "owl", "a copy", "dog", "fox"]), tmp_path / "run", open_loop)
    assert [(look.state, look.shards_done, look.requests_done) for look in looks] == [
        (RUNNING, 1, 2),
        (RUNNING, 2, 4),
        (RUNNING, 3, 5),
    ]
    first = looks[0]
    assert first.holder.startswith("process ") and first.lease_age is not None and first.lease_age < 60
    assert first.rate is not None and first.rate > 0 and first.seconds_left == pytest.approx(3 / first.rate)
    assert first.workers == ("local-0",) and first.quiet is not None and first.quiet < 60
    assert looks[1].outcomes == {"accepted": 3, "rejected": 1}


def test_a_second_look_reads_the_new_shards_alone(make_plan: Callable[..., Plan], tmp_path: Path, open_loop: Open) -> None:
    watched = Watched(tmp_path / "run")
    looks: list[Look] = []

    def look(event: Event) -> None:
        if event.kind == "shard" and not looks:
            looks.append(watched.look())

    run_local(make_plan(["cat", "owl", "dog"]), tmp_path / "run", look, open_loop=open_loop)
    known = set(watched._receipts)
    assert len(known) == 1
    for path in (tmp_path / "run" / "commits").glob("*.json"):
        if path.stem in known:
            path.write_text("changed; a look that read it again would refuse it")
    assert watched.look().shards_done == 2


def test_a_stopped_run_says_why(stopped: Path) -> None:
    look = Watched(stopped).look()
    assert look.state == STOPPED and "No space left" in look.state_line() and "--resume" in look.state_line()
    assert look.seconds_left is None and look.holder == "" and look.lease_age is None


def test_the_rate_is_that_of_this_session(stopped: Path) -> None:
    later = Watched(stopped, clock=lambda: time.time() + 3600).look()
    assert later.quiet is not None and later.quiet > 3500
    assert later.rate is not None and later.rate > 0.1  # the hour that nobody worked is not in it


def test_a_sealed_run_is_done(sealed: Path) -> None:
    look = Watched(sealed).look()
    assert (look.state, look.shards_done, look.stopped) == (SEALED, look.shards, "")
    assert json.loads(json.dumps(look.plain()))["requests_done"] == 5


def test_a_sealed_run_that_lost_a_shard_is_nowhere_taken_for_a_whole_one(sealed: Path, tmp_path: Path) -> None:
    """What reads the rows would leave the shard out and say nothing: an export, a claim, a decision."""
    gone = sorted((sealed / "commits").glob("*.json"))[0]
    gone.unlink()
    assert Watched(sealed).look().state_line().startswith("damaged: sealed, and 1 of 3 shards are gone")
    shown = call("status", sealed)
    assert shown.exit_code == 2 and "damaged: sealed, and 1 of 3 shards are gone" in " ".join(shown.stdout.split())
    for command in (
        ("export", sealed, "--to", tmp_path / "data"), ("show", sealed, "row-000001"), ("review", "list", sealed),
        ("review", "export", sealed, "--to", tmp_path / "queue", "--random", "1"), ("retention", "show", sealed),
    ):  # fmt: skip
        done = call(*command)
        assert done.exit_code == 2, command
        assert f"commits/{gone.name}: is missing; the run was sealed with it" in " ".join(done.stderr.split()), command
    assert not (tmp_path / "data").exists()


def test_a_narrow_terminal_shows_the_values(sealed: Path) -> None:
    shown = CliRunner(env={"COLUMNS": "40"}).invoke(cli.app, ["status", str(sealed)]).stdout
    assert "5 of 5 ended" in shown and "sealed" in shown


def test_a_committed_run_without_its_plan_is_not_to_be_drawn_again(sealed: Path, plan: Plan) -> None:
    from index.errors import IntegrityError
    from jobs.run.folder import look

    (sealed / "plan.json").unlink()
    for resume in (False, True):
        with pytest.raises(IntegrityError, match=r"plan\.json: is missing, and a run is committed here\. Restore it"):
            look(sealed, plan, resume=resume)


def test_watching_a_sealed_run_ends_with_0_and_a_stopped_one_with_1(stopped: Path) -> None:
    shown = call("status", stopped, "--watch")
    assert shown.exit_code == 1 and shown.stdout.startswith("state: stopped")
    as_json = call("status", stopped, "--watch", "--json")
    assert json.loads(as_json.stdout)["state"] == STOPPED


def test_watching_goes_on_until_the_run_has_ended(make_plan: Callable[..., Plan], tmp_path: Path, open_loop: Open) -> None:
    plan, ready = make_plan(["cat", "owl", "dog", "fox"]), threading.Event()

    def slowly(*arguments: Any) -> Any:
        loop = open_loop(*arguments)
        step = loop.step
        loop.step = lambda: (time.sleep(0.3), step())[1]
        return loop

    def run() -> None:
        run_local(plan, tmp_path / "run", lambda e: ready.set() if e.kind == "worker" else None, open_loop=slowly)

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(20)
    shown = call("status", tmp_path / "run", "--watch", "--every", "0.2", "--json")
    thread.join()
    states = [json.loads(line)["state"] for line in shown.stdout.splitlines()]
    assert shown.exit_code == 0 and states[0] == RUNNING and states[-1] == SEALED


def test_status_has_the_same_numbers_in_json(stopped: Path) -> None:
    plain = json.loads(call("status", stopped, "--json").stdout)
    assert plain["now"]["shards_done"] == 1 and plain["now"]["requests"] == 5
    assert plain["state"].startswith("stopped") and plain["measures"]["requested"]["value"] == 2


def test_a_death_is_counted_whether_it_cost_a_shard_or_not(stopped: Path) -> None:
    from pipeline.audit.events import NewEvent, append_events

    events = [NewEvent(kind=kind, actor="runner.ray", reason="-", digests={}) for kind in ("shard.retried", "run.worker_lost")]
    append_events(stopped, events)
    look = Watched(stopped).look()
    assert look.deaths == 2 and look.lines()["deaths"] == "2 workers died"


def test_a_run_on_an_object_store_is_looked_at_while_it_goes(make_plan: Callable[..., Plan], open_loop: Open, s3: str) -> None:
    from index import storage
    from jobs.run.metrics.meters import renewed

    folder = storage.place(f"{s3}/live")
    looks = looks_while_it_runs(make_plan(["cat", "owl", "a copy"]), folder, open_loop)
    first = looks[0]
    assert (first.state, first.shards_done, first.requests_done) == (RUNNING, 1, 2)
    assert first.holder and first.lease_age is not None and first.lease_age < 60
    assert first.rate is not None and first.workers == ("local-0",)
    assert Watched(folder).look().state == SEALED
    assert renewed(storage.place(f"{s3}/nobody")) is None


def test_reasons_stand_below_what_was_not_accepted(make_plan: Callable[..., Plan], tmp_path: Path, open_loop: Open) -> None:
    """They are of every row that was not accepted, not of those that wait for a person."""
    run_local(make_plan(["cat", "a copy", "another copy"]), tmp_path / "run", open_loop=open_loop)
    lines = [line.split() for line in call("status", tmp_path / "run").stdout.splitlines()]
    at = lines.index(["not", "accepted", "2", "rejected"])
    assert lines[at + 1] == ["because", "copy.protected", "2"]
    assert lines[lines.index(["review", "queue", "empty"]) + 1][0] == "requested"
