"""A run with groups on a tiny model: stopped and resumed, it has the bytes of a run that was not stopped, and it verifies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from index.errors import RunStopped
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.verdict import verify_run
from pipeline.audit.ledger import attempt_rows, sample_rows
from pipeline.config import DiversityConfig, GenerationConfig, MarksConfig, ModelConfig, RunConfig
from pipeline.model.load import load_model
from pipeline.moderate import Moderation
from pipeline.policy import Policy
from pipeline.runtime import Runtime


class Stopping(Moderation):
    """Moderation that stops once so many calls were made."""

    left = 1000

    def step(self) -> list[Any]:
        self.left -= 1
        if not self.left:
            raise OSError(5, "Input/output error")
        return super().step()


@pytest.fixture(scope="module")
def runs(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that was not stopped, and one that was stopped in its second shard and resumed."""
    base = tmp_path_factory.mktemp("groups")
    (base / "p.txt").write_text("a cat\na red apple\n", encoding="utf-8")
    config = RunConfig(
        prompts="p.txt", samples_per_prompt=4, shard_size=3, model=ModelConfig(path=str(tiny_sd), dtype="float32"),
        generation=GenerationConfig(steps=3, rows=4, diversity=DiversityConfig(size=2, token_threshold=0.1, window=1.0)),
        marks=MarksConfig(watermark="off"),
    )  # fmt: skip
    model = load_model(config.model)

    def open_loop(config: RunConfig, policy: Policy, base: Path) -> Stopping:
        return Stopping(Runtime(config, policy, model))

    first = open_loop(config, Policy(), base)
    plan = Plan.make(config, Policy(), base, identity=first.runtime.identity())
    run_local(plan, base / "whole", open_loop=open_loop)

    def stopping(*given: Any) -> Stopping:
        loop = open_loop(*given)
        loop.left = 5
        return loop

    with pytest.raises(RunStopped):
        run_local(plan, base / "resumed", open_loop=stopping)
    run_local(plan, base / "resumed", open_loop=open_loop, resume=True)
    return base / "whole", base / "resumed"


def test_a_resumed_run_has_the_same_pictures(runs: tuple[Path, Path]) -> None:
    whole, resumed = ({row["request_key"]: row["pixel_sha256"] for row in sample_rows(run)} for run in runs)
    assert len(whole) == 8 and whole == resumed


def test_it_verifies(runs: tuple[Path, Path]) -> None:
    assert [verify_run(run).problems for run in runs] == [(), ()]


def test_shards_hold_whole_groups(runs: tuple[Path, Path]) -> None:
    rows = list(sample_rows(runs[1]))
    assert [(row["shard_id"], row["group"]["id"]) for row in rows[::2]] == [
        (row["shard_id"], row["group"]["id"]) for row in rows[1::2]
    ]
    assert [row["group"]["id"] for row in rows[::2]] == [f"row-00000{p}#{n}" for p in (0, 1) for n in ("1-2", "3-4")]


def test_attempts_name_the_group(runs: tuple[Path, Path]) -> None:
    assert [row["group"] for row in attempt_rows(runs[0])][:3] == ["row-000000#1-2", "row-000000#1-2", "row-000000#3-4"]
