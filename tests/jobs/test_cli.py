from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from index.errors import ModelError
from jobs.cli import main as cli
from pipeline.model.device import cpu_flags, has_bfloat16


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], terminal_width=200)


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


ALL = list(commands(typer.main.get_command(cli.app)))


@pytest.fixture
def run_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    open_loop: Callable[..., Any],
    opening: Callable[..., None],
    identity: Callable[..., dict[str, str]],
) -> Path:
    """A run file whose runtime is the fake one."""
    opening(loop=open_loop, identity=identity)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.csv").write_text("prompt,key\ncat,a\na copy,b\nsteered,c\n,d\n")
    (tmp_path / "run.toml").write_text('prompts = "prompts.csv"\nout = "run"\nshard_size = 2\n')
    return tmp_path / "run.toml"


def test_the_commands_that_are_promised_are_there() -> None:
    promised = ["demo", "run", "status", "verify", "report", "doctor"]
    assert {(name,) for name in promised} | {("index", name) for name in ["build", "add", "retire", "search", "info"]} <= set(
        ALL
    )


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_shows_an_example(path: tuple[str, ...]) -> None:
    shown = call(*path, "--help")
    assert shown.exit_code == 0
    assert f"Example: clearance {' '.join(path)}" in " ".join(shown.output.split())


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, jobs.cli.main\n"
        "try: jobs.cli.main.app(['--help'])\n"
        "except SystemExit: pass\n"
        "names = 'torch ray faiss pyarrow numpy PIL diffusers open_clip pydantic'\n"
        "heavy = set(names.split()) & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_process_of_a_command_ends_without_a_search_for_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[bool] = []
    monkeypatch.setattr(cli, "leave", lambda: left.append(True))
    monkeypatch.setattr(sys, "argv", ["clearance", "--version"])
    with pytest.raises(SystemExit):
        cli.main()
    assert left


@pytest.mark.skipif(has_bfloat16(cpu_flags()) is None, reason="torch is asked what this processor can do")
def test_init_imports_no_torch(tmp_path: Path) -> None:
    code = f"import sys\nfrom jobs.cli.main import app\napp(['init', {str(tmp_path / 'new')!r}], standalone_mode=False)\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_version() -> None:
    assert call("--version").output.startswith("clearance ")


def test_a_run_from_dry_run_to_report(run_file: Path) -> None:
    dry = call("run", run_file, "--dry-run")
    assert dry.exit_code == 0 and "the prompt is empty (input.empty_prompt)" in dry.output
    assert not (run_file.parent / "run").exists()

    done = call("run", run_file)
    assert done.exit_code == 0, done.output
    folder = run_file.parent / "run"
    assert (folder / "report.html").exists() and (folder / "report.json").exists()
    table = {" ".join(line.split()[:-1]).strip("│ ") for line in done.output.splitlines()}
    assert any("requested" in row for row in table) and "--only-failed" in done.output

    for target in (folder, run_file):
        status = call("status", target)
        assert status.exit_code == 0 and "sealed" in status.output and "4 of 4 ended" in status.output
    assert call("verify", folder).exit_code == 0
    assert call("report", folder).exit_code == 0


def test_a_run_ends_with_the_counts_that_status_has(run_file: Path) -> None:
    done = call("run", run_file)
    status = json.loads(call("status", run_file, "--json").stdout)
    rows = [line.strip("│ ").split("│") for line in done.output.splitlines() if "│" in line]
    printed = {row[0].strip(): row[1].strip() for row in rows}
    for label, measure in (("requested", "requested"), ("flagged at first", "flagged"), ("accepted", "accepted")):
        assert printed[label] == str(status["measures"][measure]["value"]), label
    assert printed["too near a reference"] == "0" and "(≤\u00a066\u00a0%, 95\u00a0%)" in done.output
    assert "copy check: The record of this run does not hold" in done.output


def test_a_changed_byte_is_named(run_file: Path) -> None:
    call("run", run_file)
    victim = next((run_file.parent / "run" / "samples").glob("*.parquet"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    verdict = call("verify", run_file.parent / "run")
    assert verdict.exit_code == 1 and f"samples/{victim.name}" in verdict.output and "NOT INTACT" in verdict.output


def test_a_changed_plan_is_named(run_file: Path) -> None:
    call("run", run_file)
    path = run_file.parent / "run" / "plan.json"
    stored = json.loads(path.read_text())
    stored["config"]["base_seed"] = 7
    path.write_text(json.dumps(stored))
    verdict = call("verify", run_file.parent / "run")
    assert verdict.exit_code == 1 and "plan.json" in verdict.output


def test_again_needs_resume_and_another_policy_is_refused(run_file: Path) -> None:
    assert call("run", run_file).exit_code == 0
    again = call("run", run_file)
    assert again.exit_code == 2 and "fix: Add --resume" in again.stderr
    assert call("run", run_file, "--resume").exit_code == 0
    other = call("run", run_file, "--resume", "--policy", "observe")
    assert other.exit_code == 2 and "changed: policy" in other.stderr


def test_only_failed_writes_a_new_run(run_file: Path) -> None:
    call("run", run_file)
    here = call("run", run_file, "--only-failed")
    assert here.exit_code == 2 and "--out" in here.stderr
    (run_file.parent / "prompts.csv").write_text("prompt,key\ncat,a\na copy,b\nsteered,c\na bee,d\n")
    assert call("run", run_file, "--only-failed", "--out", "again").exit_code == 0
    assert "1 of 1 ended" in call("status", "again").output


@pytest.mark.parametrize(
    ("toml", "arguments", "message"),
    [
        ('prompts = "prompts.csv"\nshard_sise = 2\n', [], "Did you mean 'shard_size'?"),
        ('prompts = "none.csv"\nout = "x"\n', [], "prompt file does not exist"),
        ('prompts = "prompts.csv"\n', [], "Add --out FOLDER"),
        ('prompts = "prompts.csv"\n', ["--out", "ftp://bucket/run"], "nothing here opens ftp://"),
        ('prompts = "prompts.csv"\nout = "x"\npolicy = "strict"\n', [], "there is no policy 'strict'"),
        ('prompts = "prompts.csv"\nout = "x"\n', ["--policy", "none.toml"], "one of default, observe"),
        ("prompts = \n", [], "not valid TOML"),
    ],
)
def test_bad_input_is_two_lines_and_exit_2(run_file: Path, toml: str, arguments: list[str], message: str) -> None:
    run_file.write_text(toml)
    refused = call("run", run_file, *arguments)
    assert refused.exit_code == 2
    lines = refused.stderr.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("  fix: ")
    assert message in refused.stderr


@pytest.mark.parametrize(
    ("run", "policy", "message"),
    [
        (
            'prompts = "prompts.csv"\nretention_days = -30\n',
            "",
            "run.toml, line 2: retention_days: must be from 0 to 36,500, not -30",
        ),
        ('prompts = "prompts.csv"\n[adapters]\npath = "x"\n', "", "line 2: adapters: must be a list of tables, not a table"),
        (
            'prompts = "prompts.csv"\n',
            "[copies]\nthreshold = 85\n",
            "own.toml, line 2: copies.threshold: must be above 0 and at most 1",
        ),
        ('prompts = "prompts.csv"\n', '[ladder]\nkind = "reseed"\n', "own.toml, line 1: ladder: must be a list of tables"),
    ],
)
def test_a_wrong_value_stops_before_anything_is_written(run_file: Path, run: str, policy: str, message: str) -> None:
    run_file.write_text(run)
    (run_file.parent / "own.toml").write_text(policy)
    refused = call("run", run_file, "--out", "run", *(["--policy", "own.toml"] if policy else []))
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert not (run_file.parent / "run").exists()


def test_a_threshold_that_no_picture_reaches_is_noted(run_file: Path) -> None:
    (run_file.parent / "own.toml").write_text("[copies]\nthreshold = 1\n")
    shown = call("run", run_file, "--policy", "own.toml", "--dry-run")
    assert "note: policy: copies.threshold = 1: hardly any picture reaches it" in shown.output + shown.stderr


def test_paths_may_start_from_the_home_folder(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = run_file.parent / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "p.csv").write_text("prompt\ncat\n")
    (home / "own.toml").write_text('name = "own"\n')
    run_file.write_text('prompts = "~/p.csv"\nout = "~/run"\npolicy = "~/own.toml"\n')
    assert call("run", run_file).exit_code == 0
    assert (home / "run" / "report.html").exists()
    run_file.write_text('prompts = "prompts.csv"\nout = "~nobody-of-this-name/run"\n')
    refused = call("run", run_file)
    assert refused.exit_code == 2 and "there is no home folder '~nobody-of-this-name'" in refused.stderr


@pytest.mark.parametrize("command", ["status", "verify", "report"])
def test_a_folder_that_is_no_run_is_refused(command: str, tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "none"):
        refused = call(command, target)
        assert refused.exit_code in (1, 2) and "Traceback" not in refused.output


def test_a_guard_that_only_observes_is_named_before_anything_is_drawn(run_file: Path, tiny_sd: Path) -> None:
    run_file.write_text(run_file.read_text() + f'[model]\npath = "{tiny_sd}"\n')
    shown = call("run", run_file, "--dry-run")
    assert shown.exit_code == 0
    assert "the guard marks only observes" in shown.output


def test_unexpected_errors_name_the_way_to_a_traceback(
    run_file: Path, monkeypatch: pytest.MonkeyPatch, opening: Callable[..., None]
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a bug")

    opening(identity=broken)
    failed = call("run", run_file)
    assert failed.exit_code == 70 and "ZeroDivisionError: a bug" in failed.stderr and "CLEARANCE_DEBUG=1" in failed.stderr
    monkeypatch.setenv("CLEARANCE_DEBUG", "1")
    assert isinstance(call("run", run_file).exception, ZeroDivisionError)


def test_a_runtime_that_does_not_open_is_reported_once(
    run_file: Path, opening: Callable[..., None], identity: Callable[..., dict[str, str]]
) -> None:
    def refuse(*_: Any) -> Any:
        raise ModelError("weights are missing", where="w", fix="Fetch them")

    opening(loop=refuse, identity=identity)
    failed = call("run", run_file)
    assert failed.exit_code == 2 and failed.stderr.count("weights are missing") == 1


def test_usage_errors_are_typers_own() -> None:
    assert call("run", "run.toml", "--runner", "cloud").exit_code == 2
    assert call("nonsense").exit_code == 2


def test_shipped_policies_are_valid() -> None:
    plan = importlib.import_module("jobs.run.plan")
    default, observe = (plan.read_policy(name, Path()) for name in ("default", "observe"))
    assert default.ladder and not observe.ladder
    guards = ("copies", "marks", "codes", "text", "unsafe")
    assert {getattr(observe, name).action for name in guards} == {"observe"}
    assert "observe" not in {getattr(default, name).action for name in guards}


DAMAGE = {
    "a picture": "samples/*.parquet",
    "an attempt": "attempts/*.parquet",
    "a marker": "commits/*.json",
    "the statement": "run.json",
    "the events": "events/*.parquet",
    "the plan": "plan.json",
    "the requests": "requests.parquet",
}


@pytest.mark.parametrize("command", ["report", "resume"])
@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_sealed_run_is_no_success(run_file: Path, made_runs: Path, what: str, command: str) -> None:
    folder, kept = run_file.parent / "run", made_runs / "by the command"
    if not kept.exists():
        assert call("run", run_file).exit_code == 0
        shutil.copytree(folder, kept)
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    victim = sorted(folder.glob(DAMAGE[what]))[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    (folder / "report.html").unlink()
    done = call("report", folder) if command == "report" else call("run", run_file, "--resume")
    name = victim.relative_to(folder).as_posix()
    assert done.exit_code in (1, 2) and name in done.stderr and "fix: " in done.stderr, done.output
    if command == "report":
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert done.exit_code == 1 and (what in ("the plan", "the requests") or f"<code>{name}" in page)


def test_verify_names_what_it_did_not_look_at(run_file: Path) -> None:
    call("run", run_file)
    folder = run_file.parent / "run"
    (folder / "notes.txt").write_text("mine")
    (folder / "mine").mkdir()
    (folder / "away").symlink_to(run_file)
    done = call("verify", folder)
    lines = [line for line in done.output.splitlines() if line.startswith("not covered: ")]
    assert done.exit_code == 0 and [line.split()[2] for line in lines] == [
        "README.md", "away", "mine", "notes.txt", "report.html", "report.json",
    ]  # fmt: skip
    result = json.loads(call("verify", folder, "--json").stdout)
    assert result["ok"] and [left["where"] for left in result["not_covered"]] == [line.split()[2] for line in lines]
    next(folder.glob("samples/*")).unlink()
    result = call("verify", folder, "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["problems"][0]["where"].startswith("samples/")


def test_an_unfinished_run_is_reported_without_being_called_damaged(run_file: Path) -> None:
    (run_file.parent / "prompts.csv").write_text("prompt,key\ncat,a\nowl,b\ndisk-full,c\nowl,d\n")
    stopped = call("run", run_file)
    assert stopped.exit_code == 2 and "No space left" in stopped.stderr
    assert call("report", run_file).exit_code == 0 and "damaged" not in call("report", run_file).stderr
    assert call("status", run_file).exit_code == 0


def test_a_failed_start_leaves_no_folder(
    run_file: Path, opening: Callable[..., None], identity: Callable[..., dict[str, str]]
) -> None:
    def refuse(*_: Any) -> Any:
        raise ModelError("weights are missing", where="w", fix="Fetch them")

    opening(loop=refuse, identity=identity)
    assert call("run", run_file).exit_code == 2
    assert not (run_file.parent / "run").exists()


# Commands without --json, and why.
WITHOUT_JSON: dict[str, str] = {}


def test_every_command_has_json_or_says_why_not() -> None:
    """The laboratory's commands are left out: each writes a JSON file, which is its result."""
    everything, without = typer.main.get_command(cli.app), set()
    for path in ALL:
        command = everything
        for name in path:
            command = command.commands[name]  # type: ignore[attr-defined]
        if "--json" not in {option for parameter in command.params for option in parameter.opts}:
            without.add(" ".join(path))
    assert without == set(WITHOUT_JSON)


def test_the_doctor_has_json() -> None:
    shown = call("doctor", "--json")
    lines = json.loads(shown.stdout)
    assert {line["topic"] for line in lines} >= {"python", "torch"}
    assert {line["state"] for line in lines} <= {"ok", "note", "missing"}


def test_the_help_names_every_command_once_and_cuts_no_sentence() -> None:
    command = typer.main.get_command(cli.app)
    known = set(command.list_commands(typer.Context(command)))  # type: ignore[attr-defined]
    listed = [name for names in cli.SECTIONS.values() for name in names]
    assert len(listed) == len(set(listed)) and set(listed) == known
    for words in ([], ["index"], ["review"], ["lab"]):
        shown = CliRunner().invoke(cli.app, [*words, "--help"]).output
        assert "..." not in shown.split("Options:")[1].replace("[ARGS]...", ""), words
