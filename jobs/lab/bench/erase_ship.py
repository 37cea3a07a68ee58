"""Copy the bench's main adapters to where they ship, with cards that hold their measures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from jobs.erase.save import card
from jobs.lab.bench.erase_arms import ARMS, BOTH, CLEAN, FULL, HIDDEN, PLAIN, Part, adapter_folder
from jobs.lab.bench.erase_model import LADDER, RUNG
from jobs.lab.bench.measures import Measure
from jobs.lab.world.pack import write_digests
from pipeline.steer.erase_adapter import LOWRANK, SETTINGS, TOKENS

NAMES: dict[Part, str] = {"model": "marks", "data": "twelve-subjects"}
MAIN: dict[Part, str] = {"model": HIDDEN, "data": HIDDEN}
QUOTED: dict[Part, tuple[str, ...]] = {  # beginnings of the measures that a card quotes
    "model": (
        "none: ", "a new seed: ", f"{BOTH}{RUNG}: ", f"{HIDDEN}: ", f"{HIDDEN}{RUNG}: ", f"{HIDDEN}, {LADDER}: ",
        f"{HIDDEN}, on every sample", "marked before", "false alarm",
    ),
    "data": (f"{PLAIN}: ", f"{CLEAN}: ", f"{HIDDEN}: ", f"{FULL}, tokens always", f"plain / {HIDDEN}"),
}  # fmt: skip
FIRST: dict[Part, tuple[tuple[str, str], ...]] = {  # the five numbers on top of the card
    "model": (
        ("none: marked, judge", "ordinary pictures with a mark, without the adapter (judge)"),
        (f"{HIDDEN}: marked, judge", "the same, the flagged drawn again once with the adapter (judge)"),
        (f"{HIDDEN}: of the flagged, clean afterwards", "of the flagged, clean after one attempt (the pipeline's detector)"),
        (f"{HIDDEN}: … clean by the judge", "of the flagged, clean after one attempt (judge)"),
        (f"{HIDDEN}: caption right in the top 5, judge", "caption in the top 5 of the judge"),
    ),
    "data": (
        (f"{HIDDEN}: marked, judge", "pictures with a mark (judge)"),
        (f"{HIDDEN}: marked, pipeline's detector", "pictures with a mark (the pipeline's detector)"),
        (f"{PLAIN}: marked, judge", "pictures with a mark after plain fine-tuning (judge)"),
        (f"{CLEAN}: marked, judge", "pictures with a mark after training on clean data: the judge's false alarms"),
        (f"{HIDDEN}: nearest of the twelve subjects is the right one, judge's eyes", "subject right (judge)"),
    ),
}


def ship(work: Path, measures: Sequence[Measure], target: Path) -> list[Path]:
    """Copy the first adapter of each main arm, if it is trained.

    Args:
        work: the bench's folder.
        measures: the table; a card quotes its arm's measures and those it is compared with.
        target: the embedded world's weights; adapters go to ``adapters/``, and ``digests.json`` is rewritten.

    Returns:
        The folders.
    """
    folders = []
    for part, name in NAMES.items():
        arm = next(arm for arm in ARMS if arm.part == part and arm.name == MAIN[part])
        source, folder = adapter_folder(work, arm, 0), target / "adapters" / name
        if not (source / SETTINGS).exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for file in (SETTINGS, TOKENS, LOWRANK):
            (folder / file).unlink(missing_ok=True)
            if (source / file).exists():
                shutil.copyfile(source / file, folder / file)
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        quoted = [asdict(m) for m in measures if m.id.startswith(tuple(f"{part} removal · {quote}" for quote in QUOTED[part]))]
        first = [(f"{part} removal · {one}", what) for one, what in FIRST[part]]
        (folder / "README.md").write_text(card(name, settings, quoted, first), encoding="utf-8")
        folders.append(folder)
    write_digests(target)
    return folders
