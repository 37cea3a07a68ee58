"""The judges are independent: what makes, checks and decides must not know them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = [p for package in ("index", "guards", "pipeline") for p in (ROOT / package).rglob("*.py")]
TRAININGS = [p for room in ("lab/world", "erase") for p in (ROOT / "jobs" / room).glob("*.py") if p.stem != "cli"]


def names(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", PIPELINE + TRAININGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_that_is_judged_knows_its_judges(path: Path) -> None:
    assert not [name for name in names(path) if name == "jobs.lab.judges" or name.startswith("jobs.lab.judges.")]
    assert "stickers/judges" not in path.read_text(encoding="utf-8")


def test_the_judges_use_nothing_of_the_pipeline() -> None:
    used = ("judges", "trunk", "captions", "copies", "placing", "marks", "own_marks", "own_watermarks", "own_words", "errors")
    for stem in used:  # asking a judge needs no embedder, no guard, no second look and no training
        found = names(ROOT / "jobs" / "lab" / "judges" / f"{stem}.py")
        ours = {name for name in found if name.split(".")[0] in {"index", "guards", "pipeline"} or name.startswith("jobs.")}
        assert all(name.startswith(("index.errors", "index.shipped", "jobs.lab.judges.")) for name in ours), (stem, ours)
