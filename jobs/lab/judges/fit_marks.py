"""Fit the mark judge on marks of its own design; measure it on the numbered designs, which it was not fitted on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jobs.lab.judges.marks import CELLS, WIDTH, heat, hottest
from jobs.lab.judges.own_marks import KINDS, litter, stamp

MARKED = 0.6  # share of the examples with a mark, a few with two
SHARES = (0.45, 0.22, 0.33)  # of the kinds: watermarks are the hardest
FALSE_ALARMS = 0.015  # share of clean pictures that may reach the operating point, per kind and sort of picture


def examples(work: Path, rows: np.ndarray, count: int, *, seed: int, marked: float = MARKED) -> tuple[np.ndarray, np.ndarray]:
    """Drawings, placed at random, with litter and marks of the judge's own, half of them smeared.

    Returns:
        pictures uint8 (count, 64, 64, 3) and where a mark changed them, bool (count, 3, CELLS, CELLS).
    """
    from PIL import Image

    from jobs.lab.judges.smears import smear
    from jobs.lab.world.pictures import load
    from jobs.lab.world.variants import jitter

    rng = np.random.default_rng(seed)
    pixels = load(work)[0]
    pictures, where = [], np.zeros((count, len(KINDS), CELLS, CELLS), bool)
    for at, row in enumerate(rng.choice(rows, count)):
        picture = pixels[row]
        if rng.random() < 0.6:
            picture = np.asarray(jitter(Image.fromarray(picture), rng))
        if rng.random() < 0.25:
            picture = litter(picture, rng)
        if rng.random() < marked:
            for _ in range(2 if rng.random() < 0.06 else 1):
                kind = int(rng.choice(len(KINDS), p=SHARES))
                after = stamp(picture, KINDS[kind], rng)
                where[at, kind] |= changed(picture, after)
                picture = after
        pictures.append(picture)
    stack = np.stack(pictures)
    chosen = rng.random(count) < 0.55
    stack[chosen] = smear(work, stack[chosen], rng)
    return soften(stack, rng), where


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The places that a mark changed visibly, bool (CELLS, CELLS)."""
    differs = np.abs(before.astype(np.int16) - after.astype(np.int16)).max(2) > 12
    size = before.shape[0] // CELLS
    share: np.ndarray = differs.reshape(CELLS, size, CELLS, size).mean((1, 3))
    return share > 0.12


def soften(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur, lose resolution, change contrast and colours, add noise: each to some of the pictures."""
    import cv2

    out = np.empty_like(pictures)
    for at, picture in enumerate(pictures):
        x: Any = picture.astype(np.float32)
        if rng.random() < 0.35:
            x = cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.3, 0.9)))
        elif rng.random() < 0.25:
            side = x.shape[0]
            small = int(side * rng.uniform(0.55, 0.9))
            x = cv2.resize(
                cv2.resize(x, (small, small), interpolation=cv2.INTER_AREA), (side, side), interpolation=cv2.INTER_CUBIC
            )
        if rng.random() < 0.2:
            x = x[..., rng.permutation(3)]
        x = 255 - (255 - x) * rng.uniform(0.75, 1.1)  # white stays white
        if rng.random() < 0.3:
            x = x + rng.normal(0, rng.uniform(1, 8), x.shape)
        out[at] = np.clip(np.rint(x), 0, 255)
    return out


def fit(
    grids: Any, where: np.ndarray, *, epochs: int, batch: int = 64, seed: int = 0, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Train the head on cached maps; returns its weights.

    Args:
        grids: :func:`jobs.lab.judges.marks.places` of the examples, (M, 200, 16, 16), any float type.
        where: bool (M, 3, 16, 16).
        epochs: passes over the examples; half of the pictures are mirrored or turned upside down, and a mark stays a mark.
    """
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(seed)
    target = torch.from_numpy(where).float()
    sample = grids[:2000].float()
    mean, scale = sample.mean((0, 2, 3)), sample.std((0, 2, 3)).clamp_min(1e-3)

    def layer(out: int, into: int, side: int) -> Any:
        weight = torch.randn(out, into, side, side, generator=generator) * (2 / (into * side * side)) ** 0.5
        return weight.requires_grad_()

    width, into = WIDTH, grids.shape[1]
    weights = {
        "mix.weight": layer(width, into, 1), "near.weight": layer(width, width, 3), "far.weight": layer(width, width, 3),
        "last.weight": layer(len(KINDS), width, 1),
    }  # fmt: skip
    for name in ("mix", "near", "far", "last"):
        weights[f"{name}.bias"] = torch.full(
            (len(weights[f"{name}.weight"]),), -2.0 if name == "last" else 0.0, requires_grad=True
        )
    optimiser = torch.optim.AdamW(list(weights.values()), lr=2e-3, weight_decay=0.05)
    steps = epochs * -(-len(target) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for epoch in range(epochs):
        total = 0.0
        for some in torch.randperm(len(target), generator=generator).split(batch):
            x, y = (grids[some].float() - mean[:, None, None]) / scale[:, None, None], target[some]
            if torch.rand((), generator=generator) < 0.5:
                x, y = x.flip(3), y.flip(3)
            keep = torch.rand(len(some), into, 1, 1, generator=generator) > 0.1
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = heat(weights, (x * keep).contiguous(memory_format=torch.channels_last))
            logits = logits.float()
            present = y.flatten(2).amax(2)
            picture = functional.binary_cross_entropy_with_logits(hottest(logits), present)
            place = functional.binary_cross_entropy_with_logits(logits, y, pos_weight=torch.tensor(2.0))
            loss = picture + place
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(some)
        say(f"marks: pass {epoch + 1} of {epochs}, loss {total / len(target):.4f}")
    with torch.no_grad():
        # The maps come unstandardised: fold mean and scale into the mixing layer.
        plain = weights["mix.weight"] / scale[None, :, None, None]
        weights["mix.bias"] = weights["mix.bias"] - plain[:, :, 0, 0] @ mean
        weights["mix.weight"] = plain
    return {name: value.detach() for name, value in weights.items()}


def thresholds(clean: list[np.ndarray]) -> tuple[float, ...]:
    """Per kind, the smallest logit that at most :data:`FALSE_ALARMS` of each sort of clean pictures reach.

    Args:
        clean: logits (n, 3), one array per sort of picture (plain, smeared).
    """
    return tuple(
        round(float(max(np.quantile(logits[:, k], 1 - FALSE_ALARMS, method="higher") for logits in clean)) + 1e-4, 4)
        for k in range(len(KINDS))
    )


def numbered(work: Path, rows: np.ndarray, kind: str, designs: tuple[int, ...], *, seed: int, smeared: bool) -> np.ndarray:
    """Drawings with one of the world's numbered designs: uint8 (N, 64, 64, 3)."""
    from PIL import Image

    from jobs.erase.marks.overlays import overlay
    from jobs.lab.judges.smears import smear
    from jobs.lab.world.pictures import load

    rng = np.random.default_rng(seed)
    pixels = load(work)[0]
    stack = np.stack([np.asarray(overlay(Image.fromarray(pixels[row]), kind, rng, designs)[0]) for row in rows])
    return smear(work, stack, rng, noise=0.3) if smeared else stack
