"""The arms of the eraser's bench: what each is trained on and how, and the sets and adapters behind it, kept and resumed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jobs.erase.train import Training

SETS = ("marked", "new", "new-clean")
MODEL_STEPS, DATA_STEPS = 300, 500
Part = Literal["model", "data"]


@dataclass(frozen=True)
class Arm:
    """One trained arm: its name in the tables, what is trained, and the set it is trained on."""

    name: str
    training: Training
    dataset: str

    @property
    def part(self) -> Part:
        return self.training.removal


_MODEL = Training(removal="model", steps=MODEL_STEPS)
_DATA = Training(removal="data", steps=DATA_STEPS, lowrank_rate=2e-3)
FULL = {"model": "name + geometry + re-weighting", "data": "name + geometry + re-weighting"}


def _arms(base: Training, dataset: str) -> list[Arm]:
    return [
        Arm("name", dataclasses.replace(base, mode="none", a=1.0), dataset),
        Arm("name + geometry", dataclasses.replace(base, a=1.0), dataset),
        Arm(FULL[base.removal], base, dataset),
    ]


ARMS: tuple[Arm, ...] = (
    *_arms(_MODEL, "marked"),
    Arm("a = 0.1", dataclasses.replace(_MODEL, a=0.1), "marked"),
    Arm("a = 2", dataclasses.replace(_MODEL, a=2.0), "marked"),
    Arm("bins, grid 4", dataclasses.replace(_MODEL, mode="bins"), "marked"),
    Arm("corners, grid 8", dataclasses.replace(_MODEL, grid=8), "marked"),
    Arm("plain fine-tuning", dataclasses.replace(_DATA, concepts=(), a=1.0), "new"),
    *_arms(_DATA, "new"),
    Arm("trained on clean data", dataclasses.replace(_DATA, concepts=(), a=1.0), "new-clean"),
)


def build_sets(world: Path, work: Path) -> None:
    """The three sets, where they are not there yet: the world's marked subjects, new ones polluted, new ones clean."""
    from guards.marks import MarksGuard
    from jobs.erase.dataset import build
    from jobs.erase.pollute import Pollution
    from jobs.erase.sources import world_source

    plans = {
        "marked": (("marked", 1, 12), Pollution(ratio=0.7), True),
        "new": (("new", 2, 24), Pollution(ratio=0.6), True),
        "new-clean": (("new", 2, 24), Pollution(ratio=0.0), False),
    }
    for name, ((part, seed, variants), how, seen) in plans.items():
        out = work / f"{name}.parquet"
        if not out.exists():
            pictures = world_source(world, part, np.random.default_rng(seed), variants=variants)  # type: ignore[arg-type]
            build(pictures, out, how, MarksGuard() if seen else None, seed=seed)


def adapter_folder(work: Path, arm: Arm, seed: int) -> Path:
    """Where an arm's adapter is kept."""
    plain = "".join(c if c.isalnum() else "-" for c in arm.name).replace("---", "-")
    return work / "adapters" / f"{arm.part}-{plain}-{seed}"


def train_arm(work: Path, arm: Arm, seed: int, told: Callable[[int, float], None] = lambda step, loss: None) -> Path:
    """The arm's adapter, trained unless it is there; an interrupted training goes on."""
    from jobs.erase.dataset import read
    from jobs.erase.save import save_adapter
    from jobs.erase.train import train
    from pipeline.config import ModelConfig
    from pipeline.model.adapter import SETTINGS
    from pipeline.model.families import folder_digest, resolve

    folder = adapter_folder(work, arm, seed)
    if (folder / SETTINGS).exists():
        return folder
    how, model = dataclasses.replace(arm.training, seed=seed), ModelConfig()
    rows = read(work / f"{arm.dataset}.parquet")
    known = json.loads((work / f"{arm.dataset}.json").read_text(encoding="utf-8"))
    trained = train(rows, model, how, folder, progress=told)
    save_adapter(folder, trained, how, rows, base="stickers", base_digest=folder_digest(resolve(model)), dataset=known)
    return folder
