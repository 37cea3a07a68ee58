"""The arms of the eraser's bench: each one's data and training, and its set and adapter, kept and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from jobs.erase.train import Training
from jobs.lab.bench.esd import EsdTraining

if TYPE_CHECKING:
    from jobs.erase.dataset import Rows
    from pipeline.steer.erase_adapter import EraseAdapter

STEPS, BATCH, RANK = 400, 24, 16
TOKEN_STEPS, TOKEN_BATCH = 300, 32  # where tokens alone are trained
CAPTIONED = 0.2  # share of captions left out, as in other trainings: tokens are mostly learned behind a caption
OWN_PICTURES = 10  # of every caption, for the arm trained on the model's own drawings
MOST_SEEDS = 5
Part = Literal["model", "data"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One trained arm.

    Attributes:
        part: of the table it is in: ``model`` or ``data`` removal.
        name: in the table.
        training: what is trained.
        dataset: the set it is trained on.
        overlap: mean IoU to which the detector's boxes are made worse; 0 leaves them.
        main: trained with several seeds.
    """

    part: Part
    name: str
    training: Training | EsdTraining
    dataset: str = ""
    overlap: float = 0.0
    main: bool = False


_TOKENS = Training(removal="model", steps=TOKEN_STEPS, batch=TOKEN_BATCH, alone=CAPTIONED)
_BOTH = Training(removal="model", steps=STEPS, batch=BATCH, rank=RANK, lowrank_rate=2e-3)
_DATA = Training(removal="data", steps=STEPS, batch=BATCH, rank=RANK, lowrank_rate=2e-3, alone=CAPTIONED)
_PLAIN = replace(_DATA, concepts=(), a=1.0)
_HIDDEN, _BOTH_HIDDEN = replace(_DATA, hidden=1.0), replace(_BOTH, hidden=1.0)
_LONG = 2 * STEPS  # does what is missed lack nothing but training?
FULL = "name + geometry + re-weighting"
BOTH = f"{FULL} + low-rank weights"  # for redrawn samples: the weights learn only what the tokens leave to them
PLAIN, CLEAN, ESD = "plain fine-tuning", "trained on clean data", "ESD-style fine-tuning"
HIDDEN = "marks hidden from the loss"  # what ships
WORSE = "detector of IoU .4"
ALONE = ", watermarks alone"  # in the set: after a mixed one, plain fine-tuning draws too few to count
LONG = f", {_LONG} steps"

ARMS: tuple[Arm, ...] = (  # in the order of training: arms that others are compared with come first
    Arm(part="model", name=HIDDEN, training=_BOTH_HIDDEN, dataset="marked", main=True),
    Arm(part="model", name=BOTH, training=_BOTH, dataset="marked", main=True),
    Arm(part="data", name=HIDDEN, training=_HIDDEN, dataset="new", main=True),
    Arm(part="data", name=FULL, training=_DATA, dataset="new", main=True),
    Arm(part="data", name=PLAIN, training=_PLAIN, dataset="new", main=True),
    Arm(part="data", name=CLEAN, training=_PLAIN, dataset="new-clean", main=True),
    Arm(part="data", name=HIDDEN + ALONE, training=_HIDDEN, dataset="new-watermarked", main=True),
    Arm(part="data", name=PLAIN + ALONE, training=_PLAIN, dataset="new-watermarked", main=True),
    Arm(part="data", name=HIDDEN + ALONE + LONG, training=replace(_HIDDEN, steps=_LONG), dataset="new-watermarked", main=True),
    Arm(part="data", name=PLAIN + ALONE + LONG, training=replace(_PLAIN, steps=_LONG), dataset="new-watermarked", main=True),
    Arm(part="data", name=CLEAN + LONG, training=replace(_PLAIN, steps=_LONG), dataset="new-clean", main=True),
    Arm(part="model", name=FULL, training=_TOKENS, dataset="marked"),
    Arm(part="model", name="name", training=replace(_TOKENS, mode="none", a=1.0), dataset="marked"),
    Arm(part="model", name="name + geometry", training=replace(_TOKENS, a=1.0), dataset="marked"),
    Arm(part="model", name=f"{FULL}, tokens learned alone", training=replace(_TOKENS, alone=_BOTH.alone), dataset="marked"),
    Arm(part="model", name="name + low-rank weights", training=replace(_BOTH, mode="none", a=1.0), dataset="marked"),
    Arm(part="model", name="name + geometry + low-rank weights", training=replace(_BOTH, a=1.0), dataset="marked"),
    Arm(
        part="model", name=f"{BOTH}, tokens learned behind captions", training=replace(_BOTH, alone=CAPTIONED), dataset="marked"
    ),
    Arm(part="model", name=ESD, training=EsdTraining()),
    Arm(part="model", name=f"{HIDDEN}, {WORSE}", training=_BOTH_HIDDEN, dataset="marked", overlap=0.4),
    Arm(part="model", name=WORSE, training=_BOTH, dataset="marked", overlap=0.4),
    Arm(part="data", name=f"{HIDDEN}, {WORSE}", training=_HIDDEN, dataset="new", overlap=0.4),
    Arm(part="model", name="a = 2", training=replace(_BOTH, a=2.0), dataset="marked"),
    Arm(part="model", name="bins, grid 4", training=replace(_BOTH, mode="bins"), dataset="marked"),
    Arm(part="model", name="corners, grid 8", training=replace(_BOTH, grid=8), dataset="marked"),
    Arm(part="model", name="a = 0.1", training=replace(_BOTH, a=0.1), dataset="marked"),
    Arm(part="model", name=f"{HIDDEN}, trained on its own drawings", training=_BOTH_HIDDEN, dataset="drawn"),
    Arm(part="data", name="name", training=replace(_DATA, mode="none", a=1.0), dataset="new"),
    Arm(part="data", name="name + geometry", training=replace(_DATA, a=1.0), dataset="new"),
)


def build_sets(world: Path, work: Path) -> None:
    """Build the sets that are missing: the world's marked subjects; new subjects polluted, with watermarks alone, and clean."""
    from guards.marks import MarksGuard
    from jobs.erase.dataset import build
    from jobs.erase.pollute import Pollution
    from jobs.lab.world.drawings import world_source

    plans = {
        "marked": (("marked", 1, 12), Pollution(ratio=0.7), True),
        "new": (("new", 2, 24), Pollution(ratio=0.6), True),
        "new-watermarked": (("new", 2, 24), Pollution(kinds=("watermark",), ratio=0.6), True),
        "new-clean": (("new", 2, 24), Pollution(ratio=0.0), False),
    }
    for name, ((part, seed, variants), how, seen) in plans.items():
        out = work / f"{name}.parquet"
        if not out.exists():
            pictures = world_source(world, part, np.random.default_rng(seed), variants=variants)  # type: ignore[arg-type]
            build(pictures, out, how, MarksGuard() if seen else None, seed=seed)


def draw_set(out: Path) -> None:
    """Build a set from the model's own drawings of captions that tend to be marked, with the marks that the detector finds."""
    from guards.marks import MarksGuard
    from jobs.erase.dataset import build
    from jobs.erase.drawn import drawn_source
    from jobs.erase.pollute import Pollution
    from jobs.lab.world.catalogue import MARK_PRONE
    from pipeline.config import GenerationConfig, ModelConfig

    prompts = out.with_suffix(".txt")
    prompts.write_text("\n".join(name.replace("-", " ") for names in MARK_PRONE.values() for name in names), encoding="utf-8")
    drawn = drawn_source(prompts, ModelConfig(), GenerationConfig(), pictures=OWN_PICTURES, seed=77)
    build(drawn, out, Pollution(ratio=0.0), MarksGuard())


def adapter_folder(work: Path, arm: Arm, seed: int) -> Path:
    """Where an arm's adapter is kept."""
    plain = "".join(c if c.isalnum() else "-" for c in arm.name).replace("---", "-")
    return work / "adapters" / f"{arm.part}-{plain}-{seed}"


def train_arm(work: Path, arm: Arm, seed: int, progress: Callable[[int, float], None] = lambda step, loss: None) -> Path:
    """The arm's adapter, trained unless it exists; an interrupted training is resumed (ESD's starts again)."""
    from jobs.erase.dataset import PollutedSet
    from jobs.erase.save import save_adapter
    from jobs.erase.train import train
    from jobs.lab.bench.degraded import degraded
    from jobs.lab.bench.esd import save_esd, train_esd
    from pipeline.config import ModelConfig
    from pipeline.model.folder.digest import folder_digest
    from pipeline.model.folder.resolve import resolve
    from pipeline.steer.erase_adapter import SETTINGS

    folder = adapter_folder(work, arm, seed)
    if (folder / SETTINGS).exists():
        return folder
    how, model = replace(arm.training, seed=seed), ModelConfig()
    base_digest = folder_digest(resolve(model))
    if isinstance(how, EsdTraining):
        save_esd(folder, train_esd(model, how, progress), how, base=model.path, base_digest=base_digest)
        return folder
    if arm.dataset == "drawn" and not (work / "drawn.parquet").exists():
        draw_set(work / "drawn.parquet")
    rows: Rows = PollutedSet(work / f"{arm.dataset}.parquet")
    known = json.loads((work / f"{arm.dataset}.json").read_text(encoding="utf-8"))
    if arm.overlap:
        rows, jitter, reached = degraded(rows, arm.overlap)
        known |= {"mean_iou": round(reached, 4), "jitter": jitter}
    trained = train(rows, model, how, folder, progress=progress)
    save_adapter(folder, trained, how, rows, base=model.path, base_digest=base_digest, dataset=known)
    return folder


def trained(work: Path, base_digest: str, part: Part) -> list[tuple[Arm, int, EraseAdapter]]:
    """Every existing adapter of a part, in the arms' order, with its training seed."""
    from pipeline.steer.erase_adapter import SETTINGS, load_adapter

    found = []
    for arm in ARMS:
        for seed in range(MOST_SEEDS):
            folder = adapter_folder(work, arm, seed)
            if arm.part == part and (folder / SETTINGS).exists():
                found.append((arm, seed, load_adapter(folder, base_digest)))
    return found
