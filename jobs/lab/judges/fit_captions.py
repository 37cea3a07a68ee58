"""Fit the caption judge on many views of every vendor's drawings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jobs.lab.judges.own_marks import KINDS, litter, stamp

BLENDED = 0.2  # of the views: between two vendors' drawings, as a denoiser trained on both may draw
SMEARED = 0.5  # of the rest: once through the autoencoder


def world_rows(names: list[str]) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Rows of the world's drawings, the concept of each, and the concepts' names."""
    from jobs.lab.world.catalogue import concepts

    world = concepts()
    place = {c.icon: k for k, c in enumerate(world)}
    rows = np.array([i for i, name in enumerate(names) if name in place])
    return rows, np.array([place[names[i]] for i in rows]), tuple(c.name for c in world)


def views(
    work: Path, rows: np.ndarray, concept: np.ndarray, *, each: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smeared, blended, edited and marked views of drawings.

    Args:
        work: the world's folder, with ``pictures.npz`` and ``vae``.
        rows, concept: the drawings, and the concept of each.
        each: views per drawing.

    Returns:
        pictures uint8 (M, S, S, 3), concept (M,), rows of the two drawings of each view (M, 2), equal unless it is a blend.
    """
    from index.edits import foregrounds
    from jobs.lab.judges.smears import blend, smear
    from jobs.lab.world.copies import edit
    from jobs.lab.world.pictures import load

    rng = np.random.default_rng(seed)
    pixels = load(work)[0]
    inside = dict(zip(rows.tolist(), foregrounds(pixels[rows]), strict=True))
    chosen = np.repeat(rows, each)
    shown = np.repeat(concept, each)
    start = pixels[chosen].copy()
    kind = rng.random(len(chosen))
    mixed, softened = kind < BLENDED, (kind >= BLENDED) & (kind < BLENDED + (1 - BLENDED) * SMEARED)
    partner = np.array([rng.choice(rows[concept == c]) for c in shown[mixed]], int)
    start[mixed] = blend(work, pixels[chosen[mixed]], pixels[partner], rng)
    start[softened] = smear(work, start[softened], rng)
    out = np.empty_like(start)
    for at, (row, picture) in enumerate(zip(chosen.tolist(), start, strict=True)):
        if rng.random() < 0.2:
            picture = stamp(picture, str(rng.choice(KINDS)), rng) if rng.random() < 0.7 else litter(picture, rng)
        out[at] = edit(picture, inside[row], rng) if rng.random() < 0.75 else picture
    sources = np.stack([chosen, chosen], 1)
    sources[mixed, 1] = partner
    return out, shown, sources


def fit(vectors: np.ndarray, concept: np.ndarray, count: int, *, epochs: int = 25, seed: int = 0) -> tuple[Any, Any]:
    """Multinomial logistic regression by Adam, with dropout on the inputs; weight (count, D) and bias (count,).

    The inputs are standardised for the fit; the returned weights apply to unstandardised inputs.
    """
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(vectors), torch.from_numpy(concept)
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-3)
    x = (x - mean) / scale
    weight = torch.zeros(count, x.shape[1], requires_grad=True)
    bias = torch.zeros(count, requires_grad=True)
    optimiser = torch.optim.AdamW([{"params": [weight], "weight_decay": 0.3}, {"params": [bias], "weight_decay": 0.0}], lr=1e-3)
    batch = 256
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(epochs):
        for some in torch.randperm(len(x), generator=generator).split(batch):
            kept = (torch.rand(len(some), x.shape[1], generator=generator) > 0.3) / 0.7
            loss = functional.cross_entropy(functional.linear(x[some] * kept, weight, bias), y[some], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        plain = weight / scale
        return plain, bias - plain @ mean


def top(vectors: np.ndarray, concept: np.ndarray, weight: Any, bias: Any, k: int) -> np.ndarray:
    """Whether each vector's concept is among the ``k`` likeliest: bool (M,)."""
    import torch

    with torch.no_grad():
        logits = torch.from_numpy(vectors) @ weight.T + bias
    found: np.ndarray = (logits.topk(k, 1).indices.numpy() == concept[:, None]).any(1)
    return found
