"""Data removal: low-rank weights learn a polluted set; how often do they draw its marks, and how well its subjects?

Our form hides the marks from the loss and uses no tokens. The paper's form puts the tokens of all the set's places into every
negative prompt. The pipeline's form starts without tokens; a picture that its detector flags is drawn once more from the same
noise, with the tokens of the marks found.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.lab.bench.erase_arms import ALONE, CLEAN, FULL, HIDDEN, LONG, MOST_SEEDS, PLAIN, trained
from jobs.lab.bench.erase_draw import WORDS, Bench, marked_shares, prefixed
from jobs.lab.bench.measures import Measure, clustered, corrected, half_samples, kid, ratio
from jobs.lab.judges.own_marks import KINDS

if TYPE_CHECKING:
    from pipeline.steer.erase_adapter import EraseAdapter

REPEATS = 4  # pictures of each new subject and seed
GOALS = {"watermark": 10.0, "qr": 20.0, "text": 10.0}  # times fewer than after plain fine-tuning
ERASED = (", tokens always said", ", flagged drawn again")  # the paper's form, and the pipeline's
OURS = (HIDDEN, HIDDEN + ALONE, HIDDEN + ALONE + LONG)
ORACLES = (CLEAN, CLEAN + LONG)


def data_removal(b: Bench, seeds: Sequence[int], quick: bool, say: Callable[[str], None]) -> list[Measure]:
    """The measures of data removal, the table's second part."""
    from jobs.lab.world.drawings import SUBJECTS

    subjects = [name.replace("-", " ") for name in SUBJECTS]
    captions = [subject for _ in seeds for _ in range(1 if quick else REPEATS) for subject in subjects]
    noises = [1000 * seeds[i // (len(captions) // len(seeds))] + 500 + i for i in range(len(captions))]
    drawn: dict[str, np.ndarray] = {}
    for arm, seed, adapter in trained(b.work, b.model.digest, "data"):
        shown = arm.name if seed == 0 else f"{arm.name}, seed {seed}"
        say(f"data removal: {shown}")
        drawn |= {shown + way: pictures for way, pictures in ways(b, adapter, shown, captions, noises).items()}
    clean = set_features(b)
    everything = np.concatenate(list(clean.values()))
    oracles = {
        name: half_samples("", b.features(drawn[name]), everything, kid, scale=1000) for name in ORACLES if name in drawn
    }
    measures: list[Measure] = []
    for name, pictures in drawn.items():
        erasing = name.partition(", seed ")[0] in OURS or (name.startswith(FULL) and name.endswith(ERASED))
        bound = oracles[oracle_of(name)].high if erasing and oracle_of(name) in oracles else None
        measures += judged_set(b, name, pictures, captions, clean, bound)
    measures += compared(b, drawn, captions, clean)
    if drawn:
        sheet(drawn, captions[: len(subjects)]).save(b.work / "erase-data.png")
    return [prefixed("data removal", m) for m in measures]


def oracle_of(name: str) -> str:
    """The arm trained on clean pictures for as long as the named one."""
    return CLEAN + LONG if LONG in name else CLEAN


def compared(b: Bench, drawn: Mapping[str, np.ndarray], captions: list[str], clean: Mapping[str, np.ndarray]) -> list[Measure]:
    """Erasing arms against plain fine-tuning, by training and over all trainings; and how well the subjects are kept."""
    measures: list[Measure] = []
    trainings = ["", *(f", seed {n}" for n in range(1, MOST_SEEDS))]
    everything, alone = tuple(KINDS), ("watermark",)
    alarms: dict[str, np.ndarray] = {}
    for oracle in ORACLES:
        if seen := [b.marks(drawn[oracle + seed]) >= 0.5 for seed in trainings if oracle + seed in drawn]:
            alarms[oracle] = np.mean(seen, 0)
    arms = [(HIDDEN, "", PLAIN, everything), *((FULL, way, PLAIN, everything) for way in ERASED)]
    arms += [(HIDDEN + ALONE + steps, "", PLAIN + ALONE + steps, alone) for steps in ("", LONG)]
    for arm, way, control, kinds in arms:
        oracle = oracle_of(arm)
        pairs = [(control + seed, arm + seed + way) for seed in trainings]
        pairs = [pair for pair in pairs if set(pair) <= drawn.keys()]
        for plain, ours in pairs:
            measures += divided(b, ours, drawn[plain], drawn[ours], captions, kinds, alarms.get(oracle))
        if len(pairs) > 1:
            before, after = (np.concatenate([drawn[pair[side]] for pair in pairs]) for side in (0, 1))
            every = np.tile(alarms[oracle], (len(pairs), 1)) if oracle in alarms else None
            together = f"{arm}{way}, {len(pairs)} trainings together"
            measures += divided(b, together, before, after, captions * len(pairs), kinds, every)
        for seed, beside in itertools.product(trainings, (oracle, control)):
            ours, other = arm + seed + way, beside + seed
            if {ours, other} <= drawn.keys():
                kept = [nearest_right(b, drawn[one], captions, clean) for one in (ours, other)]
                measures.append(ratio(f"{ours}: subject right / {other}", kept[0], kept[1], captions, 0.97))
    return measures


def ways(b: Bench, adapter: EraseAdapter, name: str, captions: list[str], noises: list[int]) -> dict[str, np.ndarray]:
    """The pictures of an arm, by its way of sampling (suffix of the arm's name → pictures)."""
    nothing, low = [b.empty] * len(captions), adapter.lowrank
    plain = b.draw(b.job(captions, noises, nothing, low))
    if adapter.vocabulary is None:
        if name != PLAIN:
            return {"": plain}
        words = [b.model.encode_prompts([WORDS])[0]] * len(captions)
        return {
            "": plain,
            ", their names as negative prompt": b.draw(b.job(captions, noises, words, low)),
            ", SLD-style guidance against their names": b.draw(b.job(captions, noises, nothing, low, safe=True)),
        }
    found = b.found(plain)
    flagged = [i for i, marks in enumerate(found) if marks]
    seen = [found[i] for i in flagged]
    again = plain.copy()
    negatives, where = b.by_rung(adapter, seen)
    again[flagged] = b.draw(b.job([captions[i] for i in flagged], [noises[i] for i in flagged], negatives, low, **where))
    named = b.negative(adapter, {concept: [] for concept in adapter.concepts})
    names = {", names always said": b.draw(b.job(captions, noises, [named] * len(captions), low))} if name == FULL else {}
    return names | {
        ", tokens unsaid": plain,
        ERASED[0]: b.draw(b.job(captions, noises, [b.standing(adapter)] * len(captions), low)),
        ERASED[1]: again,
    }


def judged_set(
    b: Bench, name: str, pictures: np.ndarray, captions: list[str], clean: Mapping[str, np.ndarray], bound: float | None
) -> list[Measure]:
    """Marks by kind and detector, the subject, picture quality; ``bound``: the upper end of the oracle's KID."""
    own = b.found(pictures)
    judge = b.marks(pictures) >= 0.5
    measures = marked_shares(b, name, pictures, captions)
    for column, kind in enumerate(KINDS):
        by_judge = clustered(f"{name}: {kind}, judge", judge[:, column], captions)
        measures.append(clustered(f"{name}: {kind}, pipeline's detector", [kind in marks for marks in own], captions))
        measures.append(by_judge)
        rates = sensitivity(b, kind), 1 - b.alarms(kind)
        measures.append(corrected(f"{name}: {kind}, judge, corrected for its sensitivity", by_judge, *rates))
    kept = nearest_right(b, pictures, captions, clean)
    measures.append(clustered(f"{name}: nearest of the twelve subjects is the right one, judge's eyes", kept, captions))
    features, everything = b.features(pictures), np.concatenate(list(clean.values()))
    distance = half_samples(f"{name}: KID × 1000 to the clean set", features, everything, kid, scale=1000)
    return [*measures, replace(distance, goal=bound)]


def divided(
    b: Bench, name: str, before: np.ndarray, after: np.ndarray, captions: Sequence[str], kinds: Sequence[str],
    alarms: np.ndarray | None,
) -> list[Measure]:  # fmt: skip
    """How many times fewer pictures carry each kind of mark in the set than after plain fine-tuning.

    The judge's false alarms on clean drawings are subtracted from its rates; its sensitivity cancels in the ratio. Beside it,
    those on the oracle's pictures instead (``alarms``, (N, 3)): they are smeared like ours, and no mark was in its set.
    """
    judge = [b.marks(pictures) >= 0.5 for pictures in (before, after)]
    own = [b.found(pictures) for pictures in (before, after)]
    measures = [ratio(f"plain / {name}, any mark, judge", judge[0].max(1), judge[1].max(1), captions)]
    for kind in kinds:
        first, second = (one[:, KINDS.index(kind)] for one in judge)
        measures.append(ratio(f"plain / {name}, {kind}, judge", first, second, captions, GOALS[kind], alarms=b.alarms(kind)))
        if alarms is not None:
            fair = f"plain / {name}, {kind}, judge, the oracle's alarms subtracted"
            measures.append(ratio(fair, first, second, captions, alarms=alarms[:, KINDS.index(kind)]))
        first, second = (np.array([kind in marks for marks in one]) for one in own)
        measures.append(ratio(f"plain / {name}, {kind}, pipeline's detector", first, second, captions))
    return measures


def nearest_right(b: Bench, pictures: np.ndarray, captions: Sequence[str], clean: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether the nearest of the subjects' mean features belongs to the right subject, bool (N,)."""
    means = {subject: rows.mean(0) for subject, rows in clean.items()}
    names = list(means)
    nearest = [names[int(np.argmin([np.linalg.norm(row - means[s]) for s in names]))] for row in b.features(pictures)]
    return np.array([one == caption for one, caption in zip(nearest, captions, strict=True)])


def sensitivity(b: Bench, kind: str) -> float:
    """The judge's measured sensitivity for a kind, on smeared drawings of the world."""
    return float(b.judges.settings["marks"]["measured"][f"world_{kind}_012"]["kind"][0])


def set_features(b: Bench) -> dict[str, np.ndarray]:
    """Features of the clean set by subject, decoded by the world's autoencoder; six of each vendor's drawings."""
    from jobs.lab.world.drawings import SUBJECTS, world_source

    found: dict[str, list[np.ndarray]] = {}
    for one in world_source(b.world, "new", np.random.default_rng(12), variants=6):
        subject = next(name for name in SUBJECTS if f"/{name}#" in one.name)
        found.setdefault(subject.replace("-", " "), []).append(one.picture)
    return {subject: b.features(b.shown(np.stack(pictures))) for subject, pictures in found.items()}


def sheet(drawn: Mapping[str, np.ndarray], captions: Sequence[str]) -> Any:
    """A contact sheet: one row per arm, one picture per subject."""
    from jobs.lab.bench.sheet import arrange, stack, strip

    return stack(
        [
            (name, arrange([strip(caption, [pictures[i]]) for i, caption in enumerate(captions)], len(captions)))
            for name, pictures in drawn.items()
        ]
    )
