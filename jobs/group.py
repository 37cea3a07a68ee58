"""Commands that have commands: their help gives the first sentence of each, and cuts none short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer
from typer.core import TyperGroup

LONGEST = 200  # letters of a sentence; click would cut it to what fits on one line


class Group(TyperGroup):
    """Lists its commands in sections, in the order given there; one section with all of them where none is given."""

    sections: Mapping[str, Sequence[str]] = {}

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for section, names in (self.sections or {"Commands": self.list_commands(ctx)}).items():
            rows = [(name, command.get_short_help_str(LONGEST)) for name in names if (command := self.get_command(ctx, name))]
            with formatter.section(section):
                formatter.write_dl(rows)


def group(about: str) -> typer.Typer:
    """A command that has commands."""
    return typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode=None, help=about)
