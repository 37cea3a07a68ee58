"""Rows that state steps or guidance beside a preset of few-step models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.run.plan import requests_of
from jobs.run.planning.preset_rows import held_to_preset
from pipeline.config import GenerationConfig, ModelConfig, RunConfig
from pipeline.notes import Note
from pipeline.outcome import Request, Stated


def row(key: str, **stated: Any) -> Request:
    return Request(row_no=0, key=key, prompt="a cat", seed=1, stated=Stated(**stated))


def run(folder: Path, preset: Any) -> RunConfig:
    return RunConfig(prompts="p.txt", model=ModelConfig(path=str(folder)), generation=GenerationConfig(preset=preset))


@pytest.mark.parametrize(
    ("stated", "problem"),
    [
        ({"steps": 20}, ("input.bad_steps", "lightning is drawn in 2, 4 or 8 steps, not 20; set it to 8")),
        ({"guidance_scale": 7.5}, ("input.bad_guidance_scale", "lightning is drawn with a guidance of at most 1, not 7.5")),
    ],
)
def test_a_row_that_contradicts_the_preset_is_refused(tiny_sd: Path, stated: dict[str, Any], problem: tuple[str, str]) -> None:
    (one,) = held_to_preset([row("a", **stated)], run(tiny_sd, "lightning"))
    assert one.problem is not None and one.problem[0] == problem[0] and one.problem[1].startswith(problem[1])


def test_the_problem_names_the_row_s_place(tiny_sd: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,steps\na cat,4\na dog,20\n")
    config = replace(run(tiny_sd, "lightning"), prompts=("p.csv",))
    first, second = requests_of(config, tmp_path)
    assert first.problem is None
    assert second.problem is not None and second.problem[1].startswith("line 3: lightning is drawn in 2, 4 or 8 steps, not 20")


def test_a_row_that_fits_the_preset_is_drawn(tiny_sd: Path) -> None:
    (one,) = held_to_preset([row("a", steps=8, guidance_scale=0, width=24)], run(tiny_sd, "lightning"))
    assert one.problem is None


@pytest.mark.parametrize("preset", ["auto", "none"])
def test_without_a_preset_a_row_states_what_it_likes(tiny_sd: Path, preset: str) -> None:
    notes: list[Note] = []
    (one,) = held_to_preset([row("a", steps=50)], run(tiny_sd, preset), notes)
    assert (one.problem, notes) == (None, [])


def test_what_the_folder_asks_for_is_noted_and_the_row_wins(tiny_flux: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_flux, folder := tmp_path / "schnell")
    network = folder / "transformer" / "config.json"
    network.write_text(json.dumps(json.loads(network.read_text()) | {"guidance_embeds": False}))
    notes: list[Note] = []
    given = [row("a", steps=50), row("b")]
    assert held_to_preset(given, run(folder, "auto"), notes) == given
    assert [note.text for note in notes] == [
        "1 of 2 requests are drawn as their rows state, against what the model's folder asks for: turbo is drawn in 1 to 16 "
        "steps, not 50"
    ]


def test_a_model_that_is_not_there_decides_nothing(tmp_path: Path) -> None:
    given = [row("a", steps=50)]
    assert held_to_preset(given, run(tmp_path / "none", "lightning")) == given
