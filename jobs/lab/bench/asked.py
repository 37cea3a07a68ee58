"""A QR code that the prompt asks for: whether the painter draws it, what becomes of it in a run, what weaker erasing spares.

False erasure has a ground only where the painter draws what is asked. So the same noise is drawn with and without the request
first. Then the prompts are run under the default policy, and under the same one with ``asked.qr = "keep"``. Last, the pictures
with a code are drawn again with the eraser's weights at several strengths: what is removed where nobody asked, against what is
lost where somebody did.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.lab.bench.measures import Measure, clustered, paired, publish

if TYPE_CHECKING:
    from jobs.lab.bench.erase_draw import Bench
    from pipeline.model.adapters.lowrank import LowRank
    from pipeline.outcome import Sample
    from pipeline.policy import Policy

SEEDS = tuple(range(1, 10))  # half of the pictures have a code: three seeds gave sixteen, too few for a goal of 5 %
ASKING = "{} with a QR code"
STRENGTHS = (1.0, 0.6, 0.4, 0.25)  # of the weights that ship
GOAL = 0.05
REMOVED, LOST = "removed where nobody asked", "lost where it was asked for in words"


def bench(out: Path, work: Path, *, quick: bool = False, seeds: Sequence[int] = SEEDS) -> None:
    """Measure and publish ``asked``.

    Args:
        out: gets ``asked.json``.
        work: pictures are kept here.
        quick: three captions, one seed.
        seeds: of the pictures.
    """
    from jobs.console import say
    from jobs.lab.bench.erase_draw import Bench
    from jobs.lab.world.catalogue import MARK_PRONE

    prone, rest = MARK_PRONE["qr"], [*MARK_PRONE["watermark"], *MARK_PRONE["text"]]
    chosen = tuple(seeds[:1] if quick else seeds)
    prone, rest = ([name.replace("-", " ") for name in some][: 3 if quick else None] for some in (prone, rest))
    b = Bench(work, work)
    say("whether the painter draws what is asked")
    measures = drawn_if_asked(b, "subjects learned with codes", prone, chosen)
    measures += drawn_if_asked(b, "other subjects", rest, chosen[:1])
    say("what becomes of it in a run")
    measures += in_a_run(b, prone, chosen)
    say("what weaker erasing spares")
    measures += by_strength(b, prone, chosen)
    publish("asked", measures, out, seeds=chosen, quick=quick)


def requests(captions: Sequence[str], seeds: Sequence[int]) -> tuple[list[str], list[int]]:
    """Every caption with every seed, and the seed of each one's noise."""
    return [caption for _ in seeds for caption in captions], [8000 + 100 * s + i for s in seeds for i in range(len(captions))]


def codes(b: Bench, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Whether each picture shows a QR code, by detector: bool (N,)."""
    from jobs.lab.judges.own_marks import KINDS

    own = np.array([bool("qr" in marks) for marks in b.found(pictures)], bool)
    return {"pipeline's detector": own, "judge": b.marks(pictures)[:, KINDS.index("qr")] >= 0.5}


def drawn(b: Bench, captions: Sequence[str], noises: Sequence[int], strength: float = 0.0) -> np.ndarray:
    """The pictures, with the weights that ship at a strength."""
    job = b.job(list(captions), list(noises), [b.empty] * len(captions))
    return b.draw(dataclasses.replace(job, lowrank=((shipped(b), strength),)) if strength else job)


def shipped(b: Bench) -> LowRank:
    """The low-rank weights of the eraser that ships."""
    from pipeline.respond.marks import open_erasers

    ((adapter, _),) = open_erasers((), b.model, base=Path()).loaded
    assert adapter.lowrank is not None
    return adapter.lowrank


def drawn_if_asked(b: Bench, name: str, captions: Sequence[str], seeds: Sequence[int]) -> list[Measure]:
    """The share of pictures with a code, asked for and not, from the same noise."""
    of, noises = requests(captions, seeds)
    plain, asked = (codes(b, drawn(b, some, noises)) for some in (of, [ASKING.format(one) for one in of]))
    measures = []
    for detector in plain:
        measures.append(clustered(f"{name}: a code is drawn, not asked for, {detector}", plain[detector], of))
        measures.append(clustered(f"{name}: a code is drawn, asked for in words, {detector}", asked[detector], of))
        measures.append(paired(f"{name}: … what asking adds, {detector}", plain[detector], asked[detector], of))
    return measures


def policies() -> dict[str, Policy]:
    """The default policy, and the same one that keeps a code that is asked for."""
    from jobs.run.plan import read_policy
    from pipeline.guard_settings import AskedPolicy

    default = read_policy("default", Path())
    return {"act": default, "keep": dataclasses.replace(default, asked=AskedPolicy(qr="keep"))}


def in_a_run(b: Bench, captions: Sequence[str], seeds: Sequence[int]) -> list[Measure]:
    """Requests under both policies, from the first picture to the end."""
    from jobs.lab.bench.drawing import open_runtime
    from pipeline.moderate import moderate
    from pipeline.outcome import Request

    of, noises = requests(captions, seeds)
    ended: dict[tuple[str, bool], list[Sample]] = {}
    for name, policy in policies().items():
        with tempfile.TemporaryDirectory() as folder:
            runtime = open_runtime(Path(folder), policy)
            texts = {True: [ASKING.format(one) for one in of], False: of}
            asking = [
                Request(row_no=i, key=f"{ask}-{i}", prompt=text, seed=noises[i])
                for ask, some in texts.items()
                for i, text in enumerate(some)
            ]
            done = {sample.request.key: sample for sample in moderate(runtime, asking)}
            runtime.close()
        for ask in texts:
            ended[name, ask] = [done[f"{ask}-{i}"] for i in range(len(of))]
    return counted(b, ended, of)


def counted(b: Bench, ended: Mapping[tuple[str, bool], Sequence[Sample]], of: Sequence[str]) -> list[Measure]:
    """The measures of samples by policy and whether their prompts ask; ``of``: the captions, in the samples' order."""
    from pipeline.outcome import ACCEPTED

    measures = []
    for (name, ask), samples in ended.items():
        which = f'in a run, asked.qr = "{name}", {"asked for in words" if ask else "not asked for"}'
        before = codes(b, np.stack([sample.attempts[0].picture for sample in samples]))
        after = codes(b, np.stack([sample.attempts[-1].picture for sample in samples]))
        for detector in before:
            had = np.flatnonzero(before[detector]).tolist()
            gone, clusters = ~after[detector][had], [of[i] for i in had]
            goal = GOAL if ask and name == "keep" else None
            better = "lower" if ask else "higher"
            measures.append(clustered(f"{which}: a code is gone at the end, {detector}", gone, clusters, goal, better))
        accepted = [sample.outcome in ACCEPTED for sample in samples]
        measures.append(clustered(f"{which}: accepted", accepted, of))
        measures.append(clustered(f"{which}: pictures drawn for a request", [len(one.attempts) for one in samples], of))
    same = [_digests(one) == _digests(other) for one, other in zip(ended["act", False], ended["keep", False], strict=True)]
    measures.append(clustered("in a run, not asked for: every picture the same under both", same, of, 1.0))
    return measures


def _digests(sample: Sample) -> list[str]:
    return [attempt.pixel_sha256 for attempt in sample.attempts]


def by_strength(b: Bench, captions: Sequence[str], seeds: Sequence[int]) -> list[Measure]:
    """The pictures with a code drawn again from the same noise, by the strength of the weights."""
    of, noises = requests(captions, seeds)
    measures = []
    for strength in STRENGTHS:
        for what, better, texts in (
            (REMOVED, "higher", of),
            (LOST, "lower", [ASKING.format(one) for one in of]),
        ):
            had = np.flatnonzero(codes(b, drawn(b, texts, noises))["pipeline's detector"])
            again = codes(b, drawn(b, [texts[i] for i in had], [noises[i] for i in had], strength)) if len(had) else {}
            for detector, seen in again.items():
                name = f"weights at {strength:g}: codes {what}, {detector}"
                measures.append(clustered(name, ~seen, [of[i] for i in had], None, better))
    return measures
