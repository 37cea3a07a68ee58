"""`clearance doctor RUN.toml`: four lines, then the details."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.cli import main as cli
from jobs.cli.arguments import read_run_file
from jobs.doctor import Line
from jobs.doctor_run import DAY, RunLooks, ago, disk_line, examine_run, summary

WORLD = 'prompts = "p.csv"\nout = "run"\n[model]\npath = "stickers"\ndtype = "float32"\n[generation]\nrows = 4\n'


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], terminal_width=200)


def looks(folder: Path, text: str, runner: str = "local") -> RunLooks:
    (folder / "p.csv").write_text("prompt,key\ncat,a\n,b\n")
    (folder / "run.toml").write_text(text)
    config, base = read_run_file(folder / "run.toml")
    return examine_run(config, base, runner)


def by_topic(lines: tuple[Line, ...]) -> dict[str, Line]:
    return {line.topic: line for line in lines}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> RunLooks:
    """What `clearance init` writes for the embedded world, and a bad row."""
    folder = tmp_path_factory.mktemp("doctor")
    done = call("init", folder, "--json")
    (run_file, _, prompts) = map(Path, json.loads(done.stdout)["written"])
    run_file.write_text(run_file.read_text().replace("rows = 16", "rows = 4"))
    prompts.write_text(prompts.read_text() + ",bad,x\n")
    return examine_run(*read_run_file(run_file))


def test_what_init_writes_passes_the_dry_run(found: RunLooks) -> None:
    assert found.preflight is not None and found.preflight.problems == []
    assert found.preflight.measured is not None


def test_a_run_that_can_begin_is_four_lines(found: RunLooks) -> None:
    assert [line.topic for line in found.four] == ["run", "room", "time", "looks for"]
    assert found.ok and found.four[0].what.startswith("can begin: 7 of 7 requests to draw in 1 shard (local, 1 worker)")


def test_disk_and_memory_are_held_against_what_is_free(found: RunLooks) -> None:
    details = by_topic(found.details)
    assert " needed, " in details["disk"].what and details["disk"].what.endswith(" free")
    assert " needed, " in details["memory"].what and details["memory"].what.endswith(" free on cpu")
    assert found.four[1].what == f"disk {details['disk'].what}; memory {details['memory'].what}"


def test_larger_pictures_of_rows_do_not_displace_what_was_measured(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,width\ncat,\ncat,96\n")
    (tmp_path / "run.toml").write_text(WORLD)
    found = examine_run(*read_run_file(tmp_path / "run.toml"))
    assert "; memory " in found.four[1].what and found.four[1].what.endswith(" free on cpu")
    assert [line.state for line in found.details if line.topic == "memory" and "96 × 64" in line.what] == ["note"]
    assert by_topic(found.details)["adapters"].what == "marks"


def test_details_name_model_guards_index_prompts_and_ray(found: RunLooks) -> None:
    details = by_topic(found.details)
    assert {"model", "guards", "index", "prompts", "ray", "marks"} <= set(details)
    assert found.preflight is not None
    assert f"million parameters on cpu, {found.preflight.plan.config.model.dtype}" in details["model"].what
    assert details["index"] == Line("index", "note", "none: copies are not looked for, and every row records it")
    assert details["prompts"] == Line("prompts", "note", "7 requests from prompts.csv; 1 bad row becomes an error row")
    assert "codes" in details["guards"].what


def test_a_disk_that_is_too_small_is_missing(found: RunLooks) -> None:
    assert found.preflight is not None
    line = disk_line(found.preflight, free=1)
    assert line.state == "missing" and line.what.endswith(", 1 bytes free")


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (WORLD.replace('"p.csv"', '"none.csv"'), "prompt file does not exist"),
        (WORLD.replace('out = "run"\n', ""), "no output folder"),
        (WORLD.replace('"stickers"', '"nowhere/model"'), "nowhere/model"),
        ('policy = "strict"\n' + WORLD, "there is no policy 'strict'"),
        ('index = "nowhere"\n' + WORLD, "nowhere"),
    ],
)
def test_a_run_that_would_fail_says_why_first(tmp_path: Path, text: str, first: str) -> None:
    found = looks(tmp_path, text)
    assert not found.ok
    assert found.four[0].state == "missing" and first in found.four[0].what


def test_a_device_that_is_not_here_is_a_problem(tmp_path: Path) -> None:
    found = looks(tmp_path, WORLD.replace('dtype = "float32"', 'dtype = "float32"\ndevice = "cuda:7"'))
    assert not found.ok and "cuda:7" in found.four[0].what
    assert found.four[2].state == "note" and "not estimated" in found.four[2].what


def test_the_command_prints_four_lines_and_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(WORLD.replace('"p.csv"', '"none.csv"'))
    done = call("doctor", tmp_path / "run.toml")
    assert done.exit_code == 1 and done.output.startswith(" missing run ")
    shown = json.loads(call("doctor", tmp_path / "run.toml", "--json").stdout)
    assert (shown["ok"], shown["dry_run"], shown["four"][0]["topic"]) == (False, None, "run")


@pytest.mark.parametrize(("days", "text"), [(0.5, "today"), (1.5, "yesterday"), (3, "3 days ago"), (-1, "today")])
def test_ages_are_days(days: float, text: str) -> None:
    assert ago(days * DAY) == text


def test_the_machine_is_four_lines_before_forty() -> None:
    lines = [
        Line("python", "ok", "3.11"), Line("torch", "missing", "x"), Line("cpu", "ok", "2 cores"), Line("cuda", "note", "none"),
        Line("guard codes", "ok", "1"), Line("guard unsafe", "note", "not available"), Line("keys", "ok", "folder"),
        Line("mark XMP", "ok", "always"), Line("weights stickers", "ok", "x"),
    ]  # fmt: skip
    assert summary(lines) == [
        Line("installation", "missing", "2 of 3 fine; torch"),
        Line("device", "note", "cpu 2 cores"),
        Line("guards", "note", "1 of 2 fine; guard unsafe"),
        Line("keys", "ok", "2 of 2 fine"),
    ]
