"""``clearance retention …``: what is kept until when, and erasing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from index.counted import counted
from jobs.cli.arguments import AsJson, By, Person, Reason, RunFolder, run_folder
from jobs.console import make_console, say, say_error, say_json
from jobs.group import group

if TYPE_CHECKING:
    from pipeline.audit.erase import Erased

app = group("What is kept until when, and erasing it. Rows and chains stay.")
DryRun = Annotated[bool, typer.Option("--dry-run", help="List what would be erased, and change nothing.")]

VersionsDays = Annotated[
    int | None,
    typer.Option(
        "--old-versions-days",
        min=1,
        max=36_500,
        metavar="DAYS",
        help="The bucket deletes noncurrent versions after so many days: its events then say so, and old versions are no "
        "reason to exit with 1. It is your word; the bucket's rules are not read.",
    ),
]


@app.command("show", epilog="Example: clearance retention show runs/monday")
def retention_show(run: RunFolder, as_json: AsJson = False) -> None:
    """List what a run keeps, until when, and what is due."""
    from rich.table import Table

    from jobs.retention import show_retention

    shown = show_retention(run_folder(run)[0])
    if as_json:
        say_json(shown)
        return
    if not shown:
        say("nothing is kept that could be erased")
        return
    table = Table(box=None)
    for name in ("samples", "payloads", "number", "due", "held", "in review", "no limit", "next end"):
        table.add_column(name, overflow="fold", no_wrap=name not in ("payloads", "in review", "no limit"))
    for one in shown:
        counts = [str(one[name]) for name in ("number", "due", "held", "waiting_for_review", "no_limit")]
        table.add_row(one["samples"], ", ".join(one["payloads"]), *counts, (one["next"] or "")[:10])
    make_console().print(table)


@app.command("apply", epilog='Example: clearance retention apply runs/monday --dry-run --by records --reason "monthly"')
def retention_apply(
    run: RunFolder,
    by: By,
    reason: Reason,
    dry_run: DryRun = False,
    old_versions_days: VersionsDays = None,
    person: Person = "",
    as_json: AsJson = False,
) -> None:
    """Erase what is due. What is under a legal hold or waits for a person stays, and is named."""
    from jobs.by import By as Author
    from jobs.retention import apply_retention

    author = Author(role=by, reason=reason, person=person)
    found = apply_retention(run_folder(run)[0], author, dry_run=dry_run, old_versions_days=old_versions_days)
    if as_json:
        say_json(found.plain())
        return _all_reached(found.erased, dry_run=dry_run)
    for kind, number in found.due.items():
        say(f"due: {number} {kind}")
    for why, keys in (("under a legal hold", found.held), ("waiting for a person", found.waiting)):
        if keys:
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            say(f"stays, {why}: {', '.join(keys[:5])}{more}")
    if found.unfinished:
        say(f"an interrupted erasure of {counted(found.unfinished, 'sample')} is finished with it")
    _print(found.erased, dry_run=dry_run)
    _all_reached(found.erased, dry_run=dry_run)


@app.command("erase", epilog='Example: clearance retention erase runs/monday --key cat-7 --by privacy --reason "request 31"')
def retention_erase(
    run: RunFolder,
    key: Annotated[list[str], typer.Option("--key", metavar="KEY", help="A request key; may be given again.")],
    by: By,
    reason: Reason,
    what: Annotated[
        list[str] | None,
        typer.Option("--what", help="picture, prompt, embedding or columns; may be given again. Default: all."),
    ] = None,
    dry_run: DryRun = False,
    old_versions_days: VersionsDays = None,
    person: Person = "",
    as_json: AsJson = False,
) -> None:
    """Erase payloads of samples for good: pictures, prompts, embeddings, own columns. Refused under a legal hold."""
    from jobs.by import By as Author
    from jobs.retention import erase_keys, plain

    author = Author(role=by, reason=reason, person=person)
    place = run_folder(run)[0]
    erased = erase_keys(place, key, what or [], author, dry_run=dry_run, old_versions_days=old_versions_days)
    if as_json:
        say_json({"dry_run": dry_run, **plain(erased)})
    else:
        _print(erased, dry_run=dry_run)
    _all_reached(erased, dry_run=dry_run)


def _all_reached(erased: Erased, *, dry_run: bool) -> None:
    """Say that older versions are left, and where; exit with 1 unless nothing was to be erased yet, or their end is stated."""
    if not erased.old_versions:
        return
    held = "would still hold what is erased" if dry_run else "still hold what was erased"
    if (days := erased.old_versions_days) is not None:
        stated = "as --old-versions-days says; the bucket's rules were not read"
        say(f"this bucket keeps old versions: they {held}, until it deletes them after {counted(days, 'day')}, {stated}")
        return
    fix = (
        "Delete the noncurrent versions below the run folder, and give the bucket a rule that does it; state that rule "
        "with --old-versions-days"
    )
    say_error(f"this bucket keeps old versions: they {held}", fix)
    if not dry_run:
        raise typer.Exit(1)


def _print(erased: Erased, *, dry_run: bool) -> None:
    if not erased.cells:
        say("nothing is left to erase")
        return
    cells = ", ".join(f"{number} {name}" for name, number in sorted(erased.cells.items()))
    verb = "would be erased" if dry_run else "erased"
    say(f"{verb}: {cells}; of {counted(erased.samples, 'sample')}, in {counted(len(erased.files), 'file')}")
    if dry_run:
        say("dry run: nothing was changed")
        return
    for name in erased.removed[:2]:
        say(f"removed: {name} (it showed what is erased; `clearance report` writes it again)")
    say("Copies, exports and backups of the run are not reached from here.")
