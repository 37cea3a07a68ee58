"""Runs of one plan have one content root, whatever happened to them; a run that drew something else has another."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.cli.main import app
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.verdict import compare_runs, verify_run
from pipeline.audit.content import compare, content_root
from pipeline.audit.ledger import sample_rows, stated_roots
from pipeline.audit.shards import committed
from pipeline.config import RunConfig
from pipeline.policy import Policy
from tests.jobs.conftest import fake_identity, open_fake
from tests.jobs.test_signals import end, running

MakePlan = Callable[..., Plan]
PROMPTS = ["cat", "steered owl", "copy", "", "stubborn fox"]


def ran(make_plan: MakePlan, folder: Path, prompts: list[str] = PROMPTS, **settings: Any) -> Path:
    return run_local(make_plan(prompts, **settings), folder, open_loop=open_fake).folder


def test_a_run_that_was_killed_and_resumed_has_the_root_of_one_that_was_not(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed" / "run", tmp_path / "whole" / "run"
    killed.parent.mkdir()
    whole.parent.mkdir()
    with running(killed) as process:
        end(process, signal.SIGKILL)
    left = len(committed(killed))
    plan = Plan.load(killed)
    assert 1 <= left < len(plan.shards) and stated_roots(killed) == {}

    run_local(plan, killed, open_loop=open_fake)
    (whole.parent / "prompts.txt").write_bytes((killed.parent / "prompts.txt").read_bytes())
    config = RunConfig(prompts="prompts.txt", shard_size=2, workers=2)
    again = Plan.make(config, Policy(), whole.parent, identity=fake_identity(config, Policy(), whole.parent))
    run_local(again, whole, open_loop=open_fake)

    assert plan.plan_sha256 == again.plan_sha256
    roots = [stated_roots(folder) for folder in (killed, whole)]
    assert roots[0]["content_root"] == roots[1]["content_root"]
    assert roots[0]["merkle_root"] != roots[1]["merkle_root"]
    assert compare_runs(killed, whole).ok


def test_the_size_of_shards_plays_no_role(make_plan: MakePlan, tmp_path: Path) -> None:
    roots = {content_root(ran(make_plan, tmp_path / str(size), shard_size=size)) for size in (1, 2, 3, 5)}
    assert len(roots) == 1


def test_another_seed_gives_another_root(make_plan: MakePlan, tmp_path: Path) -> None:
    roots = {content_root(ran(make_plan, tmp_path / str(seed), base_seed=seed)) for seed in (0, 1)}
    assert len(roots) == 2


def test_ray_workers_give_the_root_of_one_process(make_plan: MakePlan, tmp_path: Path, small_ray: None) -> None:
    from jobs.run.ray.runner import run_ray

    plan = make_plan(PROMPTS, workers=2)
    run_ray(plan, tmp_path / "ray", open_loop=open_fake)
    run_local(plan, tmp_path / "local", open_loop=open_fake)
    assert stated_roots(tmp_path / "ray")["content_root"] == stated_roots(tmp_path / "local")["content_root"]


def test_verify_recomputes_the_root(make_plan: MakePlan, tmp_path: Path) -> None:
    folder = ran(make_plan, tmp_path / "run")
    assert verify_run(folder).roots == stated_roots(folder)


def test_a_restated_root_is_found(make_plan: MakePlan, tmp_path: Path) -> None:
    from pipeline.audit.ledger import statement_bytes, statement_digest

    folder = ran(make_plan, tmp_path / "run")
    statement = json.loads((folder / "run.json").read_bytes())
    statement["predicate"]["content_root"] = "00" * 32
    statement["predicate"]["statement_sha256"] = statement_digest(statement)
    (folder / "run.json").write_bytes(statement_bytes(statement))
    assert ("run.json", "the content root does not match the rows") in [(p.where, p.what) for p in verify_run(folder).problems]


def test_the_first_request_that_differs_is_named(make_plan: MakePlan, tmp_path: Path) -> None:
    one = ran(make_plan, tmp_path / "one", ["cat", "owl", "fox", "bee"])
    other = ran(make_plan, tmp_path / "other", ["cat", "owl", "steered fox", "copy"])
    found = compare(one, other)
    assert (found.same, found.differing, found.first) == (False, 2, "row-000002")
    assert found.what == "attempt 0: decision is accept in the first run, steer in the second"


def test_a_request_of_one_run_alone_is_named(make_plan: MakePlan, tmp_path: Path) -> None:
    one = ran(make_plan, tmp_path / "one", ["cat", "owl"])
    other = ran(make_plan, tmp_path / "other", ["cat", "owl", "fox"])
    found = compare(one, other)
    assert (found.differing, found.first, found.what) == (1, "row-000002", "is in the second run alone")


def test_other_pixels_are_named_by_attempt(make_plan: MakePlan, tmp_path: Path) -> None:
    one = ran(make_plan, tmp_path / "one")
    other = ran(make_plan, tmp_path / "other", base_seed=1)
    assert compare(one, other).what.startswith("base_seed is ")


def test_what_does_not_repeat_is_not_content(make_plan: MakePlan, tmp_path: Path) -> None:
    one, other = (ran(make_plan, tmp_path / name) for name in ("one", "other"))
    times = [[row["finished_at"] for row in sample_rows(folder)] for folder in (one, other)]
    assert times[0] != times[1] and compare(one, other).same


@pytest.mark.parametrize(("seed", "code", "text"), [(0, 0, "the same content as"), (1, 1, "5 of 5 requests differ")])
def test_verify_compares_on_the_command_line(make_plan: MakePlan, tmp_path: Path, seed: int, code: int, text: str) -> None:
    one = ran(make_plan, tmp_path / "one")
    other = ran(make_plan, tmp_path / "other", base_seed=seed)
    shown = CliRunner().invoke(app, ["verify", str(one), "--same-as", str(other)], env={"COLUMNS": "500"})
    assert (shown.exit_code, text in shown.stdout) == (code, True)
    data = CliRunner().invoke(app, ["verify", str(one), "--same-as", str(other), "--json"])
    assert (data.exit_code, json.loads(data.stdout)["same_as"]["ok"]) == (code, code == 0)


def test_a_damaged_other_run_is_not_the_same(make_plan: MakePlan, tmp_path: Path) -> None:
    one, other = (ran(make_plan, tmp_path / name) for name in ("one", "other"))
    (other / "requests.parquet").write_bytes((other / "requests.parquet").read_bytes()[:-9])
    found = compare_runs(one, other)
    assert not found.ok and "NOT INTACT" in found.sentence


def test_status_shows_both_roots(make_plan: MakePlan, tmp_path: Path) -> None:
    folder = ran(make_plan, tmp_path / "run")
    shown = json.loads(CliRunner().invoke(app, ["status", str(folder), "--json"]).stdout)
    assert {name: shown[name] for name in ("merkle_root", "content_root")} == verify_run(folder).roots
