"""A run that a folder of runs holds as a link, or one level deeper: reached or named, and no set passes without it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from index.errors import ClearanceError, InputError
from index.storage import Disk, entries, entry_of, using
from jobs.cli import main as cli
from jobs.cli.arguments import every_run
from jobs.run.dataset.chain import runs_inside
from jobs.run.dataset.out import Out
from tests.jobs.data_sets import grown, project, three  # noqa: F401 - fixtures

AWAY = ("link", "deeper")


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


def test_a_claim_reaches_or_names_it(away: tuple[Path, str]) -> None:
    folder, name = away
    try:
        found = every_run([str(folder)])
    except ClearanceError as refused:
        found = [str(refused)]
    assert any(name in one for one in found)


@pytest.mark.parametrize("command", ["verify", "status"])
def test_no_set_is_shown_without_it(away: tuple[Path, str], command: str) -> None:
    folder, name = away
    done = call(command, folder)
    assert name in done.output
    assert done.exit_code == (0 if (folder / name).is_symlink() else 2), done.output


def test_no_set_is_exported_without_it(away: tuple[Path, str], tmp_path: Path) -> None:
    folder, name = away
    done = call("export", folder, "--to", tmp_path / "to")
    if done.exit_code == 0:
        (folder / name).unlink()
        shutil.move(tmp_path / "disk" / name, folder / name)
        assert call("export", folder, "--to", tmp_path / "whole").exit_code == 0
        found, whole = (json.loads((tmp_path / to / "export.json").read_text()) for to in ("to", "whole"))
        assert found["samples"] == whole["samples"] > 0
    else:
        assert name in done.output


def test_a_link_to_a_run_beside_it_is_no_second_run(grown: Path) -> None:  # noqa: F811
    before = every_run([str(grown)])
    (grown / "latest").symlink_to(grown / "0003")
    assert every_run([str(grown)]) == before


def test_a_claim_names_a_link_to_nothing_and_reaches_the_others(grown: Path) -> None:  # noqa: F811
    before = every_run([str(grown)])
    (grown / "0004").symlink_to(grown.parent / "unmounted")
    (grown / "0005").symlink_to("0005")
    assert every_run([str(grown)]) == [*before, str(grown / "0004"), str(grown / "0005")]


@pytest.mark.parametrize("command", ["verify", "status"])
@pytest.mark.parametrize(("name", "code"), [("0004", 2), ("2026.11", 2), ("older", 2), ("notes.txt", 0)])
def test_a_set_is_refused_for_a_link_to_nothing_that_may_be_a_run(grown: Path, command: str, name: str, code: int) -> None:  # noqa: F811
    (grown / name).symlink_to(grown.parent / "unmounted")
    done = call(command, grown)
    assert done.exit_code == code, done.output
    assert (f"{name}: is a link to nothing" in " ".join(done.output.split())) == bool(code)


def test_a_link_to_nothing_with_the_ending_of_a_run_may_be_one(grown: Path) -> None:  # noqa: F811
    (grown / "0003").rename(grown / "0003.cats")
    (grown / "0004.cats").symlink_to(grown.parent / "unmounted")
    with pytest.raises(InputError, match=r"0004\.cats: is a link to nothing"):
        runs_inside(grown)


def test_what_is_no_run_beside_the_runs_refuses_nothing(grown: Path) -> None:  # noqa: F811
    before = every_run([str(grown)])
    (grown / "venv").mkdir()
    (grown / "venv" / "lib64").symlink_to("gone")
    (grown / "here").symlink_to(".")
    (grown / "links").mkdir()
    (grown / "links" / "latest").symlink_to(grown / "0003")
    assert every_run([str(grown)]) == before
    assert [str(run) for run in runs_inside(grown)] == before


class Closed(Disk):
    """A disk on which a folder of that name cannot be read by this user."""

    def __init__(self, name: str, code: int = errno.EACCES) -> None:
        self.name, self.code = name, code

    def open(self, name: str, flags: int, mode: int = 0o666, *, at: int | None = None) -> int:
        if self.name in name.split("/"):
            raise OSError(self.code, os.strerror(self.code))
        return super().open(name, flags, mode, at=at)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_a_claim_names_a_folder_that_cannot_be_read_and_reaches_the_others(grown: Path, code: int) -> None:  # noqa: F811
    before = every_run([str(grown)])
    (grown / "private").mkdir()
    with using(Closed("private", code)):
        assert every_run([str(grown)]) == [*before, str(grown / "private")]
        assert every_run([str(grown / "0001"), str(grown / "private")]) == [str(grown / "0001"), str(grown / "private")]


@pytest.mark.parametrize("command", ["verify", "status"])
def test_a_set_is_refused_for_a_folder_that_cannot_be_read(grown: Path, command: str) -> None:  # noqa: F811
    (grown / "private").mkdir()
    with using(Closed("private")):
        done = call(command, grown)
    assert done.exit_code == 2
    assert "private: cannot be read (Permission denied), and may be a run" in " ".join(done.output.split())


@pytest.mark.parametrize(("mounted", "code"), [(True, 0), (False, 2)])
def test_what_a_file_system_keeps_for_itself_is_passed_over(
    grown: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    mounted: bool,
    code: int,
) -> None:
    before = every_run([str(grown)])
    (grown / "lost+found").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: mounted and Path(path) == grown)
    with using(Closed("lost+found")):
        done = call("status", grown)
        assert done.exit_code == code, done.output
        assert ("is passed over: it is the file system's own" in " ".join(done.stderr.split())) is mounted
        assert every_run([str(grown)]) == [*before, *([] if mounted else [str(grown / "lost+found")])]


def test_what_is_new_is_not_told_where_a_run_of_the_pattern_is_away(grown: Path) -> None:  # noqa: F811
    (grown / "0004").symlink_to(grown.parent / "unmounted")
    out = Out(folder=grown, pattern="{number}")
    with pytest.raises(InputError, match=r"0004: is a link to nothing where a run of this name is expected"):
        out.runs()
    assert out.next() == grown / "0005"
    (grown / "run").symlink_to(grown.parent / "unmounted")
    with pytest.raises(InputError, match="would be drawn again"):
        Out(folder=grown / "run").runs()


def test_a_deeper_run_is_passed_over_where_its_folder_is_named_too(grown: Path) -> None:  # noqa: F811
    (grown / "archive").mkdir()
    shutil.copytree(grown / "0001", grown / "archive" / "old")
    with pytest.raises(InputError, match=r"Name .*archive too, as a folder of runs"):
        every_run([str(grown)])
    three_runs = [str(grown / name) for name in ("0001", "0002", "0003")]
    old = str(grown / "archive" / "old")
    assert every_run([str(grown), str(grown / "archive")]) == [*three_runs, old]
    assert every_run([old, str(grown)]) == [old, *three_runs]
    with pytest.raises(InputError, match=r"old: is a run one folder deeper.*Move its runs beside the others$"):
        runs_inside(grown)


def test_the_next_run_of_a_pattern_takes_no_name_that_a_link_has(grown: Path, tmp_path: Path) -> None:  # noqa: F811
    (grown / "0003").rename(tmp_path / "0003")
    (grown / "0003").symlink_to(tmp_path / "0003")
    assert Out(folder=grown, pattern="{number}").next() == grown / "0004"
