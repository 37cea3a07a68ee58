"""A data set of three runs of the fake runtime, and commands about it: for tests of data sets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from jobs.cli import main as cli
from jobs.run.dataset.which import which_run
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from pipeline.audit.ledger import sample_rows
from pipeline.config import RunConfig
from pipeline.policy import Policy
from pipeline.settings import read_toml
from tests.jobs.conftest import fake_identity, open_fake

ROWS = ["cat,a", "a copy,b", ",c"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], terminal_width=200)


def fine(*arguments: object) -> Result:
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    return done


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_loop: Callable[..., Any], opening: Callable[..., None],
    identity: Callable[..., dict[str, str]],
) -> Path:  # fmt: skip
    """A run file whose runtime is the fake one: an accepted request, a rejected one, and a row that cannot be drawn."""
    opening(loop=open_loop, identity=identity)
    monkeypatch.chdir(tmp_path)
    return write_project(tmp_path)


def write_project(folder: Path) -> Path:
    write(folder, *ROWS)
    (folder / "run.toml").write_text('prompts = "prompts.csv"\nout = "set/{number}"\nshard_size = 2\n')
    return folder / "run.toml"


def write(folder: Path, *rows: str) -> None:
    (folder / "prompts.csv").write_text("\n".join(["prompt,key", *rows]) + "\n")


def draw(project: Path, out: str = "", **flags: bool) -> None:
    """`clearance run`, without the report and the check of the device that a command makes."""
    base = project.parent
    config = read_toml(RunConfig, project)
    which = which_run(config, base, out, **flags)  # type: ignore[arg-type]
    identity = fake_identity(config, Policy(), base)
    plan = Plan.make(config, Policy(), base, identity=identity, only=which.only, parent=which.parent)
    run_local(plan, which.folder, open_loop=open_fake, resume=flags.get("resume", False))


def keys(folder: Path) -> list[str]:
    return [row["request_key"] for row in sample_rows(folder, ["request_key"])]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: the first list; what was new; the mended row of the first."""
    base = tmp_path_factory.mktemp("three")
    project = write_project(base)
    draw(project)
    write(base, *ROWS, "owl,d", "fox,e")
    draw(project, only_new=True)
    write(base, "cat,a", "a copy,b", "a bee,c", "owl,d", "fox,e")
    draw(project, only_failed=True)
    return base


@pytest.fixture
def grown(project: Path, three: Path) -> Path:
    """The folder of those three runs, for the run file ``project``."""
    shutil.copytree(three, project.parent, dirs_exist_ok=True)
    return project.parent / "set"


def config_of(project: Path) -> RunConfig:
    return read_toml(RunConfig, project)
