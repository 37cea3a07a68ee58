"""``clearance report``: the report of a run, and a page for each request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from index.errors import InputError
from jobs.cli.arguments import AsJson, KeysFolder, RunFolder, keys_of, runs_named
from jobs.cli.dataset import show_report
from jobs.console import busy, make_console, say_error, say_json

if TYPE_CHECKING:
    from pipeline.keys import Keys

Pages = Annotated[bool, typer.Option("--pages", help="Also write a page for every request, into RUN/pages.")]


def report(run: RunFolder, pages: Pages = False, keys: KeysFolder = None, json: AsJson = False) -> None:
    """Write report.html and report.json of a run; of a data set, those of its runs too. Exits with 1 if a run is damaged."""
    chain, folder, base = runs_named(run)
    if chain is not None:
        if pages:
            raise InputError("a data set of several runs was named", where="--pages", fix="Name one of the runs")
        return show_report(chain, base, keys_of(run, keys), json=json)
    if pages:
        from jobs.show import write_pages

        with busy("writing the pages"):
            count, left_out = write_pages(folder, base)
        make_console(stderr=json).print(f"pages: {count} in {folder / 'pages'}", soft_wrap=True)
        for error in left_out:
            say_error(f"no page of a request in {error.where}: {error.what}", error.fix)
    print_report(folder, base, keys_of(run, keys), json=json)


def print_report(folder: Path, base: Path | None, keys: Keys | None = None, *, json: bool = False) -> None:
    """Write the report, say where it is, and end with exit code 1 if the run is damaged."""
    from jobs.proof import trust_in
    from jobs.report import report_run
    from jobs.run.verdict import damage
    from pipeline.keys import Keys
    from pipeline.salt import secret_salt

    with busy("writing the report"):
        salt, trust = secret_salt(keys or Keys()) or None, trust_in(keys) if keys is not None else None
        path, content, remark = report_run(folder, base, salt=salt, trust=trust)
    console = make_console(stderr=json)
    for line in (f"report: {path}", remark):
        if line:
            console.print(line, soft_wrap=True)
    if json:
        say_json(content)
    if found := damage(content["integrity"]["problems"]):
        where, what = found[0]
        more = f" ({len(found)} problems in all)" if len(found) > 1 else ""
        fix = f"Restore what changed from a copy; `clearance verify {folder}` lists everything"
        say_error(f"the run is damaged: {where}: {what}{more}", fix)
        raise typer.Exit(1)
