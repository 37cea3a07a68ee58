"""Faithfulness: how well the guard tells steered pictures that lost their caption from those that kept it.

Every request climbs a ladder of four ways of steering, from gentle to far too strong, whatever its pictures look like: so each
caption has steered pictures of every kind. Finished seeds are kept under the work folder; a stopped bench continues from them.
"""

from __future__ import annotations

import tempfile
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.lab.bench.measures import RESAMPLES, Measure, clustered, publish

if TYPE_CHECKING:
    from guards.faithfulness import FaithfulnessGuard
    from index.embed import Embedder
    from jobs.lab.bench.steering_attempts import Attempts
    from pipeline.policy import Policy

SEEDS = (11, 12, 13)
CAPTIONS = 21
GOAL = 0.90
# Arms of the steering bench, whose captions are kept in 97, 87, 67 and 50 % there. The threshold makes every picture climb.
WAYS = ("nudging, ours", "NegToMe, conditional row", "nudging, literal", "NegToMe, ours")


def climbing() -> Policy:
    """The policy of the bench: one rung for each way, climbed by every request."""
    from jobs.lab.bench.steering_arms import ARMS, OBSERVED, UNSAFE
    from pipeline.policy import Policy
    from pipeline.settings import from_dict

    rungs = {arm.name: arm.rung for arm in ARMS}
    ladder = [f"[[ladder]]\n{rungs[way]}" for way in WAYS]
    text = "\n".join(["[copies]\nthreshold = 0.0001\nhues = 1", OBSERVED, UNSAFE, *ladder])
    return from_dict(Policy, tomllib.loads(text), where="bench faithfulness")


def bench(out: Path, *, quick: bool = False, work: Path) -> None:
    """Measure and publish ``faithfulness``.

    Args:
        out: gets ``faithfulness.json``.
        quick: three captions, one seed.
        work: finished seeds are kept here.
    """
    from jobs.lab.bench.drawing import open_runtime
    from jobs.lab.bench.steering import kept, spread_over
    from jobs.lab.judges.judges import Judges
    from jobs.lab.world.catalogue import PROTECTED

    seeds, names = (SEEDS[:1], spread_over(PROTECTED, 3)) if quick else (SEEDS, spread_over(PROTECTED, CAPTIONS))
    found = kept(work, Judges.open(), "faithfulness", climbing(), names, seeds)
    with tempfile.TemporaryDirectory() as folder:
        copies = open_runtime(Path(folder), "observe").copies
        assert copies is not None
        guard = measured_guard(copies.index, copies.embedder)
        scores = scored(guard, copies.embedder, found)
    usual = {name: round(value, 4) for name, value in guard.plain().items()}
    publish("faithfulness", measures(found, scores, guard.threshold), out, seeds=seeds, quick=quick, more={"usual": usual})


def measured_guard(index: Any, embedder: Embedder) -> FaithfulnessGuard:
    """The guard as a run opens it, with the default threshold."""
    from guards.faithfulness import FaithfulnessGuard, UsualRange
    from pipeline.guard_settings import FaithfulnessPolicy

    usual = UsualRange.measured([(r.ref_id, r.title) for r in index.in_force()], embedder, index.compare)
    return FaithfulnessGuard(usual, embedder, threshold=FaithfulnessPolicy().threshold)


def scored(guard: FaithfulnessGuard, embedder: Embedder, found: Attempts) -> np.ndarray:
    """The guard's score of every attempt, float64 (N,), as the loop asks for it: against the request's unsteered picture."""
    embeddings = embedder.images(found.pictures)
    unsteered = {str(found.key[i]): embeddings[i] for i in np.flatnonzero(found.number == 0)}
    rows = zip(found.key.tolist(), found.captions, embeddings, strict=True)
    return np.array([guard.check(caption, embedding, unsteered[key]).score for key, caption, embedding in rows])


def measures(found: Attempts, scores: np.ndarray, threshold: float) -> list[Measure]:
    """AUC over all steered pictures and by way of steering, and the two rates at the threshold; by the caption judge."""
    steered, lost, captions = found.number > 0, ~found.right, np.array(found.captions)
    measured = [auc("steered pictures: lost against kept captions, AUC", scores, lost, captions, steered, GOAL)]
    for number, way in enumerate(WAYS, 1):
        measured.append(auc(f"… {way}: AUC", scores, lost, captions, found.number == number))
        kept_here = found.right[found.number == number]
        measured.append(
            clustered(f"… {way}: caption in the judge's top 5", kept_here, captions[found.number == number].tolist())
        )
    for name, mine, better in (("lost captions found", lost, "higher"), ("kept captions flagged", ~lost, "lower")):
        rows = steered & mine
        measured.append(
            clustered(f"{name}, at a score of {threshold:g}", scores[rows] >= threshold, captions[rows].tolist(), better=better)
        )
    return measured


def auc(
    name: str, scores: np.ndarray, lost: np.ndarray, captions: np.ndarray, rows: np.ndarray, goal: float | None = None
) -> Measure:
    """Probability that a lost caption scores higher than a kept one; bootstrap over whole captions."""
    score, positive, of = scores[rows], lost[rows], captions[rows]
    if positive.all() or not positive.any():
        return Measure(id=name, value=0.5, low=0.0, high=1.0, n=len(score), goal=goal)
    groups = [np.flatnonzero(of == caption) for caption in np.unique(of)]
    rng, drawn = np.random.default_rng(0), list[float]()
    for _ in range(RESAMPLES):
        some = np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))])
        if positive[some].any() and not positive[some].all():
            drawn.append(area(score[some], positive[some]))
    low, high = (float(value) for value in np.quantile(drawn, (0.025, 0.975)))
    return Measure(id=name, value=area(score, positive), low=low, high=high, n=len(score), goal=goal)


def area(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve; a tie counts half."""
    above = score[positive][:, None] - score[~positive][None]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())
