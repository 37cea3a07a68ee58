"""``clearance lab world …``: rebuild the embedded world from packages. Running Clearance does not need it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.group import group

app = group("Rebuild and retrain the embedded world (extra 'lab', and npm).")
Work = Annotated[Path, typer.Option(help="Folder for data and checkpoints; never committed.")]
Minutes = Annotated[float, typer.Option(help="Training budget in minutes; a stopped training resumes.")]
Device = Annotated[str, typer.Option(help="Where to train: cpu or cuda.")]
Steps = Annotated[int, typer.Option(help="Train so many steps instead of a time budget.")]
Target = Annotated[Path, typer.Option(help="Folder that ships.")]


@app.command()
def data(work: Work = Path("world")) -> None:
    """Fetch the icon packages, render every drawing, train the tokenizer.

    Example: clearance lab world data --work world
    """
    from jobs.lab.world.pictures import build, load
    from jobs.lab.world.tokenizer import make_tokenizer

    manifest = build(work)
    make_tokenizer(work / "tokenizer", sorted(set(load(work)[2])))
    print(f"{manifest['pictures']} pictures, sha256 {manifest['pixels_sha256']}, in {work}")


@app.command()
def vae(work: Work = Path("world"), minutes: Minutes = 20, device: Device = "cpu") -> None:
    """Train the autoencoder.

    Example: clearance lab world vae --work world --minutes 20
    """
    from jobs.lab.world.train_vae import train

    train(work, minutes=minutes, device=device)


@app.command()
def denoiser(
    work: Work = Path("world"),
    minutes: Minutes = 90,
    device: Device = "cpu",
    steps: Steps = 0,
    rate: Annotated[float, typer.Option(help="Learning rate after the warm-up.")] = 5e-4,
    begin_from: Annotated[Path | None, typer.Option(help="Begin with the weights of this diffusers folder.")] = None,
    mean: Annotated[Path | None, typer.Option(help="Continue from a mean that `lab world keep` wrote.")] = None,
) -> None:
    """Train the denoiser and its text encoder, from the start or further.

    Example: clearance lab world denoiser --work world --minutes 90
    Example: clearance lab world denoiser --work world --minutes 3000 --begin-from pipeline/weights/stickers/model
    """
    from jobs.lab.world.train_denoiser import train

    train(work, minutes=minutes, device=device, steps=steps or None, rate=rate, begin_from=begin_from, mean=mean)


@app.command()
def keep(
    work: Work = Path("world"),
    file: Annotated[Path, typer.Option(help="The file to write.")] = Path("mean.safetensors"),
) -> None:
    """Save the mean of a training under way, at half the size of its weights, so that another machine can continue.

    Example: clearance lab world keep --work world
    """
    from jobs.lab.world.kept_mean import keep_mean

    print(f"wrote {file}, after {keep_mean(work, file):,} samples")


@app.command()
def embedder(
    work: Work = Path("world"),
    minutes: Minutes = 100,
    device: Device = "cpu",
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Train through torch.compile: faster, needs a C++ compiler.")
    ] = False,
) -> None:
    """Train the OpenCLIP-format embedder (captions and copies).

    Example: clearance lab world embedder --work world --minutes 100 --compiled
    """
    from jobs.lab.world.train_embedder import train

    train(work, minutes=minutes, device=device, compiled=compiled)


@app.command()
def calibrate(work: Work = Path("world"), target: Target = Path("pipeline/weights/stickers")) -> None:
    """Write the trained embedder for shipping, and calibrate the copy check on it.

    Example: clearance lab world calibrate --work world
    """
    import json

    from jobs.lab.world.calibrate_copies import calibrate_world
    from jobs.lab.world.pack import write_digests
    from jobs.lab.world.ship_embedder import export

    export(work, target / "embedder")
    print(json.dumps(calibrate_world(work, target / "embedder", target / "calibration.json"), indent=1))
    write_digests(target)


@app.command()
def marks(
    work: Work = Path("world"),
    minutes: Minutes = 75,
    steps: Steps = 0,
    examples: Annotated[int, typer.Option(min=64, help="Marked and clean drawings to learn from.")] = 60_000,
    target: Target = Path("pipeline/weights/stickers/marks"),
) -> None:
    """Train the mark detector, measure it and write it with its card and operating points.

    Example: clearance lab world marks --work world
    Example: clearance lab world marks --work world --steps 10617
    """
    from jobs.lab.world.pack import note_part
    from jobs.lab.world.train_marks import export, train

    train(work, minutes=minutes, steps=steps or None, examples=examples)
    export(work, target)
    note_part(target)


@app.command()
def yolo(
    work: Work = Path("world"),
    minutes: Minutes = 83,
    steps: Steps = 0,
    target: Target = Path("pipeline/weights/stickers/yolo"),
) -> None:
    """Train the YOLO mark detector (needs the extra 'yolo'; what it writes is AGPL-3.0), measure it, write it.

    Example: clearance lab world yolo --work world
    """
    from jobs.lab.world.pack import note_part
    from jobs.lab.world.train_yolo import export, train

    train(work, minutes=minutes, steps=steps or None)
    export(work, target)
    note_part(target)


@app.command()
def head(
    work: Work = Path("world"),
    minutes: Minutes = 10,
    steps: Steps = 0,
    flights: Annotated[int, typer.Option(help="Number of samples to draw to the end and learn from.")] = 384,
    drawings: Annotated[int, typer.Option(help="Number of drawings to noise and denoise once.")] = 3072,
    target: Target = Path("pipeline/weights/stickers"),
) -> None:
    """Train the latent head of early detection, calibrate its thresholds, write both with their card.

    Example: clearance lab world head --work world --minutes 10
    """
    from rich.progress import track

    from index.embed import OpenCLIPEmbedder
    from jobs.lab.world.calibrate_head import calibrate_head, write_card
    from jobs.lab.world.head_data import collect_drawings, collect_flights
    from jobs.lab.world.pack import write_digests
    from jobs.lab.world.train_head import export, train
    from pipeline.config import ModelConfig
    from pipeline.model.load import load_model

    model, embedder = load_model(ModelConfig()), OpenCLIPEmbedder.open("stickers")
    for label, files, count in (
        ("drawing flights", collect_flights(work, model, embedder, flights), -(-flights // 32)),
        ("denoising drawings", collect_drawings(work, model, embedder, drawings), -(-drawings // 512)),
    ):
        for _ in track(files, label, total=count):
            pass
    train(work, minutes=minutes, steps=steps or None)
    export(work, target / "head")
    write_digests(target)  # the files opened below are checked against them
    calibrate_head(work, target / "head")
    write_card(target / "head")
    write_digests(target)


@app.command()
def pack(work: Work = Path("world"), target: Target = Path("pipeline/weights/stickers")) -> None:
    """Write the files that ship: diffusers folder, reference drawings, manifest, digests.

    Example: clearance lab world pack --work world
    """
    from jobs.lab.world.pack import pack as write

    write(work, target)
    print(f"wrote {target}")


@app.command()
def polluted(
    part: Annotated[
        Literal["marked", "new"],
        typer.Argument(help="marked: the subjects that the world learned with marks; new: subjects it has never seen."),
    ],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    work: Work = Path("world"),
    ratio: Annotated[float, typer.Option(min=0, max=1, help="Share of the pictures that get a mark.")] = 0.5,
    variants: Annotated[int, typer.Option(min=1, help="Number of versions of every drawing.")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
) -> None:
    """Write a set of the world's drawings, some with marks, that `clearance erase train` learns from.

    Example: clearance lab world polluted new --work world --out marked.parquet --ratio 0.6
    """
    import numpy as np

    from guards.marks import MarksGuard
    from jobs.erase.dataset import build
    from jobs.erase.pollute import Pollution
    from jobs.lab.world.drawings import world_source

    drawings = world_source(work, part, np.random.default_rng([seed, 1 if part == "marked" else 2]), variants=variants)
    found = build(drawings, out, Pollution(ratio=ratio), MarksGuard("stickers", 0.5), seed=seed, boxes=True)
    print(f"wrote {out}: {found}")
