"""``clearance index info``: what an index holds, counted where it lies, and the list of its references."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.cli.arguments import IndexFolder
from jobs.cli.index_arguments import open_index
from jobs.cli.index_tables import calibration_of, worth
from jobs.console import grid, make_console, say, say_json

if TYPE_CHECKING:
    from rich.table import Table

    from index.store import ReferenceIndex

app = typer.Typer()
COUNTED = ("status", "rights_basis", "licence")
VALUES = 100  # of a column that are counted by name; there may be as many licences as works
NAMED = 1000  # ids of one change that are named in the history


@app.command("info", epilog="Example: clearance index info index/")
def index_info(
    index: IndexFolder,
    references: Annotated[
        bool,
        typer.Option(
            "--references", help="Print every reference instead, one JSON object a line, without checking their digests."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print data.")] = False,
) -> None:
    """Show what an index holds and what its calibration is worth, and check its digests."""
    store = open_index(index)
    if references:
        print_references(store)
        return
    store.verify()
    if as_json:
        say_json({"index": str(index), **state_data(store)})
        return
    make_console().print(state_table(store))
    say("digests match")


def print_references(index: ReferenceIndex) -> None:
    """Print every reference as one line of JSON, in the order in which they are stored, as they are read."""
    for reference, kept in index.listed():
        print(json.dumps({**asdict(reference), "with_picture": kept}))


def state_data(index: ReferenceIndex) -> dict[str, Any]:
    """An index for ``--json``: counts, its history, and the calibration that a run would use.

    Its size does not grow with the references: of a column the most frequent values are counted, of a change the first ids
    are named.
    """
    calibration, state = calibration_of(index)
    return {
        "index_id": index.index_id,
        "embedder_id": index.embedder_id,
        "embedder": index.embedder_source.record(),
        "references": len(index),
        "matching": index.matching,
        "with_picture": index.kept,
        **{name: _counts(index, name) for name in COUNTED},
        "history": [
            {**event, "references": len(event["ref_ids"]), "ref_ids": [*islice(event["ref_ids"], NAMED)]}
            for event in index.events()
        ],
        "search": index.searched(),
        "calibration": None if calibration is None else calibration.summary(),
        "calibration_state": state,
    }


def state_table(index: ReferenceIndex) -> Table:
    """The same for people."""
    table = grid()
    table.add_row("index", index.index_id)
    table.add_row("embedder", f"{index.embedder_id}, opened from: {index.embedder_source}")
    table.add_row("references", str(len(index)))
    table.add_row("with picture", str(index.kept))
    for name in COUNTED:
        table.add_row(name, ", ".join(f"{count} {value or 'not stated'}" for value, count in _counts(index, name).items()))
    table.add_row("search", index.searched())
    calibration, state = calibration_of(index)
    table.add_row("calibration", state)
    if calibration is not None:
        for name, value in worth(calibration):
            table.add_row(f"  {name}", value)
    for entry in index.events():
        at = datetime.fromtimestamp(entry["at"], UTC).isoformat(timespec="seconds")
        change = f" {entry['change']}" if entry.get("change") else ""
        reason = f" ({entry['reason']})" if entry["reason"] else ""
        table.add_row(at, f"{entry['event']} {len(entry['ref_ids'])}{change}{reason}")
    return table


def _counts(index: ReferenceIndex, name: str) -> dict[str, int]:
    """The most frequent values of a column, the first by name among equals; the rest as one number."""
    ranked = sorted(index.counts(name).items(), key=lambda one: (-one[1], one[0]))
    rest = sum(count for _, count in ranked[VALUES:])
    return dict(ranked[:VALUES]) | ({f"of {len(ranked) - VALUES} other values": rest} if rest else {})
