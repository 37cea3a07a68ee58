"""``clearance capacity``: devices, cost, storage and index for a night, with every step of the arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.cli.arguments import AsJson, a_place, run_folder
from jobs.console import make_console, say, say_json


def capacity(
    pictures: Annotated[int, typer.Option(min=1, help="Accepted pictures wanted in a night.")] = 1_000_000,
    hours: Annotated[float, typer.Option(min=0.1, help="Length of the night.")] = 8,
    references: Annotated[int, typer.Option(min=0, help="Works in the index.")] = 200_000,
    device: Annotated[Literal["h200", "h100", "b200"], typer.Option(help="Whose speed MLPerf lists.")] = "h200",
    price: Annotated[float, typer.Option(min=0, help="Price of a device in an hour, in any currency; 0: unknown.")] = 0,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", parser=a_place, help="A run of yours: its speed, flags, guards and sizes in place of the defaults."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=NUMBER", help="Another value for an input; may be repeated.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Plan a night: devices, cost of a picture, disk, objects, guards and index. Every number shows what it is made of."""
    from rich.table import Table

    from jobs.capacity.arithmetic import SIMULATED_REQUESTS, SIMULATED_WORKERS, Order
    from jobs.capacity.arithmetic import capacity as plan
    from jobs.capacity.inputs import DEFAULTS, DEVICES, given, of_run

    inputs = {"rate": DEVICES[device], **DEFAULTS, **(of_run(run_folder(run)[0]) if run is not None else {})}
    for text in set_ or ():
        name, _, number = text.partition("=")
        inputs[name] = given(name, number, inputs)
    found = plan(Order(pictures=pictures, hours=hours, references=references, price=price), inputs)
    if json:
        say_json(found.plain())
        return
    table = Table("input", "value", "source")
    for name, known in found.inputs.items():
        table.add_row(name, f"{known.value:g}", known.source)
    make_console().print(table)
    table = Table("", "", "made of")
    for step in found.steps:
        table.add_row(step.name, step.value, step.how)
    make_console().print(table)
    size = f"{SIMULATED_WORKERS} workers and {SIMULATED_REQUESTS:,} requests"
    say(f"Simulated with {size}; workers share nothing, so that any number of them does the same.")
