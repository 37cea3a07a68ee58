"""A link planted in a run folder leads nothing out of it: what is behind it stays as it is, byte for byte."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from index.errors import ClearanceError, IntegrityError
from jobs.funnel import read_counts
from jobs.report import report_run
from jobs.run.folder import failed_keys
from jobs.run.lease.lock import holder
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from jobs.run.verdict import verify_run

FILES = [".lease", "plan.json", "requests.parquet", "events/00000000.parquet", "events-head.json", "run.json"]
REPORTS = ["report.html", "report.json"]
FOLDERS = ["samples", "attempts", "commits", "events"]
MakePlan = Callable[..., Plan]
Open = Callable[..., Any]


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def prompts() -> list[str]:
    """With an empty prompt, which ends as an error row: some commands need a failed request."""
    return ["cat", "owl", "disk-full", "", "fox"]


@pytest.fixture
def sealed(plan: Plan, tmp_path: Path, made: Callable[..., Path], seal: Callable[[Path], None]) -> Path:
    def reported(folder: Path) -> None:
        seal(folder)
        report_run(folder)

    folder = made(plan, tmp_path / "run", reported, "reported")
    (tmp_path / "space").touch()
    return folder


def use_all(plan: Plan, folder: Path, open_loop: Open) -> list[str]:
    """Everything that reads or writes a run folder; what was refused, in words."""
    refused: list[str] = []
    for do in (
        lambda: run_local(plan, folder, open_loop=open_loop),
        lambda: report_run(folder),
        lambda: verify_run(folder),
        lambda: read_counts(folder),
        lambda: failed_keys(folder),
        lambda: holder(folder),
    ):
        try:
            do()
        except ClearanceError as error:
            assert error.where and error.fix, error
            refused.append(error.what)
    return refused


@pytest.mark.parametrize("state", ["stopped", "sealed"])
@pytest.mark.parametrize("name", [*FILES, *REPORTS])
def test_a_link_to_a_file_outside(
    plan: Plan, tmp_path: Path, open_loop: Open, request: pytest.FixtureRequest, name: str, state: str
) -> None:
    """The victim holds what the run would read there, so that nothing but the link is wrong."""
    folder: Path = request.getfixturevalue(state)
    outside = tmp_path / "outside"
    outside.mkdir()
    with suppress(FileNotFoundError):
        shutil.move(folder / name, outside / "victim")
    if not (outside / "victim").exists():
        (outside / "victim").write_bytes(b"the victim's bytes")
    (folder / name).symlink_to(outside / "victim")
    before = everything(outside)
    refused = use_all(plan, folder, open_loop)
    assert everything(outside) == before
    if name in REPORTS:
        assert refused == []
        assert not (folder / name).is_symlink(), "a report is written whole, in the link's place"
    else:
        assert any("is a link" in what for what in refused), refused
        assert (folder / name).is_symlink(), "what a link leads to is not brought in"
        problems = verify_run(folder)
        assert name in {p.where for p in (*problems.problems, *problems.not_covered)}


@pytest.mark.parametrize("state", ["stopped", "sealed"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_link_to_a_folder_outside(
    plan: Plan, tmp_path: Path, open_loop: Open, request: pytest.FixtureRequest, name: str, state: str
) -> None:
    folder: Path = request.getfixturevalue(state)
    outside = tmp_path / "outside"
    shutil.move(folder / name, outside)
    for leaf in ("part-000000-x-0123456789abcdef.parquet", ".tmp-victim", "thesis.txt"):
        (outside / leaf).write_bytes(b"the victim's bytes")
    (folder / name).symlink_to(outside)
    before = everything(outside)
    refused = use_all(plan, folder, open_loop)
    assert everything(outside) == before and "is a link" in refused[0]
    assert any(p.where == name and p.what == "is a link" for p in verify_run(folder).problems)


@pytest.mark.parametrize("name", ["samples", "attempts", "commits"])
def test_a_link_in_the_place_of_a_shards_file(plan: Plan, sealed: Path, tmp_path: Path, open_loop: Open, name: str) -> None:
    path = sorted((sealed / name).iterdir())[0]
    victim = Path(shutil.move(path, tmp_path / "victim"))
    path.symlink_to(victim)
    before = victim.read_bytes()
    with pytest.raises(IntegrityError, match="is a link"):
        run_local(plan, sealed, open_loop=open_loop)
    problems = [p for p in verify_run(sealed).problems if p.where.startswith(f"{name}/{path.name}")]
    assert problems and "is a link" in problems[0].what
    assert victim.read_bytes() == before


def test_a_lock_that_is_another_files_second_name_is_not_emptied(
    plan: Plan, stopped: Path, tmp_path: Path, open_loop: Open
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"the victim's bytes")
    (stopped / ".lease").unlink()
    os.link(victim, stopped / ".lease")
    with pytest.raises(IntegrityError, match="hard link"):
        run_local(plan, stopped, open_loop=open_loop)
    assert victim.read_bytes() == b"the victim's bytes"


@pytest.mark.parametrize("kind", ["folder", "pipe", "another program's file"])
def test_something_else_in_the_locks_place(plan: Plan, stopped: Path, open_loop: Open, kind: str) -> None:
    lock = stopped / ".lease"
    lock.unlink()
    if kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.write_text("years of work")
    with pytest.raises(IntegrityError, match=r"is not a file|is not the lock"):
        run_local(plan, stopped, open_loop=open_loop)
    assert kind in ("folder", "pipe") or lock.read_text() == "years of work"


def test_a_run_folder_reached_through_a_link_is_fine(plan: Plan, stopped: Path, tmp_path: Path, open_loop: Open) -> None:
    (tmp_path / "name").symlink_to(stopped)
    run_local(plan, tmp_path / "name", open_loop=open_loop)
    assert verify_run(tmp_path / "name").ok and (tmp_path / "name").is_symlink()


def test_a_link_where_a_run_is_to_begin(plan: Plan, tmp_path: Path, open_loop: Open) -> None:
    """A new run in a folder that holds nothing but a link in the place of its first file."""
    (tmp_path / "run").mkdir()
    (tmp_path / "victim").write_bytes(b"the victim's bytes")
    (tmp_path / "run" / "requests.parquet").symlink_to(tmp_path / "victim")
    with pytest.raises(ClearanceError, match="not a run folder and not empty"):
        run_local(plan, tmp_path / "run", open_loop=open_loop)
    assert (tmp_path / "victim").read_bytes() == b"the victim's bytes"
