"""The cost of a flagged picture: repaired in flight, against redrawing whole batches and against redrawing only the flagged.

Three loops run on the same weights, in the same number format, with the same flags: a seeded coin for every (sample, attempt).

* whole batch: the loop that users of diffusers write. The batch is drawn. While any picture of it is flagged, the whole batch
  is drawn again, the flagged samples with new seeds.
* partial batch: the flagged are drawn again, from the start, as a smaller batch.
* in flight: a probe after a quarter of the steps finds nine flagged samples in ten and sends them back two to four steps; the
  tenth is found on the finished picture and resumes at 40 % of the steps. The engine packs all of them into common calls.

Only the schedule is measured. Nothing is steered (steering adds little or nothing, see its bench). Decoding counts. Guards do
not count: in the first loop they would check every redrawn picture again. The three loops take turns, a call each, so that
whatever slows the machine for some seconds slows all of them.

The number of times a batch of eight is drawn until nothing in it is flagged varies much, so a few seeds of flags do not give
its mean. The number of evaluations depends on the coins alone: they are thrown for a thousand seeds. The time of one
evaluation, padding and book-keeping included, is the measured one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jobs.lab.bench.engine_runs import GUIDANCE, ROWS, contexts_of, engine, plain
from jobs.lab.bench.measures import Measure, ratio, spread
from pipeline.model.conditioning import Conditioning, stack

if TYPE_CHECKING:
    from pipeline.engine.engine import Engine
    from pipeline.engine.trajectory import Trajectory
    from pipeline.model.interface import DiffusionModel

Progress = Iterator[tuple[float, float]]  # evaluations so far, share of rows in use; a denoiser call each
BATCH = ROWS // 2
PROBE, CAUGHT, LATE = 0.25, 0.9, 0.4
THROWN = 1000  # seeds of flags whose evaluations are counted, not made


@dataclass(frozen=True)
class Coins:
    """The flags of one run."""

    seed: int
    rate: float

    def flagged(self, sample: int, attempt: int) -> bool:
        return random.Random(f"flag/{self.seed}/{sample}/{attempt}").random() < self.rate

    def caught(self, sample: int, attempt: int) -> bool:
        """Whether the probe finds it; otherwise only the check of the finished picture does."""
        return random.Random(f"caught/{self.seed}/{sample}/{attempt}").random() < CAUGHT

    def back(self, sample: int, attempt: int) -> int:
        """Steps that a caught sample is sent back."""
        return random.Random(f"back/{self.seed}/{sample}/{attempt}").randint(2, 4)


@dataclass(frozen=True)
class Spent:
    """The cost of all accepted pictures: evaluations (two rows make one), seconds, and the share of rows in use."""

    evals: float = 0.0
    seconds: float = 0.0
    occupancy: float = 1.0


def reruns(model: DiffusionModel, rate: float, seeds: Sequence[int], *, samples: int, steps: int) -> list[Measure]:
    """The three loops at every seed, taking turns; the loop that starts changes from seed to seed."""
    contexts = contexts_of(model)
    loops = {"whole": _whole, "partial": _partial, "in flight": _in_flight}
    spent: dict[str, list[Spent]] = {name: [] for name in loops}
    for first, seed in enumerate(seeds):
        turn = [*loops][first % 3 :] + [*loops][: first % 3]
        running = {name: loops[name](model, contexts, Coins(seed, rate), samples, steps) for name in turn}
        taken = {name: Spent() for name in turn}
        while running:
            for name in [*running]:
                began = time.process_time()
                try:
                    evals, occupancy = next(running[name])
                except StopIteration:
                    del running[name]
                    evals, occupancy = taken[name].evals, taken[name].occupancy
                taken[name] = Spent(evals, taken[name].seconds + time.process_time() - began, occupancy)
        for name in loops:
            spent[name].append(taken[name])
    return _measured(rate, spent, samples, steps)


def _measured(rate: float, spent: dict[str, list[Spent]], samples: int, steps: int) -> list[Measure]:
    flagged, judged = f"{100 * rate:.0f} % flagged", rate == 0.15
    goals = {"whole": 1.8, "partial": 1.15}
    found = [
        spread(
            f"{flagged}: evaluations per accepted picture, of the steps, {name}",
            [s.evals / samples / steps for s in spent[name]],
            1.06 if judged and name == "in flight" else None,
            "lower",
        )
        for name in spent
    ]
    ours, evals = spent["in flight"], counted(rate, samples, steps)
    for name, goal in goals.items():
        theirs, mine = (np.array([1000 * s.seconds for s in of]) for of in (spent[name], ours))
        faster = f"{flagged}: accepted pictures per second, in flight against {name} batch"
        found.append(ratio(faster, theirs, mine, [str(seed) for seed in range(len(ours))], goal if judged else None))
        due = evals[name], evals["in flight"]
        found.append(expected(faster, spent[name], ours, due, goal if judged else None))
    found.append(spread(f"{flagged}: rows in use, in flight", [s.occupancy for s in ours]))
    return found


def expected(
    name: str, theirs: Sequence[Spent], ours: Sequence[Spent], evals: tuple[float, float], goal: float | None
) -> Measure:
    """Their time over ours for ``evals`` evaluations (theirs, ours), at the mean time per evaluation of all measured seeds.

    The interval is the range over single seeds.
    """

    def slower(a: Sequence[Spent], b: Sequence[Spent]) -> float:
        (seconds, made), (our_seconds, we_made) = ((sum(s.seconds for s in of), sum(s.evals for s in of)) for of in (a, b))
        return evals[0] / evals[1] * (seconds / made) / (our_seconds / we_made)

    alone = [slower([a], [b]) for a, b in zip(theirs, ours, strict=True)]
    over = f"{name}, over {THROWN:,} seeds of flags"
    return Measure(id=over, value=slower(theirs, ours), low=min(alone), high=max(alone), n=len(alone), goal=goal)


def counted(rate: float, samples: int, steps: int) -> dict[str, float]:
    """Mean evaluations per accepted picture of each loop, computed from the coins alone."""
    made = dict.fromkeys(("whole", "partial", "in flight"), 0)
    for seed in range(THROWN):
        coins = Coins(seed, rate)
        drawn = [_attempts(coins, i) for i in range(samples)]
        batches = [drawn[at : at + BATCH] for at in range(0, samples, BATCH)]
        made["whole"] += steps * sum(max(batch) * len(batch) for batch in batches)
        made["partial"] += steps * sum(drawn)
        made["in flight"] += sum(_steps_in_flight(coins, i, steps) for i in range(samples))
    return {name: evals / THROWN / samples for name, evals in made.items()}


def _attempts(coins: Coins, sample: int) -> int:
    attempt = 0
    while coins.flagged(sample, attempt):
        attempt += 1
    return attempt + 1


def _steps_in_flight(coins: Coins, sample: int, steps: int) -> int:
    probe, late = round(PROBE * steps), round(LATE * steps)
    made, at = probe, 0
    while coins.flagged(sample, at) and coins.caught(sample, at):
        made, at = made + min(probe, coins.back(sample, at)), at + 1
    made += steps - probe
    while coins.flagged(sample, at):  # found on the finished picture; it resumes behind the probe
        made, at = made + steps - late, at + 1
    return made


def _whole(model: DiffusionModel, contexts: list[Conditioning], coins: Coins, samples: int, steps: int) -> Progress:
    evals, e = 0, engine(model, steps)
    for start in range(0, samples, BATCH):
        attempts = dict.fromkeys(range(start, min(start + BATCH, samples)), 0)
        flagged = list(attempts)
        while flagged:
            for _ in _draw(e, list(attempts), contexts):
                evals += len(attempts)
                yield evals, 1.0
            flagged = [i for i in attempts if coins.flagged(i, attempts[i])]
            attempts |= {i: attempts[i] + 1 for i in flagged}


def _partial(model: DiffusionModel, contexts: list[Conditioning], coins: Coins, samples: int, steps: int) -> Progress:
    evals, e = 0, engine(model, steps)
    for start in range(0, samples, BATCH):
        attempts = dict.fromkeys(range(start, min(start + BATCH, samples)), 0)
        flagged = list(attempts)
        while flagged:
            for _ in _draw(e, flagged, contexts):
                evals += len(flagged)
                yield evals, 1.0
            flagged = [i for i in flagged if coins.flagged(i, attempts[i])]
            attempts |= {i: attempts[i] + 1 for i in flagged}


def _draw(e: Engine, tags: Sequence[int], contexts: list[Conditioning]) -> Iterator[None]:
    """Draw and decode one batch, in calls of as many rows as it needs, as a loop over diffusers' parts does; call by call."""
    import torch

    sampler, some = e.sampler, [plain(e, tag, contexts) for tag in tags]
    z = torch.stack([t.latent for t in some])
    context = stack([contexts[-1]] * len(some) + [t.context for t in some])
    for step, timestep in enumerate(sampler.timesteps):
        empty, text = e.model.denoise(torch.cat([z, z]), torch.full((2 * len(some),), timestep), context).chunk(2)
        z = sampler.advance(*sampler.clean(z, empty + GUIDANCE * (text - empty), step), step)
        if step + 1 == len(sampler):
            e.model.decode(z)
        yield


def _in_flight(model: DiffusionModel, contexts: list[Conditioning], coins: Coins, samples: int, steps: int) -> Progress:
    import torch

    e = engine(model, steps)
    probe, late = round(PROBE * steps), round(LATE * steps)
    under_way = {tag: plain(e, tag, contexts) for tag in range(samples)}
    attempts, looked = dict.fromkeys(under_way, 0), set[tuple[int, int]]()
    for t in under_way.values():
        e.submit(t)
    unseen: list[Trajectory] = []
    while e.busy or unseen:
        unseen += e.step()
        finished: list[Trajectory] = []
        if len(unseen) >= BATCH or not e.full:  # pipeline.moderate waits for a full batch too
            finished, unseen = unseen, []
        for t in finished:
            if coins.flagged(t.tag, attempts[t.tag]):
                attempts[t.tag] += 1
                under_way[t.tag] = _resumed(t, late)
                e.submit(under_way[t.tag])
            else:
                del under_way[t.tag]
        if finished:
            model.decode(torch.stack([t.latent for t in finished]))
        for t in under_way.values():
            now = t.tag, attempts[t.tag]
            if t.step == probe and now not in looked:
                looked.add(now)
                if coins.flagged(*now) and coins.caught(*now):
                    attempts[t.tag] += 1
                    t.step = max(0, t.step - coins.back(*now))  # in place: the engine packs its next call by these steps
                    t.latent = t.ring[t.step]
        yield e.rows_used / 2, e.rows_used / (e.calls * e.rows)


def _resumed(t: Trajectory, step: int) -> Trajectory:
    from pipeline.engine.trajectory import Trajectory

    ring = {at: z for at, z in t.ring.items() if at <= step}
    return Trajectory(tag=t.tag, latent=ring[step], step=step, context=t.context, negative=t.negative, ring=ring).resumed(
        t, t.seed
    )
