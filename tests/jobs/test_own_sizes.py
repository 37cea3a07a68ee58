"""Prompts that state width, height, steps or guidance scale: read, planned, drawn, recorded."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from index.errors import InputError, PlanMismatch
from jobs.cli.main import app
from jobs.dead_letters import dead_letters, save_prompts
from jobs.run.dataset.chain import Chain, member
from jobs.run.folder import open_folder
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan, read_policy
from jobs.run.preflight.stated_notes import largest_note
from jobs.run.prompts.requests import read_prompts, read_sources
from jobs.run.prompts.sources import Source
from jobs.run.worker import Worker
from pipeline.audit.ledger import attempt_rows, sample_rows
from pipeline.config import ModelConfig, RunConfig
from pipeline.model.load import sides_of
from pipeline.model.sides import Sides
from pipeline.notes import Note
from pipeline.outcome import Request, Stated
from pipeline.settings import read_toml

RUN = """
prompts = "prompts.csv"
out = "run"
policy = "policy.toml"
shard_size = 4
[model]
path = "model"
dtype = "float32"
{model}
[generation]
steps = 3
rows = 4
"""
POLICY = """
name = "small"
[marks]
enabled = false
[text]
enabled = false
[unsafe]
enabled = false
"""
PROMPTS = """prompt,key,seed,width,height,steps,guidance_scale
a cat,a,1,,,,
a cat,b,1,24,16,,
a lemon,c,2,16,24,5,
a cat,d,1,24,16,2,7.5
a lemon,e,3,,,,1
a lemon,f,2,16,24,5,3
a cat,g,9,24,,,
"""


WEB = """prompt,width,height,seed
a cat,4032,3023,7
"""


def read(tmp_path: Path, text: str, **more: Any) -> list[Request]:
    (tmp_path / "p.csv").write_text(text)
    return read_sources([Source(tmp_path / "p.csv")], **more)


def test_a_row_states_its_picture_and_gaps_are_the_runs(tmp_path: Path) -> None:
    first, second = read(tmp_path, "prompt,width,height,steps,guidance_scale\ncat,64,32.0,7,2.5\ncat,,nan,null,\n")
    assert first.stated == Stated(64, 32, 7, 2.5) and first.columns == ""
    assert second.stated == Stated() and not second.stated


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("width", "wide", "width 'wide' is not a whole number from 8 to 4096"),
        ("width", "4", "width '4' is not a whole number from 8 to 4096"),
        ("height", "16.5", "height '16.5' is not a whole number from 8 to 4096"),
        ("steps", "0", "steps '0' is not a whole number from 1 to 1000"),
        ("guidance_scale", "-1", "guidance_scale '-1' is not a number from 0 to 100"),
        (
            "width",
            "1000",
            "width 1000 is not a multiple of 64, as this model needs; write 960 or 1024, or set model.snap = true",
        ),
    ],
)
def test_a_bad_value_is_one_error_row_that_names_line_and_value(tmp_path: Path, column: str, value: str, what: str) -> None:
    bad, good = read(tmp_path, f"prompt,{column}\ncat,{value}\ncat,\n", sides=lambda: Sides(64))
    assert good.problem is None and bad.problem is not None
    assert bad.problem[0] == f"input.bad_{column}"
    assert bad.problem[1].startswith(f"line 2: {what}")


def test_a_file_without_a_good_row_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"p\.csv: line 2: width 1000.*960 or 1024"):
        read(tmp_path, "prompt,width\ncat,1000\n", sides=lambda: Sides(64))


def test_a_side_is_snapped_where_the_run_file_asks_for_it(tmp_path: Path) -> None:
    (only,) = read(tmp_path, "prompt,width,height\ncat,1000,64\n", sides=lambda: Sides(64, snap=True))
    assert only.stated == Stated(1024, 64)


def test_the_columns_may_have_other_names(tmp_path: Path) -> None:
    columns = {"width": "w", "guidance_scale": "cfg"}
    (only,) = read(tmp_path, "prompt,w,cfg\ncat,64,2\n", columns=columns)
    assert only.stated == Stated(width=64, guidance_scale=2.0)


def test_parquet_and_json_lines_state_the_same(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["cat", "cat"], "width": [64, None], "steps": [4.0, None]}), tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_text('{"prompt": "cat", "width": 64, "steps": "4"}\n{"prompt": "cat"}\n')
    for name in ("p.parquet", "p.jsonl"):
        assert [one.stated for one in read_prompts(tmp_path / name)] == [Stated(width=64, steps=4), Stated()], name


def test_what_a_model_needs_is_known_without_loading_it(tiny_sd: Path, tiny_flux: Path) -> None:
    assert sides_of(ModelConfig(path=str(tiny_sd), snap=True)) == Sides(2, snap=True)
    assert sides_of(ModelConfig(path=str(tiny_flux))) == Sides(4)
    assert sides_of(ModelConfig()) == Sides(4)


# --- the plan -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tiny_sd: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_sd, tmp_path / "model")
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "prompts.csv").write_text(PROMPTS)
    (tmp_path / "run.toml").write_text(RUN.format(model=""))
    return tmp_path


def plan_of(project: Path, **more: Any) -> Plan:
    config = read_toml(RunConfig, project / "run.toml")
    model = dataclasses.replace(config.model, path=str(project / "model"))
    config = dataclasses.replace(config, model=model, **more)
    return Plan.make(config, read_policy(config.policy, project), project)


def test_shards_are_sorted_by_size_and_requests_stay_in_order(project: Path) -> None:
    plan = plan_of(project, shard_size=2)
    assert [[one.key for one in shard.requests] for shard in plan.shards] == [["a", "e"], ["b", "d"], ["c", "f"], ["g"]]
    assert [one.key for one in plan.requests] == list("abcdefg")
    assert len({shard.shard_id for shard in plan.shards}) == 4


def test_what_is_stated_is_bound_and_read_back(project: Path) -> None:
    before = plan_of(project)
    (project / "prompts.csv").write_text(PROMPTS.replace("c,2,16,24,5", "c,2,16,24,6"))
    changed = plan_of(project)
    assert before.parts["requests"] != changed.parts["requests"] and before.parts["config"] == changed.parts["config"]
    run_local(before, project / "run")
    assert Plan.load(project / "run").requests == before.requests
    assert Plan.load(project / "run").shards == before.shards


def test_a_plan_in_which_no_row_states_anything_is_as_before(project: Path) -> None:
    """The same table of requests and the same digest, with the columns there and empty."""
    (project / "prompts.csv").write_text("prompt,key,seed\na cat,a,1\na lemon,b,2\n")
    plain = plan_of(project)
    (project / "prompts.csv").write_text("prompt,key,seed,width,height,steps,guidance_scale\na cat,a,1,,,,\na lemon,b,2,,,,\n")
    gaps = plan_of(project)
    assert gaps.requests_file == plain.requests_file
    assert gaps.plan_sha256 == plain.plan_sha256
    assert [shard.shard_id for shard in gaps.shards] == [shard.shard_id for shard in plain.shards]


def test_another_size_under_the_same_key_is_not_new(project: Path) -> None:
    run_local(plan_of(project), project / "run")
    (project / "prompts.csv").write_text(PROMPTS.replace("b,1,24,16", "b,1,16,16"))
    there = member(project / "run")
    with pytest.raises(PlanMismatch, match=r"are others now; the first is 'b': width 24 there and 16 now"):
        Chain.of(there, [there]).new(plan_of(project).requests)


# --- drawn --------------------------------------------------------------------------------------------------------------------


def pixels(folder: Path) -> dict[str, str]:
    return {row["request_key"]: row["pixel_sha256"] for row in sample_rows(folder, ["request_key", "pixel_sha256"])}


def test_pictures_do_not_depend_on_company_order_workers_or_a_restart(project: Path) -> None:
    plan = plan_of(project, shard_size=2)
    run_local(plan, project / "together")
    whole = pixels(project / "together")
    alone = {}
    for key in "cd":
        run_local(dataclasses.replace(plan, requests=tuple(r for r in plan.requests if r.key == key)), project / f"alone-{key}")
        alone |= pixels(project / f"alone-{key}")
    backwards = dataclasses.replace(plan, requests=tuple(reversed(plan.requests)))
    run_local(backwards, project / "backwards")
    assert {key: whole[key] for key in alone} == alone
    assert pixels(project / "backwards") == whole
    assert len(set(whole.values())) == 6, "c and f state the same picture in two ways"


def test_another_worker_goes_on_where_one_was_lost(project: Path) -> None:
    """One commits a shard and is lost while the next is under way; two others share the rest."""
    plan = plan_of(project, shard_size=2)
    run_local(plan, project / "together")
    open_folder(project / "shared", plan)
    first = Worker(plan, project / "shared", "r", "one")
    first.work(0, ahead=[1])
    workers = [Worker(plan, project / "shared", "r", name) for name in ("two", "three")]
    for number in range(1, 4):
        workers[number % 2].work(number)
    assert pixels(project / "shared") == pixels(project / "together")


def test_rows_record_what_was_drawn(project: Path) -> None:
    run_local(plan_of(project), project / "run")
    columns = ["request_key", "width", "height", "steps", "guidance", "outcome"]
    rows = {row["request_key"]: tuple(row[name] for name in columns[1:]) for row in sample_rows(project / "run", columns)}
    assert rows == {
        "a": (16, 16, 3, 3.0, "accepted"), "b": (24, 16, 3, 3.0, "accepted"), "c": (16, 24, 5, 3.0, "accepted"),
        "d": (24, 16, 2, 7.5, "accepted"), "e": (16, 16, 3, 1.0, "accepted"), "f": (16, 24, 5, 3.0, "accepted"),
        "g": (24, 16, 3, 3.0, "accepted"),
    }  # fmt: skip
    evals = {row["request_key"]: row["denoiser_evals"] for row in attempt_rows(project / "run")}
    assert (evals["c"], evals["d"]) == (5, 2)
    verified = CliRunner().invoke(app, ["verify", str(project / "run")])
    assert verified.exit_code == 0, verified.output


def test_failed_requests_are_saved_with_what_they_state(project: Path) -> None:
    (project / "prompts.csv").write_text(PROMPTS + "a cat,h,5,17,16,,\n,i,5,24,,4,\n")
    run_local(plan_of(project), project / "run")
    letters = {letter.key: letter for letter in dead_letters(project / "run")}
    assert {key: letter.reason for key, letter in letters.items()} == {"h": "input.bad_width", "i": "input.empty_prompt"}
    save_prompts([letters["i"]], project / "again.jsonl")
    assert json.loads((project / "again.jsonl").read_text())["steps"] == 4


def test_a_dry_run_names_the_sizes(project: Path) -> None:
    found = CliRunner(env={"COLUMNS": "250"}).invoke(app, ["run", str(project / "run.toml"), "--dry-run"])
    assert found.exit_code == 0, found.output
    assert "3 of 24 × 16, 2 of 16 × 16, 2 of 16 × 24; a denoiser call holds one size" in found.output
    assert "5 pictures of other sizes than 16 × 16: not measured, taken to grow with the pixels" in found.output


def test_widths_of_other_pictures_are_kept_as_the_callers_own(tmp_path: Path) -> None:
    (one,) = read(tmp_path, WEB, columns={"width": "none", "height": "none"})
    assert (one.stated, json.loads(one.columns)) == (Stated(), {"width": "4032", "height": "3023"})


def test_a_seed_that_is_the_callers_own_is_not_drawn_with(tmp_path: Path) -> None:
    (one,) = read(tmp_path, WEB, columns={"seed": "none", "width": "none", "height": "none"})
    assert json.loads(one.columns)["seed"] == "7" and one.seed != 7


def test_columns_that_are_taken_for_sizes_are_noted_with_the_way_out(tmp_path: Path) -> None:
    notes: list[Note] = []
    read(tmp_path, WEB, notes=notes)
    assert [note.text for note in notes] == [
        "'width', 'height' state what each picture is drawn with; where that is not meant, "
        'columns.width = "none" makes the first a column of your own'
    ]


def test_columns_that_the_run_file_names_are_not_noted(tmp_path: Path) -> None:
    notes: list[Note] = []
    read(tmp_path, WEB, notes=notes, columns={"width": "width", "height": "none"})
    assert notes == []


def test_the_prompts_column_cannot_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no column 'none'"):
        read(tmp_path, WEB, columns={"prompt": "none"})


def test_a_file_without_a_row_that_fits_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, WEB, sides=lambda: Sides(multiple=8))
    assert 'columns.height = "none"' in error.value.fix


@pytest.mark.parametrize(("side", "noted"), [(16, []), (32, ["32 × 16"])])
def test_a_picture_larger_than_the_measured_one_is_noted(side: int, noted: list[str]) -> None:
    given = [Request(row_no=0, key="a", prompt="a cat", seed=1, stated=Stated(width=side))]
    found = [note.text for note in largest_note(given, (16, 16))]
    assert [text.partition("the largest pictures, ")[2].partition(", take")[0] for text in found] == noted
