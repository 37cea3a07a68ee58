"""A run whose requests end as errors does not end as a success: its exit code is its own, and it stops where it is hopeless."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from index.errors import TooManyErrors
from jobs.cli.main import app
from jobs.run.error_budget import beyond, least
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from pipeline.audit.events import read_events
from pipeline.audit.shards import committed
from pipeline.outcome import Outcome, Request, Sample

MakePlan = Callable[..., Plan]
Open = Callable[..., Any]


@pytest.fixture
def open_loop(open_loop: Open) -> Open:
    """A loop that fails on every prompt with "bad" in it."""

    def opened(*arguments: Any) -> Any:
        loop = open_loop(*arguments)
        whole = loop.sample

        def sample(request: Request) -> Sample:
            made: Sample = whole(request)
            if "bad" not in request.prompt:
                return made
            return replace(
                made, outcome=Outcome.ERROR, reason="error.engine", attempts=(), accepted_attempt=None,
                error_class="RuntimeError", error_message="not finite",
            )  # fmt: skip

        loop.sample = sample
        return loop

    return opened


def bad(count: int) -> list[str]:
    return [f"bad {number}" for number in range(count)]


@pytest.mark.parametrize(
    ("errors", "accepted", "most", "is_beyond"),
    [(1, 3, 0.25, False), (2, 3, 0.25, True), (1, 99, 0, True), (0, 9, 0, False), (9, 0, 1, False), (0, 0, 0, False)],
)
def test_a_share_is_beyond_the_limit_when_it_is_larger(errors: int, accepted: int, most: float, is_beyond: bool) -> None:
    assert bool(beyond({"error": errors, "accepted": accepted}, most)) is is_beyond


def test_one_bad_shard_stops_no_run() -> None:
    assert [least(size) for size in (1, 16, 64)] == [100, 100, 256]


def test_a_run_that_errs_from_the_start_stops_after_a_hundred_requests(
    make_plan: MakePlan, tmp_path: Path, open_loop: Open
) -> None:
    plan = make_plan(bad(150), shard_size=10)
    with pytest.raises(TooManyErrors, match=r"100 of 100 requests .*100 %.* allows 25 %; most often error.engine"):
        run_local(plan, tmp_path / "run", open_loop=open_loop)
    assert len(committed(tmp_path / "run")) == 10
    last = read_events(tmp_path / "run")[-1]
    assert last["kind"] == "run.stopped" and "100 of 100 requests" in last["reason"]


def test_a_run_that_has_nothing_left_to_draw_is_sealed(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    """The hundredth request is its last: to stop there would leave a whole run without its seal."""
    result = run_local(make_plan(bad(100), shard_size=10), tmp_path / "run", open_loop=open_loop)
    assert result.too_many_errors.startswith("100 of 100") and result.statement


def test_what_an_earlier_session_ended_with_stops_no_later_one(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    plan = make_plan(bad(100) + [f"owl {i}" for i in range(150)], shard_size=10)
    with pytest.raises(TooManyErrors):
        run_local(plan, tmp_path / "run", open_loop=open_loop)
    result = run_local(plan, tmp_path / "run", open_loop=open_loop)
    assert result.too_many_errors.startswith("100 of 250 requests ended as errors (40 %)")


def test_a_finished_run_beyond_the_limit_records_it(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    result = run_local(make_plan(["cat", *bad(2)]), tmp_path / "run", open_loop=open_loop)
    assert result.too_many_errors == "2 of 3 requests ended as errors (66.7 %); max_error_rate allows 25 %"
    assert [e["reason"] for e in read_events(tmp_path / "run") if e["kind"] == "run.error_rate"] == [result.too_many_errors]


@pytest.mark.parametrize(("options", "code"), [([], 4), (["--max-error-rate", "0.7"], 0), (["--max-error-rate", "0"], 4)])
def test_the_command_exits_with_a_code_of_its_own(
    make_plan: MakePlan, tmp_path: Path, opening: Callable[..., None], open_loop: Open, identity: Open, options: list[str],
    code: int,
) -> None:  # fmt: skip
    opening(identity=identity, loop=open_loop)
    make_plan(["cat", *bad(2)])  # writes the prompts
    run_file = tmp_path / "run.toml"
    run_file.write_text('prompts = "prompts.txt"\nout = "run"\nmax_error_rate = 0.1\n')
    ended = CliRunner().invoke(app, ["run", str(run_file), *options], env={"COLUMNS": "300"})
    assert ended.exit_code == code, ended.output
    assert ("2 of 3 requests ended as errors" in ended.stderr) is (code == 4)
    assert CliRunner().invoke(app, ["run", str(run_file), "--resume", *options]).exit_code == code


def test_a_run_that_stopped_early_exits_with_it_too(
    make_plan: MakePlan, tmp_path: Path, opening: Callable[..., None], open_loop: Open, identity: Open
) -> None:
    opening(identity=identity, loop=open_loop)
    make_plan(bad(150))
    run_file = tmp_path / "run.toml"
    run_file.write_text('prompts = "prompts.txt"\nout = "run"\n')
    ended = CliRunner().invoke(app, ["run", str(run_file)], env={"COLUMNS": "300"})
    assert ended.exit_code == 4 and "raise max_error_rate" in ended.stderr
