"""Requests that ended as errors can be listed, and drawn again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from index.errors import ConfigError
from jobs.cli.main import app
from jobs.dead_letters import dead_letters, save_prompts
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from pipeline.outcome import Outcome

MakePlan = Callable[..., Plan]
Open = Callable[..., Any]
PROMPTS = ["cat", "", "stuck", "fox"]


@pytest.fixture
def run(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> Path:
    """One request without a prompt, and one that the loop fails on."""

    def failing(*arguments: Any) -> Any:
        loop = open_loop(*arguments)
        whole = loop.sample

        def sample(request: Any) -> Any:
            if request.prompt != "stuck":
                return whole(request)
            error = {"error_class": "ValueError", "error_message": "the output is not finite"}
            lost: dict[str, Any] = {"attempts": (), "accepted_attempt": None, **error}
            return replace(whole(request), outcome=Outcome.ERROR, reason="error.engine", **lost)

        loop.sample = sample
        return loop

    return run_local(make_plan(PROMPTS), tmp_path / "run", open_loop=failing).folder


def test_every_error_is_listed_with_its_request_and_reason(run: Path) -> None:
    found = [(one.key, one.row_no, one.prompt, one.reason, one.error_class) for one in dead_letters(run)]
    assert found == [
        ("row-000001", 1, "", "input.empty_prompt", "InputError"),
        ("row-000002", 2, "stuck", "error.engine", "ValueError"),
    ]


def test_the_command_lists_them(run: Path) -> None:
    shown = CliRunner().invoke(app, ["status", str(run), "--errors"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0 and "the output is not finite" in shown.stdout and "2 requests ended as errors" in shown.stdout


def test_as_json_for_programs(run: Path) -> None:
    found = json.loads(CliRunner().invoke(app, ["status", str(run), "--errors", "--json"]).stdout)
    assert (found["errors"], [one["key"] for one in found["requests"]]) == (2, ["row-000001", "row-000002"])


def test_the_saved_file_is_a_prompt_file_with_the_same_keys_and_seeds(
    run: Path, make_plan: MakePlan, tmp_path: Path, open_loop: Open
) -> None:
    plan, saved = Plan.load(run), tmp_path / "failed.jsonl"
    shown = CliRunner().invoke(app, ["status", str(run), "--save-errors", str(saved)])
    assert shown.exit_code == 0, shown.output
    again = Plan.make(replace(plan.config, prompts=("failed.jsonl",)), plan.policy, tmp_path, identity=plan.identity)
    asked = [(request.key, request.prompt, request.seed) for request in again.requests if request.problem is None]
    assert asked == [("row-000002", "stuck", plan.requests[2].seed)]
    assert run_local(again, tmp_path / "again", open_loop=open_loop).outcomes == {"accepted": 1, "error": 1}


@pytest.mark.parametrize("name", ["failed.csv", "there.jsonl", "absent/failed.jsonl"])
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "there.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        save_prompts([], tmp_path / name)
    assert (tmp_path / "there.jsonl").read_text() == "{}\n"


def test_a_run_without_errors_has_none(make_plan: MakePlan, tmp_path: Path, open_loop: Open) -> None:
    folder = run_local(make_plan(["cat"]), tmp_path / "run", open_loop=open_loop).folder
    assert list(dead_letters(folder)) == []
