"""The laws of the house that a machine can check."""

from __future__ import annotations

import ast
import importlib.metadata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = ["index", "guards", "pipeline", "jobs"]  # each may import itself and those before it
MODULES = [path for package in ORDER for path in (ROOT / package).rglob("*.py")]
# The floors of the pipeline, from the ground up: a room (a file, or a folder with all that is in it) imports from its own floor
# and from those below. On one floor no two rooms import each other.
FLOORS: tuple[set[str], ...] = (
    {"fields", "refusal", "settings", "rungs", "methods", "guard_settings", "policy", "idle", "config", "keys", "notes",
     "other_samplers", "outcome", "row_adapters", "salt"},
    {"marking", "model"},
    {"steer"},
    {"engine"},
    {"respond"},
    {"copy_check", "decide", "identity", "open_request", "opening", "references"},
    {"audit", "looking"},
    {"runtime"},
    {"next_attempt"},
    {"moderate"},
)  # fmt: skip
AUDIT_KNOWS = FLOORS[0] | {"copy_check", "marking", "audit"}  # it records what was done, and does none of it


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[str, ...]:
    found: list[str] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            # `from index import ann` names the leaf index.ann; `from index import Something` does not exist: packages are empty
            found += [f"{node.module}.{alias.name}" for alias in node.names] if "." not in node.module else [node.module]
    return tuple(found)


def modules(package: str) -> list[Path]:
    found = [path for path in MODULES if path.relative_to(ROOT).parts[0] == package]
    assert len(found) > 10, "the search found next to nothing: it is broken"
    return found


def against_the_order(package: str, names: Iterable[str]) -> list[str]:
    """Of the names that a module of a package imports, those that it may not."""
    found = []
    for name in names:
        top = name.split(".")[0]
        if top in ORDER:
            if ORDER.index(top) > ORDER.index(package):
                found.append(f"{name} is above {package}")
            if "." not in name:
                found.append(f"import the leaf, not the package {name}")
        elif top == "tests" or (package != "jobs" and top in {"ray", "typer"}):
            found.append(f"{package} may not import {name}")
    return found


@pytest.mark.parametrize("package", ORDER)
def test_imports_go_one_way(package: str) -> None:
    assert {path: found for path in modules(package) if (found := against_the_order(package, imports(path)))} == {}


def test_the_law_of_imports_sees_what_it_forbids() -> None:
    assert against_the_order("guards", ["index.store", "guards.base", "numpy", "__future__.annotations"]) == []
    assert against_the_order("jobs", ["pipeline.policy", "ray", "typer"]) == []
    for package, name in (("index", "guards.base"), ("guards", "pipeline"), ("pipeline", "ray"), ("jobs", "tests.proofs")):
        assert against_the_order(package, [name]) != []


def knows_the_laboratory(path: Path) -> bool:
    known = [name for name in imports(path) if name.startswith("jobs.lab")]
    return bool(known) and not (known == ["jobs.lab.cli"] and path == ROOT / "jobs" / "cli" / "main.py")


@pytest.mark.parametrize("package", ORDER)
def test_the_product_does_not_know_the_laboratory(package: str) -> None:
    """Only the command line names it, and only when it is used."""
    product = [path for path in modules(package) if path.relative_to(ROOT).parts[:2] != ("jobs", "lab")]
    assert [path for path in product if knows_the_laboratory(path)] == []
    assert knows_the_laboratory(ROOT / "jobs" / "lab" / "cli.py"), "the search found nothing: it is broken"


def rooms(folder: str) -> dict[str, set[str]]:
    """Room (a file or a folder of ``folder``: in pipeline ``steer`` and ``decide``) → the other rooms there that it imports."""
    found: dict[str, set[str]] = {}
    inside = f"{folder.replace('/', '.')}."

    def room_of(name: str) -> str:
        return name.removeprefix(inside).split(".")[0]

    for path in sorted((ROOT / folder).rglob("*.py")):
        own = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        known = {room_of(name) for name in imports(path) if name.startswith(inside)}
        found[own] = found.get(own, set()) | (known - {own})
    return found


def test_every_room_of_the_pipeline_has_a_floor() -> None:
    assert set(rooms("pipeline")) - {"__init__", "policies"} == set().union(*FLOORS)


@pytest.mark.parametrize("room", sorted(set().union(*FLOORS)))
def test_no_import_goes_up_a_floor(room: str) -> None:
    floor = next(number for number, those in enumerate(FLOORS) if room in those)
    allowed = set().union(*FLOORS[: floor + 1]) | {"policies"}
    assert rooms("pipeline")[room] <= (AUDIT_KNOWS if room == "audit" else allowed)


def circle(graph: dict[str, set[str]]) -> set[str]:
    """The rooms that are on a circle of imports, or lead to one; empty: there is none."""
    while leaves := {room for room, known in graph.items() if not known & set(graph)}:
        graph = {room: known for room, known in graph.items() if room not in leaves}
    return set(graph)


@pytest.mark.parametrize("folder", sorted({path.parent.relative_to(ROOT).as_posix() for path in MODULES}))
def test_no_rooms_import_each_other(folder: str) -> None:
    """No circle between the rooms of a package, nor between those of any folder in it."""
    assert circle(rooms(folder)) == set()


def test_the_law_of_circles_sees_what_it_forbids() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == set()
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}


def test_decide_is_pure() -> None:
    allowed = {"__future__.annotations", "collections.abc", "guards.base", "pipeline.policy", "pipeline.outcome"}
    assert set(imports(ROOT / "pipeline" / "decide.py")) <= allowed


def test_parquet_is_opened_in_one_place() -> None:
    """Elsewhere Arrow would read ahead in threads of its own, which take the interpreter's lock when they like."""
    alone = {"index/parquet.py", "pipeline/audit/verifier/clearance_verify.py"}  # the verifier imports nothing of ours
    calls = {
        str(path.relative_to(ROOT))
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"ParquetFile", "ParquetDataset", "read_table"}
    }
    assert calls == alone


def test_no_rooms_without_a_name() -> None:
    forbidden = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
    assert not [path for path in MODULES if path.stem in forbidden or forbidden & set(path.parts)]


def test_nobody_else_claims_the_import_names() -> None:
    providers = importlib.metadata.packages_distributions()
    for name in ORDER:
        assert set(providers.get(name, ["clearance"])) == {"clearance"}, f"another distribution installs {name!r}"


# --- size and shape --------------------------------------------------------------------------------------------------------

LINES = 450  # of a module
ONE_FILE = {"pipeline/audit/verifier/clearance_verify.py": 1100}  # handed to others as one file, so it may be long
FIELDS = 4  # of a dataclass, from which on it is made by names: a field put in between shifts the rest in silence
PARAMETERS, BY_NAME = 8, 12  # of a function; the second number counts those that are named in every call as well
TRITON = {("pipeline/steer/fused.py", "match")}  # a kernel gets every pointer, size and constant as a parameter


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("package", ORDER)
def test_no_module_is_long(package: str) -> None:
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in modules(package)}
    assert {name: n for name, n in lines.items() if n > ONE_FILE.get(name, LINES)} == {}


def made_by_position(module: ast.Module) -> list[str]:
    """Dataclasses with many fields whose decorator does not say ``kw_only=True``."""
    found = []
    for node in ast.walk(module):
        if not isinstance(node, ast.ClassDef):
            continue
        said = [text for one in node.decorator_list if "dataclass" in (text := ast.unparse(one))]
        if said and "kw_only=True" not in said[0]:
            fields = [ast.unparse(line) for line in node.body if isinstance(line, ast.AnnAssign)]
            if len([line for line in fields if "ClassVar" not in line]) > FIELDS:
                found.append(node.name)
    return found


def long_signatures(module: ast.Module) -> list[str]:
    """Functions with more parameters than a reader keeps apart; ``self`` and ``cls`` do not count."""
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if any(".command(" in ast.unparse(one) for one in node.decorator_list):
                continue  # an option of a command is a parameter of its function
            placed = [one.arg for one in (*node.args.posonlyargs, *node.args.args)]
            placed = placed[1:] if placed[:1] in (["self"], ["cls"]) else placed
            if len(placed) > PARAMETERS or len(placed) + len(node.args.kwonlyargs) > BY_NAME:
                found.append(node.name)
    return found


@pytest.mark.parametrize("package", ORDER)
def test_a_dataclass_with_many_fields_is_made_by_names(package: str) -> None:
    assert [(name_of(path), found) for path in modules(package) for found in made_by_position(tree(path))] == []


@pytest.mark.parametrize("package", ORDER)
def test_no_function_has_many_parameters(package: str) -> None:
    found = {(name_of(path), function) for path in modules(package) for function in long_signatures(tree(path))}
    assert found - TRITON == set()


def test_the_laws_of_size_see_what_they_forbid() -> None:
    fields = "".join(f"    f{n}: int\n" for n in range(FIELDS + 1))
    assert made_by_position(ast.parse(f"@dataclass(frozen=True)\nclass Long:\n{fields}")) == ["Long"]
    assert made_by_position(ast.parse(f"@dataclass(frozen=True, kw_only=True)\nclass Named:\n{fields}")) == []
    assert long_signatures(ast.parse("def f(a, b, c, d, e, f, g, h, i): ...")) == ["f"]
    assert long_signatures(ast.parse("def f(a, b, c, d, e, f, g, h, *, i, j, k, l): ...")) == []
    assert long_signatures(ast.parse("def f(a, b, c, d, e, f, g, h, *, i, j, k, l, m): ...")) == ["f"]
