"""A run that a folder of runs holds as a link, or one level deeper: it must be reached or named, and no set passes without it.

What is marked as failing is so until the readers of folders of runs name such runs.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from index.errors import ClearanceError
from index.storage import entries, entry_of
from jobs.cli import main as cli
from jobs.cli.arguments import every_run
from tests.jobs.data_sets import grown, project, three  # noqa: F401 - fixtures

AWAY = ("link", "deeper")
left_out = pytest.mark.xfail(strict=True, reason="runs that are links or lie deeper are left out without a word")


@pytest.fixture(params=AWAY)
def away(request: pytest.FixtureRequest, grown: Path, tmp_path: Path) -> tuple[Path, str]:  # noqa: F811
    """A data set of three runs, of which one lies elsewhere: its folder, and the name of that run there."""
    name = sorted(path.name for path in grown.iterdir() if (path / "plan.json").exists())[-1]
    elsewhere = tmp_path / "disk" if request.param == "link" else grown / "older"
    elsewhere.mkdir()
    shutil.move(grown / name, elsewhere / name)
    if request.param == "link":
        (grown / name).symlink_to(elsewhere / name)
    return grown, name


def call(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "250"}).invoke(cli.app, [str(argument) for argument in arguments])


def test_an_entry_says_that_it_is_a_link_and_not_what_is_behind_it(tmp_path: Path) -> None:
    """What a reader of a folder of runs can know: the kind is "link", whether a folder, a file or nothing is behind it."""
    (tmp_path / "away" / "run").mkdir(parents=True)
    (tmp_path / "away" / "run" / "plan.json").write_text("{}")
    (tmp_path / "runs").mkdir()
    for name, target in (("folder", "run"), ("file", "run/plan.json"), ("nothing", "gone")):
        (tmp_path / "runs" / name).symlink_to(tmp_path / "away" / target)
    assert {(one.name, one.kind) for one in entries(tmp_path / "runs")} == {(n, "link") for n in ("folder", "file", "nothing")}
    assert entry_of(tmp_path / "runs" / "folder", "plan.json") is not None, "a run that is named by its link is read"


@left_out
def test_a_claim_reaches_or_names_it(away: tuple[Path, str]) -> None:
    folder, name = away
    try:
        found = every_run([str(folder)])
    except ClearanceError as refused:
        found = [str(refused)]
    assert any(name in one for one in found)


@left_out
@pytest.mark.parametrize("command", ["verify", "status"])
def test_no_set_is_shown_without_it(away: tuple[Path, str], command: str) -> None:
    folder, name = away
    done = call(command, folder)
    assert name in done.stdout + done.stderr or done.exit_code != 0


@left_out
def test_no_set_is_exported_without_it(away: tuple[Path, str], tmp_path: Path) -> None:
    folder, name = away
    done = call("export", folder, "--to", tmp_path / "to")
    runs = json.dumps([path.read_text(errors="replace") for path in (tmp_path / "to").rglob("*.json")])
    assert done.exit_code != 0 or name in done.output + runs
