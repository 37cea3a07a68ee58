"""Training data of the latent head: predicted clean latents (x̂0), each with the embedding of the picture it leads to.

There are two sources. *Flights* are samples that the model draws to the end; the target is the finished picture's embedding, so
that the head learns what an early x̂0 will become. *Drawings* are latents of the world's drawings, noised to the sampler's
levels and denoised in one evaluation, with their caption or without; the target is the drawing's embedding. Protected subjects
that are left out (:func:`jobs.lab.world.flights.subjects`) are in neither. Data is written in chunks: a stopped collection
continues.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.lab.world.flights import KEPT, STEPS, subjects, training_flights, watch
from pipeline.model.conditioning import concatenate

if TYPE_CHECKING:
    from index.embed import Embedder
    from pipeline.model.interface import DiffusionModel

CHUNK = 32
CALIBRATING = 4  # every fourth chunk of flights is left out of training: thresholds are chosen on it


@dataclass(frozen=True)
class Examples:
    """N examples: x̂0 float16 (N, C, h, w), the step of each, target embeddings float32 (N, E)."""

    clean: np.ndarray
    step: np.ndarray
    target: np.ndarray


def collect_flights(work: Path, model: DiffusionModel, embedder: Embedder, count: int, seed: int = 0) -> Iterator[Path]:
    """Draw ``count`` flights into ``work/head/flights-NNN.npz``, 32 a file; yields each file as it is there."""
    folder = _folder(work, model)
    flights = training_flights(count, seed)
    for number, at in enumerate(range(0, count, CHUNK)):
        path = folder / f"flights-{number:03d}.npz"
        if not path.exists():
            part = flights[at : at + CHUNK]
            seen = watch(model, part)
            _save(
                path, clean=seen.clean, text_norms=seen.text_norms, update_norms=seen.update_norms, pictures=seen.pictures,
                embedding=embedder.images(seen.pictures), kind=np.array([f.kind for f in part]),
                caption=np.array([f.caption for f in part]), subject=np.array([f.subject for f in part]),
            )  # fmt: skip
        yield path


def collect_drawings(work: Path, model: DiffusionModel, embedder: Embedder, count: int, seed: int = 0) -> Iterator[Path]:
    """Noise and denoise drawings once into ``work/head/drawings-NNN.npz``, 512 a file.

    Three in four are drawings outside the world's concepts, without a caption; the rest are the world's, with theirs.
    """
    import torch

    from jobs.lab.world.catalogue import concepts
    from jobs.lab.world.pictures import held_out, load
    from pipeline.model.sampling.choose import make_sampler

    folder = _folder(work, model)
    pixels, vendors, names = load(work)
    _, unseen, _ = subjects()
    caption = {c.icon: c.caption for c in concepts()}
    hidden = {c.icon for c in concepts() if c.caption in unseen}
    inside = [i for i, name in enumerate(names) if name in caption and name not in hidden]
    outside = [i for i, name in enumerate(names) if name not in caption and not held_out(name)]
    sampler = make_sampler(model, STEPS)
    protected = {(c.protected_vendor, c.icon) for c in concepts() if c.protected_vendor}
    for number, at in enumerate(range(0, count, 512)):
        path = folder / f"drawings-{number:03d}.npz"
        if not path.exists():
            rng = np.random.default_rng([seed, number])
            size = min(512, count - at)
            captioned = np.arange(size) % 4 == 0
            chosen = [int(rng.choice(inside if c else outside)) for c in captioned]
            # Before a quarter of the steps x̂0 depends on the caption, not yet on this drawing.
            steps = rng.integers(2, KEPT, size)
            clean = np.zeros((size, *model.latent_shape), np.float16)
            for kind in (True, False):
                rows = np.flatnonzero(captioned == kind)
                per_call = 8 if kind else 16
                for start in range(0, len(rows), per_call):
                    some = rows[start : start + per_call]
                    x = model.encode(pixels[[chosen[r] for r in some]])
                    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
                    texts = [caption[names[chosen[r]]] if kind else "" for r in some]
                    clean[some] = _denoised(model, sampler, x, noise, steps[some], texts, guided=kind).numpy()
            memorised = [(vendors[i], names[i]) in protected for i in chosen]
            _save(
                path, clean=clean, step=steps, embedding=embedder.images(pixels[chosen]), captioned=captioned,
                memorised=np.array(memorised),
            )  # fmt: skip
        yield path


def _folder(work: Path, model: DiffusionModel) -> Path:
    """``work/head``, which holds the data of one model.

    Raises:
        WorldError: it holds the data of another model.
    """
    from jobs.lab.world.pictures import WorldError

    folder = work / "head"
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / "model.txt"
    if not any(folder.glob("*.npz")):
        owner.write_text(model.digest + "\n", encoding="utf-8")
    found = owner.read_text(encoding="utf-8").strip() if owner.exists() else "unknown"
    if found != model.digest:
        raise WorldError(f"{folder} holds what another model drew ({found[:12]}, not {model.digest[:12]}); remove it")
    return folder


def examples(work: Path) -> Examples:
    """The training data: drawings, and the flights that are not kept for calibrating."""
    clean, step, target = [], [], []
    for number, path in enumerate(sorted((work / "head").glob("flights-*.npz"))):
        if number % CALIBRATING != CALIBRATING - 1:
            with np.load(path) as data:
                x, e = data["clean"], data["embedding"]
            clean.append(x.reshape(-1, *x.shape[2:]))
            step.append(np.tile(np.arange(x.shape[1]), len(x)))
            target.append(np.repeat(e, x.shape[1], 0))
    for path in sorted((work / "head").glob("drawings-*.npz")):
        with np.load(path) as data:
            x, s, e = data["clean"], data["step"], data["embedding"]
        clean.append(x)
        step.append(s)
        target.append(e)
    return Examples(np.concatenate(clean), np.concatenate(step), np.concatenate(target))


def calibrating(work: Path) -> dict[str, np.ndarray]:
    """The flights kept for calibrating, all columns joined."""
    parts = []
    for number, path in enumerate(sorted((work / "head").glob("flights-*.npz"))):
        if number % CALIBRATING == CALIBRATING - 1:
            with np.load(path) as data:
                parts.append(dict(data))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _denoised(
    model: DiffusionModel,
    sampler: Any,
    x: Any,
    noise: Any,
    steps: np.ndarray,
    texts: list[str],
    *,
    guided: bool,
    scale: float = 3.0,
) -> Any:
    """One evaluation in a call of 16 rows: latents (n, C, h, w) noised to ``steps`` → x̂0 (n, C, h, w)."""
    import torch

    at = torch.from_numpy(steps)
    noisy = sampler.noised(x, noise, at)
    context = model.encode_prompts(texts)
    rows, contexts, stamps = [noisy], [context], [at]
    if guided:
        empty = model.encode_prompts([""])[0].expand(len(context))
        rows, contexts, stamps = [noisy, noisy], [empty, context], [at, at]
    latents, conditionings = torch.cat(rows), concatenate(contexts)
    times = torch.tensor(sampler.timesteps)[torch.cat(stamps)]
    missing = 16 - len(latents)
    if missing:
        latents = torch.cat([latents, torch.zeros(missing, *latents.shape[1:])])
        conditionings = concatenate([conditionings, conditionings[0].zeros().expand(missing)])
        times = torch.cat([times, torch.zeros(missing, dtype=times.dtype)])
    output = model.denoise(latents, times, conditionings, 1.0)
    n = len(x)
    guess = output[:n] + scale * (output[n : 2 * n] - output[:n]) if guided else output[:n]
    return sampler.clean(noisy, guess, at)[0]


def _save(path: Path, **arrays: np.ndarray) -> None:
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, **arrays)  # type: ignore[arg-type]
    temporary.rename(path)
