"""Adapters on the command line: the dry run names them and refuses what cannot be drawn with; a run draws and records them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from jobs.cli import main as cli
from pipeline.audit.ledger import sample_rows
from tests.pipeline.families import diffusers_pipeline
from tests.pipeline.lora_files import kohya_file

RUN = """
prompts = "prompts.csv"
policy = "policy.toml"
[model]
path = "model"
dtype = "float32"
[generation]
steps = 2
rows = 4
"""
POLICY = 'name = "small"\n' + "".join(f"[{name}]\nenabled = false\n" for name in ("marks", "text", "unsafe", "codes"))


@pytest.fixture
def project(tiny_sd: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_sd, tmp_path / "model")
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "prompts.csv").write_text("prompt,adapter\na cat,\na cat,style:0.7\na cat,stile\n")
    kohya_file(tmp_path / "style.safetensors", diffusers_pipeline(tiny_sd, "StableDiffusionPipeline"), spread=3)
    return tmp_path


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "250"}).invoke(cli.app, [str(argument) for argument in arguments])


def run_file(project: Path, entry: str) -> Path:
    (project / "run.toml").write_text(f"{RUN}\n[[adapters]]\n{entry}")
    return project / "run.toml"


def dry(project: Path, entry: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        call("run", run_file(project, entry), "--out", project / "run", "--dry-run", "--json").stdout
    )
    return found


def test_the_dry_run_names_them(project: Path) -> None:
    found = dry(project, 'path = "style.safetensors"\nrows = "named"')
    assert [problem["where"] for problem in found["problems"]] == ["prompts"]  # a bad row of three is beyond max_error_rate
    assert found["opened"]["adapters"] == "style (LoRA of 69 layers, for the rows that name it)"
    assert [row["code"] for row in found["bad_rows"]] == ["input.bad_adapter"]


def test_the_dry_run_notes_what_no_row_uses(project: Path) -> None:
    (project / "prompts.csv").write_text("prompt\na cat\n")
    save_file({"emb_params": torch.zeros(2, 32)}, project / "glow.safetensors")
    entries = 'path = "style.safetensors"\nrows = "named"\n[[adapters]]\npath = "glow.safetensors"'
    notes = [note["text"] for note in dry(project, entries)["notes"] if note["topic"] == "adapters"]
    assert notes == [
        "no row names 'style' in the column `adapter`: it is not used",
        "the word 'glow' stands in no prompt: its vectors are not used",
    ]


def test_the_dry_run_notes_a_column_that_chooses_nothing(project: Path) -> None:
    notes = [note["text"] for note in dry(project, 'path = "style.safetensors"')["notes"] if note["topic"] == "adapters"]
    assert notes == ['the column `adapter` is kept as a column of your own, and chooses nothing: no adapter has rows = "named"']


def test_the_dry_run_refuses_another_base_by_both_names(project: Path) -> None:
    key = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    state = {f"{key}.lora_down.weight": torch.zeros(2, 2048), f"{key}.lora_up.weight": torch.zeros(32, 2)}
    save_file(state, project / "xl.safetensors")
    (problem,) = dry(project, 'path = "xl.safetensors"')["problems"]
    assert problem["what"] == "is a LoRA for SDXL, and the model is a StableDiffusionPipeline"


def test_the_dry_run_refuses_a_dora_once(project: Path) -> None:
    save_file({"unet.a.lora_A.weight": torch.zeros(2, 2), "unet.a.dora_scale": torch.zeros(2)}, project / "d.safetensors")
    (problem,) = dry(project, 'path = "d.safetensors"')["problems"]
    assert problem["what"].startswith("is a DoRA")


def test_a_run_draws_and_records_them(project: Path) -> None:
    result = call("run", run_file(project, 'path = "style.safetensors"\nrows = "named"'), "--out", project / "run")
    assert result.exit_code == 4, result.output  # a third of the rows are errors
    rows = sorted(sample_rows(project / "run"), key=lambda row: row["row_no"])
    assert [[(one["name"], round(one["weight"], 3)) for one in row["adapters"]] for row in rows] == [[], [("style", 0.7)], []]
    assert [row["reason"] for row in rows][2] == "input.bad_adapter"
    assert rows[0]["pixel_sha256"] != rows[1]["pixel_sha256"]
    verified = call("verify", project / "run")
    assert verified.exit_code == 0, verified.output
