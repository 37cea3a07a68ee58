"""``clearance show``: one request in full."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.arguments import AsJson, RunFolder, a_local_path, runs_named
from jobs.console import grid, make_console, say, say_json

Key = Annotated[
    str, typer.Argument(metavar="KEY", help="The request's key, its sample_id, or how that begins.", show_default=False)
]
OutFile = Annotated[
    Path | None, typer.Option("--out", metavar="FILE.html", help="Write a page of its own into this file.", parser=a_local_path)
]
Open = Annotated[bool, typer.Option("--open", help="Open the page; without --out it is written to RUN/pages.")]


def show(run: RunFolder, key: Key, out: OutFile = None, opened: Open = False, json: AsJson = False) -> None:
    """Show one request: every attempt, finding, reference, change, decision and event, and what is in force now.

    Of a data set of several runs: in the run whose outcome of it is in force.
    """
    from jobs.report import ReferencePictures
    from jobs.show import lines, open_page, page_of, show_request, write_page

    chain, folder, base = runs_named(run)
    if chain is not None:
        from jobs.dataset import show_in

        folder, shown, earlier = show_in(chain, key)
        also = f"; runs that hold it too, with an outcome no longer in force: {', '.join(earlier)}" if earlier else ""
        make_console(stderr=json).print(f"run {folder.name}{also}", soft_wrap=True)
    else:
        shown = show_request(folder, key)
    if out is not None or opened:
        from index.storage import write_file

        pictures = ReferencePictures(folder, base)
        if out is not None:
            write_file(out.absolute().parent, out.name, page_of(shown, pictures).encode())
        path = out if out is not None else write_page(folder, shown, pictures)
        make_console(stderr=json).print(f"page: {path}", soft_wrap=True)
        if opened:
            open_page(path)
    if json:
        say_json(shown.entry)
    elif out is None and not opened:
        table = grid()
        for name, value in lines(shown.entry):
            table.add_row(name, value)
        make_console().print(table)
        say(f"its page: clearance show {run} {key!r} --open")
