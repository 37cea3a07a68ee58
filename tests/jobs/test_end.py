"""A stopped run that is ended as it is: every request has its row, and the run is finished like any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from index.errors import InputError, PlanMismatch, RunStopped
from jobs.by import By
from jobs.cli import main as cli
from jobs.keys import new_keys
from jobs.retention import erase_keys
from jobs.run.end_early import end_early
from jobs.run.folder import failed_keys
from jobs.run.lease.lock import lease
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.session import DRIVER
from jobs.run.verdict import verify_run
from pipeline.audit.events import append_event, read_events
from pipeline.audit.ledger import sample_rows, scan_statement
from pipeline.audit.report import write_report
from pipeline.keys import Keys
from pipeline.outcome import Request

WHO = By(role="operator", reason="the index changed for claim 12", person="r7")


def outcomes(folder: Path) -> list[tuple[str, str]]:
    return [(row["outcome"], row["reason"]) for row in sample_rows(folder, ["outcome", "reason"])]


def test_what_was_not_drawn_becomes_error_rows_and_the_run_is_whole(stopped: Path) -> None:
    drawn = len(outcomes(stopped))
    done = end_early(stopped, WHO)
    rows = outcomes(stopped)
    assert 0 < drawn < len(rows) == done.requests == 5
    assert {reason for _, reason in rows[drawn:]} == {"error.ended_early"} and rows[0] == ("accepted", "")
    last = [*sample_rows(stopped)][-1]
    assert (
        "ended early by operator, with 3 requests left to draw" in last["error_message"] and "claim 12" in last["error_message"]
    )
    assert (last["model_digest"], last["worker_id"]) == (next(sample_rows(stopped))["model_digest"], "driver")
    assert verify_run(stopped).ok
    kinds = [event["kind"] for event in read_events(stopped)]
    assert kinds[-3:] == ["run.error_rate", "run.finished", "run.sealed"] and "run.ended" in kinds
    ended = next(event for event in read_events(stopped) if event["kind"] == "run.ended")
    assert (ended["actor"], ended["person"], ended["reason"]) == ("operator", "r7", WHO.reason)
    assert ended["details"]["requests"] == 5 - drawn


def test_it_opens_neither_model_nor_index(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.run import openers

    monkeypatch.setattr(openers, "openers", lambda: pytest.fail("something was opened"))
    assert end_early(stopped, WHO).outcomes["error"] > 0


def test_it_states_what_a_run_to_the_end_states(
    stopped: Path, plan: Plan, tmp_path: Path, open_loop: Callable[..., Any]
) -> None:
    whole = Path(shutil.copytree(stopped, tmp_path / "whole"))
    (tmp_path / "space").touch()
    run_local(plan, whole, open_loop=open_loop)
    end_early(stopped, WHO)
    ours, theirs = ((scan_statement(folder)[0] or {})["predicate"] for folder in (stopped, whole))
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} & {"model", "policy_id", "generation", "index_id"} == set()


def test_it_names_the_runner_that_drew_and_no_licence_that_it_does_not_know(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_event(stopped, "run.resumed", "runner.local", "a session that drew nothing")

    def with_lora(*arguments: Any, **more: Any) -> Any:
        for row in sample_rows(*arguments, **more):
            yield {
                **row,
                "worker_id": "ray-0",
                "adapters": [{"name": "ink", "kind": "lora", "digest": "aa", "weight": 1.0, "tokens": []}],
            }

    monkeypatch.setattr("jobs.run.end_early.sample_rows", with_lora)
    end_early(stopped, WHO)
    stated = (scan_statement(stopped)[0] or {})["predicate"]
    assert stated["runner"] == {"kind": "ray", "workers": 0, "deaths": {}}
    assert [one["licence"] for one in stated["adapters"]] == ["not recorded: the run was ended early"]


def test_the_runner_is_that_of_the_latest_row_that_a_worker_made(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first attempt to end it, stopped in the middle, has left a session and rows of its own."""
    from jobs.run.end_early import _context

    rows = [*sample_rows(stopped)]
    whose = [(DRIVER, 9), ("ray-1.2", 5), ("local-0", 3)]
    drawn = [{**rows[0], "worker_id": worker, "finished_at": at} for worker, at in whose]
    monkeypatch.setattr("jobs.run.end_early.sample_rows", lambda *_: iter(drawn))
    append_event(stopped, "run.resumed", "runner.local", "the first attempt")
    assert _context(stopped, Plan.load(stopped), Keys())[1] == "ray"
    del drawn[1:]
    assert _context(stopped, Plan.load(stopped), Keys())[1] == "local"  # by the event of the first session


def test_afterwards_it_is_a_run_like_any_other(stopped: Path) -> None:
    keys = [row["request_key"] for row in sample_rows(stopped, ["request_key"])]
    end_early(stopped, WHO)
    page, _ = write_report(stopped)
    text = page.read_text(encoding="utf-8")
    assert "error.ended_early" in text
    assert "</b> by operator on 20" in text and f"{5 - len(keys)} of 5 requests were not drawn" in text
    assert len(failed_keys(stopped)) == 5 - len(keys)  # what --only-failed draws
    assert erase_keys(stopped, keys[:1], [], WHO).samples == 1 and verify_run(stopped).ok


def test_ended_in_the_middle_it_may_still_be_continued(
    stopped: Path, plan: Plan, tmp_path: Path, open_loop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its report then says nothing of an end that never came."""
    from jobs.run.session import Session

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Session, "undrawn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        end_early(stopped, WHO)
    assert "run.ended" not in [event["kind"] for event in read_events(stopped)]
    (tmp_path / "space").touch()
    assert run_local(plan, stopped, open_loop=open_loop).outcomes == {"accepted": 5}
    assert "Ended early" not in write_report(stopped)[0].read_text(encoding="utf-8")


def test_a_row_that_names_an_adapter_is_ended_like_any_other(stopped: Path) -> None:
    """None is known of what was never drawn: neither the model nor its adapters are opened."""
    from jobs.run.end_early import _context
    from pipeline.audit.records import _of_the_row

    request = Request(row_no=0, key="k", prompt="cat", seed=0, adapter="style:0.7")
    assert _of_the_row(request, _context(stopped, Plan.load(stopped), Keys())[0]) == []


def test_a_finished_run_has_nothing_to_end(sealed: Path) -> None:
    before = read_events(sealed)
    with pytest.raises(InputError, match="the run is finished"):
        end_early(sealed, WHO)
    assert read_events(sealed) == before


def test_a_run_that_goes_is_not_ended(stopped: Path) -> None:
    with lease(stopped), pytest.raises(RunStopped, match="another run is writing"):
        end_early(stopped, WHO)


def test_where_nothing_is_committed_there_is_nothing_to_keep(
    make_plan: Callable[..., Plan], tmp_path: Path, open_loop: Callable[..., Any]
) -> None:
    from jobs.run.folder import open_folder

    folder, _ = open_folder(tmp_path / "run", make_plan(["cat"]))
    with pytest.raises(InputError, match="nothing of the run is committed"):
        end_early(folder, WHO)


def test_prompts_stay_recorded_under_one_salt(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARANCE_SALT", "ab" * 32)
    with pytest.raises(PlanMismatch, match="under another salt"):
        end_early(stopped, WHO)


def test_bad_rows_keep_their_own_problem(make_plan: Callable[..., Plan], tmp_path: Path, open_loop: Callable[..., Any]) -> None:
    plan = make_plan(["cat", "dog", "", "owl"], shard_size=1)

    def stop(event: Any) -> None:
        if event.kind == "shard":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local(plan, tmp_path / "run", stop, open_loop=open_loop)
    end_early(tmp_path / "run", WHO)
    reasons = [reason for _, reason in outcomes(tmp_path / "run")]
    assert reasons[2] == "input.empty_prompt" and reasons[-1] == "error.ended_early"


def test_the_command(stopped: Path) -> None:
    by = ("--by", "operator", "--reason", "claim 12")
    done = CliRunner().invoke(cli.app, ["end", str(stopped), *by, "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["requests"] == 5
    again = CliRunner().invoke(cli.app, ["end", str(stopped), *by])
    assert again.exit_code == 2 and "the run is finished" in again.stderr


@pytest.mark.parametrize("out", ["runs/monday", "/elsewhere/run", "memory://"])
@pytest.mark.parametrize("how", ["run file", "--keys", "environment"])
def test_a_run_with_keys_is_ended_wherever_they_and_the_run_lie(
    how: str,
    out: str,
    tmp_path: Path,
    memory: str,
    monkeypatch: pytest.MonkeyPatch,
    open_loop: Callable[..., Any],
    opening: Callable[..., None],
    identity: Callable[..., dict[str, str]],
) -> None:
    """The run folder leads to the keys only where both lie below the run file's folder."""
    keys, project = tmp_path / "secure" / "keys", tmp_path / "project"
    new_keys(keys)
    project.mkdir()
    monkeypatch.chdir(project)
    (keys / "salt").unlink()  # the fake runtime has none
    opening(loop=open_loop, identity=identity)
    uri = f"{memory}/run" if out.startswith("memory") else str(tmp_path / "else" / "run") if out.startswith("/") else out
    (project / "prompts.csv").write_text("prompt,key\ncat,a\nowl,b\ndisk-full,c\nfox,d\n")
    (project / "run.toml").write_text(f'prompts = "prompts.csv"\nout = "{uri}"\nshard_size = 2\n[marks]\nkeys = "{keys}"\n')
    by = ("--by", "operator", "--reason", "claim 12")
    assert CliRunner().invoke(cli.app, ["run", "run.toml"]).exit_code == 2
    lost = CliRunner().invoke(cli.app, ["end", uri, *by])
    assert lost.exit_code == 2 and "no such folder of keys" in lost.stderr and "--keys" in lost.stderr
    if how == "environment":
        monkeypatch.setenv("CLEARANCE_KEYS", str(keys))
    words = {"run file": ["run.toml"], "--keys": [uri, "--keys", str(keys)], "environment": [uri]}[how]
    done = CliRunner().invoke(cli.app, ["end", *words, *by])
    assert done.exit_code == 0, done.output
    checked = CliRunner().invoke(cli.app, ["verify", uri, "--key", str(keys / "statement.pub")])
    assert checked.exit_code == 0, checked.output
