"""A signed run of four shards, the same compacted, and what is in their files: for tests of compaction."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from index import storage
from jobs.by import By
from jobs.cli import main as cli
from jobs.compact import compact_run
from jobs.proof import sign
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from pipeline.audit.verifier.clearance_verify import Run
from pipeline.audit.verify import verify
from tests.proofs import keys_in

WHO = By(role="operator", reason="fewer files")
PROMPTS = ("cat", "copy of an owl", "steered fox", "elk", "stubborn ape", "", "lemon", "copy of a bat")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], terminal_width=200)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compact")


@pytest.fixture
def run(shelf: Path, make_plan: Callable[..., Plan], open_loop: Callable[..., Any], tmp_path: Path) -> Path:
    """Four shards of two requests; signed."""
    if not (shelf / "run").exists():
        run_local(make_plan(PROMPTS), shelf / "run", open_loop=open_loop)
        sign(shelf / "run", keys_in(shelf / "keys"))
    return Path(shutil.copytree(shelf / "run", tmp_path / "run"))


@pytest.fixture
def small(shelf: Path, run: Path) -> Path:
    """The same run as it was."""
    return shelf / "run"


@pytest.fixture
def large(shelf: Path, run: Path, tmp_path: Path) -> Path:
    """The same run with one part a table."""
    return _compacted(shelf / "large", run, tmp_path / "large", 10**9)


@pytest.fixture
def compacted(shelf: Path, run: Path, tmp_path: Path) -> Path:
    """The same run with several parts."""
    return _compacted(shelf / "compacted", run, tmp_path / "compacted", 60_000)


def _compacted(kept: Path, run: Path, copy: Path, part_bytes: int) -> Path:
    if not kept.exists():
        shutil.copytree(run, kept)
        compact_run(kept, WHO, part_bytes=part_bytes)
    return Path(shutil.copytree(kept, copy))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def files_of(folder: Path, *names: str) -> list[Path]:
    return [path for name in names for path in sorted((folder / name).glob("*"))]


def sound(folder: Path) -> bool:
    """By both verifiers."""
    found, other = verify(folder), Run(str(folder)).verify()
    assert found.ok == (not other.problems), (found.problems, list(other.problems))
    return found.ok


class Dying(storage.Disk):
    """A disk that fails at its N-th change of a name."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, "Input/output error")

    def replace(self, old: str, new: str, *, at: int) -> None:
        self._step()
        super().replace(old, new, at=at)

    def link(self, old: str, new: str, *, at: int) -> None:
        self._step()
        super().link(old, new, at=at)

    def unlink(self, name: str, *, at: int) -> None:
        if not name.startswith(storage.TEMPORARY):
            self._step()
        super().unlink(name, at=at)


def stored_bytes(folder: Path) -> bytes:
    """Every cell of the tables of a run, uncompressed."""
    import pyarrow.parquet as pq

    return b"".join(repr(pq.ParquetFile(p).read().to_pylist()).encode() for p in sorted(folder.rglob("*.parquet")))
