"""``clearance lab bench …``: every bench measures, prints a table and writes JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.group import group

app = group("Run benches; each prints a table and writes JSON.")
Out = Annotated[Path, typer.Option(help="Folder for NAME.json and pictures.")]
Quick = Annotated[bool, typer.Option("--quick", help="Run a small version; its numbers are not for quoting.")]
DOCS = Path("infra/docs/bench")


@app.command()
def world(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[
        Path | None,
        typer.Option(help="The built world; with it, autoencoder, embedder and detectors are measured on held-out data too."),
    ] = None,
) -> None:
    """Measure the embedded world, its planted copies and marks, and the default policy on it; write a contact sheet.

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
    """Measure whether a denoiser in training draws recognisable subjects, unsteered and steered; write a contact sheet.

    Example: clearance lab bench painter --work world --quick --out looks
    """
    from jobs.lab.bench.painter import bench

    bench(out, work=work, model=model, quick=quick)


@app.command()
def engine(out: Out = DOCS, quick: Quick = False) -> None:
    """Measure the engine: equal bytes, speed against diffusers' own loop, the cost of repairs and of negative token merging.

    Example: clearance lab bench engine --quick
    """
    from jobs.lab.bench.engine import bench

    bench(out, quick=quick)


@app.command()
def beside(out: Out = DOCS, quick: Quick = False) -> None:
    """Measure how much of its time the denoiser computes, with guards beside it and with guards in its thread.

    Example: clearance lab bench beside
    """
    from jobs.lab.bench.beside import bench

    bench(out, quick=quick)


@app.command()
def erase(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[
        Path, typer.Option(help="Sets, adapters and pictures are kept here; a stopped bench continues from them.")
    ] = Path("erase-bench"),
    world: Annotated[Path, typer.Option(help="The built world.")] = Path("world"),
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Train missing arms; otherwise the bench leaves them out.")
    ] = True,
    trainings: Annotated[int, typer.Option(min=1, max=5, help="Number of training seeds of the main arms.")] = 1,
    ship: Annotated[
        bool, typer.Option("--ship", help="Copy the main adapters to where they ship, with cards that quote the table.")
    ] = False,
    part: Annotated[
        Literal["model", "data"] | None, typer.Option(help="Measure one part alone, into a result file of its own.")
    ] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Train this arm alone; may be repeated.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds of the pictures.")] = 3,
) -> None:
    """Compare erasers with controls: how often independent detectors find a mark, and what erasing costs the picture.

    Example: clearance lab bench erase --world world --quick
    """
    from jobs.lab.bench.erase import bench

    drawn = range(1, seeds + 1)
    bench(out, work, world, quick=quick, train=train, trainings=trainings, shipped=ship, part=part, arms=arm or (), seeds=drawn)


@app.command()
def asked(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[Path, typer.Option(help="Pictures are kept here.")] = Path("asked"),
) -> None:
    """Draw prompts that ask for a QR code: whether the painter draws one, and what becomes of it.

    Example: clearance lab bench asked --quick
    """
    from jobs.lab.bench.asked import bench

    bench(out, work, quick=quick)


@app.command()
def steering(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[Path, typer.Option(help="Finished arms are kept here; a stopped bench continues from them.")] = Path(
        "bench-steering"
    ),
    captions: Annotated[int, typer.Option(min=0, help="Number of protected captions; 0 means all.")] = 0,
    world: Annotated[
        Path | None, typer.Option(help="The built world; with it, the distance to unprotected drawings is measured too.")
    ] = None,
) -> None:
    """Compare published steering methods and controls with ours, at equal compute, by independent judges; and the ladder.

    Example: clearance lab bench steering --captions 20
    """
    from jobs.lab.bench.steering import bench

    bench(out, quick=quick, work=work, captions=captions, world=world)


@app.command()
def negtome(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[Path, typer.Option(help="What was drawn is kept here; a stopped bench goes on.")] = Path("bench-negtome"),
    world: Annotated[Path, typer.Option(help="The built world: it holds the vendors' drawings.")] = Path("world"),
    minutes: Annotated[float, typer.Option(min=0, help="Stop after so many minutes; the next call goes on.")] = 600.0,
    model: Annotated[
        Path | None, typer.Option(help="A diffusers folder that draws in place of the denoiser that ships.")
    ] = None,
) -> None:
    """Measure forms of negative token merging on ordinary captions and memorised works, each beside a random reference.

    Example: clearance lab bench negtome --world world --quick
    """
    from jobs.lab.bench.negtome import bench

    bench(out, quick=quick, work=work, world=world, minutes=minutes, model=model)


@app.command()
def diversity(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[Path, typer.Option(help="What was drawn is kept here; a stopped bench goes on.")] = Path("bench-diversity"),
    captions: Annotated[int, typer.Option(min=0, help="Number of ordinary captions, a multiple of 4; 0 means all.")] = 0,
    minutes: Annotated[float, typer.Option(min=0, help="Stop after so many minutes; the next call goes on.")] = 600.0,
) -> None:
    """Measure how much samples of one prompt differ that push one another apart, and whether they keep their caption.

    Example: clearance lab bench diversity --quick
    """
    from jobs.lab.bench.diversity import bench

    bench(out, quick=quick, work=work, captions=captions, minutes=minutes)


@app.command()
def early(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[Path | None, typer.Option(help="Drawn samples are kept here; a stopped bench continues from them.")] = None,
) -> None:
    """Measure how early and how reliably each signal predicts which sample ends as a copy, and its cost; write a chart.

    Example: clearance lab bench early --quick
    """
    from jobs.lab.bench.early import bench

    bench(out, quick=quick, work=work)


@app.command()
def reaudit(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[Path, typer.Option(help="The made-up run is kept here: 1.2 GB.")] = Path("reaudit-bench"),
) -> None:
    """A million stored embeddings against a hundred new references, on two threads: seconds, memory, what is found.

    Example: clearance lab bench reaudit --quick
    """
    from jobs.lab.bench.reaudit import bench

    bench(out, quick=quick, work=work)


@app.command()
def index(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[Path, typer.Option(help="Vectors, indexes and results are kept here; a stopped bench continues.")] = Path(
        "index-bench"
    ),
    rows: Annotated[
        list[int] | None, typer.Option(help="A number of references; once for each.", show_default="20000, 200000, 1000000")
    ] = None,
) -> None:
    """Hold the reference index against brute force: decisions, speed, memory, opening, retiring, adding, building.

    A million references take 9 GB of disk.

    Example: clearance lab bench index --rows 20000 --rows 200000
    """
    from jobs.lab.bench.index import bench

    bench(out, quick=quick, work=work, sizes=tuple(rows or ()))


@app.command()
def audit(out: Out = DOCS, quick: Quick = False) -> None:
    """Measure what the audit costs beside drawing, beside writing the same bytes plainly, and in the small verifier.

    Example: clearance lab bench audit --quick
    """
    from jobs.lab.bench.audit import bench

    bench(out, quick=quick)


@app.command()
def marks(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[Path, typer.Option(help="What was measured is kept here; a stopped bench goes on.")] = Path("bench-marks"),
    world: Annotated[Path, typer.Option(help="The built world: its packages hold the drawings.")] = Path("world"),
    photographs: Annotated[Path | None, typer.Option(help="A folder of photographs; without it, drawings alone.")] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Stop after so many minutes; the next call goes on.")] = 600.0,
) -> None:
    """What survives of the watermarks, attack by attack, and how often they are found where there are none.

    Example: clearance lab bench marks --world world --photographs photographs
    """
    from jobs.lab.bench.marks import bench

    bench(out, quick=quick, work=work, world=world, photographs=photographs, minutes=minutes)


@app.command()
def guards(out: Out = DOCS, quick: Quick = False) -> None:
    """Measure the guards' processor time a picture at 512 and 1024 pixels beside a device, and whether a device would wait.

    Example: clearance lab bench guards --quick
    """
    from jobs.lab.bench.guards import bench

    bench(out, quick=quick)


@app.command()
def edits(
    out: Out = DOCS,
    quick: Quick = False,
    world: Annotated[Path, typer.Option(help="The built world, whose other drawings are no copies.")] = Path("world"),
) -> None:
    """Measure how many copies behind an edit the copies guard finds (turned, negative, framed, in a scene); 15 minutes.

    Example: clearance lab bench edits --world world
    """
    from jobs.lab.bench.edits import bench

    bench(out, world=world, quick=quick)


@app.command()
def photographs(
    packages: Annotated[
        Path, typer.Option(help="Unpacked packages that ship photographs, each in a folder of its name.", show_default=False)
    ],
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[Path, typer.Option(help="What was measured is kept here; a stopped bench goes on.")] = Path(
        "bench-photographs"
    ),
    most: Annotated[int, typer.Option(min=2, help="Number of works that are edited.")] = 300,
) -> None:
    """The second look on photographs: alignment, key points and a descriptor, against the nearest other pictures.

    Example: clearance lab bench photographs --packages packages
    """
    from jobs.lab.bench.photographs import bench

    bench(out, packages=packages, work=work, quick=quick, most=most)


@app.command()
def ray(out: Out = DOCS, quick: Quick = False) -> None:
    """Measure Ray: two workers against one, what Ray adds to the work, the start, and Ray Data beside warm workers; 5 minutes.

    Example: clearance lab bench ray --quick
    """
    from jobs.lab.bench.ray_runs import bench

    bench(out, quick=quick)


@app.command()
def memory(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[Path, typer.Option(help="The run and its readings; made anew every time.")] = Path("bench-memory"),
    samples: Annotated[int, typer.Option(min=0, help="Number of samples; 0 means 10,000.")] = 0,
    minutes: Annotated[float, typer.Option(min=0, help="Stop after so many minutes; what was read until then counts.")] = 600.0,
) -> None:
    """Measure whether a worker's memory grows: one process, the default policy, 10,000 samples; an hour or two.

    Example: clearance lab bench memory --quick
    """
    from jobs.lab.bench.memory import bench

    bench(out, work=work, quick=quick, samples=samples, minutes=minutes)


@app.command()
def faithfulness(
    out: Out = DOCS,
    quick: Quick = False,
    work: Annotated[Path, typer.Option(help="Finished seeds are kept here; a stopped bench goes on.")] = Path(
        "bench-faithfulness"
    ),
) -> None:
    """How well the guard of faithfulness tells steered pictures that lost their caption from those that kept it; 15 minutes.

    Example: clearance lab bench faithfulness --work bench-faithfulness
    """
    from jobs.lab.bench.faithfulness import bench

    bench(out, quick=quick, work=work)
