"""``clearance world …``: rebuild the embedded world from packages. Nobody needs this to run Clearance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Rebuild and retrain the embedded world (needs the extra 'world' and npm).")
Work = Annotated[Path, typer.Option(help="Folder for data and checkpoints; never committed.")]
Minutes = Annotated[float, typer.Option(help="Training budget in minutes; a stopped training resumes.")]
Device = Annotated[str, typer.Option(help="Where to train: cpu or cuda.")]
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
    steps: Annotated[int, typer.Option(help="Train so many steps instead of a time budget.")] = 0,
) -> None:
    """Train the denoiser and its text encoder.

    Example: clearance world denoiser --work world --minutes 90
    """
    from jobs.world.train_denoiser import train

    train(work, minutes=minutes, device=device, steps=steps or None)


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
def marks(work: Work = Path("world"), minutes: Minutes = 12, target: Target = Path("pipeline/weights/stickers/marks")) -> None:
    """Train the mark detector and write it with its operating points.

    Example: clearance world marks --work world --minutes 12
    """
    from jobs.world.train_marks import export, train

    export(work, target, training=train(work, minutes=minutes))


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
