"""`clearance status`, `verify` and `report` where what is named is a data set of several runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from index.counted import counted
from jobs.console import busy, make_console, say, say_error, say_json

RUN_COLUMNS = ("run", "state", "requests", "ended", "in force", "outcomes in force")

if TYPE_CHECKING:
    from pathlib import Path

    from jobs.dataset import Summary
    from jobs.run.dataset.chain import Chain
    from pipeline.audit.stage_proof import Trust
    from pipeline.keys import Keys


def show_data_set(chain: Chain, *, json: bool) -> None:
    """Print a data set: its runs, and its counts."""
    from jobs.dataset import summary

    found = summary(chain)
    if json:
        return say_json(found.plain())
    print_summary(found)
    return None


def print_summary(found: Summary, *, stderr: bool = False) -> None:
    from rich.table import Table

    from jobs.dataset import listed
    from jobs.funnel import lines, rows

    table = Table(*RUN_COLUMNS, title=f"data set {found.dataset_id}")
    for run in found.runs:
        state = "sealed" if run.sealed else "not finished"
        table.add_row(run.name, state, str(run.requests), str(run.ended), str(run.counted), listed(run.outcomes))
    console = make_console(stderr=stderr)
    console.print(table)
    numbers = Table(show_header=False, box=None)
    total = {
        "in force": listed(found.outcomes),
        "superseded": f"{counted(found.superseded, 'row')} that a later run has replaced",
    }
    waiting = sum(run.waiting for run in found.runs)
    total["review queue"] = f"{waiting} {'waits' if waiting == 1 else 'wait'} for a person" if waiting else "empty"
    for name, value in (total | {label: values[0] for label, values in rows({"set": found.counts}).items()}).items():
        numbers.add_row(name, value)
    console.print(numbers)
    for line in lines(found.counts, found.check):
        console.print(line, soft_wrap=True)
    if not found.one_check:
        console.print("copy checks differ: the one above is that of the latest run; `clearance status` of a run shows its own")


def show_verified(chain: Chain, salt: str | None, trust: Trust, *, json: bool) -> None:
    """Print what verifying found, run by run. Exits with 1 if a run is damaged, or the runs do not belong together."""
    from index.printable import visible
    from jobs.dataset import verify_set
    from jobs.run.verdict import identity_of_run

    found = verify_set(chain, salt, trust)
    if json:
        which = {one.folder.name: identity_of_run(one.folder) for one in chain.members}
        runs = {name: which[name] | asdict(one) for name, one in found.runs.items()}
        say_json({"ok": found.ok, "together": list(found.together), "runs": runs})
        raise typer.Exit(0 if found.ok else 1)
    console = make_console()
    for name, one in found.runs.items():
        counts = ", ".join(f"{count} {what}" for what, count in sorted(one.counts.items()))
        skipped = [stage.name for stage in one.stages if stage.state == "skip"]
        word = "intact" if one.ok else f"NOT INTACT, {counted(len(one.problems), 'problem')}"
        style = "green" if one.ok else "bold red"
        console.print(f"{name}: {word}; recomputed: {counts}; skipped: {', '.join(skipped) or 'nothing'}", style=style)
        for problem in one.problems:
            console.print(visible(f"  {problem.where}: {problem.what}", lines=False), style="red", soft_wrap=True)
        console.print(visible(f"{name}: anchors: {anchored(one.anchors)}", lines=False), soft_wrap=True)
    for what in found.together:
        console.print(visible(what, lines=False), style="red", soft_wrap=True)
    say(
        f"intact: data set of {counted(len(found.runs), 'run')}"
        if found.ok
        else "NOT INTACT; `clearance verify RUN` shows the stages of one"
    )
    if not found.ok:
        raise typer.Exit(1)


def anchored(anchors: Mapping[str, Any]) -> str:
    """What to keep elsewhere of a run that was verified, as a line of text."""
    events = f"head {anchors['head']} of {counted(anchors['events'], 'event')}" if anchors["head"] else "no event"
    return f"{events}; run.json sha256 {anchors['run_sha256'] or '(missing)'}"


def show_report(chain: Chain, base: Path | None, keys: Keys, *, json: bool) -> None:
    """Write the report of every run, and that of the data set. Exits with 1 if a run is damaged."""
    from jobs.dataset import write_set_report
    from jobs.proof import trust_in
    from jobs.report import report_run
    from jobs.run.verdict import damage
    from pipeline.salt import secret_salt

    console, damaged = make_console(stderr=json), dict[str, str]()
    for one in chain.members:
        with busy(f"writing the report of {one.folder.name}"):
            path, content, remark = report_run(one.folder, base, salt=secret_salt(keys) or None, trust=trust_in(keys))
        console.print(f"report: {path}" + (f" ({remark})" if remark else ""), soft_wrap=True)
        if found := damage(content["integrity"]["problems"]):
            where, what = found[0]
            damaged[one.folder.name] = f"{where}: {what}" + (f" ({len(found)} problems in all)" if len(found) > 1 else "")
    path, numbers = write_set_report(chain, damaged)
    console.print(f"report: {path} (the data set)", soft_wrap=True)
    if json:
        say_json(numbers)
    if damaged:
        name, what = next(iter(damaged.items()))
        fix = f"Restore what changed from a copy; `clearance verify {chain.last.folder.parent}` lists everything"
        say_error(f"run {name} is damaged: {what}", fix)
        raise typer.Exit(1)
