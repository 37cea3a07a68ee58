"""The measures of the default ladder: how requests for protected captions end, and what that costs."""

from __future__ import annotations

import numpy as np

from jobs.lab.bench.measures import Measure, clustered, ratio
from jobs.lab.bench.steering_arms import STEPS
from jobs.lab.bench.steering_attempts import Attempts, copies_at, templated

EVALS = "evaluations per repaired request, multiple of the steps"


def of_ladder(found: Attempts, unsteered: Attempts) -> list[Measure]:
    """The default policy on protected captions, with the goals of full steering; ``unsteered``: the same requests without."""
    name = "the default ladder · "
    accepted, plain = found.where(found.accepted), dict(zip(unsteered.key.tolist(), unsteered.right.tolist(), strict=True))
    before = np.array([plain[key] for key in accepted.key.tolist()], float)
    share_kept = name + "caption kept, share of the unsteered (top 5)"
    measures = [
        *ladder_bars(name, found, goals=True),
        ratio(share_kept, accepted.right.astype(float), before, accepted.captions, 0.97),
        *among_others(name, found),
        clustered(name + "unsteered: caption in the judge's top 5", unsteered.right, unsteered.captions),
    ]
    for kind, mine in (("verbatim", ~templated(found.captions)), ("template", templated(found.captions))):
        if mine.any():
            measures += ladder_bars(f"{name}memorised {kind}: ", found.where(mine), goals=False)
    return measures


def ladder_bars(name: str, found: Attempts, *, goals: bool) -> list[Measure]:
    """How these requests ended: share accepted, copies among them, captions kept, cost of a repair."""
    accepted = found.where(found.accepted)
    requests, index = np.unique(found.key, return_index=True)
    captions = [found.captions[i] for i in index]
    ended = np.isin(requests, accepted.key)
    repaired = accepted.where(accepted.steered)
    spent = [float(found.evals[found.key == key].sum()) for key in repaired.key]
    by_judge = {rate: copies_at(accepted.judge, rate) for rate in ("0.05", "0.01")}
    evals = np.array(spent) / STEPS

    def goal(value: float) -> float | None:
        return value if goals else None

    return [
        clustered(name + "accepted", ended, captions, goal(0.98)),
        clustered(name + "accepted copies, pipeline's rule", accepted.flagged, accepted.captions, goal(0.0), "lower"),
        clustered(name + "accepted copies, judge (5 % false alarms)", by_judge["0.05"], accepted.captions, goal(0.0), "lower"),
        clustered(name + "accepted copies, judge (1 % false alarms)", by_judge["0.01"], accepted.captions, goal(0.0), "lower"),
        clustered(name + "accepted, caption in the judge's top 5", accepted.right, accepted.captions),
        clustered(name + EVALS, evals, repaired.captions, goal(1.20), "lower"),
        clustered(name + "similarity of what was accepted", accepted.cosine, accepted.captions, better="lower"),
    ]  # fmt: skip


def among_others(name: str, found: Attempts) -> list[Measure]:
    """Evaluations per accepted picture where a share of all requests is flagged at first, the rest accepted as drawn.

    The flagged ones cost, and end, as those measured here: requests whose first try was stopped or flagged.
    """
    flagged = sorted({str(key) for key, hit in zip(found.key, found.flagged | found.steered, strict=True) if hit})
    spent = np.array([found.evals[found.key == key].sum() for key in flagged]) / STEPS
    ended = np.isin(flagged, found.key[found.accepted])
    captions = [key.split("#")[0] for key in flagged]
    return [
        ratio(
            f"{name}evaluations per accepted picture, multiple of the steps, {share:.0%} flagged".replace("%", " %"),
            1 - share + share * spent,
            1 - share + share * ended,
            captions,
            goal,
            "lower",
        )
        for share, goal in ((0.15, 1.03), (0.35, 1.08))
    ]
