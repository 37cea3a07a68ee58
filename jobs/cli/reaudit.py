"""``clearance reaudit``: hold finished runs against other rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli.again import By, DryRun, EveryPicture, Index, Receipts, open_embedder, watching
from jobs.cli.arguments import AsJson, Person, every_run
from jobs.cli.index_arguments import OfIndex, open_index
from jobs.console import say, say_json

app = typer.Typer()


@app.command(epilog="Example: clearance reaudit runs/monday --index index --policy default --dry-run")
def reaudit(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run folders; a folder of runs stands for all in it.", show_default=False),
    ],
    index: Index = None,
    policy: Annotated[str, typer.Option(help="Policy file or name.", show_default="each run's own")] = "",
    threshold: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Copy threshold, in place of the one in force.", show_default=False)
    ] = None,
    dry_run: DryRun = False,
    every_picture: EveryPicture = False,
    receipts: Receipts = Path("receipts"),
    by: By = "reaudit",
    person: Person = "",
    embedder: OfIndex = "",
    as_json: AsJson = False,
) -> None:
    """Hold finished runs against another policy, threshold or state of the index; hold back or release what changes.

    Exits with 1 if something could not be reached; the receipt names it.
    """
    from jobs.reaudit.facts import point_of_policy
    from jobs.reaudit.reaudit import Rules
    from jobs.reaudit.reaudit import reaudit as hold
    from jobs.reaudit.receipt import lines, write_receipt

    store = open_index(index)
    rules: dict[str, Any] = {"threshold": threshold}
    if policy:
        from jobs.run.plan import read_policy

        read = read_policy(policy, Path.cwd())
        rules |= {"policy": read, "point": point_of_policy(read, store)}
    model = open_embedder(store, embedder)
    more: dict[str, Any] = {"actor": by, "person": person, "dry_run": dry_run, "every_picture": every_picture}
    with watching() as progress:
        done = hold(store, model, Rules(**rules, **more), every_run(runs), progress=progress)
    path = write_receipt(done, receipts)
    if as_json:
        say_json(done.plain() | {"receipt": str(path)})
    else:
        for line in lines(done):
            say(line)
        say(f"written: {path}")
    if any(run.may_be_mended for run in done.runs):
        raise typer.Exit(1)
