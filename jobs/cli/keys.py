"""``clearance keys …``: make and show a folder of keys."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.arguments import a_local_path
from jobs.console import grid, make_console, say, say_json, say_note
from jobs.group import group

app = group("The keys that mark pictures and sign records.")
KeysFolder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="A folder of keys, outside every run.", show_default=False, parser=a_local_path)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print data.")]


@app.command("new", epilog="Example: clearance keys new ~/clearance-keys")
def keys_new(
    folder: KeysFolder,
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days until the test certificates end.")] = 90,
    as_json: AsJson = False,
) -> None:
    """Make a folder of keys, with a C2PA test chain that nobody else trusts. Overwrites nothing."""
    from jobs.keys import new_keys
    from pipeline.notes import Note

    for warning in new_keys(folder, days=days):
        say_note(Note("keys", warning))
    _print(folder, as_json=as_json)
    if not as_json:
        say(f'\nName the folder in a run file ([marks] keys = "{folder}") or in the environment variable CLEARANCE_KEYS.')
        say("Pictures can then carry a C2PA manifest whose signer calls itself a test. Put a certificate of your own into")
        say("c2pa.key and c2pa.pem before you publish pictures. Keep a copy of this folder: nobody can make the keys again.")


@app.command("show", epilog="Example: clearance keys show ~/clearance-keys --json")
def keys_show(folder: KeysFolder, as_json: AsJson = False) -> None:
    """List the keys of a folder: id, end of certificates, and what each is for. Prints no secret."""
    from pipeline.keys import Keys
    from pipeline.notes import Note

    _print(folder, as_json=as_json)
    for warning in Keys(folder).warnings():
        say_note(Note("keys", warning))


def _print(folder: Path, *, as_json: bool) -> None:
    from jobs.keys import show_keys

    shown = show_keys(folder)
    if as_json:
        say_json([asdict(one) for one in shown])
        return
    table = grid()
    for one in shown:
        facts = [one.purpose, f"id {one.id}" if one.id else "", f"ends {one.until}" if one.until else "", one.note]
        table.add_row(one.file, "; ".join(fact for fact in facts if fact))
    make_console().print(table)
    if not shown:
        say(f"no keys in {folder}")
