"""``clearance status``: how far a run is, and its results so far."""

from __future__ import annotations

import time
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from index.errors import ClearanceError
from jobs.cli.arguments import AsJson, RunFolder, run_folder, runs_named
from jobs.cli.dataset import show_data_set
from jobs.cli.dead_letters import Errors, SaveErrors, show_dead_letters
from jobs.console import grid, make_console, say, say_json

if TYPE_CHECKING:
    from rich.table import Table

    from jobs.status import Look


def status(
    run: RunFolder,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again until the run has ended; exits with 1 if it stopped.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks of --watch.")] = 10,
    errors: Errors = False,
    save_errors: SaveErrors = None,
    json: AsJson = False,
) -> None:
    """Show how far a run is, and its results so far; of a folder of runs, the data set. Reads its folder alone."""
    if errors or save_errors is not None:
        return show_dead_letters(run_folder(run)[0], save_errors, json=json)
    chain, folder, _ = runs_named(run)
    if watch:  # of several runs the latest: the others do not change
        return _watch(folder, every, json=json)
    if chain is not None:
        return show_data_set(chain, json=json)
    return _show(folder, json=json)


def _watch(folder: Path, every: float, *, json: bool) -> None:
    """Look until the run is sealed or has stopped: on a terminal in one place, elsewhere a line each time."""
    from rich.live import Live

    from jobs.status import RUNNING, SEALED, Watched

    console, watched = make_console(), Watched(folder)
    moving = console.is_terminal and not json
    with Live(console=console, auto_refresh=False) if moving else _Nothing() as live:
        while True:
            found = watched.look()
            if json:
                print(dumps(found.plain()), flush=True)
            elif moving:
                live.update(_table(found), refresh=True)
            else:
                say(" · ".join(f"{name}: {value}" for name, value in found.lines().items()))
            if found.state != RUNNING:
                break
            time.sleep(every)
    if found.state != SEALED:
        raise typer.Exit(1)


class _Nothing:
    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None: ...


def _table(found: Look) -> Table:
    table = grid()
    for name, value in found.lines().items():
        table.add_row(name, value)
    return table


def _show(folder: Path, *, json: bool) -> None:
    from jobs.dataset import listed
    from jobs.funnel import lines, read_counts, rows
    from jobs.reaudit.standing import Standing
    from jobs.review.queue import in_force
    from jobs.run.planning.stored_plan import stored_plan
    from jobs.status import Watched
    from pipeline.audit.envelope import signed_by
    from pipeline.audit.ledger import stated_roots
    from pipeline.audit.summary import plain
    from pipeline.audit.timestamp import stamped_at

    found = Watched(folder).look()
    try:
        counts, check = read_counts(folder)
    except ClearanceError:  # what is left of a damaged run says at least how far it had come
        if not json:
            make_console().print(_table(found))
        raise
    about = {
        "run": found.run_id,
        "plan": str(stored_plan(folder)["plan_sha256"]),
        "proof": f"{signed_by(folder)}; {stamped_at(folder)}",
        **found.lines(),
        **stated_roots(folder),
    }
    now = in_force(folder, Standing.of(folder))
    if json:
        in_numbers = {"outcomes_in_force": dict(sorted(now.outcomes.items())), "review_queue": now.waiting}
        say_json(about | {"now": found.plain()} | in_numbers | plain(counts, check))
        return
    about |= {
        "in force": listed(now.outcomes) if now.outcomes else "nothing yet",
        "review queue": f"{now.waiting} {'waits' if now.waiting == 1 else 'wait'} for a person" if now.waiting else "empty",
    }
    table = grid()
    for name, value in {**about, **{label: values[0] for label, values in rows({"run": counts}).items()}}.items():
        table.add_row(name, value)
        for reason, count in counts.reasons.most_common() if name == "not accepted" else ():
            table.add_row(f"  because {reason}", str(count))
    make_console().print(table)
    for line in lines(counts, check):
        say(line)
