"""``clearance bench …``: measure; every bench prints a table and writes JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure; prints tables and writes JSON.")
Out = Annotated[Path, typer.Option(help="Folder for NAME.json and pictures.")]
Quick = Annotated[bool, typer.Option("--quick", help="A small version; its numbers are not quoted.")]
DOCS = Path("infra/docs/bench")


@app.command()
def world(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[
        Path | None,
        typer.Option(help="The built world: autoencoder, embedder and detectors on held-out data too."),
    ] = None,
) -> None:
    """How good and how sinful the embedded world is, and what the default policy makes of it; writes a contact sheet.

    Example: clearance bench world --work world
    """
    from jobs.bench.world import bench

    bench(out, quick=quick, work=work)


@app.command()
def engine(out: Out = DOCS, quick: Quick = False) -> None:
    """Byte-equality of the engine, and its speed against diffusers' own loop on the same weights in the same run.

    Example: clearance bench engine --quick
    """
    from jobs.bench.engine import bench

    bench(out, quick=quick)


@app.command()
def early(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[Path | None, typer.Option(help="Keeps what was drawn, so that a stopped bench goes on.")] = None,
) -> None:
    """How early and how surely each signal tells which sample will end as a copy, and what it costs; writes a chart.

    Example: clearance bench early --quick
    """
    from jobs.bench.early import bench

    bench(out, quick=quick, work=work)
