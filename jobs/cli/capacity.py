"""``clearance capacity``: devices, cost, storage and index for a night, with every step of the arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from index.errors import ConfigError
from jobs.cli.arguments import AsJson
from jobs.console import make_console, say, say_json


def capacity(
    pictures: Annotated[int, typer.Option(min=1, help="Accepted pictures wanted in a night.")] = 1_000_000,
    hours: Annotated[float, typer.Option(min=0.1, help="Length of the night.")] = 8,
    references: Annotated[int, typer.Option(min=0, help="Works in the index.")] = 200_000,
    device: Annotated[Literal["h200", "h100", "b200"], typer.Option(help="Whose speed MLPerf lists.")] = "h200",
    price: Annotated[float, typer.Option(min=0, help="Price of a device in an hour, in any currency; 0: unknown.")] = 0,
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="A run of yours: its speed, flags, guards and sizes in place of the defaults."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=NUMBER", help="Another value for an input; may be repeated.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Plan a night: devices, cost of a picture, disk, objects, guards and index. Every number shows what it is made of."""
    from rich.table import Table

    from jobs.capacity.arithmetic import Order
    from jobs.capacity.arithmetic import capacity as plan
    from jobs.capacity.inputs import DEFAULTS, DEVICES, Known, of_run

    inputs = {"rate": DEVICES[device], **DEFAULTS, **(of_run(run) if run is not None else {})}
    for text in set_ or ():
        name, _, number = text.partition("=")
        try:
            if name not in inputs:
                raise ConfigError(f"there is no input {name!r}", where="--set", fix=f"One of {', '.join(inputs)}")
            inputs[name] = Known(float(number), "--set")
        except ValueError:
            raise ConfigError(f"{number!r} is no number", where=f"--set {name}", fix=f"Write --set {name}=0.5") from None
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
    say("Simulated with 4 workers and 6,000 requests; workers share nothing, so that any number of them does the same.")
