"""Fit the mark judge on marks of its own design; measure it on the numbered designs, which it was not fitted on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jobs.lab.judges.marks import CELLS, hottest, make_network
from jobs.lab.judges.own_marks import KINDS, litter, stamp

MARKED = 0.6  # share of the examples with a mark, a few with two
SMEARED = 0.7  # share of the examples that pass through the autoencoder with noise
SMEARED_AGAIN = 0.25  # the same of a painter's pictures: they come smeared
SHARES = (0.62, 0.1, 0.28)  # of the kinds: watermarks are the hardest, codes are soon learned
NOISE = 0.35  # largest standard deviation of the noise on latents
RATE = 2e-3  # largest learning rate
FALSE_ALARMS = 0.015  # share of clean pictures that may reach the operating point, per kind and sort of picture


def examples(
    work: Path, pool: np.ndarray, count: int, *, seed: int, marked: float = MARKED, smeared: float = SMEARED
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of a pool, placed at random, with litter and marks of the judge's own, some of them smeared.

    Args:
        work: the built world.
        pool: uint8 (M, 64, 64, 3), without marks.
        count: examples.
        seed: of every choice.
        marked, smeared: shares of the examples.

    Returns:
        pictures uint8 (count, 64, 64, 3) and where a mark changed them, bool (count, 3, CELLS, CELLS).
    """
    from PIL import Image

    from jobs.lab.judges.smears import smear
    from jobs.lab.world.variants import jitter

    rng = np.random.default_rng(seed)
    pictures, where = [], np.zeros((count, len(KINDS), CELLS, CELLS), bool)
    for at, row in enumerate(rng.integers(len(pool), size=count)):
        picture = pool[row]
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
    chosen = rng.random(count) < smeared
    stack[chosen] = smear(work, stack[chosen], rng, noise=NOISE)
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
    pictures: np.ndarray,
    where: np.ndarray,
    folder: Path,
    *,
    minutes: float,
    batch: int = 64,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> tuple[dict[str, Any], int]:
    """Train the network for a time budget; the moving average of its weights, fp16, without the batch counters, and the steps.

    Args:
        pictures: uint8 (M, 64, 64, 3).
        where: bool (M, 3, CELLS, CELLS).
        folder: where the state is kept; a stopped fit goes on from it.
        minutes: budget in all. The rate falls along a cosine over its second half.
        batch: pictures a step. A step may turn and mirror its own, permute their colours and add noise.
        seed: of the network and of every step's choices.
        say: where progress goes.
    """  # fmt: skip
    import torch
    from torch.nn import functional

    from jobs.lab.world.mark_training import averaged, loop

    def loss_at(network: Any, rng: np.random.Generator) -> Any:
        at = np.sort(rng.integers(0, len(pictures), batch))
        x, y = torch.from_numpy(pictures[at]).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.from_numpy(where[at]).float()
        if rng.random() < 0.5:
            x, y = x.flip(3), y.flip(3)
        turns = int(rng.choice((0, 0, 1, 2, 3)))
        x, y = torch.rot90(x, turns, (2, 3)), torch.rot90(y, turns, (2, 3))
        if rng.random() < 0.5:
            x = x[:, torch.from_numpy(rng.permutation(3))]
        if rng.random() < 0.3:
            x = x + float(rng.uniform(0, 0.1)) * torch.from_numpy(rng.normal(size=x.shape).astype(np.float32))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(x.contiguous(memory_format=torch.channels_last))
        logits = logits.float()
        picture = functional.binary_cross_entropy_with_logits(hottest(logits), y.flatten(2).amax(2))
        return picture + functional.binary_cross_entropy_with_logits(logits, y, pos_weight=torch.tensor(2.0))

    torch.manual_seed(seed)
    done = loop(make_network(), loss_at, folder, minutes=minutes, steps=None, rate=RATE, seed=seed, say=say)
    return averaged(folder)[0], int(done["steps"])


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
