"""``clearance hold …``: set, lift and list legal holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from index.errors import InputError
from jobs.cli.arguments import AsJson, By, Person, Reason, RunFolder, run_folder
from jobs.console import grid, make_console, say, say_json
from jobs.group import group

if TYPE_CHECKING:
    from pathlib import Path

    from jobs.hold import Holds

app = group("Legal holds: what is held is neither erased nor retained away.")
Keys = Annotated[list[str] | None, typer.Option("--key", metavar="KEY", help="A request key; may be given again.")]
All = Annotated[bool, typer.Option("--all", help="The whole run.")]
Matter = Annotated[str, typer.Option(help="The case or inquiry. Each matter is lifted on its own.")]


@app.command("set", epilog='Example: clearance hold set runs/monday --key cat-7 --by counsel --reason "claim 12"')
def hold_set(
    run: RunFolder, by: By, reason: Reason, key: Keys = None, everything: All = False, matter: Matter = "general",
    person: Person = "", as_json: AsJson = False,
) -> None:  # fmt: skip
    """Put samples, or the whole run, under a legal hold."""
    _change("hold.set", run, key, everything, matter, (by, reason, person), as_json)


@app.command("lift", epilog='Example: clearance hold lift runs/monday --key cat-7 --by counsel --reason "claim 12 settled"')
def hold_lift(
    run: RunFolder, by: By, reason: Reason, key: Keys = None, everything: All = False, matter: Matter = "general",
    person: Person = "", as_json: AsJson = False,
) -> None:  # fmt: skip
    """End a legal hold. A hold of the whole run is lifted by --all, one of a sample by its --key."""
    _change("hold.lifted", run, key, everything, matter, (by, reason, person), as_json)


@app.command("show", epilog="Example: clearance hold show runs/monday")
def hold_show(run: RunFolder, as_json: AsJson = False) -> None:
    """List the holds in force."""
    from jobs.hold import holds_of

    _print(holds_of(run_folder(run)[0]), as_json=as_json)


def _change(
    kind: Literal["hold.set", "hold.lifted"], run: Path, keys: list[str] | None, everything: bool, matter: str,
    by: tuple[str, str, str], as_json: bool,
) -> None:  # fmt: skip
    from jobs.by import By as Author
    from jobs.hold import change_hold

    if everything == bool(keys):
        what = "both --key and --all were given" if everything else "neither --key nor --all was given"
        raise InputError(what, where="hold", fix="Name samples with --key, or the whole run with --all")
    role, reason, person = by
    author = Author(role=role, reason=reason, person=person)
    _print(change_hold(run_folder(run)[0], kind, None if everything else keys, matter, author), as_json=as_json)


def _print(holds: Holds, *, as_json: bool) -> None:
    if as_json:
        say_json(holds.plain())
        return
    if not holds.run and not holds.samples:
        say("no hold is in force")
        return
    table = grid()
    if holds.run:
        table.add_row("the whole run", ", ".join(holds.run))
    for key, matters in holds.samples.items():
        table.add_row(key, ", ".join(matters))
    make_console().print(table)
