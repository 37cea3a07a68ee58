"""Diversity: do samples of one prompt that push one another apart differ more, and do they still show their caption?

Every ordinary caption is drawn in groups of four, with several seeds, three times from the same noise: each alone; in its
group, as ``[generation.diversity]`` does by default; and in a group of four *other* captions, as the control: the same push, by
pictures that have nothing to do with it. The similarity of mates is the mean cosine of their six pairs, in the pipeline's own
embedder and in the judges' trunk, which no part of the pipeline knows.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.lab.bench.measures import Measure, change, clustered, paired, publish

if TYPE_CHECKING:
    import torch

    from pipeline.runtime import Runtime

SEEDS = (41, 42, 43)  # no other bench draws with them
SEARCH_SEED, SEARCHED = 44, 8  # the default form was chosen on this seed and so many of the first captions
SIZE = 4
ARMS = ("alone", "groups", "strangers")
CHUNK = 4  # captions that are drawn at a time: as many groups of strangers need so many captions
# What was tried: each differs from the default of the run file in these keys.
TRIED: Mapping[str, Mapping[str, Any]] = {
    "finest blocks, all steps, α .33": {"alpha": 0.33, "window_from": 0.0},
    "finest blocks, all steps, α .9": {"alpha": 0.9, "window_from": 0.0},
    "finest blocks, steps 7 to 20, α .33": {"alpha": 0.33, "window_from": 0.3},
    "finest blocks, steps 7 to 20, α .9": {"alpha": 0.9, "window_from": 0.3},
    "all blocks, all steps, α .33": {"alpha": 0.33, "window_from": 0.0, "resolution": "all"},
    "all blocks, steps 7 to 20, α .33": {"alpha": 0.33, "window_from": 0.3, "resolution": "all"},
    "all blocks, steps 7 to 20, α .9": {"alpha": 0.9, "window_from": 0.3, "resolution": "all"},
}


@dataclass(frozen=True)
class Part:
    """Groups of four captions that are drawn and kept together.

    Attributes:
        captions: four.
        first_seed: of the first picture; the others follow.
        arm: of :data:`ARMS`.
        form: how mates push one another apart; empty where they stand alone.
    """

    captions: tuple[str, ...]
    first_seed: int
    arm: str
    form: Mapping[str, Any]

    @property
    def place(self) -> str:
        """The name of its file: the digest of everything that decides its numbers."""
        from index.shipped import STICKERS

        card = json.loads((STICKERS / "digests.json").read_text(encoding="utf-8"))
        drawn_by = [f"{name} {sha}" for name, sha in sorted(card.items()) if name.startswith(("model/", "embedder/"))]
        stated = json.dumps([self.captions, self.first_seed, self.arm, dict(self.form), drawn_by])
        return f"{hashlib.sha256(stated.encode()).hexdigest()[:20]}.npz"


def parts(names: Sequence[str], seed: int, arm: str, form: Mapping[str, Any]) -> list[Part]:
    """All groups of these captions, a multiple of four, with one seed."""
    stated = {} if arm == "alone" else form
    firsts = range(0, len(names), CHUNK)
    return [Part(tuple(names[at : at + CHUNK]), seed * 100_000 + at * SIZE, arm, stated) for at in firsts]


def bench(out: Path, *, quick: bool = False, work: Path, captions: int = 0, minutes: float = 600.0) -> None:
    """Measure and publish ``diversity``.

    Args:
        out: folder of the results.
        quick: one seed and four captions, two forms in the search.
        work: what was drawn is kept here; a stopped bench goes on.
        captions: so many of the ordinary captions, a multiple of four; 0: all.
        minutes: stop after so many; the next call goes on.
    """
    from jobs.lab.world.catalogue import ORDINARY

    names = [name.replace("-", " ") for name in ORDINARY]
    chosen = names[-(captions or (CHUNK if quick else len(names) // CHUNK * CHUNK)) :]
    searched = names[: CHUNK if quick else SEARCHED]
    seeds, stop = SEEDS[:1] if quick else SEEDS, time.monotonic() + 60 * minutes
    work.mkdir(parents=True, exist_ok=True)
    search = {"alone": parts(searched, SEARCH_SEED, "alone", {})} | {
        name: parts(searched, SEARCH_SEED, "groups", form(**keys)) for name, keys in list(TRIED.items())[: 2 if quick else None]
    }
    final = {arm: [part for seed in seeds for part in parts(chosen, seed, arm, form())] for arm in ARMS}
    todo = [part for of in (search, final) for these in of.values() for part in these if not (work / part.place).exists()]
    if todo:
        with tempfile.TemporaryDirectory() as folder:
            drawer = Drawer(Path(folder))
            for number, part in enumerate(todo):
                if time.monotonic() > stop:
                    print(f"{len(todo) - number} parts are open; call it again to go on")
                    return
                drawer.part(work / part.place, part)
    tried, arrays = ({name: _together(work, these) for name, these in of.items()} for of in (search, final))
    found = measures(arrays, [caption for part in final[ARMS[0]] for caption in part.captions])
    found += of_search(tried, [caption for part in search["alone"] for caption in part.captions])
    publish("diversity", found, out, seeds=[*seeds, SEARCH_SEED], quick=quick, more={"form": form(), "captions": chosen})


def form(**keys: Any) -> dict[str, Any]:
    """The default settings, with these keys changed."""
    from dataclasses import asdict

    from pipeline.config import DiversityConfig

    return asdict(DiversityConfig(size=SIZE, **keys))


def _together(work: Path, these: Sequence[Part]) -> dict[str, np.ndarray]:
    found = [np.load(work / part.place) for part in these]
    return {key: np.concatenate([one[key] for one in found]) for key in found[0].files}


class Drawer:
    """The opened model, embedder and judges."""

    def __init__(self, folder: Path) -> None:
        from jobs.lab.bench.drawing import open_runtime
        from jobs.lab.judges.judges import Judges

        self.runtime, self.judges = open_runtime(folder, "observe"), Judges.open()

    def part(self, to: Path, part: Part) -> None:
        """Draw the groups of four captions in one arm, and keep what is measured of them."""
        pictures = draw(self.runtime, part)
        assert self.runtime.copies is not None
        shown = [caption for caption in part.captions for _ in range(SIZE)]
        rows = {
            "mates": pairs(self.runtime.copies.embedder.images(pictures)),
            "trunk": pairs(self.judges.features(pictures)),
            "first five": self.judges.among_first(pictures, shown).reshape(-1, SIZE).mean(1),
            "first": self.judges.among_first(pictures, shown, 1).reshape(-1, SIZE).mean(1),
        }
        partial = to.with_suffix(".part.npz")
        np.savez(partial, **rows)  # type: ignore[arg-type]
        partial.rename(to)


def draw(runtime: Runtime, part: Part) -> np.ndarray:
    """Four pictures of each of a part's four captions, uint8 (16, S, S, 3); the same noise in every arm.

    Args:
        runtime: the opened embedded world.
        part: alone, in groups of one caption, or in groups of four captions.
    """
    import torch

    from pipeline.config import DiversityConfig
    from pipeline.engine.trajectory import Trajectory
    from pipeline.steer.diversity import Group, mates_push

    engine, empty = runtime.engine, runtime.context_of("")
    finest = runtime.most_tokens_at(engine.model.latent_shape[1:])
    push = mates_push(DiversityConfig(**(part.form or form())), len(engine.sampler), empty, finest)
    drawn: list[Trajectory] = []
    for tag in range(len(part.captions) * SIZE):
        caption, sample = divmod(tag, SIZE)
        group, member = (caption, sample) if part.arm == "groups" else (sample, caption)
        drawn.append(
            Trajectory(
                tag=tag, latent=engine.initial_noise(part.first_seed + tag), step=0, member=member, negative=empty,
                context=runtime.context_of(part.captions[caption]), seed=part.first_seed + tag,
                group=None if part.arm == "alone" else Group(f"{group}", SIZE, push),
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
        paired("caption in the top 5, groups minus alone", plain["first five"], groups["first five"], of, 0.0),
        paired("caption in the top 5, strangers minus alone", plain["first five"], strangers["first five"], of),
        paired("caption in the top 1, groups minus alone", plain["first"], groups["first"], of),
        *found,
    ]


def of_search(tried: dict[str, dict[str, np.ndarray]], of: Sequence[str]) -> list[Measure]:
    """What the default form was chosen from: the change of every form, on captions and a seed of their own."""
    plain, found = tried["alone"], []
    for name, arrays in tried.items():
        if name != "alone":
            found += [
                change(f"search · {name} · similarity of mates, change (embedder)", plain["mates"], arrays["mates"], of),
                paired(f"search · {name} · caption in the top 5, change", plain["first five"], arrays["first five"], of),
                paired(f"search · {name} · caption in the top 1, change", plain["first"], arrays["first"], of),
            ]
    return found
