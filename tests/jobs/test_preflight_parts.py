"""What a dry run opens on the CPU or not at all (devices of guards and embedder, metrics) it looks at; hard stops by name."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from index.embed import OpenCLIPEmbedder
from index.reference import NewReference
from index.store import ReferenceIndex
from jobs.cli import main as cli
from jobs.run.preflight.notes import hard_stop_notes
from pipeline.config import RunConfig
from pipeline.guard_settings import ClassifierPolicy
from pipeline.opening import nothing_protected, without_pictures
from pipeline.policy import CopiesPolicy, Policy
from pipeline.rungs import ReseedRung
from tests.guards.chat_server import MODEL, ChatServer, Reply, right
from tests.jobs.test_own_sizes import POLICY

RUN = """
prompts = "prompts.csv"
out = "run"
policy = "policy.toml"
[model]
path = "model"
dtype = "float32"
[generation]
steps = 1
rows = 4
"""


@pytest.fixture
def project(tiny_sd: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_sd, tmp_path / "model")
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "prompts.csv").write_text("prompt\ncat\n")
    return tmp_path


def run(project: Path, more: str, *options: str) -> Result:
    (project / "run.toml").write_text(RUN + more)
    return CliRunner(env={"COLUMNS": "250"}).invoke(cli.app, ["run", str(project / "run.toml"), *options])


def refusal(result: Result) -> list[str]:
    assert result.exit_code == 2, result.output
    return [line.strip() for line in result.stderr.splitlines() if line.strip().startswith(("error:", "fix:"))]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ('[guards]\ndevice = "tpu"\n', "guards.device"),
        ('[guards]\ndevice = "mps:7"\n', "guards.device"),
        ('[metrics]\ntextfile = "numbers.txt"\n', "metrics.textfile"),
        ('[metrics]\ntextfile = "nowhere/numbers.prom"\n', "metrics.textfile"),
        ('[metrics]\nport = 9\naddress = "no such address"\n', "metrics.port"),
    ],
)
def test_it_fails_where_the_run_fails(project: Path, more: str, place: str) -> None:
    dry, drawn = refusal(run(project, more, "--dry-run")), refusal(run(project, more))
    assert place in dry[0] and place in drawn[0]
    assert dry[1] == drawn[1]  # the same advice
    assert not (project / "run").exists() and not (project / "numbers.prom").exists()


def test_a_port_that_is_taken_fails_the_dry_run(project: Path, taken: int) -> None:
    assert "metrics.port" in refusal(run(project, f"[metrics]\nport = {taken}\n", "--dry-run"))[0]


def test_a_free_port_and_a_new_file_are_left_as_they_are(project: Path, taken: int) -> None:
    result = run(project, '[metrics]\ntextfile = "numbers.prom"\n', "--dry-run")
    assert result.exit_code == 0, result.output
    assert not (project / "numbers.prom").exists()


def test_the_embedders_device_is_looked_at_where_there_is_an_index(project: Path) -> None:
    more = '[embedder]\ndevice = "tpu"\n'
    assert run(project, more, "--dry-run").exit_code == 0  # nothing is embedded
    (project / "run.toml").write_text(f'index = "index"\n{RUN}{more}')
    result = CliRunner(env={"COLUMNS": "250"}).invoke(cli.app, ["run", str(project / "run.toml"), "--dry-run"])
    assert any("embedder.device" in line for line in refusal(result))


def test_a_device_of_the_guards_on_other_machines_is_a_note_for_ray(project: Path) -> None:
    result = run(project, '[guards]\ndevice = "xpu:3"\n', "--dry-run", "--runner", "ray")
    assert result.exit_code == 0, result.output
    assert "'xpu:3' cannot be used" in result.stderr and "Ray workers" in result.stderr


def test_a_device_that_is_missing_ends_a_run_before_it_says_that_it_started(project: Path) -> None:
    result = run(project, '[guards]\ndevice = "xpu:3"\n')
    assert result.exit_code == 2 and "guards.device: 'xpu:3' cannot be used" in result.stderr
    assert "started" not in result.stderr and not (project / "run").exists()


@pytest.mark.parametrize(("answer", "why"), [((404, b"no such page", {}), "HTTP 404"), ((200, b"<html>", {}), "whole JSON")])
def test_a_server_that_does_not_answer_the_question_is_a_note(project: Path, answer: Reply, why: str) -> None:
    with ChatServer(lambda body, number: answer) as server:
        asked = f'[vision_language]\naddress = "{server.address}"\nmodel = "{MODEL}"\nretries = 0\n'
        (project / "policy.toml").write_text(f'{POLICY}{asked}[[questions]]\nname = "red"\nask = "Is it red?"\n')
        result = run(project, "", "--dry-run")
        assert result.exit_code == 0 and "question:red got no answer" in result.stderr and why in result.stderr
        server.way = right
        assert "got no answer" not in run(project, "", "--dry-run").stderr


@pytest.mark.parametrize("status", ["allowed", "retired", "disputed"])
def test_an_index_in_which_nothing_can_match_is_a_note(project: Path, status: str) -> None:
    (project / "works").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(project / "works" / "a.png")
    runner = CliRunner(env={"COLUMNS": "250"})
    assert runner.invoke(cli.app, ["index", "build", str(project / "works"), "--out", str(project / "index")]).exit_code == 0
    (ref_id,) = [one.ref_id for one in ReferenceIndex.open(project / "index").in_force()]
    changed = runner.invoke(cli.app, ["index", "set-status", str(project / "index"), ref_id, status, "--reason", "x"])
    assert changed.exit_code == 0, changed.output
    found = nothing_protected(RunConfig(prompts=("p.csv",), index="index"), base=project)
    assert bool(found) == (status != "disputed")
    assert not found or f"protects nothing (1 {status})" in found
    (project / "run.toml").write_text('index = "index"\n' + RUN)
    (project / "policy.toml").write_text(POLICY + "[copies]\nthreshold = 0.9\n")
    assert (found in runner.invoke(cli.app, ["run", str(project / "run.toml"), "--dry-run"]).stderr) if found else True


def test_an_index_that_is_not_there_is_said_elsewhere(tmp_path: Path) -> None:
    config, undoing = RunConfig(prompts=("p.csv",), index="nowhere"), Policy(copies=CopiesPolicy(edits=("inset",)))
    assert nothing_protected(config, base=tmp_path) == without_pictures(config, undoing, base=tmp_path) == ""


def test_what_is_not_done_for_want_of_pictures_is_a_note(project: Path) -> None:
    works = [NewReference(title=f"w{n}", picture=np.full((8, 8, 3), n, np.uint8), keep_picture=n < 2) for n in range(3)]
    ReferenceIndex.build(project / "index", works, OpenCLIPEmbedder.open("stickers"))
    config, undoing = RunConfig(prompts=("p.csv",), index="index"), Policy(copies=CopiesPolicy(edits=("inset",)))
    found = without_pictures(config, undoing, base=project)
    assert found.startswith(
        "the index keeps no picture of 1 of 3 references (build the index again with --keep-pictures): the embedder alone finds"
    )
    assert "copies.edits finds no copy" in found and "steer" not in found, "this policy has no ladder"
    full = without_pictures(config, Policy(ladder=(ReseedRung(),)), base=project)
    assert "to steer away from them is a new seed" in full and "copies.edits" not in full and "other colours" in full
    (project / "run.toml").write_text('index = "index"\n' + RUN)
    (project / "policy.toml").write_text(POLICY + '[copies]\nthreshold = 0.9\nedits = ["inset"]\n')
    assert found in CliRunner(env={"COLUMNS": "250"}).invoke(cli.app, ["run", str(project / "run.toml"), "--dry-run"]).stderr


def test_a_reference_that_forbids_nothing_lacks_nothing(project: Path) -> None:
    works = [NewReference(title=f"w{n}", picture=np.full((8, 8, 3), n, np.uint8), keep_picture=n < 2) for n in range(3)]
    index = ReferenceIndex.build(project / "index", works, OpenCLIPEmbedder.open("stickers"))
    (bare,) = [reference.ref_id for reference, kept in index.listed() if not kept]
    config = RunConfig(prompts=("p.csv",), index="index")
    assert "of 1 of 3 references" in without_pictures(config, Policy(), base=project)
    index.retire([bare], "withdrawn")
    assert without_pictures(config, Policy(), base=project) == ""


def test_a_hard_stop_may_name_what_is_found_with_an_edit_undone() -> None:
    assert hard_stop_notes(["copy.inset"], Policy(copies=CopiesPolicy(edits=("inset",)))) == []
    assert len(hard_stop_notes(["copy.inset"], Policy())) == 1


def test_hard_stops_that_hit_nothing_or_everything_are_notes() -> None:
    assert hard_stop_notes(["unsafe."], Policy()) == []
    assert hard_stop_notes(["unsafe.nsfw", "mark.qr", "copy."], Policy()) == []
    (note,) = hard_stop_notes(["unsafe.", "nsfw"], Policy())
    assert "'nsfw'" in note.text and "unsafe.nsfw" in note.text and "NAME" not in note.text
    (note,) = hard_stop_notes([""], Policy())
    assert "empty entry" in note.text
    brought = replace(Policy(), classifiers=(ClassifierPolicy(name="gore", model="m", labels=("bad",)),))
    assert hard_stop_notes(["classifier.gore"], brought) == []
    assert hard_stop_notes(["classifier.gore"], Policy())
