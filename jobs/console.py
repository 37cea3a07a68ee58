"""What every command prints with: one console, one way to say a thing, one way to say what went wrong."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def make_console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr)


def grid() -> Table:
    """Two columns, name and value; long values are folded, never cut."""
    from rich.table import Table

    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def busy(told: str) -> AbstractContextManager[object]:
    console = make_console(stderr=True)
    return console.status(told) if console.is_terminal else nullcontext()


def say(text: str) -> None:
    make_console().print(text, highlight=False, markup=False, soft_wrap=True)


def say_error(what: str, fix: str) -> None:
    console = make_console(stderr=True)
    console.print(f"error: {what}", style="bold red", highlight=False, markup=False, soft_wrap=True)
    if fix:
        console.print(f"  fix: {fix}", highlight=False, markup=False, soft_wrap=True)
