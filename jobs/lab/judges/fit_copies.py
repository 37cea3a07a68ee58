"""Fit the copy judge on drawings outside the world; measure it on held-out names and on the protected drawings."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.lab.judges.copies import SCALARS

TRUST = 0.1  # weight of the 496 channels' differences beside the scalars


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pictures and references uint8 (M, S, S, 3), the references' rows (M,), copy bool (M,), plain bool (M,)."""

    pictures: np.ndarray
    references: np.ndarray
    row: np.ndarray
    copy: np.ndarray
    plain: np.ndarray


def names_to_fit(names: list[str]) -> list[str]:
    """Names whose drawings the fit may use: outside the world, not held out, not of prescribed form."""
    from jobs.lab.world.catalogue import ONCE_INSIDE, concepts
    from jobs.lab.world.pictures import held_out, prescribed

    inside = {c.icon for c in concepts()} | set(ONCE_INSIDE)
    return sorted(n for n in set(names) if n not in inside and not held_out(n) and not prescribed(n))


def pairs(work: Path, wanted: set[str], *, seed: int, each: int = 2, only: set[tuple[str, str]] | None = None) -> Pairs:
    """Every drawing of the wanted names against copies of itself and against other vendors' drawings treated alike.

    Args:
        work: the world's folder, with ``pictures.npz`` and ``vae``.
        each: number of copies and of near misses per drawing; the first is plain (smeared, perhaps mirrored), the others
            are edited.
        only: references by (vendor, name); None for all.
    """
    from index.edits import foregrounds
    from jobs.lab.judges.smears import smear
    from jobs.lab.world.copies import edit
    from jobs.lab.world.pictures import load

    rng = np.random.default_rng(seed)
    pixels, vendors, names = load(work)
    groups: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        if name in wanted:
            groups[name].append(i)
    chosen = [(i, group) for group in (groups[n] for n in sorted(groups)) if len(group) > 1 for i in group]
    if only is not None:
        chosen = [(i, group) for i, group in chosen if (vendors[i], names[i]) in only]
    rows = [
        (i, source, source == i, turn == 0)
        for i, group in chosen
        for turn in range(each)
        for source in (i, int(rng.choice([j for j in group if j != i])))
    ]
    reference, source, copy, plain = (np.array(column) for column in zip(*rows, strict=True))
    start = pixels[source].copy()
    smeared = plain | (rng.random(len(start)) < 0.4)
    start[smeared] = smear(work, start[smeared], rng, noise=0.35)
    used = np.unique(source)
    inside = dict(zip(used.tolist(), foregrounds(pixels[used]), strict=True))
    for at, row in enumerate(source.tolist()):
        if not plain[at]:
            start[at] = edit(start[at], inside[row], rng)
        elif rng.random() < 0.5:
            start[at] = start[at][:, ::-1]
    return Pairs(pictures=start, references=pixels[reference], row=reference, copy=copy, plain=plain)


def fit(found: np.ndarray, copy: np.ndarray, *, ridge: float = 0.003, rounds: int = 30) -> tuple[np.ndarray, float]:
    """Ridge logistic regression by Newton's method on standardised columns; weight (D,) and bias for plain columns.

    Args:
        found: evidence (M, D), the scalars first.
        copy: bool (M,).
        ridge: penalty per squared standardised weight, relative to the mean loss; 1 / TRUST² times as large for
            the channels' weights. Both were chosen by cross-validation over the fitted names.
    """
    mean, scale = found.mean(0), np.maximum(found.std(0), 1e-4)
    scale[SCALARS:] /= TRUST
    x = np.c_[(found - mean) / scale, np.ones(len(found))].astype(np.float64)
    penalty = np.append(np.full(found.shape[1], ridge), 0.0)
    weight = np.zeros(x.shape[1])
    for _ in range(rounds):
        p = 1 / (1 + np.exp(-np.clip(x @ weight, -30, 30)))
        gradient = x.T @ (p - copy) / len(p) + penalty * weight
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(p) + np.diag(penalty + 1e-9)
        step = np.linalg.solve(hessian, gradient)
        weight -= step
        if np.abs(step).max() < 1e-6:
            break
    plain = weight[:-1] / scale
    return plain.astype(np.float32), float(weight[-1] - plain @ mean)
