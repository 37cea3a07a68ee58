"""``clearance keys``: what is made, what is shown, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from index.errors import ConfigError, RunStopped
from jobs.cli.main import app
from jobs.keys import new_keys
from pipeline.keys import PURPOSES, SECRETS, Keys


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], terminal_width=200)


def shown(folder: Path) -> dict[str, dict[str, Any]]:
    result = call("keys", "show", folder, "--json")
    assert result.exit_code == 0, result.output
    return {one["file"]: one for one in json.loads(result.stdout)}


def test_new_makes_every_file_for_this_user_alone(tmp_path: Path) -> None:
    result = call("keys", "new", tmp_path / "deep" / "keys")
    assert result.exit_code == 0 and "signer calls itself a test" in result.output
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "deep" / "keys").iterdir()}
    assert files == dict.fromkeys(PURPOSES, 0o600)
    assert stat.S_IMODE((tmp_path / "deep" / "keys").stat().st_mode) == 0o700


def test_nothing_that_is_printed_is_secret(tmp_path: Path) -> None:
    printed = call("keys", "new", tmp_path / "keys").output + call("keys", "show", tmp_path / "keys").output
    secrets = [line for name in SECRETS for line in (tmp_path / "keys" / name).read_text().splitlines() if "---" not in line]
    assert len(secrets) >= 4 and not [line for line in secrets if line in printed]


def test_show_names_what_each_key_is_for(tmp_path: Path) -> None:
    new_keys(tmp_path / "keys", days=3)
    found = shown(tmp_path / "keys")
    assert {name: one["purpose"] for name, one in found.items()} == PURPOSES
    chain = found["c2pa.pem"]
    assert "a test chain: nobody else trusts it" in chain["note"] and chain["until"]
    assert chain["id"] == Keys(tmp_path / "keys").ids()["c2pa.pem"]
    assert found["statement.key"]["id"] == found["statement.pub"]["id"] != ""


def test_show_lists_what_is_there(tmp_path: Path) -> None:
    new_keys(tmp_path / "keys")
    for name in PURPOSES:
        if name != "salt":
            (tmp_path / "keys" / name).unlink()
    assert set(shown(tmp_path / "keys")) == {"salt"}
    (tmp_path / "keys" / "salt").unlink()
    assert "no keys in" in call("keys", "show", tmp_path / "keys").output


@pytest.mark.parametrize("name", PURPOSES)
def test_new_overwrites_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    result = call("keys", "new", tmp_path)
    assert result.exit_code == 2 and f"holds keys already ({name})" in result.output
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_new_makes_nothing_in_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    result = call("keys", "new", tmp_path / "keys")
    assert result.exit_code == 2 and "lies in the run folder" in result.output
    assert not (tmp_path / "keys").exists()


def test_show_refuses_a_folder_in_a_run(tmp_path: Path) -> None:
    new_keys(tmp_path / "keys")
    shutil.copytree(tmp_path / "keys", tmp_path / "run" / "keys")
    (tmp_path / "run" / "run.json").write_text("{}")
    assert call("keys", "show", tmp_path / "run" / "keys").exit_code == 2


def test_new_in_a_git_tree_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    result = call("keys", "new", tmp_path / "keys")
    assert result.exit_code == 0 and "lies in the git working tree" in result.stderr


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "stop"])
def test_half_a_set_of_keys_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    opened = os.open

    def full(path: Path, *how: int) -> int:
        if path.name == "salt":
            raise error
        return opened(path, *how)

    (tmp_path / "mine.txt").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr("jobs.keys.os.open", full)
        with pytest.raises((RunStopped, KeyboardInterrupt)):
            new_keys(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    new_keys(tmp_path)  # the same command again makes all of them


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = call("keys", "new", tmp_path / "file" / "keys")
    assert result.exit_code == 2 and "cannot be written" in result.output
    with pytest.raises(ConfigError, match="is there already"):
        new_keys(tmp_path / "file")
