from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from index.errors import PlanMismatch
from jobs import demo
from jobs.demo import demo_prompts, run_demo
from jobs.lab.world.catalogue import PROTECTED
from jobs.run.local_runner import run_local
from jobs.run.plan import read_policy
from jobs.run.progress import describe, duration
from jobs.run.prompts.requests import read_prompts
from pipeline.audit.numbers import count_run
from pipeline.config import RunConfig
from pipeline.policy import policy_digest
from pipeline.settings import read_toml


@pytest.mark.parametrize("samples", [3, 10, 48, 200])
def test_prompts_are_of_all_kinds_and_have_keys_of_their_own(samples: int) -> None:
    prompts = demo_prompts(samples)
    assert len(prompts) == samples
    assert len({prompt.key for prompt in prompts}) == samples
    assert {prompt.kind for prompt in prompts} == {"protected", "ordinary", "prone"}


def test_the_default_demo_has_the_promised_prompts() -> None:
    prompts = demo_prompts(48)
    assert Counter(prompt.kind for prompt in prompts) == {"protected": 24, "ordinary": 16, "prone": 8}
    captions = [name.replace("-", " ") for name in PROTECTED]
    assert all(any(caption in prompt.prompt for caption in captions) for prompt in prompts if prompt.kind == "protected")
    assert any(prompt.prompt not in captions for prompt in prompts if prompt.kind == "protected")


def test_the_demo_end_to_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    open_loop: Callable[..., Any],
    opening: Callable[..., None],
    identity: Callable[..., dict[str, str]],
) -> None:
    def no_index(folder: Path, config: RunConfig, say: Any) -> None:
        folder.mkdir(exist_ok=True)

    opening(loop=open_loop, identity=identity)
    monkeypatch.setattr(demo, "build_index", no_index)
    monkeypatch.setattr(demo, "RUN_TOML", demo.RUN_TOML.replace('index = "index"', 'index = ""'))
    console = Console(width=160, record=True, file=io.StringIO())
    out = tmp_path / "demo"
    counted = run_demo(out, samples=6, runner="local", console=console)
    assert [counted[name]["measures"]["requested"]["value"] for name in ("steered", "observed")] == [6, 6]
    text = console.export_text()
    assert "of 3 protected captions copy" in text and "reproducible: 6 of 6" in text
    assert "verified: steered" in text and f"report:   {out / 'steered' / 'report.html'}" in text
    config = read_toml(RunConfig, out / "run.toml")
    assert len(read_prompts(out / config.prompts[0])) == 6

    before = (out / "steered" / "run.json").read_bytes()
    run_demo(out, samples=6, runner="local", console=console)
    assert (out / "steered" / "run.json").read_bytes() == before
    with pytest.raises(PlanMismatch, match="other prompts"):
        run_demo(out, samples=7, runner="local", console=console)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").touch()
    with pytest.raises(PlanMismatch, match="not a demo folder"):
        run_demo(tmp_path / "home", samples=6, runner="local", console=console)


def test_counts_are_those_of_what_is_stored(
    tmp_path: Path, make_plan: Callable[..., Any], open_loop: Callable[..., Any]
) -> None:
    from jobs.run.folder import open_folder

    plan = make_plan(["cat", "", "a copy", "steered", "stubborn"])
    folder, _ = open_folder(tmp_path / "run", plan)
    run_local(plan, folder, open_loop=open_loop)
    counts = count_run(folder)
    assert (counts.requested, counts.flagged, counts.too_near_first, counts.steered, counts.accepted) == (5, 3, 3, 2, 2)
    assert (counts.pictures, counts.evals, counts.evals_per_accepted) == (6, 120.0, 60.0)
    assert counts.by_embedder == counts.after_second_look == pytest.approx(0.4) and counts.copy_threshold == 0.8
    assert counts.reasons == {"copy.protected": 2, "input.empty_prompt": 1}
    assert count_run(folder, {"row-000000"}).requested == 1


def test_progress_is_described_in_words() -> None:
    assert describe(12, 48, {"accepted": 9, "error": 3}, 12, 6.0) == "12/48 · 2.00/s · 75 % accepted · 18 s left"
    assert describe(0, 48, {}, 0, 0.0) == "0/48"
    assert describe(24, 48, {"accepted": 24}, 12, 6.0) == "24/48 · 2.00/s · 100 % accepted · 12 s left"
    assert [duration(seconds) for seconds in (4, 200, 7500)] == ["4 s", "3 min 20 s", "2 h 5 min"]


def test_the_policy_of_the_demo_has_the_rules_that_ship_and_an_owner(tmp_path: Path) -> None:
    demo._write_inputs(tmp_path, demo_prompts(3))
    mine, shipped = read_policy("policy.toml", tmp_path), read_policy("default", tmp_path)
    assert policy_digest(mine) == policy_digest(shipped)
    assert mine.about.owner and mine.about.approver and mine.about.approved_on


def test_the_run_file_of_the_demo_names_where_to_claim(tmp_path: Path) -> None:
    demo._write_inputs(tmp_path, demo_prompts(3))
    assert "example" in read_toml(RunConfig, tmp_path / "run.toml").claims_contact
