"""Pictures by the shipped painter, and by a fine-tuning of it, on which no mark should be: their rough spots are none.

The painter itself leaves a mark on none of the subjects that it learned without. It is fine-tuned on clean drawings of those
that it learned with marks, and of others that it never learned: after that it draws both without marks, and roughly, as every
fine-tuning does. Neither an eraser nor a detector has a part in it, and the benches' own subjects are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jobs.erase.captioned import Captioned

SORTS = ((20, 3.0), (12, 3.0), (8, 3.0), (12, 1.5), (10, 5.0), (8, 1.0))  # (steps, guidance), equally often
TWO = 0.15  # share of captions that name two subjects: the painter mixes them
EACH_KEPT = 4  # one caption in so many is kept apart, for the operating points
OTHERS, VARIANTS = 30, 12  # subjects that the painter never learned; jittered versions of every drawing
STEPS, BATCH, RANK = 400, 24, 16  # of the fine-tuning, as in the erasers' bench
ROWS = 16


def known() -> list[str]:
    """Captions of the subjects that the painter learned without marks."""
    from jobs.lab.world.catalogue import concepts

    return [concept.caption for concept in concepts() if concept.prone_to is None]


def tuned(names: list[str]) -> list[str]:
    """Icons of the fine-tuning's subjects: those that the painter learned with marks, and others; ``names``: all drawings'."""
    from jobs.lab.world.catalogue import MARK_PRONE, concepts
    from jobs.lab.world.drawings import SUBJECTS
    from jobs.lab.world.mark_examples import choose

    inside = {concept.icon for concept in concepts()} | set(SUBJECTS)
    fair = sorted({names[i] for i in choose(names)[1]} - inside)
    fair = [name for name in fair if names.count(name) == 3]  # drawn by every vendor
    others: list[str] = np.random.default_rng(11).permutation(fair)[:OTHERS].tolist()
    return [name for prone in MARK_PRONE.values() for name in prone] + others


def apart(captions: list[str], kept: bool) -> list[str]:
    """The captions kept apart, or the others."""
    return [caption for at, caption in enumerate(captions) if (at % EACH_KEPT == 0) == kept]


def fine_tune(work: Path, folder: Path) -> Any:
    """The fine-tuning's low-rank weights (:class:`EraseAdapter`), trained in ``folder`` unless they are there."""
    from jobs.erase.dataset import PollutedSet, build
    from jobs.erase.pollute import Pollution
    from jobs.erase.save import save_adapter
    from jobs.erase.train import Training, train
    from pipeline.config import ModelConfig
    from pipeline.model.folder.digest import folder_digest
    from pipeline.model.folder.resolve import resolve
    from pipeline.steer.erase_adapter import SETTINGS, load_adapter

    model = ModelConfig()
    base, data = folder_digest(resolve(model)), folder.with_suffix(".parquet")
    if not (folder / SETTINGS).exists():
        folder.mkdir(parents=True, exist_ok=True)
        if not data.exists():
            build(_drawings(work), data, Pollution(ratio=0.0), None, seed=4)
        how = Training(
            removal="data", concepts=(), a=1.0, steps=STEPS, batch=BATCH, rank=RANK, lowrank_rate=2e-3, alone=0.2, seed=4
        )
        rows = PollutedSet(data)
        described = json.loads(data.with_suffix(".json").read_text(encoding="utf-8"))
        made = train(rows, model, how, folder)
        save_adapter(folder, made, how, rows, base=model.path, base_digest=base, dataset=described)
    return load_adapter(folder, base)


def _drawings(work: Path) -> Iterator[Captioned]:
    from PIL import Image

    from jobs.erase.captioned import Captioned
    from jobs.lab.world.catalogue import TEMPLATES
    from jobs.lab.world.pictures import load
    from jobs.lab.world.variants import jitter

    rng = np.random.default_rng(4)
    pixels, vendors, names = load(work)
    where = {(vendor, name): at for at, (vendor, name) in enumerate(zip(vendors, names, strict=True))}
    for icon in tuned(names):
        for vendor in sorted(set(vendors)):
            drawing = Image.fromarray(pixels[where[vendor, icon]])
            for number in range(VARIANTS):
                caption = TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(icon.replace("-", " "))
                yield Captioned(f"{vendor}/{icon}#{number}", caption, np.asarray(jitter(drawing, rng)), "")


def painted(
    captions: list[str], count: int, *, seed: int, lowrank: Any = None, usual: bool = False, rows: int = ROWS
) -> np.ndarray:
    """Pictures of these captions, chosen at random: uint8 (count, S, S, 3).

    Args:
        captions: of subjects.
        count: pictures.
        seed: of captions and noise.
        lowrank: the fine-tuning's weights; None: the painter as it ships.
        usual: the model's usual steps and guidance and one subject each; otherwise all of :data:`SORTS`.
        rows: of the engine's calls.
    """
    import torch

    from jobs.lab.world.catalogue import TEMPLATES
    from pipeline.config import ModelConfig
    from pipeline.engine.engine import Engine
    from pipeline.engine.trajectory import Trajectory
    from pipeline.model.load import load_model

    rng, model = np.random.default_rng(seed), load_model(ModelConfig())
    empty, weights = model.encode_prompts([""])[0], ((lowrank, 1.0),) if lowrank is not None else ()
    asked = []
    for _ in range(count):
        caption = TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(captions[int(rng.integers(len(captions)))])
        if not usual and rng.random() < TWO:
            caption += " and " + captions[int(rng.integers(len(captions)))]
        asked.append(caption)
    found = []
    sorts = SORTS[:1] if usual else SORTS
    for sort, (steps, guidance) in enumerate(sorts):
        some = asked[sort :: len(sorts)]
        engine = Engine(model, rows=rows, steps=steps, guidance_scale=guidance)
        contexts = model.encode_prompts(some)
        noises = [int(noise) for noise in rng.integers(1 << 40, size=len(some))]
        done = engine.finish(
            [
                Trajectory(
                    tag=i, latent=engine.initial_noise(noise), step=0, context=contexts[i], negative=empty, seed=noise,
                    lowrank=weights,
                )
                for i, noise in enumerate(noises)
            ]
        )  # fmt: skip
        found.append(model.decode(torch.stack([done[i] for i in range(len(some))])))
    return np.concatenate(found)
