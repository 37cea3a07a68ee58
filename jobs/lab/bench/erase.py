"""Erasers against their controls: how often a mark is drawn, by two detectors, and what erasing costs the picture.

*Model removal* (:mod:`jobs.lab.bench.erase_model`) uses captions whose subjects the world learned with marks. *Data removal*
(:mod:`jobs.lab.bench.erase_data`) uses subjects that the world never learned. Pictures are kept: a stopped bench continues
from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from index.shipped import STICKERS
from jobs.lab.bench.erase_arms import ARMS, Arm, build_sets, train_arm
from jobs.lab.bench.erase_data import data_removal
from jobs.lab.bench.erase_draw import Bench
from jobs.lab.bench.erase_model import model_removal
from jobs.lab.bench.erase_ship import ship
from jobs.lab.bench.measures import publish

SEEDS = (1, 2, 3)


def bench(
    out: Path, work: Path, world: Path, *, quick: bool = False, train: bool = True, trainings: int = 1, shipped: bool = False,
    seeds: Sequence[int] = SEEDS,
) -> None:  # fmt: skip
    """Train missing arms, draw, judge and publish ``erase``; arms without an adapter are left out.

    Args:
        out: folder of erase.json.
        work: sets, adapters and pictures are kept here.
        world: the built world.
        quick: one seed, few captions, only arms that are trained.
        train: False: only arms whose adapters are there.
        trainings: training seeds of the main arms; the others have one.
        shipped: put the main adapters where they ship, with cards that quote the table.
        seeds: of the pictures.
    """
    from jobs.console import say

    work.mkdir(parents=True, exist_ok=True)
    build_sets(world, work)
    if train and not quick:
        for arm, seed in schedule(trainings):
            say(f"training: {arm.part} removal, {arm.name}, seed {seed}")
            train_arm(work, arm, seed)
    b, chosen = Bench(work, world), tuple(seeds[:1] if quick else seeds)
    measures = [*model_removal(b, chosen, quick, say), *data_removal(b, chosen, quick, say)]
    publish("erase", measures, out, seeds=chosen, quick=quick)
    if shipped and not quick:
        ship(work, measures, STICKERS)


def schedule(trainings: int) -> list[tuple[Arm, int]]:
    """Every arm with its first training seed, then the main ones with their others."""
    return [(arm, 0) for arm in ARMS] + [(arm, seed) for seed in range(1, trainings) for arm in ARMS if arm.main]
