"""The laws of the house that a machine can check."""

from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = ["index", "guards", "pipeline", "jobs"]  # each may import itself and those before it
MODULES = [path for package in ORDER for path in (ROOT / package).rglob("*.py")]
# The floors of the pipeline, from the ground up: a room (a file, or a folder with all that is in it) imports from its own floor
# and from those below. On one floor no two rooms import each other.
FLOORS: tuple[set[str], ...] = (
    {"fields", "refusal", "settings", "rungs", "methods", "policy", "config", "notes", "outcome", "storage"},
    {"model"},
    {"steer"},
    {"engine"},
    {"respond"},
    {"copy_check", "decide", "identity", "open_request", "opening", "references"},
    {"marking"},
    {"audit"},
    {"runtime"},
    {"next_attempt"},
    {"moderate"},
)
AUDIT_KNOWS = FLOORS[0] | {"copy_check", "marking", "audit"}  # it records what was done, and does none of it


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
    assert inside or (known in ([], ["jobs.lab.cli"]) and (not known or path == ROOT / "jobs" / "cli" / "main.py"))


def room_of(name: str) -> str:
    """pipeline.steer.nudge → steer, pipeline.decide → decide."""
    return name.split(".")[1]


def rooms(package: str) -> dict[str, set[str]]:
    """Room → the other rooms of its package that it imports."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        known = {room_of(name) for name in imports(path) if name.startswith(f"{package}.")}
        found[own] = found.get(own, set()) | (known - {own})
    return found


def test_every_room_of_the_pipeline_has_a_floor() -> None:
    assert set(rooms("pipeline")) - {"__init__", "policies"} == set().union(*FLOORS)


@pytest.mark.parametrize("room", sorted(set().union(*FLOORS)))
def test_no_import_goes_up_a_floor(room: str) -> None:
    floor = next(number for number, those in enumerate(FLOORS) if room in those)
    allowed = set().union(*FLOORS[: floor + 1]) | {"policies"}
    assert rooms("pipeline")[room] <= (AUDIT_KNOWS if room == "audit" else allowed)


@pytest.mark.parametrize("package", ORDER)
def test_no_rooms_import_each_other(package: str) -> None:
    """No circle between the rooms of a package."""
    graph = rooms(package)
    while graph:
        leaves = {room for room, known in graph.items() if not known & set(graph)}
        assert leaves, f"a circle among {', '.join(sorted(graph))}"
        graph = {room: known for room, known in graph.items() if room not in leaves}


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
