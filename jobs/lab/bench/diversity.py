"""Diversity: do samples of one prompt that push one another apart differ more, and do they still show their caption?

Every ordinary caption is drawn in groups of four, with several seeds, three times from the same noise: each alone; in its
group, as ``[generation.diversity]`` does by default; and in a group of four *other* captions, as the control: the same push, by
pictures that have nothing to do with it. The similarity of mates is the mean cosine of their six pairs, in the pipeline's own
embedder and in the judges' trunk, which no part of the pipeline knows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.lab.bench.measures import Measure, change, clustered, publish

if TYPE_CHECKING:
    import torch

    from pipeline.runtime import Runtime

SEEDS = (41, 42, 43)  # no other bench draws with them
SIZE = 4
ARMS = ("alone", "groups", "strangers")
CHUNK = 4  # captions that are drawn at a time: as many groups of strangers need so many captions


def bench(out: Path, *, quick: bool = False, work: Path, captions: int = 0, minutes: float = 600.0) -> None:
    """Measure and publish ``diversity``.

    Args:
        out: folder of the results.
        quick: one seed and four captions.
        work: what was drawn is kept here; a stopped bench goes on.
        captions: so many of the ordinary captions, a multiple of four; 0: all.
        minutes: stop after so many; the next call goes on.
    """
    from jobs.lab.world.catalogue import ORDINARY

    names = [name.replace("-", " ") for name in ORDINARY]
    chosen = names[-(captions or (CHUNK if quick else len(names) // CHUNK * CHUNK)) :]
    seeds, stop = SEEDS[:1] if quick else SEEDS, time.monotonic() + 60 * minutes
    work.mkdir(parents=True, exist_ok=True)
    todo = [(seed, at, arm) for seed in seeds for at in range(0, len(chosen), CHUNK) for arm in ARMS]
    open_todo = [one for one in todo if not place(work, *one, names=chosen).exists()]
    if open_todo:
        with tempfile.TemporaryDirectory() as folder:
            drawer = Drawer(Path(folder))
            for one in open_todo:
                if time.monotonic() > stop:
                    print(f"{len(open_todo)} parts are open; call it again to go on")
                    return
                drawer.part(place(work, *one, names=chosen), chosen, *one)
    found = {arm: [np.load(place(work, s, at, a, names=chosen)) for s, at, a in todo if a == arm] for arm in ARMS}
    arrays = {
        arm: {key: np.concatenate([part[key] for part in parts]) for key in parts[0].files} for arm, parts in found.items()
    }
    of = [caption for _, at, arm in todo if arm == ARMS[0] for caption in chosen[at : at + CHUNK]]
    publish("diversity", measures(arrays, of), out, seeds=seeds, quick=quick, more={"form": form(), "captions": chosen})


def form() -> dict[str, Any]:
    """The settings that were measured: the default ones."""
    from dataclasses import asdict

    from pipeline.config import DiversityConfig

    return asdict(DiversityConfig(size=SIZE))


def place(work: Path, seed: int, at: int, arm: str, *, names: Sequence[str]) -> Path:
    """Where a part's results are kept."""
    return work / f"{seed}-{names[at].replace(' ', '-')}-{arm}.npz"


class Drawer:
    """The opened model, embedder and judges."""

    def __init__(self, folder: Path) -> None:
        from jobs.lab.bench.drawing import open_runtime
        from jobs.lab.judges.judges import Judges

        self.runtime, self.judges = open_runtime(folder, "observe"), Judges.open()

    def part(self, to: Path, names: Sequence[str], seed: int, at: int, arm: str) -> None:
        """Draw the groups of four captions in one arm, and keep what is measured of them."""
        captions = names[at : at + CHUNK]
        pictures = draw(self.runtime, captions, seed * 100_000 + at * SIZE, arm)
        assert self.runtime.copies is not None
        shown = [caption for caption in captions for _ in range(SIZE)]
        rows = {
            "mates": pairs(self.runtime.copies.embedder.images(pictures)),
            "trunk": pairs(self.judges.features(pictures)),
            "first five": self.judges.among_first(pictures, shown).reshape(-1, SIZE).mean(1),
            "first": self.judges.among_first(pictures, shown, 1).reshape(-1, SIZE).mean(1),
        }
        partial = to.with_suffix(".part.npz")
        np.savez(partial, **rows)  # type: ignore[arg-type]
        partial.rename(to)


def draw(runtime: Runtime, captions: Sequence[str], first_seed: int, arm: str) -> np.ndarray:
    """Four pictures of each of four captions, uint8 (16, S, S, 3); the same noise in every arm.

    Args:
        runtime: the opened embedded world.
        captions: four.
        first_seed: of the first picture; the others follow.
        arm: ``alone``, ``groups`` (of one caption) or ``strangers`` (groups of four captions).
    """
    import torch

    from pipeline.config import DiversityConfig
    from pipeline.engine.trajectory import Trajectory
    from pipeline.steer.diversity import Group, mates_push

    engine, empty = runtime.engine, runtime.context_of("")
    finest = runtime.most_tokens_at(engine.model.latent_shape[1:])
    push = mates_push(DiversityConfig(size=SIZE), len(engine.sampler), empty, finest)
    drawn: list[Trajectory] = []
    for tag in range(len(captions) * SIZE):
        caption, sample = divmod(tag, SIZE)
        group, member = (caption, sample) if arm == "groups" else (sample, caption)
        drawn.append(
            Trajectory(
                tag=tag, latent=engine.initial_noise(first_seed + tag), step=0, context=runtime.context_of(captions[caption]),
                negative=empty, seed=first_seed + tag, member=member,
                group=None if arm == "alone" else Group(f"{group}", SIZE, push),
            )
        )  # fmt: skip
    done: dict[int, torch.Tensor] = engine.finish(drawn)
    return runtime.model.decode(torch.stack([done[tag] for tag in range(len(drawn))]))


def pairs(vectors: np.ndarray) -> np.ndarray:
    """Mean cosine of the pairs in each group, float64 (N / 4,), of vectors (N, D) in order of groups."""
    x = np.asarray(vectors, np.float64)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).reshape(-1, SIZE, x.shape[1])
    one, other = np.triu_indices(SIZE, 1)
    return np.asarray((x[:, one] * x[:, other]).sum(2).mean(1))


def measures(arrays: dict[str, dict[str, np.ndarray]], of: Sequence[str]) -> list[Measure]:
    """The published numbers. ``of``: the caption of each group; intervals resample captions."""
    plain, groups, strangers = (arrays[arm] for arm in ARMS)
    shown = {"mates": "embedder", "trunk": "judges' trunk"}
    found = [clustered(f"similarity of mates, {arm} ({by})", arrays[arm][key], of) for key, by in shown.items() for arm in ARMS]
    found += [clustered(f"caption in the top 5 (judge), {arm}", arrays[arm]["first five"], of) for arm in ARMS]
    found += [clustered(f"caption in the top 1 (judge), {arm}", arrays[arm]["first"], of) for arm in ARMS]
    return [
        change("similarity of mates, groups against alone (embedder)", plain["mates"], groups["mates"], of, -0.10),
        change("similarity of mates, groups against alone (judges' trunk)", plain["trunk"], groups["trunk"], of),
        change("similarity of mates, strangers against alone (embedder)", plain["mates"], strangers["mates"], of),
        clustered("caption in the top 5, groups minus alone", groups["first five"] - plain["first five"], of, 0.0),
        clustered("caption in the top 5, strangers minus alone", strangers["first five"] - plain["first five"], of),
        clustered("caption in the top 1, groups minus alone", groups["first"] - plain["first"], of),
        *found,
    ]
