"""Print the table and the sentences that a run ends with, on the terminal and as JSON, from :mod:`pipeline.audit.numbers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pipeline.audit.numbers import Counts
    from pipeline.copy_check import CopyCheck

LABELS = {
    "warning": "WARNING", "observed": "let through", "asked": "asked for", "questions": "questions", "copies": "copies",
    "nearest": "nearest", "check": "copy check", "measured_on": "measured on",
}  # fmt: skip


def read_counts(folder: Path) -> tuple[Counts, CopyCheck | None]:
    """The counts of a run folder, finished or not, and what its copy check is worth (None where its plan does not hold it).

    Raises:
        ClearanceError: the folder is no run, or a file in it cannot be read.
    """
    from jobs.run.planning.stored_plan import stored_plan
    from pipeline.audit.binding import PLAN_FILE
    from pipeline.audit.numbers import count_run
    from pipeline.copy_check import CopyCheck

    check = CopyCheck.read(stored_plan(folder).get("copy_check"), where=str(folder / PLAN_FILE))
    return count_run(folder), check


def print_counts(folder: Path, console: Console) -> None:
    """Print what a run ends with: the table, and the sentences beside it."""
    counts, check = read_counts(folder)
    console.print(funnel({"run": counts}))
    for line in lines(counts, check):
        console.print(line, soft_wrap=True)


def funnel(columns: Mapping[str, Counts]) -> Table:
    """The table a run ends with, one column per run."""
    from rich.table import Table

    table = Table("", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for label, values in rows(columns).items():
        table.add_row(label, *values)
    return table


def rows(columns: Mapping[str, Counts]) -> dict[str, list[str]]:
    """The table's rows by label, one text a run. Rows that are indented are parts of the row above them."""
    runs = list(columns.values())
    table: dict[str, list[str]] = {}

    def row(label: str, value: Callable[[Counts], int | str], *, always: bool = True) -> None:
        values = [value(counts) for counts in runs]
        if always or any(values):
            table[label] = [str(one) for one in values]

    row("requested", lambda c: c.requested)
    row("flagged at first", lambda c: c.flagged)
    row("  caught in mid-flight", lambda c: c.caught)
    row("  on the first picture", lambda c: c.acted)
    row("  only observed", lambda c: c.observed)
    row("steered", lambda c: c.steered)
    row("accepted", lambda c: c.accepted)
    row("  after steering", lambda c: c.outcomes["accepted_after_steering"])
    row("  too near a reference", lambda c: c.too_near if c.looked else "-")
    row("  near, cleared by the second look", lambda c: c.cleared if c.looked else "-")
    row("  would have been flagged", lambda c: c.would_be_flagged, always=any(c.would_be_flagged for c in runs))
    row("review", lambda c: c.outcomes["review"])
    row("rejected", lambda c: c.outcomes["rejected"])
    row("quarantined", lambda c: c.outcomes["quarantined"], always=False)
    row("error", lambda c: c.outcomes["error"], always=False)
    row("pictures generated", lambda c: c.pictures)
    row(
        "denoiser evaluations per accepted picture",
        lambda c: "-" if c.evals_per_accepted is None else f"{c.evals_per_accepted:.1f}",
    )
    return table


def lines(counts: Counts, check: CopyCheck | None) -> list[str]:
    """The sentences beside the table, a line a topic."""
    from pipeline.audit.summary import sentences

    return [f"{LABELS[topic]}: {text}" for topic, text in sentences(counts, check).items()]
