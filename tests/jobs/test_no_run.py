"""A folder that is no run is refused by every command: an empty queue, or no hold in force, would be said of any folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from jobs.cli import main as cli

COMMANDS = {
    "status": ("status", "RUN"),
    "verify": ("verify", "RUN"),
    "report": ("report", "RUN"),
    "show": ("show", "RUN", "cat"),
    "export": ("export", "RUN", "--to", "TO"),
    "compact": ("compact", "RUN"),
    "review list": ("review", "list", "RUN"),
    "review export": ("review", "export", "RUN", "--to", "TO"),
    "hold show": ("hold", "show", "RUN"),
    "hold set": ("hold", "set", "RUN", "--all", "--by", "counsel", "--reason", "a claim"),
    "retention show": ("retention", "show", "RUN"),
    "retention apply": ("retention", "apply", "RUN", "--by", "steward", "--reason", "due"),
    "sign": ("sign", "RUN"),
    "receipt": ("receipt", "RUN", "--key", "cat"),
    "capacity": ("capacity", "--run", "RUN"),
    "detect": ("detect", "PICTURES", "--run", "RUN"),
}


def call(command: tuple[str, ...], run: Path, beside: Path) -> Result:
    names = {"RUN": str(run), "TO": str(beside / "to"), "PICTURES": str(beside)}
    return CliRunner(env={"COLUMNS": "250"}).invoke(cli.app, [names.get(word, word) for word in command])


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("content", ["", "notes.txt", "runs.csv"])
def test_a_folder_that_is_no_run_is_refused(command: tuple[str, ...], content: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if content:
        (folder / content).write_text("x")
    result = call(command, folder, tmp_path)
    assert result.exit_code == 2 and "not a run folder (no plan.json)" in result.stderr, result.output
    assert [path.name for path in folder.iterdir()] == [content][: bool(content)]
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_file_in_a_runs_place_is_called_one(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    result = call(command, tmp_path / "file", tmp_path)
    assert result.exit_code == 2 and "is a file, not a run folder" in result.stderr, result.output


@pytest.mark.parametrize("left", ["run.json", "requests.parquet", "commits/"])
def test_a_run_whose_plan_is_gone_is_still_verified(left: str, tmp_path: Path) -> None:
    (tmp_path / left).mkdir() if left.endswith("/") else (tmp_path / left).write_text("{}")
    result = call(COMMANDS["verify"], tmp_path, tmp_path)
    assert result.exit_code == 1 and "NOT INTACT" in result.stdout, result.output
