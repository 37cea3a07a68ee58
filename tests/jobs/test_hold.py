"""Legal holds: set and lifted by matter, for samples or the whole run, each with its event."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from index.errors import InputError, PlanMismatch, RunStopped
from index.storage import Disk, using
from jobs.by import By
from jobs.cli import main as cli
from jobs.hold import Holds, change_hold, holds_of
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.verdict import verify_run
from pipeline.audit.by_key import samples_by_key
from pipeline.audit.events import append_event, read_events
from pipeline.audit.state import state_of

COUNSEL = By(role="counsel", reason="claim 12", person="p4")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], terminal_width=200)


@pytest.fixture
def run(make_plan: Callable[..., Plan], tmp_path: Path, run_of: Callable[..., Path]) -> Path:
    return run_of(make_plan(["cat", "owl", "copy of a fox"]), tmp_path / "run")


@pytest.fixture
def keys(run: Path) -> list[str]:
    from pipeline.audit.ledger import sample_rows

    return [row["request_key"] for row in sample_rows(run, ["request_key"])]


def test_a_hold_of_a_sample_is_an_event_and_in_force(run: Path, keys: list[str]) -> None:
    assert change_hold(run, "hold.set", [keys[1]], "x v. y", COUNSEL) == Holds(samples={keys[1]: ("x v. y",)})
    event = read_events(run)[-1]
    assert (event["kind"], event["actor"], event["person"], event["reason"]) == ("hold.set", "counsel", "p4", "claim 12")
    assert event["samples"] == list(samples_by_key(run, [keys[1]]).values())
    assert verify_run(run).ok


def test_a_hold_of_the_run_holds_what_no_event_names(run: Path, keys: list[str]) -> None:
    assert change_hold(run, "hold.set", None, "audit", COUNSEL) == Holds(run=("audit",))
    for sample_id in samples_by_key(run, keys).values():
        assert state_of(run).of(sample_id).hold


def test_lifting_ends_the_matter_that_is_named(run: Path, keys: list[str]) -> None:
    for matter in ("one", "two"):
        change_hold(run, "hold.set", [keys[0]], matter, COUNSEL)
    assert change_hold(run, "hold.lifted", [keys[0]], "one", COUNSEL) == Holds(samples={keys[0]: ("two",)})
    assert change_hold(run, "hold.lifted", [keys[0]], "two", COUNSEL) == Holds()


@pytest.mark.parametrize(
    ("kind", "matter", "what"),
    [
        ("hold.set", "one", "is under hold for 'one' already"),
        ("hold.lifted", "two", "is not under hold for 'two'; its own holds are for 'one'"),
    ],
)
def test_a_change_that_changes_nothing_is_refused(run: Path, keys: list[str], kind: Any, matter: str, what: str) -> None:
    change_hold(run, "hold.set", [keys[0]], "one", COUNSEL)
    before = len(read_events(run))
    with pytest.raises(InputError, match=what):
        change_hold(run, kind, [keys[0]], matter, COUNSEL)
    assert len(read_events(run)) == before


def test_a_sample_does_not_leave_the_hold_of_the_run(run: Path, keys: list[str]) -> None:
    change_hold(run, "hold.set", None, "audit", COUNSEL)
    with pytest.raises(InputError, match="it has no hold of its own") as caught:
        change_hold(run, "hold.lifted", [keys[0]], "audit", COUNSEL)
    assert "--all" in caught.value.fix


def test_an_unknown_key_names_the_nearest(run: Path, keys: list[str]) -> None:
    with pytest.raises(InputError, match="no committed sample has the key") as caught:
        change_hold(run, "hold.set", [keys[0] + "x"], "m", COUNSEL)
    assert keys[0] in caught.value.fix


@pytest.mark.parametrize("empty", [{"role": " "}, {"reason": ""}])
def test_who_and_why_are_required(empty: dict[str, str]) -> None:
    with pytest.raises(InputError, match="is empty"):
        By(**{"role": "counsel", "reason": "x", **empty})


def test_another_event_that_comes_between_reading_and_writing_stops_the_change(run: Path, keys: list[str]) -> None:
    class Between(Disk):
        times = 1

        def link(self, old: str, new: str, *, at: int) -> None:
            if Between.times:
                Between.times = 0
                append_event(run, "hold.set", "another", "x", details={"matter": "m"})
            super().link(old, new, at=at)

    with using(Between()), pytest.raises(RunStopped, match="by another process meanwhile"):
        change_hold(run, "hold.set", None, "m", COUNSEL)
    assert [event["actor"] for event in read_events(run) if event["kind"] == "hold.set"] == ["another"]


def test_a_folder_under_hold_is_not_given_to_another_plan(
    make_plan: Callable[..., Plan], tmp_path: Path, open_loop: Callable[..., Any]
) -> None:
    """Nothing was committed in it, so that another plan would take it; the events would be lost."""
    with pytest.raises(RunStopped):
        run_local(make_plan(["disk-full"]), tmp_path / "held", open_loop=open_loop)
    change_hold(tmp_path / "held", "hold.set", None, "m", COUNSEL)
    before = read_events(tmp_path / "held")
    with pytest.raises(PlanMismatch, match=r"under a legal hold \(m\)"):
        run_local(make_plan(["cat"]), tmp_path / "held", open_loop=open_loop)
    assert read_events(tmp_path / "held") == before
    change_hold(tmp_path / "held", "hold.lifted", None, "m", COUNSEL)
    assert run_local(make_plan(["cat"]), tmp_path / "held", open_loop=open_loop).outcomes == {"accepted": 1}


def test_the_commands(run: Path, keys: list[str]) -> None:
    said = call("hold", "set", run, "--key", keys[0], "--by", "counsel", "--reason", "claim 12", "--json")
    assert said.exit_code == 0 and json.loads(said.stdout) == {"run": [], "samples": {keys[0]: ["general"]}}
    shown = call("hold", "show", run)
    assert keys[0] in shown.output and "general" in shown.output
    lifted = call("hold", "lift", run, "--key", keys[0], "--by", "counsel", "--reason", "settled")
    assert lifted.exit_code == 0 and "no hold is in force" in lifted.output
    assert holds_of(run) == Holds()


@pytest.mark.parametrize("options", [(), ("--all", "--key", "x")])
def test_what_is_held_is_named_in_one_way(run: Path, options: tuple[str, ...]) -> None:
    done = call("hold", "set", run, *options, "--by", "counsel", "--reason", "x")
    assert done.exit_code == 2 and "Name samples with --key, or the whole run with --all" in done.output
