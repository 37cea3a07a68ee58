"""Examples for the mark detectors: suitable drawings with one mark or none, clean or smeared as the model smears them.

The detectors work on *generated* pictures, which pass through a small autoencoder and look smeared. Half of the examples
therefore pass through the world's autoencoder. Designs 3 and 4 of every mark in :mod:`jobs.erase.marks.overlays`, and one
drawing name in ten, are kept for evaluation (:mod:`jobs.lab.world.mark_measures`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guards.mark_network import CELLS, KINDS, SIDE
from index.shipped import STICKERS
from jobs.erase.marks.designs import draw_mark
from jobs.erase.marks.overlays import TRAIN_DESIGNS, overlay
from jobs.lab.world.autoencoder import load_autoencoder, round_trip
from jobs.lab.world.variants import jitter

SHARES = (0.37, 0.15, 0.28, 0.2)  # of the marked examples: watermarks are the hardest
NUMBERED = 0.3  # of the marked examples: the designs that the denoiser is trained with; the rest are all different
MARKED = 0.65  # of all examples
GENERATION = 3  # raise it when the examples of a seed change, so that kept examples are drawn anew
DISTRACTED = 0.2  # of all examples: with a pattern or a scribble that is not a mark

# Drawings with letters or figures of their own: neither a clean example nor a mark.
LETTERED = re.compile(
    r"newspaper|calendar|medal|\batm\b|memo|scroll|copyright|registered|trade-mark|ticket|e-mail|passport|identification|"
    r"hundred|name-badge|zzz|keyboard|mark$|book$|books|page|document|credit-card|receipt|convenience|hospital|hotel|bank|"
    r"post-office|postbox|store|closet|restroom|womens-room|mens-room|pool-8|stop|japanese|free|new\b|cool|\bok\b|\bup\b|vs\b|\bsos\b|"
    r"\bid\b|\bback\b|\bend\b|\bsoon\b|\btop$|banknote|money|coin|currency|dollar|yen|euro|pound|letters|numbers|latin|symbols|"
    r"under-eighteen|non-potable|slot|love-letter|joker|mahjong|tear-off|spiral|file|chart|dvd|optical|computer-disk|floppy|"
    r"speech|bubble|clapper|label|tag|percent|information|playing|cinema|vibration|mobile-phone-off|school|jersey|shirt$|-letter|"
    r"ballot|rosette|ophiuchus|scorpius|virgo|leo$|tokyo|wireless|antenna|oclock|crossword|abacus|map|100"
)
SKIN = re.compile(r"-(dark|light|medium|medium-dark|medium-light)$")


def choose(names: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the world's drawings, of other training drawings, and of held-out ones (one skin tone each, unlettered)."""
    from jobs.lab.world.catalogue import concepts
    from jobs.lab.world.pictures import held_out

    inside = {c.icon for c in concepts()}
    fair = [i for i, n in enumerate(names) if n in inside or not (SKIN.search(n) or LETTERED.search(n))]
    world = np.array([i for i in fair if names[i] in inside])
    other = np.array([i for i in fair if names[i] not in inside and not held_out(names[i])])
    return world, other, np.array([i for i in fair if held_out(names[i])])


def cells(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Which 8×8-pixel cells a mark changed visibly: bool (8, 8). Exact, unlike the mark's bounding box."""
    changed = np.abs(before.astype(np.int16) - after.astype(np.int16)).max(2) > 12
    size = SIDE // CELLS
    share: np.ndarray = changed.reshape(CELLS, size, CELLS, size).mean((1, 3))
    return share > 0.06


def distract(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A hard negative: paint a regular pattern (checker, stripes, dots) or loose strokes that are not a mark."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(pixels).convert("RGBA")
    width, height = (int(v) for v in rng.integers(10, 44, 2))
    x0, y0 = int(rng.integers(0, SIDE - width)), int(rng.integers(0, SIDE - height))
    ink, paper = (tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(2))
    if rng.random() < 0.4:
        ink, paper = (20, 20, 20), (255, 255, 255)
    kind = int(rng.integers(5))
    if kind < 3:
        step = int(rng.integers(2, 9))
        row, column = np.mgrid[:height, :width]
        checker = (row // step + column // step) % 2 == 1
        stripes = (column if rng.random() < 0.5 else row) // step % 2 == 1
        dots = (row % (2 * step) - step) ** 2 + (column % (2 * step) - step) ** 2 < (0.7 * step) ** 2
        patch = np.where((checker, stripes, dots)[kind][..., None], ink, paper).astype(np.uint8)
        shape = Image.new("L", (width, height), 0)
        brush = ImageDraw.Draw(shape)
        (brush.ellipse if rng.random() < 0.4 else brush.rectangle)([0, 0, width - 1, height - 1], fill=255)
        picture.paste(Image.fromarray(patch), (x0, y0), shape)
    else:
        draw = ImageDraw.Draw(picture)
        for _ in range(int(rng.integers(1, 7))):
            points = [(int(a), int(b)) for a, b in rng.integers(2, SIDE - 2, (int(rng.integers(2, 5)), 2))]
            draw.line(points, fill=(*ink, 255), width=int(rng.integers(1, 5)), joint="curve")
    return np.asarray(picture.convert("RGB"))


@dataclass(frozen=True)
class Examples:
    """Drawings with one mark or none.

    Attributes:
        pictures: uint8 (N, 64, 64, 3).
        kinds: int64 (N,), index into ``KINDS``; -1 where there is no mark.
        boxes: float32 (N, 4), the mark's x0, y0, x1, y1 in pixels; zeros where there is none.
        cells: bool (N, 4, 8, 8), the cells of each kind that the mark changed visibly.
    """

    pictures: np.ndarray
    kinds: np.ndarray
    boxes: np.ndarray
    cells: np.ndarray

    def __len__(self) -> int:
        return len(self.pictures)


def draw_one(
    pixels: np.ndarray, rng: np.random.Generator, *, marked: float, designs: tuple[int, ...], numbered: float = NUMBERED
) -> tuple[np.ndarray, int, tuple[float, ...], np.ndarray]:
    """One example from one drawing, uint8 (64, 64, 3): the picture, its kind or -1, the box, and the cells, bool (4, 8, 8)."""
    from PIL import Image

    target = np.zeros((len(KINDS), CELLS, CELLS), dtype=bool)
    picture = jitter(Image.fromarray(pixels), rng) if rng.random() < 0.6 else Image.fromarray(pixels)
    if rng.random() < DISTRACTED:
        picture = Image.fromarray(distract(np.asarray(picture), rng))
    if rng.random() >= marked:
        return np.asarray(picture), -1, (0, 0, 0, 0), target
    kind = int(rng.choice(len(KINDS), p=SHARES))
    if rng.random() < numbered:
        after, box = overlay(picture, KINDS[kind], rng, designs)
    else:
        after, box = draw_mark(picture, KINDS[kind], rng)
    target[kind] = cells(np.asarray(picture), np.asarray(after))
    return np.asarray(after), kind, box, target


def examples(
    pixels: np.ndarray,
    ids: np.ndarray,
    count: int,
    rng: np.random.Generator,
    *,
    marked: float = MARKED,
    designs: tuple[int, ...] = TRAIN_DESIGNS,
    numbered: float = NUMBERED,
) -> Examples:
    """Draw ``count`` examples from the drawings ``ids``; ``designs`` are the numbered ones, a share of ``numbered``."""
    drawn = [draw_one(pixels[i], rng, marked=marked, designs=designs, numbered=numbered) for i in rng.choice(ids, count)]
    pictures, kinds, boxes, targets = zip(*drawn, strict=True)
    return Examples(np.stack(pictures), np.array(kinds), np.array(boxes, dtype=np.float32), np.stack(targets))


def training_examples(work: Path, *, count: int, seed: int, say: Callable[[str], None] = print) -> Examples:
    """The examples of one seed, half of them smeared by the world's autoencoder; kept in ``work/marks`` for both detectors.

    Args:
        work: the world's folder, with ``pictures.npz`` and perhaps ``vae``; else the autoencoder that ships is used.
        count: examples; half are drawings of the world's concepts, half of other training names.
        seed: of every choice; the same seed gives the same examples.
        say: where progress goes.
    """
    from jobs.lab.world.pictures import load

    folder = work / "marks" / f"examples-{GENERATION}-{seed}-{count}"
    parts = ("pictures", "kinds", "boxes", "cells")
    if not (folder / "done.json").exists():
        rng = np.random.default_rng(seed)
        pixels, _, names = load(work)
        world, other, _ = choose(names)
        halves = [examples(pixels, world, count // 2, rng), examples(pixels, other, count - count // 2, rng)]
        arrays = {part: np.concatenate([getattr(half, part) for half in halves]) for part in parts}
        say(f"{count} examples from {len(world)} + {len(other)} drawings")
        vae = load_autoencoder(work) or load_autoencoder(STICKERS / "model")
        chosen = rng.permutation(count)[: count // 2]
        arrays["pictures"][chosen] = round_trip(vae, arrays["pictures"][chosen], rng, noise=0.5)
        say(f"{len(chosen)} of them went through the autoencoder")
        folder.mkdir(parents=True, exist_ok=True)
        for part, values in arrays.items():
            np.save(folder / f"{part}.npy", values)
        (folder / "done.json").write_text(json.dumps({"count": count}) + "\n", encoding="utf-8")
    return Examples(*(np.load(folder / f"{part}.npy", mmap_mode="r") for part in parts))


def smear(x: Any, rng: np.random.Generator) -> Any:
    """The defects of generated pictures: soft edges, lost resolution, noise, other contrast; one severity per batch."""
    import torch
    from torch.nn import functional

    if rng.random() < 0.3:
        small = int(rng.integers(36, SIDE))
        x = functional.interpolate(
            functional.interpolate(x, size=small, mode="bilinear", antialias=True), size=SIDE, mode="bilinear"
        )
    if rng.random() < 0.4:
        sigma = float(rng.uniform(0.3, 1.0))
        taps = torch.exp(-0.5 * (torch.arange(-2, 3).float() / sigma) ** 2)
        kernel = torch.outer(taps, taps) / taps.sum() ** 2
        x = functional.conv2d(functional.pad(x, (2, 2, 2, 2), mode="replicate"), kernel.expand(3, 1, 5, 5), groups=3)
    if rng.random() < 0.3:
        x = x[:, torch.from_numpy(rng.permutation(3))]
    gain = torch.from_numpy(rng.uniform(0.8, 1.1, (len(x), 1, 1, 1)).astype(np.float32))
    x = ((x - 1) * gain + 1).clamp(-1, 1)  # white stays white
    if rng.random() < 0.5:
        x = x + float(rng.uniform(0, 0.12)) * torch.from_numpy(rng.standard_normal(x.shape).astype(np.float32))
    return x.contiguous(memory_format=torch.channels_last)
