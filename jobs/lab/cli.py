"""``clearance lab …``: the embedded world, the benches and the judges. Nothing of the product imports it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from jobs.group import group
from jobs.lab.bench.cli import app as bench_app
from jobs.lab.world.cli import app as world_app

app = group("The laboratory: rebuild the embedded world, fit the judges, run the benches behind the documents (extra 'lab').")
app.add_typer(world_app, name="world")
app.add_typer(bench_app, name="bench")
judges_app = group("Independent judges of generated pictures.")
app.add_typer(judges_app, name="judges")


@judges_app.callback()
def root() -> None:
    pass


@judges_app.command()
def fit(
    work: Annotated[Path, typer.Option(help="The built world.")] = Path("world"),
    target: Annotated[Path, typer.Option(help="Folder that ships.")] = Path("pipeline/weights/stickers/judges"),
    share: Annotated[float, typer.Option(min=0, help="Share of the examples and of the time that what ships took.")] = 1.0,
) -> None:
    """Fit the judges that the benches ask.

    Example: clearance lab judges fit --work world
    Example: clearance lab judges fit --work trial --target trial/judges --share 0.01
    """
    from jobs.lab.judges.train import make
    from jobs.lab.world.pack import note_part

    make(work, target, share=share)
    note_part(target)
    print(f"wrote {target}")


@app.command()
def rebuild(
    work: Annotated[Path, typer.Option(help="Folder for data and checkpoints; never committed.")] = Path("world"),
    share: Annotated[float, typer.Option(min=0, help="Share of the time that the trainings of what ships took.")] = 1.0,
    device: Annotated[str, typer.Option(help="Where to train: cpu or cuda.")] = "cpu",
) -> None:
    """Rebuild the embedded world in this checkout, stage by stage: data, networks, files, thresholds, judges; resumes.

    At full share this takes about a day of two processor cores; nearly all of it is the denoiser's. At a small share the last
    stage, the latent head, may end with an error: a denoiser that learned little copies nothing that the head could learn from.

    Example: clearance lab rebuild --work world
    Example: clearance lab rebuild --work trial --share 0.01
    """
    from jobs.console import say
    from jobs.lab.world import cli as world

    stages: dict[str, Callable[[], object]] = {
        "data": lambda: world.data(work),
        "autoencoder": lambda: world.vae(work, minutes=20 * share, device=device),
        "denoiser": lambda: world.denoiser(work, minutes=1150 * share, device=device),
        "embedder": lambda: world.embedder(work, minutes=100 * share, device=device),
        "calibration": lambda: world.calibrate(work),
        "files": lambda: world.pack(work),
        "mark detector": lambda: world.marks(work, minutes=75 * share, examples=max(2_000, round(60_000 * share))),
        "judges": lambda: fit(work, share=share),
        "latent head": lambda: world.head(work, steps=max(100, round(3200 * share)), flights=max(128, round(768 * share))),
    }
    for number, (name, stage) in enumerate(stages.items(), 1):
        say(f"{number} of {len(stages)}: {name}")
        stage()
    say("the erasers are trained and measured by: clearance lab bench erase --train --ship")
