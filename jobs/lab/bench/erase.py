"""Erasers against their controls: how often a mark is drawn, by two detectors, and what erasing costs the picture.

*Model removal* (:mod:`jobs.lab.bench.erase_model`) uses captions whose subjects the world learned with marks. *Data removal*
(:mod:`jobs.lab.bench.erase_data`) uses subjects that the world never learned. Pictures are kept: a stopped bench continues
from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from index.errors import InputError
from index.shipped import STICKERS
from jobs.lab.bench.erase_arms import ARMS, Arm, Part, build_sets, train_arm
from jobs.lab.bench.erase_data import data_removal
from jobs.lab.bench.erase_draw import Bench
from jobs.lab.bench.erase_model import model_removal
from jobs.lab.bench.erase_ship import ship
from jobs.lab.bench.measures import publish

SEEDS = (1, 2, 3)


def bench(
    out: Path, work: Path, world: Path, *, quick: bool = False, train: bool = True, trainings: int = 1, shipped: bool = False,
    part: Part | None = None, arms: Sequence[str] = (), seeds: Sequence[int] = SEEDS,
) -> None:  # fmt: skip
    """Train missing arms, draw, judge and publish ``erase``; arms without an adapter are left out.

    Args:
        out: folder of erase.json, or of erase-model.json or erase-data.json for one part.
        work: sets, adapters and pictures are kept here.
        world: the built world.
        quick: one seed, few captions, only arms that are trained.
        train: False: only arms whose adapters are there.
        trainings: training seeds of the main arms; the others have one.
        shipped: put the main adapters where they ship, with cards that quote the table; both parts are needed.
        part: the only one that is measured.
        arms: names of those that are trained; empty: all.
        seeds: of the pictures.

    Raises:
        InputError: an arm that there is not, or one part alone is to be shipped.
    """
    from jobs.console import say

    if shipped and part:
        raise InputError("the cards of what ships quote both parts", fix="Leave out --ship or --part")
    work.mkdir(parents=True, exist_ok=True)
    build_sets(world, work)
    if train and not quick:
        for arm, seed in schedule(trainings, part, arms):
            say(f"training: {arm.part} removal, {arm.name}, seed {seed}")
            train_arm(work, arm, seed)
    b, chosen = Bench(work, world), tuple(seeds[:1] if quick else seeds)
    measured = {"model": model_removal, "data": data_removal}
    measures = [m for name, of in measured.items() if part in (None, name) for m in of(b, chosen, quick, say)]
    publish(f"erase-{part}" if part else "erase", measures, out, seeds=chosen, quick=quick)
    if shipped and not quick:
        ship(work, measures, STICKERS)


def schedule(trainings: int, part: Part | None = None, names: Sequence[str] = ()) -> list[tuple[Arm, int]]:
    """Every arm of a part, or those of these names, with its first training seed, then the main ones with their others.

    Raises:
        InputError: an arm that there is not.
    """
    if unknown := [name for name in names if name not in {arm.name for arm in ARMS}]:
        raise InputError(f"there is no arm {unknown[0]!r}", fix=f"One of: {', '.join(sorted({arm.name for arm in ARMS}))}")
    wanted = [arm for arm in ARMS if part in (None, arm.part) and (not names or arm.name in names)]
    return [(arm, 0) for arm in wanted] + [(arm, seed) for seed in range(1, trainings) for arm in wanted if arm.main]
