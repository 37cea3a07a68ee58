"""``clearance status RUN --errors``: the requests that ended as errors, and a prompt file of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from index.counted import counted
from jobs.cli.arguments import a_local_path
from jobs.console import make_console, say, say_json

Errors = Annotated[bool, typer.Option("--errors", help="List the requests that ended as errors, each with its reason.")]
SaveErrors = Annotated[
    Path | None,
    typer.Option(
        "--save-errors",
        metavar="FILE.jsonl",
        help="Write them as a prompt file (.jsonl) with keys and seeds.",
        parser=a_local_path,
    ),
]


def show_dead_letters(folder: Path, save: Path | None, *, json: bool) -> None:
    """Print the dead letters of a run, and write them where that is asked for."""
    from jobs.dead_letters import dead_letters, save_prompts

    letters = list(dead_letters(folder))
    if save is not None:
        save_prompts(letters, save)
    if json:
        say_json({"errors": len(letters), "requests": [asdict(letter) for letter in letters]})
        return
    from rich.table import Table

    if letters:
        table = Table("key", "reason", "message")
        for letter in letters:
            table.add_row(letter.key, letter.reason, letter.error_message)
        make_console().print(table)
    say(f"{counted(len(letters), 'request')} ended as errors" + (f"; written to {save}" if save is not None else ""))
