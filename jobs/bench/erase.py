"""Erasers against their controls: how often a mark is drawn (two detectors), at what cost to the picture.

*Model removal*, on captions whose subjects the world learned with their marks: every picture on which the pipeline's detector
finds a mark is drawn once more from the same noise, with the arm's tokens for what was found and where; the others stay.
*Data removal*, on subjects the world has never seen: low-rank weights trained on a polluted set draw them, with and without the
arm's tokens in every negative prompt, for the places marks had in the set.

Pictures are kept, so a bench that was stopped goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guards.base import Finding
from jobs.bench.erase_arms import ARMS, FULL, Arm, adapter_folder, build_sets, train_arm
from jobs.bench.measures import Measure, clustered, corrected, half_samples, kid, publish, ratio, spread

if TYPE_CHECKING:
    import torch

    from guards.marks import MarksGuard
    from jobs.judges.judges import Judges
    from pipeline.model.adapter import EraseAdapter
    from pipeline.model.families import DiffusionModel

SEEDS = (1, 2, 3)
REPEATS = 2  # pictures of each new subject and seed
STEPS, GUIDANCE, ROWS = 20, 3.0, 16
WORDS = "watermark, QR code, text"  # the control: the names people would write
KINDS = ("watermark", "qr", "text")
LADDER = "default mark ladder, up to three attempts"
Found = list[dict[str, list[Any]]]


@dataclass(frozen=True)
class Job:
    """Pictures to draw: captions, seeds, and for each the negative conditioning and low-rank weights."""

    captions: list[str]
    seeds: list[int]
    negatives: list[torch.Tensor]
    contexts: list[torch.Tensor]
    lowrank: tuple[Any, ...] = ()


class Bench:
    """Model, detectors and judges, opened once; pictures are kept in ``work``."""

    def __init__(self, work: Path, world: Path) -> None:
        import torch

        from guards.marks import MarksGuard
        from jobs.judges.judges import Judges
        from pipeline.config import ModelConfig
        from pipeline.model.families import load_model

        torch.use_deterministic_algorithms(True)
        self.work, self.world = work, world
        self.model: DiffusionModel = load_model(ModelConfig())
        self.guard: MarksGuard = MarksGuard()
        self.judges: Judges = Judges.open()
        self.empty = self.model.encode_prompts([""])[0]

    def draw(self, job: Job) -> np.ndarray:
        """uint8 (N, H, W, 3), in the job's order; drawn once, then read."""
        import torch

        from pipeline.engine import Engine, Trajectory

        if not job.captions:
            width, height = self.model.decode_size()
            return np.zeros((0, height, width, 3), np.uint8)
        key = hashlib.sha256(repr((self.model.digest, STEPS, GUIDANCE, ROWS, job.captions, job.seeds)).encode())
        for tensor in (
            *job.negatives,
            *job.contexts,
            *(w for low, _ in job.lowrank for both in low.pairs.values() for w in both),
        ):
            key.update(tensor.numpy().tobytes())
        path = self.work / "drawn" / f"{key.hexdigest()[:24]}.npz"
        if path.exists():
            return np.load(path)["pictures"]  # type: ignore[no-any-return]
        engine = Engine(self.model, rows=ROWS, steps=STEPS, guidance_scale=GUIDANCE)
        done = engine.finish(
            [
                Trajectory(i, engine.initial_noise(s), 0, job.contexts[i], job.negatives[i], seed=s, lowrank=job.lowrank)
                for i, s in enumerate(job.seeds)
            ]
        )
        pictures = self.model.decode(torch.stack([done[i] for i in range(len(job.seeds))]))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path.with_suffix(".tmp.npz"), pictures=pictures)
        path.with_suffix(".tmp.npz").rename(path)
        return pictures

    def job(self, captions: list[str], seeds: list[int], negatives: Sequence[torch.Tensor], lowrank: Any = None) -> Job:
        contexts = [self.model.encode_prompts([caption])[0] for caption in captions]
        return Job(captions, seeds, list(negatives), contexts, ((lowrank, 1.0),) if lowrank is not None else ())

    def found(self, pictures: np.ndarray) -> Found:
        from pipeline.steer.erase import marks_found

        return [marks_found(findings) for findings in self.guard.check(pictures)]

    def yolo(self, pictures: np.ndarray) -> list[list[Finding]] | None:
        from guards.yolo import YoloMarksGuard
        from index.errors import GuardUnavailable

        try:
            return YoloMarksGuard().check(pictures)
        except GuardUnavailable:
            return None

    def negative(self, adapter: EraseAdapter, marks: Mapping[str, Sequence[Any]]) -> torch.Tensor:
        """The empty negative prompt ⊕ what the adapter says about these marks."""
        from pipeline.config import AdapterConfig
        from pipeline.steer.erasers import Erasers

        asked = Erasers(((adapter, AdapterConfig("")),)).asked(marks, self.model.word_room())
        return self.empty if asked is None else self.model.encode_words("", asked.vectors)

    def standing(self, adapter: EraseAdapter) -> torch.Tensor:
        """The empty negative prompt ⊕ the places marks had in the adapter's training set."""
        from pipeline.config import AdapterConfig
        from pipeline.steer.erasers import Erasers

        said = Erasers(((adapter, AdapterConfig("", tokens="always")),)).standing(self.model.word_room())
        return self.empty if said is None else self.model.encode_words("", said.vectors)


def bench(out: Path, work: Path, world: Path, *, quick: bool = False, train: bool = True, seeds: Sequence[int] = SEEDS) -> None:
    """Train what is missing, draw, judge and publish ``erase``; arms that are not trained are left out and named.

    Args:
        out: folder of erase.json.
        work: sets, adapters and pictures are kept here.
        world: the built world.
        quick: one seed, few captions, only arms that are trained.
        train: False: only arms whose adapters are there.
        seeds: of the pictures.
    """
    from jobs.console import say

    work.mkdir(parents=True, exist_ok=True)
    build_sets(world, work)
    if train and not quick:
        for arm in ARMS:
            say(f"training: {arm.part} removal, {arm.name}")
            train_arm(work, arm, 0)
        for part in ("model", "data"):
            for seed in (1, 2):
                train_arm(work, next(a for a in ARMS if a.part == part and a.name == FULL[part]), seed)
    b, chosen = Bench(work, world), tuple(seeds[:1] if quick else seeds)
    measures = [*model_removal(b, chosen, quick, say), *data_removal(b, chosen, quick, say)]
    publish("erase", measures, out, seeds=chosen, quick=quick)


# --- model removal ----------------------------------------------------------------------------------------------------------


def model_removal(b: Bench, seeds: Sequence[int], quick: bool, say: Callable[[str], None]) -> list[Measure]:
    from jobs.world.catalogue import MARK_PRONE, ORDINARY

    prone = [name.replace("-", " ") for names in MARK_PRONE.values() for name in names][:: 5 if quick else 1]
    rest = [name.replace("-", " ") for name in ORDINARY][:: 8 if quick else 1]
    captions = [caption for _ in seeds for caption in (*prone, *rest)]
    noises = [1000 * seed + i for seed in seeds for i in range(len(prone) + len(rest))]
    say(f"drawing {len(captions)} ordinary pictures")
    plain = b.draw(b.job(captions, noises, [b.empty] * len(captions)))
    found = b.found(plain)
    flagged = [i for i, marks in enumerate(found) if marks]
    clean = clean_features(b, prone + rest)
    measures = [*judged(b, "none", plain, captions, clean, plain_top=None)]

    def again(negatives: Sequence[torch.Tensor]) -> np.ndarray:
        """The flagged pictures drawn once more; the others are what they were, to the byte."""
        pictures = plain.copy()
        pictures[flagged] = b.draw(b.job([captions[i] for i in flagged], [noises[i] for i in flagged], negatives))
        return pictures

    controls = {"a new seed": None, "their names as negative prompt": b.model.encode_prompts([WORDS])[0]}
    top = b.judges.among_first(plain, captions)
    for name, context in controls.items():
        if context is None:
            from pipeline.steer.ladder import next_seed

            fresh = [next_seed(noises[i], 1) for i in flagged]
            pictures = plain.copy()
            pictures[flagged] = b.draw(b.job([captions[i] for i in flagged], fresh, [b.empty] * len(flagged)))
        else:
            pictures = again([context] * len(flagged))
        measures += judged(b, name, pictures, captions, clean, plain_top=top, flagged=flagged)
    for arm, seed, adapter in trained(b, "model"):
        say(f"model removal: {arm.name}, seed {seed}")
        pictures = again([b.negative(adapter, found[i]) for i in flagged])
        shown = arm.name if seed == 0 else f"{arm.name}, seed {seed}"
        goal = arm.name == FULL["model"]
        measures += judged(b, shown, pictures, captions, clean, plain_top=top, flagged=flagged, goals=goal)
        if goal and seed == 0:
            laddered = climbed(b, adapter, pictures, found, captions, noises)
            measures += judged(b, LADDER, laddered, captions, clean, plain_top=top, flagged=flagged)
            measures += [
                *divided(b, plain, laddered, captions),
                drawn_when_asked(b, adapter, prone[:: 2 if quick else 1], seeds[0]),
            ]
            sheet(plain, pictures, flagged, captions).save(b.work / "erase-model.png")
    return [prefixed("model removal", m) for m in measures]


def judged(
    b: Bench, name: str, pictures: np.ndarray, captions: list[str], clean: np.ndarray, *, plain_top: np.ndarray | None,
    flagged: Sequence[int] = (), goals: bool = False,
) -> list[Measure]:  # fmt: skip
    """Marks by every detector, captions kept and picture quality."""
    own = np.array([bool(marks) for marks in b.found(pictures)])
    judge: np.ndarray = np.max(b.judges.marks(pictures) >= 0.5, axis=1)
    top = b.judges.among_first(pictures, captions)
    measures = [
        clustered(f"{name}: marked, pipeline's detector", own, captions),
        clustered(f"{name}: marked, judge", judge, captions),
        clustered(f"{name}: marked, both agree", np.logical_and(own, judge), captions),
    ]
    if (seen := b.yolo(pictures)) is not None:
        measures.append(clustered(f"{name}: marked, YOLO", [any(f.triggered for f in one) for one in seen], captions))
    if len(flagged):
        repaired = ~own[list(flagged)]
        of = [captions[i] for i in flagged]
        measures.append(clustered(f"{name}: of the flagged, clean afterwards", repaired, of, 0.9 if goals else None))
        by_judge = ~judge[list(flagged)]
        measures.append(clustered(f"{name}: … clean by the judge", by_judge, of, 0.9 if goals else None))
    measures.append(clustered(f"{name}: caption right in the top 5, judge", top, captions))
    if plain_top is not None and len(flagged):
        rows = list(flagged)
        kept = top[rows].mean() / max(1e-9, plain_top[rows].mean())
        measures.append(spread(f"{name}: … of the redrawn, against before", [float(kept)], 0.97 if goals else None))
    measures.append(
        half_samples(f"{name}: KID × 1000 to the clean drawings", b.judges.features(pictures), clean, kid, scale=1000)
    )
    return measures


def climbed(
    b: Bench, adapter: EraseAdapter, pictures: np.ndarray, found: Found, captions: list[str], noises: list[int]
) -> np.ndarray:
    """The rest of the default mark ladder: what is still found is said as well; was it said before, it is a new seed."""
    from pipeline.steer.ladder import next_seed

    pictures, said, seeds = pictures.copy(), [dict(marks) for marks in found], list(noises)
    for attempt in (2, 3):
        seen = b.found(pictures)
        left = [i for i, marks in enumerate(seen) if marks]
        negatives = []
        for i in left:
            before = b.negative(adapter, said[i])
            said[i] = merged(seen[i], said[i])
            negatives.append(b.negative(adapter, said[i]))
            if attempt == 3 or bool((negatives[-1] == before).all()):
                seeds[i] = next_seed(seeds[i], attempt)
        if left:
            pictures[left] = b.draw(b.job([captions[i] for i in left], [seeds[i] for i in left], negatives))
    return pictures


def merged(now: Mapping[str, list[Any]], before: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Marks of the last attempt first, then those of earlier ones that are not the same."""
    from pipeline.steer.erase import SAME, overlap

    out = {concept: list(boxes) for concept, boxes in now.items()}
    for concept, boxes in before.items():
        kept = out.setdefault(concept, [])
        kept += [box for box in boxes if all(overlap(box, other) < SAME for other in kept)]
    return out


def divided(b: Bench, before: np.ndarray, after: np.ndarray, captions: Sequence[str]) -> list[Measure]:
    """How many times fewer pictures are marked; the judge's has the goal: the pipeline's detector chose what to redraw."""
    judge = [np.max(b.judges.marks(pictures) >= 0.5, axis=1) for pictures in (before, after)]
    own = [np.array([bool(marks) for marks in b.found(pictures)]) for pictures in (before, after)]
    return [
        ratio("marked before / marked after the ladder, judge", judge[0], judge[1], captions, 5.0),
        ratio("… both agree", own[0] & judge[0], own[1] & judge[1], captions),
    ]


def drawn_when_asked(b: Bench, adapter: EraseAdapter, captions: list[str], seed: int) -> Measure:
    """Asked for by its tokens, in the prompt, a QR code is still drawn: false erasure is the rest."""
    from pipeline.config import AdapterConfig
    from pipeline.steer.erasers import Erasers

    asked = Erasers(((adapter, AdapterConfig("")),)).asked({"qr": [(0.2, 0.2, 0.85, 0.85)]}, b.model.word_room())
    assert asked is not None
    contexts = [b.model.encode_words(caption, asked.vectors) for caption in captions]
    job = Job(captions, [7000 + 100 * seed + i for i in range(len(captions))], [b.empty] * len(captions), contexts)
    found = [not marks.get("qr") for marks in b.found(b.draw(job))]
    return clustered("false erasure: a QR code asked for by its tokens is not drawn", found, captions, 0.05, "lower")


# --- data removal -----------------------------------------------------------------------------------------------------------


def data_removal(b: Bench, seeds: Sequence[int], quick: bool, say: Callable[[str], None]) -> list[Measure]:
    from jobs.erase.sources import SUBJECTS

    subjects = [name.replace("-", " ") for name in SUBJECTS]
    captions = [subject for _ in seeds for _ in range(1 if quick else REPEATS) for subject in subjects]
    noises = [1000 * seeds[i // (len(captions) // len(seeds))] + 500 + i for i in range(len(captions))]
    clean = set_features(b)
    measures: list[Measure] = []
    for arm, seed, adapter in trained(b, "data"):
        shown = arm.name if seed == 0 else f"{arm.name}, seed {seed}"
        say(f"data removal: {shown}")
        negatives = {"": b.empty}
        if adapter.vocabulary is not None:
            negatives = {
                ", tokens unsaid": b.empty,
                "": b.standing(adapter),
            }
        elif arm.name == "plain fine-tuning":
            negatives[", names as negative prompt"] = b.model.encode_prompts([WORDS])[0]
        for suffix, negative in negatives.items():
            pictures = b.draw(b.job(captions, noises, [negative] * len(captions), adapter.lowrank))
            measures += judged_set(b, shown + suffix, pictures, captions, clean)
    return [prefixed("data removal", m) for m in measures]


def judged_set(
    b: Bench, name: str, pictures: np.ndarray, captions: list[str], clean: Mapping[str, np.ndarray]
) -> list[Measure]:
    own = b.found(pictures)
    judge = b.judges.marks(pictures) >= 0.5
    any_own = np.array([bool(marks) for marks in own])
    any_judge: np.ndarray = np.max(judge, axis=1)
    measures = [
        clustered(f"{name}: marked, pipeline's detector", any_own, captions),
        clustered(f"{name}: marked, judge", any_judge, captions),
        clustered(f"{name}: marked, both agree", np.logical_and(any_own, any_judge), captions),
    ]
    if (seen := b.yolo(pictures)) is not None:
        measures.append(clustered(f"{name}: marked, YOLO", [any(f.triggered for f in one) for one in seen], captions))
    for column, kind in enumerate(KINDS):
        by_judge = clustered(f"{name}: {kind}, judge", judge[:, column], captions)
        measures.append(clustered(f"{name}: {kind}, pipeline's detector", [kind in marks for marks in own], captions))
        measures.append(by_judge)
        hit, alarm = judge_rates(b, kind)
        measures.append(corrected(f"{name}: {kind}, judge, corrected for its sensitivity", by_judge, hit, 1 - alarm))
    seen_as = b.judges.features(pictures)
    means = {subject: rows.mean(0) for subject, rows in clean.items()}
    names = list(means)
    nearest = [names[int(np.argmin([np.linalg.norm(row - means[s]) for s in names]))] for row in seen_as]
    kept = [one == caption for one, caption in zip(nearest, captions, strict=True)]
    measures.append(clustered(f"{name}: nearest of the twelve subjects is the right one, judge's eyes", kept, captions))
    everything = np.concatenate(list(clean.values()))
    measures.append(half_samples(f"{name}: KID × 1000 to the clean set", seen_as, everything, kid, scale=1000))
    return measures


def judge_rates(b: Bench, kind: str) -> tuple[float, float]:
    """The judge's sensitivity and false alarms for a kind, on the world's drawings: what it was measured at, smeared."""
    measured = b.judges.settings["marks"]["measured"]
    return float(measured[f"world_{kind}_012"]["kind"][0]), float(measured["world_clean_smeared"][kind][0])


# --- what they share --------------------------------------------------------------------------------------------------------


def trained(b: Bench, part: str) -> list[tuple[Arm, int, EraseAdapter]]:
    """Every adapter of a part that is there, in the arms' order."""
    from pipeline.model.adapter import load_adapter

    found = []
    for arm in ARMS:
        for seed in SEEDS_OF_TRAINING:
            folder = adapter_folder(b.work, arm, seed)
            if arm.part == part and (folder / "adapter.json").exists():
                found.append((arm, seed, load_adapter(folder, b.model.digest)))
    return found


SEEDS_OF_TRAINING = (0, 1, 2)


def clean_features(b: Bench, captions: Sequence[str]) -> np.ndarray:
    """Features of clean drawings of these captions, jittered, three vendors each, as the world's autoencoder shows them."""
    from jobs.erase.sources import world_source

    pictures = [
        one.picture
        for one in world_source(b.world, "marked", np.random.default_rng(11), variants=1)
        if any(caption in one.caption for caption in captions)
    ]
    return b.judges.features(shown(b, np.stack(pictures)))


def set_features(b: Bench) -> dict[str, np.ndarray]:
    """Features of the clean set by subject, as the world's autoencoder shows them; six of each vendor's drawings."""
    from jobs.erase.sources import SUBJECTS, world_source

    found: dict[str, list[np.ndarray]] = {}
    for one in world_source(b.world, "new", np.random.default_rng(12), variants=6):
        subject = next(name for name in SUBJECTS if f"/{name}#" in one.name)
        found.setdefault(subject.replace("-", " "), []).append(one.picture)
    return {subject: b.judges.features(shown(b, np.stack(pictures))) for subject, pictures in found.items()}


def shown(b: Bench, pictures: np.ndarray) -> np.ndarray:
    """There and back through the autoencoder: what a perfect denoiser would give."""
    return b.model.decode(b.model.encode(pictures))


def prefixed(part: str, measure: Measure) -> Measure:
    import dataclasses

    return dataclasses.replace(measure, id=f"{part} · {measure.id}")


def sheet(before: np.ndarray, after: np.ndarray, flagged: Sequence[int], captions: Sequence[str]) -> Any:
    """Flagged pictures above, the same noise with the mark left out below."""
    from jobs.bench.sheet import arrange, stack, strip

    rows = [strip(captions[i], [before[i], after[i]]) for i in flagged[:36]]
    return stack([("flagged, then drawn again from the same noise with the mark left out", arrange(rows, 9))])
