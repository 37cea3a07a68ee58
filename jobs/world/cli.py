"""``clearance world …``: rebuild the embedded world from packages. Nobody needs this to run Clearance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Rebuild and retrain the embedded world (needs the extra 'world' and npm).")
Work = Annotated[Path, typer.Option(help="Folder for data and checkpoints; never committed.")]
Minutes = Annotated[float, typer.Option(help="Training budget in minutes; a stopped training resumes.")]
Device = Annotated[str, typer.Option(help="Where to train: cpu or cuda.")]
Steps = Annotated[int, typer.Option(help="Train so many steps instead of a time budget.")]
Target = Annotated[Path, typer.Option(help="Folder that ships.")]


@app.command()
def data(work: Work = Path("world")) -> None:
    """Fetch the icon packages, render every drawing, train the tokenizer.

    Example: clearance world data --work world
    """
    from jobs.world.pictures import build, load
    from jobs.world.tokenizer import make_tokenizer

    manifest = build(work)
    make_tokenizer(work / "tokenizer", sorted(set(load(work)[2])))
    print(f"{manifest['pictures']} pictures, sha256 {manifest['pixels_sha256']}, in {work}")


@app.command()
def vae(work: Work = Path("world"), minutes: Minutes = 20, device: Device = "cpu") -> None:
    """Train the autoencoder.

    Example: clearance world vae --work world --minutes 20
    """
    from jobs.world.train_vae import train

    train(work, minutes=minutes, device=device)


@app.command()
def denoiser(
    work: Work = Path("world"),
    minutes: Minutes = 90,
    device: Device = "cpu",
    steps: Steps = 0,
    rate: Annotated[float, typer.Option(help="Learning rate after the warm-up.")] = 5e-4,
    begin_from: Annotated[Path | None, typer.Option(help="Begin with the weights of this diffusers folder.")] = None,
) -> None:
    """Train the denoiser and its text encoder, from the start or further.

    Example: clearance world denoiser --work world --minutes 90
    Example: clearance world denoiser --work world --minutes 3000 --begin-from pipeline/weights/stickers/model
    """
    from jobs.world.train_denoiser import train

    train(work, minutes=minutes, device=device, steps=steps or None, rate=rate, begin_from=begin_from)


@app.command()
def embedder(
    work: Work = Path("world"),
    minutes: Minutes = 100,
    device: Device = "cpu",
    compiled: Annotated[bool, typer.Option("--compiled", help="Through torch.compile: faster, needs a C++ compiler.")] = False,
) -> None:
    """Train the OpenCLIP-format embedder (captions and copies).

    Example: clearance world embedder --work world --minutes 100 --compiled
    """
    from jobs.world.train_embedder import train

    train(work, minutes=minutes, device=device, compiled=compiled)


@app.command()
def calibrate(work: Work = Path("world"), target: Target = Path("pipeline/weights/stickers")) -> None:
    """Write the trained embedder as it ships, and the operating point of the copy check on it.

    Example: clearance world calibrate --work world
    """
    import json

    from jobs.world.calibrate_copies import calibrate_world
    from jobs.world.pack import write_digests
    from jobs.world.ship_embedder import export

    export(work, target / "embedder")
    print(json.dumps(calibrate_world(work, target / "embedder", target / "calibration.json"), indent=1))
    write_digests(target)


@app.command()
def marks(
    work: Work = Path("world"),
    minutes: Minutes = 30,
    steps: Steps = 0,
    target: Target = Path("pipeline/weights/stickers/marks"),
) -> None:
    """Train the mark detector, measure it and write it with its card and operating points.

    Example: clearance world marks --work world --minutes 30
    """
    from jobs.world.train_marks import export, train

    train(work, minutes=minutes, steps=steps or None)
    export(work, target)


@app.command()
def yolo(
    work: Work = Path("world"),
    minutes: Minutes = 40,
    steps: Steps = 0,
    target: Target = Path("pipeline/weights/stickers/yolo"),
) -> None:
    """Train the YOLO mark detector (needs the extra 'yolo'; what it writes is AGPL-3.0), measure it, write it.

    Example: clearance world yolo --work world --minutes 40
    """
    from jobs.world.train_yolo import export, train

    train(work, minutes=minutes, steps=steps or None)
    export(work, target)


@app.command()
def head(
    work: Work = Path("world"),
    minutes: Minutes = 10,
    steps: Steps = 0,
    flights: Annotated[int, typer.Option(help="Samples to draw to the end and learn from.")] = 384,
    drawings: Annotated[int, typer.Option(help="Drawings to noise and denoise once.")] = 3072,
    target: Target = Path("pipeline/weights/stickers"),
) -> None:
    """Train the latent head of early detection, calibrate its thresholds, write both with their card.

    Example: clearance world head --work world --minutes 10
    """
    from rich.progress import track

    from index.embed import OpenCLIPEmbedder
    from jobs.world.calibrate_head import calibrate_head, write_card
    from jobs.world.head_data import collect_drawings, collect_flights
    from jobs.world.pack import write_digests
    from jobs.world.train_head import export, train
    from pipeline.config import ModelConfig
    from pipeline.model.families import load_model

    model, embedder = load_model(ModelConfig()), OpenCLIPEmbedder.open("stickers")
    for told, files, count in (
        ("drawing flights", collect_flights(work, model, embedder, flights), -(-flights // 32)),
        ("denoising drawings", collect_drawings(work, model, embedder, drawings), -(-drawings // 512)),
    ):
        for _ in track(files, told, total=count):
            pass
    train(work, minutes=minutes, steps=steps or None)
    export(work, target / "head")
    write_digests(target)  # what is opened below is checked against them
    calibrate_head(work, target / "head")
    write_card(target / "head")
    write_digests(target)


@app.command()
def judges(work: Work = Path("world"), target: Target = Path("pipeline/weights/stickers/judges")) -> None:
    """Fit the judges that the benches ask (needs the extra 'bench').

    Example: clearance world judges --work world
    """
    from jobs.judges.train import make

    make(work, target)
    print(f"wrote {target}")


@app.command()
def pack(work: Work = Path("world"), target: Target = Path("pipeline/weights/stickers")) -> None:
    """Write what is shipped: diffusers folder, reference drawings, manifest, digests.

    Example: clearance world pack --work world
    """
    from jobs.world.pack import pack as write

    write(work, target)
    print(f"wrote {target}")
