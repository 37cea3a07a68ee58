"""Model removal: the base model draws marks; every picture on which the pipeline's detector finds one is drawn once more.

The flagged picture is drawn again from the same noise, with the arm's answer to the marks found and their places. The other
pictures do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from guards.base import Box
from jobs.lab.bench.degraded import worse
from jobs.lab.bench.erase_arms import BOTH, HIDDEN, WORSE, trained
from jobs.lab.bench.erase_draw import WORDS, Bench, Found, Job, marked_shares, prefixed
from jobs.lab.bench.measures import Measure, clustered, half_samples, kid, ratio, spread

if TYPE_CHECKING:
    from pipeline.model.conditioning import Conditioning
    from pipeline.steer.erase_adapter import EraseAdapter

LADDER = "default mark ladder, up to three attempts"
RUNG = " + focus"  # as the default policy asks for it first
USELESS = "blurry, low quality"  # a negative prompt that has nothing to do with marks
STANDS, IN_WORDS = "asked for by its tokens where codes stand", "asked for in words, marks hidden from the loss"
CODE = (0.2, 0.2, 0.85, 0.85)  # a code that fills the picture


def model_removal(b: Bench, seeds: Sequence[int], quick: bool, say: Callable[[str], None]) -> list[Measure]:
    """The measures of model removal, the table's first part."""
    from jobs.lab.world.catalogue import MARK_PRONE, ORDINARY
    from pipeline.respond.copies import next_seed

    prone = [name.replace("-", " ") for names in MARK_PRONE.values() for name in names][:: 5 if quick else 1]
    rest = [name.replace("-", " ") for name in ORDINARY][:: 8 if quick else 1]
    captions = [caption for _ in seeds for caption in (*prone, *rest)]
    noises = [1000 * seed + i for seed in seeds for i in range(len(prone) + len(rest))]
    say(f"drawing {len(captions)} ordinary pictures")
    plain = b.draw(b.job(captions, noises, [b.empty] * len(captions)))
    found = b.found(plain)
    flagged = [i for i, marks in enumerate(found) if marks]
    of, own_noises, seen = [captions[i] for i in flagged], [noises[i] for i in flagged], [found[i] for i in flagged]
    top = b.among_first(plain, captions)
    clean = clean_features(b, prone + rest)
    measures = [*judged(b, "none", plain, captions, clean, plain_top=None)]

    def redrawn(job: Job) -> np.ndarray:
        """The flagged pictures drawn once more; the others are byte-equal to before."""
        pictures = plain.copy()
        pictures[flagged] = b.draw(job)
        return pictures

    def row(name: str, pictures: np.ndarray, goals: bool = False) -> None:
        measured = judged(b, name, pictures, captions, clean, plain_top=top, flagged=flagged, goals=goals)
        lead, *others = (m for m in measured if "clean" in m.id or "top 5" in m.id)
        say(", ".join([f"{lead.id} {lead.value:.3f}", *(f"{m.id.split(': ')[1]} {m.value:.3f}" for m in others)]))
        measures.extend(measured)

    ended: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}  # after one attempt and after the ladder, by arm
    nothing, names = [b.empty] * len(flagged), [b.model.encode_prompts([WORDS])[0]] * len(flagged)
    for arm, seed, adapter in trained(b.work, b.model.digest, "model"):
        shown = arm.name if seed == 0 else f"{arm.name}, seed {seed}"
        say(f"model removal: {shown}")
        negatives = [b.negative(adapter, marks) for marks in seen]
        again = redrawn(b.job(of, own_noises, negatives, adapter.lowrank))
        row(shown, again, goals=arm.name == HIDDEN)
        if arm.name == WORSE:  # its tokens name places, so the places can be wrong in use as well
            jittered, low = worse(seen, float(adapter.settings["training"]["dataset"]["jitter"]), 1), adapter.lowrank
            row(f"{shown}, in use as well", redrawn(b.job(of, own_noises, [b.negative(adapter, m) for m in jittered], low)))
            negatives, where = b.by_rung(adapter, jittered)
            row(f"{shown}, in use as well{RUNG}", redrawn(b.job(of, own_noises, negatives, low, **where)))
        if not adapter.concepts:
            continue
        if adapter.vocabulary is not None:  # without tokens there is nothing to focus on
            negatives, where = b.by_rung(adapter, seen)
            again = redrawn(b.job(of, own_noises, negatives, adapter.lowrank, **where))
            row(f"{shown}{RUNG}", again)
        if arm.name not in (HIDDEN, BOTH):
            continue
        laddered = climbed(b, adapter, again, found, captions, noises)
        row(f"{shown}, {LADDER}", laddered)
        ended.setdefault(arm.name, []).append((again, laddered))
        measures += divided(b, plain, again, laddered, captions, shown)
        if (arm.name, seed) == (HIDDEN, 0):
            always = b.draw(b.job(captions, noises, [b.empty] * len(captions), adapter.lowrank))
            row(f"{shown}, on every sample from the start", always)
    for name, trainings in ended.items():
        if (many := len(trainings)) > 1:
            once, all_of_it = (np.concatenate([pair[i] for pair in trainings]) for i in (0, 1))
            together = f"{name}, {many} trainings together"
            measures += divided(b, np.concatenate([plain] * many), once, all_of_it, captions * many, together)
    row("a new seed", redrawn(b.job(of, [next_seed(noise, 1) for noise in own_noises], nothing)))
    row("their names as negative prompt", redrawn(b.job(of, own_noises, names)))
    row("SLD-style guidance against their names", redrawn(b.job(of, own_noises, nothing, safe=True)))
    first = {arm.name: adapter for arm, seed, adapter in trained(b.work, b.model.digest, "model") if seed == 0}
    if (both := first.get(BOTH)) is not None:
        measures += false_erasure(b, both, prone[:: 2 if quick else 1], seeds)
        (negatives, where), low = b.by_rung(both, seen), both.lowrank
        wide, everywhere = b.by_rung(both, seen, 1)
        row(f"{BOTH} + usual places + focus", redrawn(b.job(of, own_noises, wide, low, **everywhere)))
        row(f"{BOTH}, its weights alone, nothing said", redrawn(b.job(of, own_noises, nothing, low)))
        row(f"{BOTH}, its tokens alone{RUNG}", redrawn(b.job(of, own_noises, negatives, **where)))
        row("focus at these places, nothing said", redrawn(b.job(of, own_noises, nothing, **where)))
    if (main := first.get(HIDDEN)) is not None:
        measures += false_erasure(b, main, prone[:: 2 if quick else 1], seeds)
        (negatives, where), low = b.by_rung(main, seen), main.lowrank
        sheet(plain, redrawn(b.job(of, own_noises, negatives, low, **where)), flagged, captions).save(
            b.work / "erase-model.png"
        )
        untouched = [i for i in range(len(prone) + len(rest)) if not found[i]]  # of the first seed
        measures += false_alarms(b, main, [captions[i] for i in untouched], [noises[i] for i in untouched], plain[untouched])
    return [prefixed("model removal", m) for m in measures]


def judged(
    b: Bench, name: str, pictures: np.ndarray, captions: list[str], clean: np.ndarray, *, plain_top: np.ndarray | None,
    flagged: Sequence[int] = (), goals: bool = False,
) -> list[Measure]:  # fmt: skip
    """Marks by every detector, captions kept and picture quality."""
    own, judge = np.array([bool(marks) for marks in b.found(pictures)]), b.marked(pictures)
    top = b.among_first(pictures, captions)
    measures = marked_shares(b, name, pictures, captions)
    if len(flagged):
        rows, of = list(flagged), [captions[i] for i in flagged]
        measures.append(clustered(f"{name}: of the flagged, clean afterwards", ~own[rows], of, 0.9 if goals else None))
        measures.append(clustered(f"{name}: … clean by the judge", ~judge[rows], of, 0.9 if goals else None))
    measures.append(clustered(f"{name}: caption right in the top 5, judge", top, captions))
    if plain_top is not None and len(flagged):
        rows = list(flagged)
        kept = top[rows].mean() / max(1e-9, plain_top[rows].mean())
        measures.append(spread(f"{name}: … of the redrawn, against before", [float(kept)], 0.97 if goals else None))
    measures.append(half_samples(f"{name}: KID × 1000 to the clean drawings", b.features(pictures), clean, kid, scale=1000))
    return measures


def climbed(
    b: Bench, adapter: EraseAdapter, pictures: np.ndarray, found: Found, captions: list[str], noises: list[int]
) -> np.ndarray:
    """The rest of the default mark ladder: tokens for the marks still found are added; where none is new, the seed changes."""
    from pipeline.respond.copies import next_seed

    pictures, erased, seeds = pictures.copy(), [dict(marks) for marks in found], list(noises)
    for attempt in (2, 3):
        seen = b.found(pictures)
        left = [i for i, marks in enumerate(seen) if marks]
        before = b.by_rung(adapter, [erased[i] for i in left], attempt - 2)[0]
        for i in left:
            erased[i] = merged(seen[i], erased[i])
        negatives, where = b.by_rung(adapter, [erased[i] for i in left], 1)  # a new seed keeps the second attempt's tokens
        for number, i in enumerate(left):
            if attempt == 3 or negatives[number].equal(before[number]):
                seeds[i] = next_seed(seeds[i], attempt)
                where["places"][number] = ()  # a new seed is not focused
        if left:
            of = [captions[i] for i in left]
            pictures[left] = b.draw(b.job(of, [seeds[i] for i in left], negatives, adapter.lowrank, **where))
    return pictures


def merged(now: Mapping[str, list[Any]], before: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Marks of the last attempt first, then those of earlier ones that are not the same."""
    from pipeline.steer.erase_tokens import SAME, overlap

    out = {concept: list(boxes) for concept, boxes in now.items()}
    for concept, boxes in before.items():
        kept = out.setdefault(concept, [])
        kept += [box for box in boxes if all(overlap(box, other) < SAME for other in kept)]
    return out


def divided(
    b: Bench, plain: np.ndarray, once: np.ndarray, laddered: np.ndarray, captions: Sequence[str], name: str
) -> list[Measure]:
    """How many times fewer pictures are marked. The goal is set on the judge: the pipeline's detector chose what to redraw."""
    judge = [b.marked(pictures) for pictures in (plain, once, laddered)]
    own = [np.array([bool(marks) for marks in b.found(pictures)]) for pictures in (plain, once, laddered)]
    fair = f"marked before / marked after one attempt, judge, its false alarms subtracted, {name}"
    return [
        ratio(f"marked before / marked after one attempt, judge, {name}", judge[0], judge[1], captions, 5.0),
        ratio(fair, judge[0], judge[1], captions, alarms=b.alarms("any")),
        ratio(f"marked before / marked after the ladder, judge, {name}", judge[0], judge[2], captions, 5.0),
        ratio(f"marked before / marked after the ladder, both agree, {name}", own[0] & judge[0], own[2] & judge[2], captions),
    ]


def false_erasure(b: Bench, adapter: EraseAdapter, captions: list[str], seeds: Sequence[int]) -> list[Measure]:
    """False erasure: the share of pictures without a QR code although the prompt requests one.

    An adapter with tokens requests the code by its tokens, at the places of codes in the training set and filling the picture.
    The control requests it in words without the adapter; it shows why tokens exist. An adapter without tokens requests it in
    words, with its weights on.
    """
    from pipeline.config import AdapterConfig
    from pipeline.respond.marks import Erasers, typical

    erasers, room = Erasers(((adapter, AdapterConfig(path=adapter.name)),)), b.model.word_room()
    stand = typical(adapter.places.get("qr", ())) or [CODE]
    weights = ((adapter.lowrank, 1.0),) if adapter.lowrank is not None else ()

    def tokens(caption: str, box: Box) -> Conditioning:
        erasure = erasers.erasure_for({"qr": [box]}, room)
        assert erasure is not None
        return b.model.encode_words(caption, erasure.vectors)

    def named(_: int, caption: str) -> Conditioning:
        return b.model.encode_prompts([f"{caption} with a QR code"])[0]

    every = [(caption, 7000 + 100 * seed + i) for seed in seeds for i, caption in enumerate(captions)]
    some = every[: len(captions)]
    ways: dict[str, tuple[list[tuple[str, int]], Callable[[int, str], Conditioning], Sequence[Any]]] = {
        STANDS: (every, lambda i, caption: tokens(caption, stand[i % len(stand)]), weights),
        "asked for by its tokens, to fill the picture": (some, lambda _, caption: tokens(caption, CODE), weights),
        "asked for in words (control)": (every, named, ()),
    }
    if adapter.vocabulary is None:
        ways = {IN_WORDS: (every, named, weights)}
    measures = []
    for way, (wanted, context, lowrank) in ways.items():
        of, noises = [caption for caption, _ in wanted], [noise for _, noise in wanted]
        contexts = [context(i, caption) for i, caption in enumerate(of)]
        pictures = b.draw(
            Job(captions=of, seeds=noises, negatives=[b.empty] * len(of), contexts=contexts, lowrank=tuple(lowrank))
        )
        goal = 0.05 if way in (STANDS, IN_WORDS) else None
        unseen = [not marks.get("qr") for marks in b.found(pictures)]
        measures.append(clustered(f"false erasure: a QR code {way} is not drawn", unseen, of, goal, "lower"))
        by_judge = b.marks(pictures)[:, 1] < 0.5
        measures.append(clustered(f"false erasure: a QR code {way} is not drawn, judge", by_judge, of, goal, "lower"))
    return measures


def false_alarms(b: Bench, adapter: EraseAdapter, captions: list[str], noises: list[int], plain: np.ndarray) -> list[Measure]:
    """What erasing an absent mark does to a good picture, beside what other ways of redrawing do to it."""
    from pipeline.respond.copies import next_seed
    from pipeline.respond.marks import typical

    kinds = [(concept, box) for concept in adapter.concepts for box in typical(adapter.places.get(concept, ()))]
    alarms: Found = [{kinds[i % len(kinds)][0]: [kinds[i % len(kinds)][1]]} for i in range(len(captions))]
    nothing = [b.empty] * len(captions)
    negatives, where = b.by_rung(adapter, alarms)
    useless = [b.model.encode_prompts([USELESS])[0]] * len(captions)
    jobs = {
        "erased as the policy asks": b.job(captions, noises, negatives, adapter.lowrank, **where),
        "erased at its place, without focus": b.job(
            captions, noises, [b.negative(adapter, marks) for marks in alarms], adapter.lowrank
        ),
        "a new seed (control)": b.job(captions, [next_seed(noise, 1) for noise in noises], nothing),
        "a useless negative prompt (control)": b.job(captions, noises, useless),
    }
    before = b.among_first(plain, captions)
    right = [i for i, top in enumerate(before) if top]
    measures = []
    for name, job in jobs.items():
        after = b.among_first(b.draw(job), captions)
        lost = clustered(f"false alarm, {name}: caption lost from the top 5", ~after[right], [captions[i] for i in right])
        measures.append(lost)
    return measures


def clean_features(b: Bench, captions: Sequence[str]) -> np.ndarray:
    """Features of clean drawings of these captions, jittered, three vendors each, decoded by the world's autoencoder."""
    from jobs.lab.world.drawings import world_source

    pictures = [
        one.picture
        for one in world_source(b.world, "marked", np.random.default_rng(11), variants=1)
        if any(caption in one.caption for caption in captions)
    ]
    return b.features(b.shown(np.stack(pictures)))


def sheet(before: np.ndarray, after: np.ndarray, flagged: Sequence[int], captions: Sequence[str]) -> Any:
    """Flagged pictures beside the same noise with the mark left out."""
    from jobs.lab.bench.sheet import arrange, stack, strip

    rows = [strip(captions[i], [before[i], after[i]]) for i in flagged[:36]]
    return stack([("flagged, then drawn again from the same noise with the mark left out", arrange(rows, 9))])
