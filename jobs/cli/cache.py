"""``clearance cache …``: the copies on this machine of what lies on object stores."""

from __future__ import annotations

import math
import time
from typing import Annotated

import typer

from jobs.cli.arguments import AsJson
from jobs.console import make_console, say, say_json
from jobs.group import group

app = group("Copies on this machine of models, indexes and prompts on object stores.")


@app.command("show", epilog="Example: clearance cache show")
def cache_show(as_json: AsJson = False) -> None:
    """List the copies and when each was used last."""
    from rich.table import Table

    from index.places.kept import LIMIT, cache_folder, copies, most_bytes

    found, most, now = copies(), most_bytes(), time.time()
    total = sum(copy.bytes for copy in found)
    if as_json:
        rows = [{"path": str(c.path), "name": c.name, "what": c.what, "bytes": c.bytes, "used": c.used} for c in found]
        say_json({"folder": str(cache_folder()), "bytes": total, "most": None if math.isinf(most) else most, "copies": rows})
        return
    table = Table("what", "name", "MiB", "last used")
    for copy in reversed(found):
        table.add_row(copy.what, copy.name, f"{copy.bytes / 2**20:.1f}", f"{max(0.0, now - copy.used) / 86_400:.1f} days ago")
    if found:
        make_console().print(table)
    bound = "no bound" if math.isinf(most) else f"at most {most / 2**30:g} GiB"
    say(f"{cache_folder()}: {total / 2**30:.2f} GiB in {len(found)} copies; {bound} ({LIMIT})")


@app.command("clear", epilog="Example: clearance cache clear --keep 20")
def cache_clear(
    keep: Annotated[float, typer.Option(min=0.0, metavar="GIB", help="GiB that may stay, of those used last.")] = 0.0,
    builds: Annotated[
        bool,
        typer.Option("--builds", help="Also builds of indexes that were stopped; what they embedded is lost."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove copies; those that a process on this machine uses stay. What is needed again is fetched again."""
    from index.places.kept import trim

    done = trim(keep * 2**30, builds=builds)
    if as_json:
        names = {"removed": done.removed, "in_use": done.in_use}
        say_json({**{name: [str(copy.path) for copy in those] for name, those in names.items()}, "left_bytes": done.left})
        return
    freed = sum(copy.bytes for copy in done.removed)
    stay = f"; {len(done.in_use)} are in use and stay" if done.in_use else ""
    say(f"{len(done.removed)} copies removed, {freed / 2**30:.2f} GiB; {done.left / 2**30:.2f} GiB left{stay}")
