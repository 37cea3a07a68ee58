"""The laws of the house that a machine can check."""

from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = ["index", "guards", "pipeline", "jobs"]  # each may import itself and those before it
MODULES = [path for package in ORDER for path in (ROOT / package).rglob("*.py")]


def imports(path: Path) -> list[str]:
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            # `from index import ann` names the leaf index.ann; `from index import Something` does not exist: packages are empty
            found += [f"{node.module}.{alias.name}" for alias in node.names] if "." not in node.module else [node.module]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        top = name.split(".")[0]
        if top == "__future__":
            continue
        if top in ORDER:
            assert ORDER.index(top) <= ORDER.index(package), f"{path} imports {name}"
            assert "." in name, f"{path}: import the leaf, not the package {name}"
        assert top != "tests", f"{path} imports {name}"
        if package != "jobs":
            assert top not in {"ray", "typer"}, f"{path}: only jobs imports {top}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_product_does_not_know_the_laboratory(path: Path) -> None:
    """Only the command line names it, and only when it is asked for."""
    inside = path.relative_to(ROOT).parts[:2] == ("jobs", "lab")
    known = [name for name in imports(path) if name.startswith("jobs.lab")]
    assert inside or (known in ([], ["jobs.lab.cli"]) and (not known or path.name == "cli.py"))


def test_decide_is_pure() -> None:
    allowed = {"__future__.annotations", "collections.abc", "guards.base", "pipeline.policy", "pipeline.outcome"}
    assert set(imports(ROOT / "pipeline" / "decide.py")) <= allowed


def test_no_rooms_without_a_name() -> None:
    forbidden = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
    assert not [path for path in MODULES if path.stem in forbidden or forbidden & set(path.parts)]


def test_nobody_else_claims_the_import_names() -> None:
    providers = importlib.metadata.packages_distributions()
    for name in ORDER:
        assert set(providers.get(name, ["clearance"])) == {"clearance"}, f"another distribution installs {name!r}"
