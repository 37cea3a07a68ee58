"""The documents say what the code does: every command, guard, reason code, column and key is in them, and examples parse.

What follows from the code alone is generated, in ``infra/docs/reference.md`` and ``infra/docs/architecture.md``:
``python tests/test_docs.py`` writes it again.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shlex
import sys
import tomllib
import typing
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.event_kinds import KINDS
from pipeline.config import RunConfig
from pipeline.fields import REQUIRED, Key, keys
from pipeline.notes import TOPICS
from pipeline.policy import Policy
from pipeline.rungs import NegToMeRung

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "infra" / "docs" / "reference.md"
ARCHITECTURE = ROOT / "infra" / "docs" / "architecture.md"
OPERATIONS = ROOT / "infra" / "docs" / "operations.md"
CAPACITY = ROOT / "infra" / "docs" / "capacity.md"
LABORATORY = ROOT / "jobs" / "lab" / "README.md"
EXAMPLES = sorted((ROOT / "infra" / "examples").glob("*.toml"))
AUDIT = ROOT / "pipeline" / "audit"
PACKAGES = ("index", "guards", "pipeline", "jobs")
FOLDERS = (*PACKAGES, "tests", "infra")
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.md")))]
REASON = re.compile(r"(copy|mark|text|unsafe|input|error|worker|caption|answer)\.[a-z_]+|prompt\.emptied\.reject|oom|deadline")
EVENT = re.compile(r"(run|shard)\.[a-z_]+")
FILE_NAMES = ("run.json", "run.tsr", "run.toml")


# --- what the code says ----------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, Any]]:
    """Every command of the product, groups aside: ("clearance index build", command)."""
    from jobs.cli.main import app

    yield from commands_of("clearance", app)


def laboratory_commands() -> Iterator[tuple[str, Any]]:
    from jobs.lab.cli import app

    yield from commands_of("clearance lab", app)


def commands_of(called: str, app: Any) -> Iterator[tuple[str, Any]]:
    import typer

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if hasattr(command, "commands"):
            for child, below in command.commands.items():
                yield from walk(f"{name} {child}", below)
        else:
            yield name, command

    yield from walk(called, typer.main.get_command(app))


def literals(pattern: re.Pattern[str], aside: Collection[Path] = ()) -> set[str]:
    """Every string in the four packages that is wholly of this form; modules may be left out."""
    read = [texts for path, texts in texts_of_modules().items() if path not in aside]
    return {text for texts in read for text in texts if pattern.fullmatch(text)} - set(FILE_NAMES)


@cache
def texts_of_modules() -> dict[Path, set[str]]:
    """Every string in each module of the four packages."""
    found: dict[Path, set[str]] = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        found[path] = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return found


# --- the generated parts of the reference ----------------------------------------------------------------------------------


def command_lines(every: Iterable[tuple[str, Any]]) -> Iterator[str]:
    for name, command in every:
        arguments = " ".join(str(p.metavar or p.name) for p in command.params if type(p).__name__.endswith("Argument"))
        text = [line.strip() for line in (command.help or "").splitlines() if line.strip()]
        example = (command.epilog or next((line for line in text if line.startswith("Example:")), "")).removeprefix("Example:")
        yield from (
            f"#### `{f'{name} {arguments}'.strip()}`",
            "",
            " ".join(x for x in text if not x.startswith("Example:")),
            "",
        )
        options = [p for p in command.params if not type(p).__name__.endswith("Argument")]
        if options:
            yield from ("| option | default | what |", "|---|---|---|")
        for option in options:
            default = "" if option.is_flag or option.default in ("", None) else f"`{option.default}`"
            spelled = ", ".join(f"`{name}`" for name in option.opts)
            yield f"| {spelled} | {default} | {(option.help or '').replace('|', chr(92) + '|')} |"
        yield from ([""] if options else [])
        if example:
            yield from ("```sh", example.strip(), "```", "")


def guard_lines() -> Iterator[str]:
    from guards.copies import UNDONE, CopiesGuard
    from guards.registry import classes_beside, guard_classes

    yield from ("| guard | categories | licence |", "|---|---|---|")
    rows = {"copies": ((*CopiesGuard.categories, *UNDONE.values()), "Apache-2.0")} | {
        n: (c.categories, c.licence) for n, c in (guard_classes() | classes_beside()).items()
    }
    for name, (categories, licence) in rows.items():
        yield f"| `{name}` | {', '.join(f'`{c}`' for c in categories)} | {licence} |"


def type_of(key: Key) -> str:
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if typing.get_origin(key.type) is typing.Literal:
        return " \\| ".join(f'`"{one}"`' for one in typing.get_args(key.type))
    name = names[key.type] + (' or `"auto"`' if key.auto else "")
    return f"list of {name}s" if key.shape == "list" else name


def default_of(key: Key) -> str:
    if key.default is REQUIRED:
        return "required"
    if key.default is None:
        return "absent"
    return f"`{json.dumps(key.default)}`"


def key_lines(rows: Iterable[Key], prefix: str = "") -> Iterator[str]:
    yield from ("| key | type | default | range | what |", "|---|---|---|---|---|")
    for key in rows:
        name = ".".join(str(part) if part != 0 else "[]" for part in key.loc).replace(".[]", "[]").removeprefix(prefix)
        what = key.what.replace("|", "\\|")
        yield f"| `{name}` | {type_of(key)} | {default_of(key)} | {key.range or ''} | {what} |"


def file_lines(cls: type[Any]) -> Iterator[str]:
    """Every key of a run file or policy; the kinds of rungs in tables of their own."""
    every = list(keys(cls))
    kinds = [key for key in every if key.shape == "kind"]
    yield from key_lines(k for k in every if k.shape in ("value", "list") and not any(k.loc[:3] == one.loc for one in kinds))
    for kind in kinds:
        ladder, _, name = kind.loc
        yield from ("", f'`[[{ladder}]]` with `kind = "{name}"`: {kind.what}', "")
        own = [key for key in every if key.loc[:3] == kind.loc and len(key.loc) == 4 and key.loc[-1] != "kind"]
        if own:
            yield from key_lines(own, f"{ladder}[].{name}.")
        else:
            yield "It has no other keys."


def schema_lines(table: str) -> Iterator[str]:
    from pipeline.audit.event_parts import events_schema
    from pipeline.audit.schema import attempts_schema, kept_schema, samples_schema

    yield from ("| column | type | meaning |", "|---|---|---|")
    schemas = {"samples": samples_schema, "attempts": attempts_schema, "kept": kept_schema, "event columns": events_schema}
    for column in schemas[table]():
        kind = re.sub(r"\b(list|fixed_size_list)<(item|element): ", r"\1<", str(column.type))
        yield f"| `{column.name}` | `{kind}` | {column.metadata[b'doc'].decode()} |"


def kind_lines() -> Iterator[str]:
    yield from ("| kind | when |", "|---|---|")
    yield from (f"| `{kind}` | {when} |" for kind, when in KINDS.items())


def topic_lines() -> Iterator[str]:
    yield from ("| topic | what |", "|---|---|")
    yield from (f"| `{topic}` | {what} |" for topic, what in sorted(TOPICS.items(), key=lambda row: row[0].lower()))


def metric_lines() -> Iterator[str]:
    from jobs.run.metrics.table import METRICS

    yield from ("| metric | type | labels | what |", "|---|---|---|---|")
    for metric in METRICS.values():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        yield f"| `{metric.name}` | {metric.kind} | {labels} | {metric.text} |"


def capacity_inputs() -> Iterator[str]:
    from jobs.capacity.inputs import DEFAULTS, DEVICES

    yield from ("| input | value | source |", "|---|---|---|")
    yield from (f"| `rate`, {name} | {known.value:g} | {known.source} |" for name, known in DEVICES.items())
    yield from (f"| `{name}` | {known.value:g} | {known.source} |" for name, known in DEFAULTS.items())


def capacity_steps() -> Iterator[str]:
    """The same night at three sizes, as the command prints it."""
    from jobs.capacity.arithmetic import Order, capacity
    from jobs.capacity.inputs import DEFAULTS, DEVICES

    inputs = {"rate": DEVICES["h200"], **DEFAULTS}
    sizes = ((1_000_000, 200_000), (100_000_000, 10_000_000), (1_000_000_000, 1_000_000_000))
    nights = [capacity(Order(pictures=n, hours=8, references=m), inputs).steps for n, m in sizes]
    heads = " | ".join(f"{n:,} pictures, {m:,} references" for n, m in sizes)
    yield from (f"| | {heads} | made of |", "|---|---|---|---|---|")
    for each in zip(*nights, strict=True):
        yield f"| {each[0].name} | {' | '.join(step.value for step in each)} | {each[-1].how} |"


def log_lines() -> Iterator[str]:
    from jobs.log import FIELDS

    yield from ("| field | what |", "|---|---|")
    yield from (f"| `{name}` | {text} |" for name, text in FIELDS.items())


def module_lines(folders: Iterable[str], aside: str = "") -> Iterator[str]:
    """One line per module: the first sentence of its docstring."""
    for folder in folders:
        yield from (f"| {folder} | |", "|---|---|")
        for path in sorted((ROOT / folder).rglob("*.py"), key=lambda p: (len(p.parts), p)):
            if aside and path.is_relative_to(ROOT / aside):
                continue
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            if doc:
                first = re.split(r"(?<=[.!?])\s", " ".join(doc.split("\n\n")[0].split()))[0]
                yield f"| `{path.relative_to(ROOT).as_posix()}` | {first.replace('``', '`')} |"
        yield ""


def floor_lines() -> Iterator[str]:
    """The table of the law, from the top floor down."""
    from tests.test_laws import FLOORS

    yield from ("| floor | rooms |", "|---|---|")
    for number, floor in reversed([*enumerate(FLOORS, 1)]):
        yield f"| {number} | {', '.join(f'`{room}`' for room in sorted(floor))} |"


GENERATED = {
    "commands": (REFERENCE, lambda: command_lines(commands())),
    "guards": (REFERENCE, guard_lines),
    "samples": (REFERENCE, lambda: schema_lines("samples")),
    "attempts": (REFERENCE, lambda: schema_lines("attempts")),
    "kept": (REFERENCE, lambda: schema_lines("kept")),
    "event columns": (REFERENCE, lambda: schema_lines("event columns")),
    "event kinds": (REFERENCE, kind_lines),
    "note topics": (REFERENCE, topic_lines),
    "run file": (REFERENCE, lambda: file_lines(RunConfig)),
    "policy file": (REFERENCE, lambda: file_lines(Policy)),
    "metrics": (OPERATIONS, metric_lines),
    "capacity inputs": (CAPACITY, capacity_inputs),
    "capacity steps": (CAPACITY, capacity_steps),
    "log fields": (OPERATIONS, log_lines),
    "floors": (ARCHITECTURE, floor_lines),
    "modules": (ARCHITECTURE, lambda: module_lines(PACKAGES, aside="jobs/lab")),
    "laboratory commands": (LABORATORY, lambda: command_lines(laboratory_commands())),
    "laboratory modules": (LABORATORY, lambda: module_lines(["jobs/lab"])),
}


def block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name}:begin[^>]*-->\n)(.*?)(<!-- {name}:end -->)", re.DOTALL)


def written(name: str) -> str:
    return "\n".join(GENERATED[name][1]()).strip() + "\n"


def write_generated() -> None:
    for name, (path, _) in GENERATED.items():
        text = block(name).sub(
            lambda found, name=name: found[1] + written(name) + found[3],  # type: ignore[misc]
            path.read_text(encoding="utf-8"),
        )
        path.write_text(text, encoding="utf-8")


# --- tests -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> str:
    return REFERENCE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", GENERATED)
def test_generated_part_is_current(name: str) -> None:
    path = GENERATED[name][0]
    found = block(name).search(path.read_text(encoding="utf-8"))
    assert found, f"{path.name} has no block {name!r}"
    assert found[2] == written(name), f"the code changed: python {Path(__file__).relative_to(ROOT)} writes {path.name} again"


def test_every_command_says_what_it_does_and_shows_an_example() -> None:
    for name, command in [*commands(), *laboratory_commands()]:
        assert (command.help or "").strip(), name
        assert "Example:" in f"{command.epilog}{command.help}", f"{name} has no example"


def section(text: str, title: str) -> str:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"reference.md has no section {title!r}"
    return found[1]


def test_codes_in_the_source_and_in_the_reference_are_the_same(reference: str) -> None:
    listed = {code for code in re.findall(r"^\| `([^`]+)`", section(reference, "Reason codes"), re.MULTILINE)}
    assert literals(REASON), "the search found nothing: it is broken"
    assert listed == literals(REASON)


def test_every_topic_of_a_note_is_in_the_table() -> None:
    noted = re.compile(r"\bNote\(\s*\"([^\"]+)\"")
    sources = [path.read_text(encoding="utf-8") for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")]
    assert {topic for text in sources for topic in noted.findall(text)} == set(TOPICS), "add it to TOPICS of pipeline/notes.py"


def test_every_event_of_runs_and_shards_has_a_kind_and_every_kind_its_event() -> None:
    written = literals(EVENT, aside=[AUDIT / "event_kinds.py"])
    assert written == {kind for kind in KINDS if EVENT.fullmatch(kind)}, "add a line to pipeline/audit/event_kinds.py"


def test_every_kind_of_event_is_written_somewhere_or_says_that_it_is_not() -> None:
    readers = [AUDIT / "event_kinds.py", AUDIT / "state.py", *(AUDIT / "sections").glob("*.py")]
    written = literals(re.compile(r"[a-z]+\.[a-z_]+"), aside=readers)
    assert {kind for kind, when in KINDS.items() if "Clearance writes none" not in when} <= written


def test_every_key_has_a_meaning() -> None:
    for cls in (RunConfig, Policy):
        assert [key.loc for key in keys(cls) if key.shape != "table" and not key.what] == []


def test_every_guard_of_a_policy_has_its_table() -> None:
    from guards.registry import SEVERAL, classes_beside, guard_classes

    tables = {f"{name}s" if name in SEVERAL else name for name in guard_classes() | classes_beside()}
    assert tables | {"copies"} <= {f.name for f in dataclasses.fields(Policy)}


def fences(path: Path) -> list[tuple[str, str]]:
    """Fenced blocks of a document: (words after the fence, content)."""
    return re.findall(r"^```([^\n`]*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def parse_configuration(kind: str, text: str, where: str) -> Any:
    from pipeline.settings import from_dict

    return from_dict({"run": RunConfig, "policy": Policy}[kind], tomllib.loads(text), where=where)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_toml_in_documents_parses(path: Path) -> None:
    for words, text in fences(path):
        if words.startswith("toml"):
            kind = words.removeprefix("toml").strip()
            assert kind in ("run", "policy"), f"say what it is: ```toml run or ```toml policy, not ```{words}"
            parse_configuration(kind, text, str(path))


def test_commands_in_documents_exist() -> None:
    every = [*commands(), *laboratory_commands()]
    known = {name: {o for p in command.params for o in p.opts if o.startswith("-")} for name, command in every}
    seen = 0
    for path in DOCUMENTS:
        for words, text in fences(path):
            if words != "sh":
                continue
            for line in text.splitlines():
                parts = shlex.split(line.split(" #")[0])
                if parts[:1] != ["clearance"]:
                    continue
                name = next((" ".join(parts[:n]) for n in (4, 3, 2) if " ".join(parts[:n]) in known), None)
                assert name, f"{path.name}: there is no command {line!r}"
                options = {part.split("=")[0] for part in parts if part.startswith("-")}
                assert options <= known[name] | {"--help"}, f"{path.name}: {line!r}"
                seen += 1
    assert seen > 10


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_places_in_the_code_that_documents_name_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w/.-]+)`", text)
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in DOCUMENTS:
        asked = re.findall(r"(?:^|`)make ([a-z]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(asked) <= targets, f"{path.name}: {set(asked) - targets}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_parse(path: Path) -> None:
    from jobs.run.plan import read_policy
    from pipeline.settings import read_toml

    if "policy" in path.stem:
        policy = read_toml(Policy, path)
        assert policy.name != "default", "a policy of one's own needs a name of its own"
        return
    config = read_toml(RunConfig, path)
    assert all((path.parent / name).is_file() for name in config.prompts)
    policy = read_policy(config.policy, path.parent)
    if config.embedder.model != "stickers":
        assert policy.copies.threshold, "only the embedded world has a calibrated threshold"
    needed = 2 + max((rung.references for rung in policy.ladder if isinstance(rung, NegToMeRung)), default=0)
    assert config.generation.rows >= needed


def test_there_are_examples() -> None:
    assert {path.name for path in EXAMPLES} >= {"run-sd15.toml", "stickers.toml", "strict-policy.toml"}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    write_generated()
