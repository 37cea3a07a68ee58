"""A finished run with kept pictures and two retentions, and what is in its files: for tests of erasing and of retention."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from index.storage import Disk
from jobs.by import By
from jobs.cli import main as cli
from jobs.run.local_runner import run_local
from jobs.run.plan import Plan
from pipeline.audit.ledger import attempt_rows, sample_rows

PRIVACY = By(role="privacy", reason="request 31", person="p9")
CLEAN = "cat"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], terminal_width=200)


class Sticky(Disk):
    """A disk on which files whose names begin so cannot be removed."""

    def __init__(self, *beginnings: str) -> None:
        self.beginnings = beginnings

    def unlink(self, name: str, *, at: int) -> None:
        if name.startswith(self.beginnings):
            raise PermissionError(errno.EACCES, "Permission denied")
        super().unlink(name, at=at)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"folder": tmp_path_factory.mktemp("runs") / "run"}


@pytest.fixture
def run(
    pristine: dict[str, Path], make_plan: Callable[..., Plan], tmp_path: Path, open_loop: Callable[..., Any]
) -> Path:  # fmt: skip
    """Two shards: an accepted, a rejected, a steered and another accepted sample; retention of 365 and 30 days."""
    if not pristine["folder"].exists():
        plan = make_plan(["cat", "copy of an owl", "steered fox", "elk"], retention_days=365, retention_days_held=30)
        run_local(plan, pristine["folder"], open_loop=open_loop)
    return Path(shutil.copytree(pristine["folder"], tmp_path / "run"))


@pytest.fixture
def keys(run: Path) -> list[str]:
    return [row["request_key"] for row in sample_rows(run, ["request_key"])]


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["request_key"]: row for row in sample_rows(folder)}


def kept(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return [row for path in sorted(folder.glob("kept/*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]


def thumbnails(folder: Path, key: str) -> list[Any]:
    return [row["thumbnail"] for row in attempt_rows(folder) if row["request_key"] == key]


def stored_bytes(folder: Path) -> bytes:
    """Every file of a run, and every cell of its tables uncompressed."""
    import pyarrow.parquet as pq

    found = b""
    for path in (path for path in sorted(folder.rglob("*")) if path.is_file()):
        found += path.read_bytes()
        if path.suffix == ".parquet":
            found += repr(pq.ParquetFile(path).read().to_pylist()).encode()
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
