"""``clearance export``: the samples of a run that are released now, for those who train on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from index.counted import counted
from jobs.cli.arguments import AsJson, KeysFolder, RunFolder, a_place, keys_of, runs_named
from jobs.console import make_console, say_json, say_note
from jobs.run.progress import Steps

To = Annotated[
    Path,
    typer.Option(
        "--to", metavar="FOLDER", help="A new folder, or its URI; nothing is overwritten.", show_default=False, parser=a_place
    ),
]
FormatName = Annotated[str, typer.Option("--format", help="parquet, webdataset, folder, or one that a package brings.")]
Only = Annotated[
    str,
    typer.Option(help="Outcomes in force now, separated by commas: accepted, held, all, or names of outcomes such as review."),
]
Columns = Annotated[
    str, typer.Option(help="Columns, separated by commas; own: all columns of the prompts file; all: every column.")
]


def export(
    run: RunFolder,
    to: To,
    format: FormatName = "parquet",
    only: Only = "accepted",
    columns: Columns = "",
    keys: KeysFolder = None,
    json: AsJson = False,
) -> None:
    """Write the samples of a run or data set that are accepted now into a new folder, with pictures, own columns and a card.

    What a claim or a review changed since the run counts. Every picture is compared with its digest.
    """
    from jobs.dataset import sources_of
    from jobs.export.write import export_run
    from pipeline.notes import Note

    chain, folder, _ = runs_named(run)
    with Steps(make_console(stderr=True), "exporting", None) as steps:
        exported = export_run(
            folder if chain is None else sources_of(chain),
            to,
            format=format,
            only=only,
            columns=[name.strip() for name in columns.split(",")] if columns else None,
            keys=keys_of(run, keys),
            on_sample=steps.at,
        )
    if exported.fewer_marks:
        say_note(Note("marks", exported.fewer_marks_note))
    if json:
        say_json({"folder": str(to), **exported.plain()})
        return
    out = make_console()
    out.print(f"exported: {counted(exported.samples, 'sample')} ({exported.only}) as {exported.format} in {to}", soft_wrap=True)
    for reason, count in exported.left_out.items():
        out.print(f"left out: {count} ({reason})", soft_wrap=True)
