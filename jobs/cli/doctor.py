"""``clearance doctor``: what this machine can do; with a run file, whether it can do that run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jobs.cli.arguments import AsJson, a_local_path, read_run_file
from jobs.console import busy, grid, make_console, say, say_error, say_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jobs.doctor import Line

OptionalRun = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN.toml", help="A run file: can this machine do the run?", show_default=False, parser=a_local_path
    ),
]


def doctor(
    run_file: OptionalRun = None,
    runner: Annotated[Literal["local", "ray"], typer.Option(help="With a run file: where it is to run.")] = "local",
    keys: Annotated[str, typer.Option(metavar="FOLDER", help="Folder of keys; by default the one in CLEARANCE_KEYS.")] = "",
    json: AsJson = False,
) -> None:
    """List what this machine, installation and keys can do; with a run file, what that run needs: room, time, guards, index.

    The first four lines are the short answer. Exits with 1 if something required is missing or damaged, or the run would fail.
    """
    if run_file is not None:
        return _run(run_file, runner, json=json)
    from jobs.doctor import examine
    from jobs.doctor_run import summary

    lines = examine(keys=keys)
    if json:
        say_json([{"topic": line.topic, "state": line.state, "what": line.what} for line in lines])
    else:
        _print(summary(lines))
        say("")
        _print(lines)
    missing = [line for line in lines if line.state == "missing"]
    if missing:
        say_error(
            f"{len(missing)} required things are missing: {', '.join(line.topic for line in missing)}", "See the lines above"
        )
        raise typer.Exit(1)
    return None


def _run(run_file: Path, runner: str, *, json: bool) -> None:
    from jobs.doctor_run import examine_run
    from jobs.run.preflight.dry_run import as_json

    config, base = read_run_file(run_file)
    with busy("opening everything"):
        found = examine_run(config, base, runner)
    if json:
        dry = None if found.preflight is None else as_json(found.preflight)
        parts = {"four": [asdict(line) for line in found.four], "details": [asdict(line) for line in found.details]}
        say_json({"ok": found.ok, **parts, "dry_run": dry})
    else:
        _print(found.four)
        say("")
        _print(found.details)
    if not found.ok:
        raise typer.Exit(1)


def _print(lines: Iterable[Line]) -> None:
    from rich.text import Text

    table = grid()
    for line in lines:
        style = {"ok": "green", "note": "yellow", "missing": "bold red"}[line.state]
        table.add_row(Text(f"{line.state:8}{line.topic}", style), line.what)
    make_console().print(table)
