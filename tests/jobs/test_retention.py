"""Retention: what is due on a date, what a hold keeps, and the commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.cli import main as cli
from jobs.hold import change_hold
from jobs.retention import apply_retention, erase_keys, show_retention
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.verdict import verify_run
from pipeline.audit.by_key import samples_by_key
from pipeline.audit.events import append_event, read_events
from pipeline.audit.ledger import sample_rows
from tests.jobs.retained import PRIVACY, call, contents, kept, keys, pristine, rows, run, thumbnails

FIXTURES = (pristine, run, keys)  # used by name


# --- retention -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(run: Path) -> datetime:
    return max(row["finished_at"] for row in sample_rows(run, ["finished_at"]))


def at(moment: datetime, days: int) -> Callable[[], datetime]:
    return lambda: moment + timedelta(days=days, minutes=1)


def test_nothing_is_due_before_its_time(run: Path, finished: datetime) -> None:
    before = contents(run)
    applied = apply_retention(run, PRIVACY, clock=at(finished, 29))
    assert applied.due == {} and applied.erased.cells == {}
    assert {name for name, data in contents(run).items() if before.get(name) != data} <= {".lease"}


def test_pictures_that_were_not_released_are_due_first(run: Path, keys: list[str], finished: datetime) -> None:
    applied = apply_retention(run, PRIVACY, clock=at(finished, 30))
    assert applied.due == {"not released: picture": 1}
    assert thumbnails(run, keys[1]) == [None] and rows(run)[keys[1]]["prompt"] == "copy of an owl"
    assert [row["image"] for row in kept(run)] == [None]
    assert rows(run)[keys[0]]["image"] is not None and verify_run(run).ok


def test_everything_is_due_at_the_end_of_retention(run: Path, keys: list[str], finished: datetime) -> None:
    applied = apply_retention(run, PRIVACY, clock=at(finished, 365))
    assert applied.due == {
        "released: picture, embedding, prompt, columns": 3,
        "not released: picture": 1,
        "not released: embedding, prompt, columns": 1,
    }
    assert {(row["image"], row["prompt"], row["embedding"] is None) for row in rows(run).values()} == {(None, None, True)}
    assert verify_run(run).ok
    assert apply_retention(run, PRIVACY, clock=at(finished, 365)).due == {}, "and then nothing is"


def test_the_event_of_retention_has_counts_and_digests(run: Path, finished: datetime) -> None:
    head = read_events(run)[-1]["record_sha256"]
    apply_retention(run, PRIVACY, clock=at(finished, 30))
    *_, erasing, event = read_events(run)
    assert (event["kind"], erasing["kind"]) == ("retention.applied", "payload.erased")
    assert event["details"]["payloads"] == {"image": 1, "thumbnail": 1} and event["details"]["events"] == [erasing["seq"]]
    assert event["digests"] == {"events_before_sha256": head, "events_after_sha256": erasing["record_sha256"]}


def test_a_dry_run_of_retention_changes_nothing(run: Path, finished: datetime) -> None:
    before = contents(run)
    applied = apply_retention(run, PRIVACY, dry_run=True, clock=at(finished, 365))
    assert applied.due and applied.erased.cells["image"] == 4 and contents(run) == before


def test_what_is_held_is_left_and_named(run: Path, keys: list[str], finished: datetime) -> None:
    change_hold(run, "hold.set", [keys[0]], "m", PRIVACY)
    applied = apply_retention(run, PRIVACY, clock=at(finished, 365))
    assert applied.held == (keys[0],) and rows(run)[keys[0]]["image"] is not None
    assert rows(run)[keys[3]]["image"] is None


def test_a_hold_of_the_run_leaves_everything(run: Path, finished: datetime) -> None:
    change_hold(run, "hold.set", None, "m", PRIVACY)
    applied = apply_retention(run, PRIVACY, clock=at(finished, 365))
    assert applied.due == {} and len(applied.held) == 4 and applied.erased.cells == {}


def test_a_picture_in_an_open_review_is_not_due(run: Path, keys: list[str], finished: datetime) -> None:
    ids = list(samples_by_key(run, [keys[1]]).values())
    append_event(run, "review.decided", "reviewer", "look again", samples=ids, details={"outcome": "review"})
    assert apply_retention(run, PRIVACY, clock=at(finished, 30)).waiting == (keys[1],)
    append_event(run, "review.decided", "reviewer", "no", samples=ids, details={"outcome": "rejected"})
    assert apply_retention(run, PRIVACY, clock=at(finished, 30)).due == {"not released: picture": 1}


def test_the_outcome_in_force_decides_which_retention_holds(run: Path, keys: list[str], finished: datetime) -> None:
    ids = list(samples_by_key(run, [keys[1]]).values())
    append_event(run, "review.decided", "reviewer", "fine", samples=ids, details={"outcome": "accepted"})
    assert apply_retention(run, PRIVACY, clock=at(finished, 30)).due == {}
    append_event(run, "sample.quarantined", "officer", "claim", samples=ids, details={"claim": "c"})
    applied = apply_retention(run, PRIVACY, clock=at(finished, 30))
    assert (applied.due, applied.waiting) == ({}, (keys[1],))  # the person who decides about the claim needs the picture
    append_event(run, "review.decided", "reviewer", "no", samples=ids, details={"outcome": "rejected"})
    assert apply_retention(run, PRIVACY, clock=at(finished, 30)).due == {"not released: picture": 1}


def test_a_decision_may_shorten_or_lengthen_retention(run: Path, keys: list[str], finished: datetime) -> None:
    ids = list(samples_by_key(run, [keys[0]]).values())
    until = (finished + timedelta(days=2)).isoformat()
    details = {"outcome": "accepted", "retain_until": until}
    append_event(run, "review.decided", "reviewer", "fine", samples=ids, details=details)
    assert apply_retention(run, PRIVACY, dry_run=True, clock=at(finished, 2)).due == {
        "released: picture, embedding, prompt, columns": 1
    }


def test_without_a_limit_nothing_is_ever_due(
    make_plan: Callable[..., Plan], tmp_path: Path, open_loop: Callable[..., Any]
) -> None:
    plan = make_plan(["cat", "copy"], retention_days=0, retention_days_held=0)
    folder = run_local(plan, tmp_path / "free", open_loop=open_loop).folder
    later = lambda: datetime.now(UTC) + timedelta(days=36_000)  # noqa: E731
    assert apply_retention(folder, PRIVACY, clock=later).due == {}
    assert {one["no_limit"] == one["number"] for one in show_retention(folder, clock=later)} == {True}


def test_the_default_of_the_shorter_retention_leaves_the_plan_as_it_was(make_plan: Callable[..., Plan]) -> None:
    default, other = make_plan(["cat"]), make_plan(["cat"], retention_days_held=91)
    assert default.config.retention_days_held == 90
    assert default.parts["config"] != other.parts["config"]
    assert default.plan_sha256 == make_plan(["cat"], retention_days_held=90).plan_sha256


def test_show_counts_what_is_there(run: Path, keys: list[str], finished: datetime) -> None:
    shown = {(one["samples"], tuple(one["payloads"])): one for one in show_retention(run, clock=at(finished, 30))}
    released = shown["released", ("picture", "embedding", "prompt", "columns")]
    assert (released["number"], released["due"]) == (3, 0)
    assert shown["not released", ("picture",)]["due"] == 1
    erase_keys(run, [keys[0]], [], PRIVACY)
    again = {one["samples"]: one["number"] for one in show_retention(run) if "picture" in one["payloads"]}
    assert again["released"] == 2


# --- the commands ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def commands(run: Path, keys: list[str]) -> Iterator[tuple[Path, list[str]]]:
    yield run, keys


def test_the_commands(commands: tuple[Path, list[str]]) -> None:
    run, keys = commands
    shown = call("retention", "show", run)
    assert shown.exit_code == 0 and "not released" in shown.output
    narrow = CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, ["retention", "show", str(run)]).output
    assert "embedding" in narrow and "…" not in narrow
    assert json.loads(call("retention", "show", run, "--json").stdout)[0]["number"] == 3
    by = ("--by", "records", "--reason", "monthly")
    assert "nothing is left to erase" in call("retention", "apply", run, *by).output
    dry = call("retention", "erase", run, "--key", keys[0], *by, "--dry-run")
    assert "dry run: nothing was changed" in dry.output and rows(run)[keys[0]]["image"] is not None
    done = call("retention", "erase", run, "--key", keys[0], *by, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["payloads"]["image"] == 1
    assert call("verify", run).exit_code == 0
    odd = call("retention", "erase", run, "--key", keys[0], "--what", "everything", *by)
    assert odd.exit_code == 2 and "picture, prompt, embedding, columns" in odd.output
