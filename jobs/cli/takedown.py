"""``clearance takedown``: carry out a claim."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from index.errors import InputError
from jobs.cli.again import By, DryRun, EveryPicture, Index, Receipts, open_embedder, watching
from jobs.cli.arguments import AsJson, Person, a_local_path, every_run
from jobs.cli.index_arguments import OfIndex, open_index
from jobs.console import busy, say, say_json

app = typer.Typer()


@app.command(epilog="Example: clearance takedown --index index --runs runs/monday --add claimed/ --claim claim.toml")
def takedown(
    index: Index = None,
    runs: Annotated[
        list[str] | None,
        typer.Option(
            "--runs", metavar="RUN", help="A run folder, or a folder of runs: all in it; once for each.", show_default=False
        ),
    ] = None,
    add: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURES",
            help="The claimed works: a folder, a picture, a Parquet file or tar.",
            show_default=False,
            parser=a_local_path,
        ),
    ] = None,
    retire: Annotated[
        list[str] | None,
        typer.Option(metavar="REF_ID", help="A reference to retire; the beginning of its id is enough.", show_default=False),
    ] = None,
    claim: Annotated[
        Path | None, typer.Option(metavar="CLAIM.toml", help="The claim file.", show_default=False, parser=a_local_path)
    ] = None,
    example: Annotated[bool, typer.Option("--example", help="Print a claim file to fill in.")] = False,
    keep_pictures: Annotated[
        bool | None,
        typer.Option(
            "--keep-pictures/--no-keep-pictures",
            help="Whether the index keeps the works' pictures.",
            show_default="as the basis allows",
        ),
    ] = None,
    dry_run: DryRun = False,
    every_picture: EveryPicture = False,
    receipts: Receipts = Path("receipts"),
    by: By = "takedown",
    person: Person = "",
    embedder: OfIndex = "",
    as_json: AsJson = False,
) -> None:
    """Carry out a claim: change the index, look at finished runs again, hold samples back or release them, write a receipt.

    Exits with 1 if something could not be reached; the receipt names it, and the same command does the rest.
    """
    from jobs.takedown.claim import EXAMPLE, read_claim
    from jobs.takedown.receipt import lines, receipt, write_receipt
    from jobs.takedown.takedown import ADD, RETIRE, Order, carry_out

    if example:
        print(EXAMPLE, end="")
        return
    if claim is None:
        raise InputError("no claim file is named", where="--claim", fix="Write one: clearance takedown --example > claim.toml")
    if (add is None) == (not retire):
        raise InputError("name either --add or --retire", where="takedown", fix="Add the claimed works, or retire references")
    filed, store = read_claim(claim), open_index(index)
    works = []
    if add is not None:
        from index.collect import Reading, Works

        with busy("reading the works"):
            works = [*Works(add, Reading(keep_pictures=keep_pictures))]
    order = Order(
        filed=filed, action=RETIRE if retire else ADD, works=works, ref_ids=retire or (), actor=by, person=person,
        dry_run=dry_run, every_picture=every_picture,
    )  # fmt: skip
    model = open_embedder(store, embedder)
    with watching() as progress:
        done = carry_out(store, model, order, every_run(runs or []), progress=progress)
    path, text = write_receipt(done, receipts)
    data = receipt(done)
    if as_json:
        say_json(data | {"receipt": str(path), "text": str(text)})
    else:
        for line in lines(done, data["receipt_sha256"]):
            say(line)
        say(f"written: {path}, and {text.name} to read")
    if any(run.may_be_mended for run in done.runs):
        raise typer.Exit(1)
