"""``clearance lab bench …``: measure; every bench prints a table and writes JSON."""

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

    Example: clearance lab bench world --work world
    """
    from jobs.lab.bench.world import bench

    bench(out, quick=quick, work=work)


@app.command()
def painter(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[Path, typer.Option(help="The built world with its training state.")] = Path("world"),
    model: Annotated[
        Path | None, typer.Option(help="A diffusers folder to measure in place of the denoiser in training.")
    ] = None,
) -> None:
    """Whether a denoiser in training draws what a stranger recognises, unsteered and steered; writes a contact sheet.

    Example: clearance lab bench painter --work world --quick --out looks
    """
    from jobs.lab.bench.painter import bench

    bench(out, work=work, model=model, quick=quick)


@app.command()
def engine(out: Out = DOCS, quick: Quick = False) -> None:
    """Bytes of the engine, its speed against diffusers' own loop, what repairs and negative token merging cost.

    Example: clearance lab bench engine --quick
    """
    from jobs.lab.bench.engine import bench

    bench(out, quick=quick)


@app.command()
def erase(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[Path, typer.Option(help="Sets, adapters and pictures are kept here; a stopped bench goes on.")] = Path(
        "erase-bench"
    ),
    world: Annotated[Path, typer.Option(help="The built world.")] = Path("world"),
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Train the arms that are missing, or leave them out.")
    ] = True,
    trainings: Annotated[int, typer.Option(min=1, max=5, help="Training seeds of the main arms.")] = 1,
    ship: Annotated[
        bool, typer.Option("--ship", help="Put the main adapters where they ship, cards quoting the table.")
    ] = False,
) -> None:
    """Erasers against their controls: how often a mark is drawn, by independent detectors, and what it costs the picture.

    Example: clearance lab bench erase --world world --quick
    """
    from jobs.lab.bench.erase import bench

    bench(out, work, world, quick=quick, train=train, trainings=trainings, shipped=ship)


@app.command()
def steering(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[Path, typer.Option(help="Arms that ended are kept here; a stopped run goes on.")] = Path("bench-steering"),
    captions: Annotated[int, typer.Option(min=0, help="How many of the protected captions; 0: all.")] = 0,
    world: Annotated[Path | None, typer.Option(help="The built world: distance to the unprotected drawings too.")] = None,
) -> None:
    """Every published way of steering and its controls beside ours, at equal compute, judged independently; the default ladder.

    Example: clearance lab bench steering --captions 20
    """
    from jobs.lab.bench.steering import bench

    bench(out, quick=quick, work=work, captions=captions, world=world)


@app.command()
def early(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[Path | None, typer.Option(help="Keeps what was drawn, so that a stopped bench goes on.")] = None,
) -> None:
    """How early and how surely each signal tells which sample will end as a copy, and what it costs; writes a chart.

    Example: clearance lab bench early --quick
    """
    from jobs.lab.bench.early import bench

    bench(out, quick=quick, work=work)
