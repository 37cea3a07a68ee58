"""``clearance review …``: what waits for a person, and what people decided."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from index.counted import counted
from index.errors import InputError
from jobs.cli.arguments import AsJson, By, Person, RunFolder, a_local_path, run_folder
from jobs.console import busy, make_console, say, say_json
from jobs.group import group

app = group("What waits for a person: export it, decide, import decisions.")


@app.command("list", epilog="Example: clearance review list runs/monday")
def review_list(run: RunFolder, as_json: AsJson = False) -> None:
    """List the samples that wait for a person: outcome review, and those held back after the run."""
    from rich.table import Table

    from jobs.reaudit.standing import Standing
    from jobs.review.queue import rows_for, waiting

    folder, _ = run_folder(run)
    those = [*waiting(folder, Standing.of(folder))]
    rows = [
        {
            "request_key": str(row["request_key"]), "sample_id": one.sample_id, "outcome": one.outcome, "purpose": one.purpose,
            "reason": one.reason or str(row["reason"]),
        }
        for one, _, row in rows_for(folder, those)
    ]  # fmt: skip
    if as_json:
        say_json({"run": str(folder), "waiting": rows})
        return
    table = Table("request", "outcome", "reason", "sample")
    for each in table.columns:
        each.overflow = "fold"
    for row in rows:
        table.add_row(row["request_key"], row["outcome"], row["reason"], row["sample_id"])
    if rows:
        make_console().print(table)
    say("1 sample waits for a person" if len(rows) == 1 else f"{len(rows)} samples wait for a person")


@app.command("export", epilog="Example: clearance review export runs/monday --to queue --random 50 --by compliance")
def review_export(
    run: RunFolder,
    to: Annotated[
        Path,
        typer.Option(help="A new folder for rows, pictures and the page queue.html.", show_default=False, parser=a_local_path),
    ],
    random: Annotated[
        int, typer.Option(min=0, help="Draw this many accepted samples for an audit; their decisions are counted apart.")
    ] = 0,
    queue: Annotated[bool, typer.Option("--queue/--no-queue", help="Whether the queue is exported, or the draw alone.")] = True,
    seed: Annotated[int | None, typer.Option(help="Seed of the draw.", show_default="random; it is recorded")] = None,
    format: Annotated[Literal["jsonl", "parquet"], typer.Option(help="Of the rows.")] = "jsonl",
    by: Annotated[str, typer.Option("--by", metavar="ROLE", help="The role that exports.")] = "reviewer",
    person: Person = "",
    as_json: AsJson = False,
) -> None:
    """Export the review queue with its pictures, and a page that goes through it with the keyboard, offline."""
    from jobs.report import ReferencePictures
    from jobs.review.export import Wanted, export

    folder, base = run_folder(run)
    wanted = Wanted(queue=queue, random=random, format=format, **({} if seed is None else {"seed": seed}))
    pictures = ReferencePictures(folder, base)
    with busy("exporting"):
        made = export(folder, to, wanted, pictures, actor=_role(by), person=person)
    if as_json:
        data = {"folder": str(made.folder), "page": str(made.page), "counts": made.counts}
        say_json(data | {"without_picture": made.without_picture, "remark": pictures.remark})
        return
    counts = ", ".join(f"{count} {purpose}" for purpose, count in made.counts.items())
    say(f"{made.page}: {counts}")
    if made.without_picture:
        say(f"note: of {counted(len(made.without_picture), 'sample')} no picture is kept that could be shown")
    if pictures.remark:
        say(f"note: {pictures.remark}")
    say(f"Open the page, decide, download; then: clearance review import {run} decisions-….jsonl --by ROLE")


@app.command("import", epilog="Example: clearance review import runs/monday decisions.jsonl --by compliance --person r7")
def review_import(
    run: RunFolder,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Decisions, as JSONL or Parquet.", show_default=False, parser=a_local_path)
    ],
    by: By,
    person: Person = "",
    as_json: AsJson = False,
) -> None:
    """Take decisions in: all of them, or none if a line cannot be taken. What was imported before changes nothing."""
    from jobs.review.decisions import import_file

    folder, _ = run_folder(run)
    found = import_file(folder, file, actor=_role(by), person=person)
    if as_json:
        say_json({"run": str(folder), **asdict(found)})
    elif found.before:
        were = f"{counted(found.decisions, 'decision')} {'was' if found.decisions == 1 else 'were'}"
        say(f"{file}: its {were} imported before; nothing changed")
    else:
        audit = f"; of {found.audited} audited, {found.overturned} overturned" if found.audited else ""
        again = f"; {found.again:,} imported before" if found.again else ""
        ends = f"; no longer held back by {', '.join(found.lifted)}" if found.lifted else ""
        say(f"{counted(found.decisions, 'decision')}: {found.accepted} accepted, {found.rejected} rejected{audit}{again}{ends}")


@app.command(
    "decide", epilog="Example: clearance review decide runs/monday --key 17 --accept --reason licensed --by compliance"
)
def review_decide(
    run: RunFolder,
    key: Annotated[str, typer.Option(help="The request's key, or the sample id.", show_default=False)],
    by: By,
    accept: Annotated[bool, typer.Option("--accept/--reject", help="The decision.", show_default=False)],
    reason: Annotated[
        str, typer.Option(help="A reason code (nothing_wrong, another_work, copy, …) or a sentence.", show_default=False)
    ],
    person: Person = "",
    overrule: Annotated[bool, typer.Option("--overrule", help="Replace the decision of a person before.")] = False,
    as_json: AsJson = False,
) -> None:
    """Decide about one sample."""
    from jobs.review.decisions import Decision, decide_one
    from jobs.review.reasons import ACCEPT, REJECT

    folder, _ = run_folder(run)
    decision = ACCEPT if accept else REJECT
    code, note = _reason(decision, reason)
    one = Decision(line=0, sample_id="", pixel_sha256="", decision=decision, reason=code, note=note, overrule=overrule)
    found = decide_one(folder, key, one, actor=_role(by), person=person)
    if as_json:
        say_json({"run": str(folder), "key": key, "decision": decision, **asdict(found)})
    else:
        ends = f"; it is no longer held back by {', '.join(found.lifted)}" if found.lifted else ""
        say(f"{key}: {'accepted' if accept else 'rejected'}{ends}")


def _reason(decision: str, text: str) -> tuple[str, str]:
    """A code of the list, or a sentence: then the code is that of any other reason, and the sentence its note."""
    from jobs.review.reasons import ACCEPT, BY_CODE

    known = BY_CODE.get(text.strip())
    if known is not None and known.decision == decision:
        if known.note:
            raise InputError(f"{known.code!r} needs a sentence", where="--reason", fix="Write the reason as a sentence instead")
        return known.code, ""
    if known is not None or not text.strip():
        fitting = ", ".join(code for code, one in BY_CODE.items() if one.decision == decision and not one.note)
        raise InputError(
            f"{text!r} is no reason to {decision}", where="--reason", fix=f"Write a sentence, or one of: {fitting}"
        )
    return ("stated" if decision == ACCEPT else "other"), text.strip()


def _role(by: str) -> str:
    if not by.strip():
        raise InputError("is empty", where="--by", fix="Name the role that decides, as compliance")
    return by.strip()
