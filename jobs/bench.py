"""``clearance bench …``: the numbers behind README and cards, with intervals, as a table and as JSON.

Goals are the issues' own and never follow the result; a bar that is missed says so.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np

    from pipeline.engine import Engine, Trajectory
    from pipeline.studio import Studio

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure; prints tables and writes JSON.")
Out = Annotated[Path, typer.Option(help="Folder for NAME.json and pictures.")]
Quick = Annotated[bool, typer.Option("--quick", help="A small version; its numbers are not quoted.")]
DOCS = Path("infra/docs/bench")


@dataclass(frozen=True)
class Measure:
    """One number: value with a 95 % interval, n, and the goal it is held against."""

    id: str
    value: float
    low: float
    high: float
    n: int
    goal: float | None = None
    better: str = "higher"

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value >= self.goal if self.better == "higher" else self.value <= self.goal


def share(name: str, count: int, n: int, goal: float | None = None, better: str = "higher") -> Measure:
    """A rate with Wilson's interval."""
    from pipeline.audit.numbers import wilson

    low, high = wilson(count, n)
    return Measure(name, count / n, low, high, n, goal, better)


def spread(name: str, values: Sequence[float], goal: float | None = None, better: str = "higher") -> Measure:
    """The median of repeated measurements, with their range as the interval."""
    ordered = sorted(values)
    return Measure(name, ordered[len(ordered) // 2], ordered[0], ordered[-1], len(ordered), goal, better)


def publish(name: str, measures: Sequence[Measure], out: Path, *, seeds: Sequence[int], quick: bool) -> None:
    """Print the table and write ``out/name.json`` (``name-quick.json`` for a quick run)."""
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "value", "95 % interval", "n", "goal", "met", title=f"bench {name}{' (quick)' if quick else ''}")
    for m in measures:
        goal = "" if m.goal is None else f"{'≥' if m.better == 'higher' else '≤'} {m.goal:g}"
        table.add_row(
            m.id, f"{m.value:.3f}", f"{m.low:.3f} – {m.high:.3f}", str(m.n), goal, {None: "", True: "yes", False: "no"}[m.met]
        )
    Console().print(table)
    out.mkdir(parents=True, exist_ok=True)
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    body = {
        "bench": name,
        "commit": found.stdout.strip(),
        "device": "cpu",
        "seeds": list(seeds),
        "measures": [asdict(m) | {"met": m.met} for m in measures],
    }
    (out / f"{name}{'-quick' if quick else ''}.json").write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


@app.command()
def world(out: Out = DOCS, quick: Quick = False) -> None:
    """How good and how sinful the embedded world is, and what the default policy makes of it; writes a contact sheet.

    Example: clearance bench world
    """
    import tempfile

    import numpy as np

    from jobs.world.catalogue import MARK_PRONE, ORDINARY, PROTECTED
    from pipeline.outcome import Outcome, Request

    seeds = (1,) if quick else (1, 2, 3)
    protected, ordinary = (list(PROTECTED[:6]), list(ORDINARY[:4])) if quick else (list(PROTECTED), list(ORDINARY))
    prone = [name for names in MARK_PRONE.values() for name in names][: 4 if quick else None]

    def requests(names: Sequence[str]) -> list[Request]:
        return [
            Request(i, f"{name}#{seed}", name.replace("-", " "), seed=1000 * seed + i)
            for seed in seeds
            for i, name in enumerate(names)
        ]

    with tempfile.TemporaryDirectory() as folder:
        free, strict = (open_studio(Path(folder), policy) for policy in ("observe", "default"))
        drawn = {
            kind: sorted(free.moderate(requests(names)), key=lambda s: s.request.row_no)
            for kind, names in {"protected": protected, "ordinary": ordinary, "prone": prone}.items()
        }
        cleared = list(strict.moderate(requests(protected)))

    def copied(samples: Sequence[Any]) -> int:
        return sum(any(f.guard == "copies" and f.triggered for f in s.attempts[-1].findings) for s in samples)

    def marked(samples: Sequence[Any], guard: str) -> list[bool]:
        return [any(f.guard == guard and f.triggered for f in s.attempts[-1].findings) for s in samples]

    unprotected = [*drawn["ordinary"], *drawn["prone"]]
    by_network = marked(unprotected, "marks")
    by_reading = [a or b for a, b in zip(marked(unprotected, "text"), marked(unprotected, "codes"), strict=True)]
    assert free.copies is not None
    captions = sorted({s.request.prompt for group in drawn.values() for s in group})
    texts = free.copies.embedder.texts([f"a {caption}" for caption in captions])
    right = 0
    everything = [s for group in drawn.values() for s in group]
    for sample in everything:
        ranked = np.argsort(-(texts @ sample.attempts[-1].embedding))[:5]
        right += sample.request.prompt in [captions[i] for i in ranked]
    accepted = [s for s in cleared if s.accepted_attempt is not None]
    steered = [s for s in cleared if s.outcome is Outcome.ACCEPTED_AFTER_STEERING]
    kept = 0
    for sample in steered:
        ranked = np.argsort(-(texts @ sample.final.embedding))[:5]  # type: ignore[union-attr]
        kept += sample.request.prompt in [captions[i] for i in ranked]
    measures = [
        share("captions right in the top 5 (pipeline's own embedder)", right, len(everything), 0.80),
        share("protected captions copy, unsteered", copied(drawn["protected"]), len(drawn["protected"]), 0.80),
        share("ordinary captions copy, unsteered", copied(unprotected), len(unprotected), 0.02, "lower"),
        share("ordinary pictures marked (network)", sum(by_network), len(unprotected), 0.15),
        share(
            "ordinary pictures marked (network and OCR or code reader)",
            sum(a and b for a, b in zip(by_network, by_reading, strict=True)),
            len(unprotected),
            0.15,
        ),
        share("protected captions, default policy: accepted", len(accepted), len(cleared), 0.98),
        share("protected captions, default policy: accepted copies", copied(accepted), max(1, len(accepted)), 0.0, "lower"),
        share("steered pictures still right in the top 5", kept, max(1, len(steered)), 0.80),
        spread(
            "denoiser evaluations per accepted protected request",
            [sum(s.denoiser_evals for s in cleared) / max(1, len(accepted))],
        ),
    ]
    publish("world", measures, out, seeds=seeds, quick=quick)
    sheet = contact_sheet(free, drawn["protected"], unprotected, cleared, len(seeds))
    sheet.save(out / f"world{'-quick' if quick else ''}.png", optimize=True)


def open_studio(folder: Path, policy: str) -> Studio:
    """A studio on the embedded world, its index built in ``folder``."""
    from index.collect import read_references
    from index.embed import OpenCLIPEmbedder
    from index.store import ReferenceIndex
    from jobs.plan import read_policy
    from pipeline.config import GenerationConfig, RunConfig
    from pipeline.model.families import STICKERS
    from pipeline.studio import Studio

    if not (folder / "index").exists():
        ReferenceIndex.build(folder / "index", read_references(STICKERS / "references"), OpenCLIPEmbedder.open("stickers"))
    config = RunConfig(prompts="-", index="index", generation=GenerationConfig(threads=2))
    return Studio.open(config, read_policy(policy, folder), base=folder)


def contact_sheet(studio: Studio, protected: Sequence[Any], ordinary: Sequence[Any], cleared: Sequence[Any], seeds: int) -> Any:
    """Reference, unsteered seeds and cleared pictures of protected captions; below, ordinary pictures."""
    import numpy as np
    from PIL import Image

    columns = 3
    captions = list(dict.fromkeys(s.request.prompt for s in protected))[:24]
    assert studio.index is not None
    title = {r.title: r.ref_id for r in studio.index.references()}
    rows: list[list[np.ndarray]] = []
    blank = np.full((64, 64, 3), 255, np.uint8)
    for caption in captions:
        reference = studio.index.picture(title[caption])
        free = [s.attempts[-1].picture for s in protected if s.request.prompt == caption]
        ours = [s.final.picture if s.accepted_attempt is not None else blank for s in cleared if s.request.prompt == caption]
        rows.append([blank if reference is None else reference, *free, *ours])
    strips = [np.concatenate(row, axis=1) for row in rows]
    strips += [np.full_like(strips[0], 255)] * (-len(strips) % columns)
    gap = np.full((64, 24, 3), 255, np.uint8)
    lines = [
        np.concatenate([x for s in strips[i : i + columns] for x in (s, gap)], axis=1) for i in range(0, len(strips), columns)
    ]
    width = lines[0].shape[1]
    plain = [s.attempts[-1].picture for s in ordinary if s.request.key.endswith("#1")]
    per_line = width // 64
    for i in range(0, len(plain), per_line):
        line = np.concatenate(plain[i : i + per_line], axis=1)
        lines.append(np.concatenate([line, np.full((64, width - line.shape[1], 3), 255, np.uint8)], axis=1))
    return Image.fromarray(np.concatenate(lines, axis=0))


@app.command()
def engine(out: Out = DOCS, quick: Quick = False) -> None:
    """Byte-equality of the engine, and its speed against diffusers' own loop on the same weights in the same run.

    Example: clearance bench engine --quick
    """
    import torch

    from index.torchvision_ops import ensure
    from pipeline.config import ModelConfig
    from pipeline.engine import Engine
    from pipeline.model.families import load_model, resolve

    ensure()
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(2)
    samples, rounds, steps = (8, 1, 10) if quick else (16, 3, 20)
    pipe = StableDiffusionPipeline.from_pretrained(resolve(ModelConfig()), safety_checker=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    prompts = [f"a {name}" for name in ("pear", "bear", "cat", "castle", "lion", "pizza", "taxi", "key")]

    def stock() -> None:
        for start in range(0, samples, 8):
            chosen = [prompts[(start + i) % 8] for i in range(8)]
            noise = [torch.Generator().manual_seed(start + i) for i in range(8)]
            pipe(chosen, num_inference_steps=steps, guidance_scale=3.0, generator=noise, output_type="pt")

    measures = []
    for dtype in ("float32", "bfloat16"):
        model = load_model(ModelConfig(dtype=dtype))  # type: ignore[arg-type]

        def make(model: Any = model) -> Engine:
            return Engine(model, rows=16, steps=steps, guidance_scale=3.0)

        def ours(make: Callable[[], Engine] = make, model: Any = model) -> None:
            e = make()
            latents = _run(e, [_trajectory(e, i, prompts[i % 8]) for i in range(samples)])
            model.decode(torch.stack(list(latents.values())))

        ratios = []
        for _ in range(rounds):
            took = []
            for job in (stock, ours):
                began = time.perf_counter()
                job()
                took.append(time.perf_counter() - began)
            ratios.append(took[0] / took[1])
        measures.append(spread(f"pictures per second, engine {dtype} against diffusers' loop in float32", ratios, 2.0))
        alone = {i: _digest(_run(e := make(), [_trajectory(e, i, prompts[i % 8], push=i % 3 == 0)])[i]) for i in range(6)}
        equal = 0
        for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [2, 5, 4, 1, 3, 0]):
            e = make()
            mixed = _run(e, [_trajectory(e, i, prompts[i % 8], push=i % 3 == 0) for i in order])
            equal += sum(_digest(z) == alone[i] for i, z in mixed.items())
        measures.append(share(f"byte-equal to being drawn alone, 3 schedules, {dtype}", equal, 18, 1.0))
    publish("engine", measures, out, seeds=(0,), quick=quick)


def _trajectory(e: Engine, i: int, prompt: str, *, push: bool = False) -> Trajectory:
    import torch

    from pipeline.engine import Trajectory
    from pipeline.steer.negtome import NegToMe

    texts = e.model.encode_prompts([prompt, ""])
    t = Trajectory(i, e.initial_noise(i), 0, texts[0], texts[1])
    if push:
        z = torch.randn(e.model.latent_shape, generator=torch.Generator().manual_seed(900 + i))
        t.push = NegToMe((z,), (z,), texts[1], alpha=0.9, threshold=0.3, until_step=len(e.sampler))
    return t


def _run(e: Engine, trajectories: list[Trajectory]) -> dict[int, Any]:
    for t in trajectories:
        e.submit(t)
    done: dict[int, Any] = {}
    while e.busy:
        done |= {t.tag: t.latent for t in e.step()}
    return done


def _digest(latent: Any) -> str:
    return hashlib.sha256(latent.numpy().tobytes()).hexdigest()
