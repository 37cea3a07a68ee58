"""``clearance erase …``: sets with known marks, and adapters that keep a model from drawing them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from index.errors import ConfigError, InputError
from jobs.cli.arguments import AsJson, a_local_path
from jobs.console import busy, draws, grid, make_console, say, say_json, volume
from jobs.group import group

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guards.base import Guard
    from jobs.erase.captioned import Captioned
    from pipeline.config import ModelConfig

DRAWN = "drawn:"
app = group("Erasers, which keep a model from drawing marks (extra 'erase').")
Seed = Annotated[int, typer.Option(help="Seed of everything drawn at random.")]
Device = Annotated[str, typer.Option(help="Where to train: cpu or cuda.")]


@app.command(epilog="Example: clearance erase dataset photographs/ --out marked.parquet --ratio 0.6")
def dataset(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            help="Captioned pictures: a folder, a Parquet file, a WebDataset .tar, or drawn:PROMPTS, what the model itself "
            "makes of a prompt file.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.", parser=a_local_path)],
    kinds: Annotated[str, typer.Option(help="Marks to put on, with commas between.")] = "watermark,qr,text",
    ratio: Annotated[
        float | None, typer.Option(help="Share of the pictures that get a mark; default 0.5, and 0 for drawn: sources.")
    ] = None,
    opacity: Annotated[str, typer.Option(help="Factor on the design's opacity: a number, or LOW-HIGH.")] = "1",
    place: Annotated[Literal["own", "corner", "centre", "anywhere"], typer.Option(help="Where marks stand.")] = "own",
    designs: Annotated[Literal["train", "held-out", "varied"], typer.Option(help="Which designs of marks.")] = "train",
    detector: Annotated[
        Literal["marks", "yolo", "codes", "text", "none"],
        typer.Option(help="The detector that finds the marks; training uses its findings alone."),
    ] = "marks",
    threshold: Annotated[float, typer.Option(help="Threshold of the detector.")] = 0.5,
    boxes: Annotated[bool, typer.Option("--boxes/--no-boxes", help="Keep its boxes, or only the kinds it found.")] = True,
    variants: Annotated[int, typer.Option(min=1, help="Pictures of every prompt, for drawn: sources.")] = 24,
    model: Annotated[str, typer.Option(help='The model of drawn: sources: "stickers" or a diffusers folder.')] = "stickers",
    device: Annotated[str, typer.Option(help="Where to draw: cpu or cuda.")] = "cpu",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Put marks on clean captioned pictures, and write down where they are and where a detector sees them."""
    from jobs.erase.dataset import build
    from jobs.erase.pollute import Pollution
    from pipeline.config import ModelConfig

    low, _, high = opacity.partition("-")
    try:
        span = (float(low), float(high or low))
    except ValueError:
        raise ConfigError(f"{opacity!r} is no number and no LOW-HIGH", where="--opacity", fix="Write 0.6 or 0.4-1") from None
    if ratio is None:
        ratio = 0.0 if source.startswith(DRAWN) else 0.5
    how = Pollution(
        kinds=tuple(kind.strip() for kind in kinds.split(",") if kind.strip()),
        ratio=ratio,
        opacity=span,
        place=place,
        designs=designs,
    )
    with busy("polluting"):
        pictures = _source(source, variants, seed, ModelConfig(path=model, device=device))
        found = build(pictures, out, how, _open_detector(detector, threshold), seed=seed, boxes=boxes)
    _print(found, out, as_json=as_json)


@app.command(epilog="Example: clearance erase train marked.parquet --out eraser --removal model")
def train(
    dataset: Annotated[
        Path, typer.Argument(metavar="SET", help="A set written by erase dataset.", show_default=False, parser=a_local_path)
    ],
    out: Annotated[
        Path, typer.Option(help="The adapter's folder; an interrupted training continues in it.", parser=a_local_path)
    ],
    removal: Annotated[
        Literal["model", "data"],
        typer.Option(help="model: the base model draws marks; data: the set is to be learned without its marks."),
    ] = "model",
    concepts: Annotated[
        str, typer.Option(help="Marks to be named, with commas between; empty: plain fine-tuning.")
    ] = "watermark,qr,text",
    tokens: Annotated[
        Literal["corners", "bins", "none"] | None,
        typer.Option(help="How tokens name places; none: no places.", show_default="corners, where tokens are trained"),
    ] = None,
    cells: Annotated[int, typer.Option("--grid", min=1, help="Bins along each side.")] = 4,
    a: Annotated[
        float, typer.Option("--a", help="Loss weight outside marks, in units of that inside; 1: no re-weighting.")
    ] = 0.5,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 600,
    batch: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 32,
    rank: Annotated[
        int | None,
        typer.Option(
            min=0, help="Rank of the low-rank weights; 0: tokens alone.", show_default="16; with --tokens 0 for model removal"
        ),
    ] = None,
    alone: Annotated[
        float, typer.Option(min=0, max=1, help="Share of marked pictures whose tokens are learned without the caption.")
    ] = 0.6,
    hide: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            show_default="0 where --tokens or --rank 0 is given, else 1",
            help="Share of marked pictures learned without tokens and without loss where the marks are; 1: no tokens.",
        ),
    ] = None,
    around: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the picture's side hidden around a mark; raise it for rough boxes.")
    ] = 1 / 16,
    token_rate: Annotated[float, typer.Option(help="Learning rate of the tokens.")] = 5e-3,
    lowrank_rate: Annotated[float, typer.Option(help="Learning rate of the low-rank weights.")] = 1e-3,
    model: Annotated[str, typer.Option(help='The base model: "stickers" or a diffusers folder.')] = "stickers",
    device: Device = "cpu",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train an eraser (Geom-Erasing) and write it as an adapter; called again after a stop, it continues."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from jobs.erase.dataset import PollutedSet
    from jobs.erase.save import save_adapter
    from jobs.erase.train import Training
    from jobs.erase.train import train as run
    from pipeline.config import ModelConfig
    from pipeline.model.folder.digest import folder_digest
    from pipeline.model.folder.resolve import resolve
    from pipeline.steer.erase_adapter import SETTINGS

    if (out / SETTINGS).exists():
        raise InputError("holds a finished adapter", where=str(out), fix="Name another folder with --out")
    names = tuple(name.strip() for name in concepts.split(",") if name.strip())
    hidden = float(bool(names) and tokens is None and rank != 0) if hide is None else hide
    if rank is None:
        rank = 0 if removal == "model" and not hidden else 16
    if hidden == 1 and tokens is not None:
        raise ConfigError("where all marks are hidden there are no tokens", where="--tokens", fix="Leave it out, or --hide 0")
    how = Training(
        removal=removal,
        concepts=names,
        mode=tokens or "corners",
        grid=cells,
        a=a,
        steps=steps,
        batch=batch,
        token_rate=token_rate,
        lowrank_rate=lowrank_rate,
        rank=rank,
        alone=alone,
        hidden=hidden,
        around=around,
        seed=seed,
    )
    rows = PollutedSet(dataset)
    config = ModelConfig(path=model, device=device)
    console = make_console(stderr=True)
    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.completed}/{task.total} · loss {task.fields[loss]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not draws(console)) as bar:
        task = bar.add_task("training", total=steps, loss="…")

        def told(step: int, loss: float) -> None:
            bar.update(task, completed=step, loss=f"{loss:.4f}")
            if not draws(console) and volume() != "quiet" and (step % 50 == 0 or step == steps):
                console.print(f"step {step} of {steps}, loss {loss:.4f}", highlight=False)

        try:
            trained = run(rows, config, how, out, progress=told)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"The same command continues in {out}") from None
    said = save_adapter(
        out, trained, how, rows, base=model, base_digest=folder_digest(resolve(config)), dataset=_known(dataset)
    )  # fmt: skip
    summary = {"removal": removal, **(said["vocabulary"] or {}), "minutes": said["training"]["minutes"], **said["files"]}
    _print(summary, out, as_json=as_json)


def _known(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    return json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}


def _source(source: str, variants: int, seed: int, model: ModelConfig) -> Iterable[Captioned]:
    from jobs.erase.captioned import read_source
    from jobs.erase.drawn import drawn_source
    from pipeline.config import GenerationConfig

    if source.startswith(DRAWN):
        return drawn_source(Path(source.removeprefix(DRAWN)), model, GenerationConfig(), pictures=variants, seed=seed)
    return read_source(Path(source))


def _open_detector(name: str, threshold: float) -> Guard | None:
    if name == "none":
        return None
    from guards.registry import open_guards
    from pipeline.guard_settings import GuardPolicy

    return open_guards({name: GuardPolicy(threshold=threshold)})[0][0]


def _print(values: dict[str, Any], out: Path, *, as_json: bool) -> None:
    if as_json:
        say_json({"out": str(out), **values})
        return
    table = grid()
    for name, value in values.items():
        table.add_row(name, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value))
    make_console().print(table)
    say(f"wrote {out}")
