"""The runners with the real runtime, on a random model of the real classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.run.folder import open_folder
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan, read_policy
from jobs.run.planning.stored_plan import stored_plan
from jobs.run.ray.runner import run_ray
from jobs.run.worker import Worker
from pipeline.audit.contents import report_numbers
from pipeline.audit.ledger import sample_rows
from pipeline.audit.verify import verify
from pipeline.config import GenerationConfig, ModelConfig, RunConfig
from pipeline.policy import MarksPolicy, Policy, TextPolicy, UnsafePolicy


def tiny_plan(base: Path, model: Path, workers: int) -> Plan:
    (base / "prompts.csv").write_text("prompt,key\nred apple,a\ncat,b\n,c\nlemon,d\n")
    off: dict[str, Any] = {
        "marks": MarksPolicy(enabled=False),
        "text": TextPolicy(enabled=False),
        "unsafe": UnsafePolicy(enabled=False),
    }
    policy: Policy = replace(read_policy("default", base), **off)
    config = RunConfig(
        prompts="prompts.csv",
        shard_size=2,
        workers=workers,
        model=ModelConfig(path=str(model), dtype="float32"),
        generation=GenerationConfig(steps=3, rows=4),
    )
    return Plan.make(config, policy, base)


def pixels(folder: Path) -> list[tuple[str, str, str]]:
    return [(row["request_key"], row["outcome"], row["pixel_sha256"]) for row in sample_rows(folder)]


@pytest.fixture
def local(tmp_path: Path, tiny_sd: Path) -> list[tuple[str, str, str]]:
    plan = tiny_plan(tmp_path, tiny_sd, 1)
    folder, _ = open_folder(tmp_path / "local", plan)
    run_local(plan, folder)
    assert verify(folder).ok
    return pixels(folder)


def test_local_run_with_the_real_runtime(local: list[tuple[str, str, str]]) -> None:
    assert [key for key, _, _ in local] == ["a", "b", "c", "d"]
    assert [outcome for key, outcome, _ in local if key == "c"] == ["error"]
    assert len({sha for key, _, sha in local if key != "c"}) == 3


@pytest.mark.ray
@pytest.mark.slow
def test_ray_draws_the_same_pixels(tmp_path: Path, tiny_sd: Path, local: list[tuple[str, str, str]], small_ray: None) -> None:
    plan = tiny_plan(tmp_path, tiny_sd, 2)
    folder, _ = open_folder(tmp_path / "ray", plan)
    result = run_ray(plan, folder)
    assert verify(folder).ok and result.deaths == {}
    assert pixels(folder) == local


def test_shards_that_overlap_draw_the_pixels_of_shards_alone(
    tmp_path: Path, tiny_sd: Path, local: list[tuple[str, str, str]]
) -> None:
    plan = tiny_plan(tmp_path, tiny_sd, 1)
    folder, _ = open_folder(tmp_path / "alone", plan)
    worker = Worker(plan, folder, stored_plan(folder)["run_id"], "w")
    for number in range(len(plan.shards)):
        worker.work(number)
    assert pixels(run_local(plan, folder).folder) == local


def test_a_guard_that_only_observes_is_named_in_rows_statement_and_report(tmp_path: Path, tiny_sd: Path) -> None:
    (tmp_path / "prompts.csv").write_text("prompt\nred apple\n")
    config = RunConfig(
        prompts="prompts.csv",
        model=ModelConfig(path=str(tiny_sd), dtype="float32"),
        generation=GenerationConfig(steps=2, rows=4),
    )
    policy = Policy(text=TextPolicy(enabled=False), unsafe=UnsafePolicy(enabled=False))
    plan = Plan.make(config, policy, tmp_path)
    folder, _ = open_folder(tmp_path / "run", plan)
    result = run_local(plan, folder)
    (row,) = sample_rows(folder)
    assert {f["guard"]: f["action"] for f in row["findings"]} == {"codes": "steer", "marks": "observe"}
    sealed = {guard["name"]: guard for guard in result.statement["predicate"]["guards"]}
    assert sealed["marks"]["action"] == "observe"
    assert list(sealed["marks"]["weights"]) == ["model.safetensors"]
    numbers = report_numbers(folder)
    assert [note for note in numbers["guard_notes"] if "marks only observes" in note]
    assert {entry["action"] for entry in numbers["guards"] if entry["guard"] == "marks"} == {"observe"}
    assert verify(folder).ok
