"""Every path on the command line is a place, which may be a URI, or is refused as one: never a folder called ``s3:``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from jobs.cli.arguments import a_local_path, a_place
from jobs.cli.main import app


def commands(of: typer.Typer, name: str = "") -> Iterator[tuple[str, Callable[..., Any]]]:
    for command in of.registered_commands:
        assert command.callback is not None
        yield f"{name} {command.name or command.callback.__name__}".strip(), command.callback
    for group in of.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, f"{name} {group.name if isinstance(group.name, str) else ''}".strip())


def paths() -> Iterator[tuple[str, str, object]]:
    """Command, argument and parser of everything that is a path."""
    for name, callback in commands(app):
        for argument, hint in get_type_hints(callback, include_extras=True).items():
            kind, *about = get_args(hint) if get_origin(hint) is Annotated else [hint]
            if Path in (kind, *get_args(kind)) or any(Path in get_args(part) for part in get_args(kind)):
                yield name, argument, next((one.parser for one in about if getattr(one, "parser", None)), None)


def test_every_path_is_a_place_or_a_local_one() -> None:
    found = list(paths())
    assert len(found) > 50
    assert [(name, argument) for name, argument, parser in found if parser not in (a_place, a_local_path)] == []


@pytest.mark.parametrize(
    "command",
    [
        ["keys", "new", "s3://bucket/keys"], ["receipt", ".", "--key", "k", "--out", "s3://bucket/k.cose"],
        ["takedown", "--receipts", "s3://bucket/receipts"], ["init", "s3://bucket/run"], ["demo", "--out", "s3://bucket/demo"],
        ["verify", ".", "--keys", "S3://bucket/keys"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_for_this_machine_is_not_written_beside_it(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and "this has to be on this machine" in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_ends_the_process_does_not_end_a_command_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code would stand for the command's: a nightly job would take a run that was never drawn for a success."""
    import jobs.policies

    def leave(*_: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(jobs.policies, "named", leave)
    done = CliRunner().invoke(app, ["policy", "show", "default"])
    assert done.exit_code == 70 and "wants to end the process (0)" in " ".join(done.stderr.split())
