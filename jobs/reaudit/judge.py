"""Sort what was seen of a run: what is held back now, what was held back before, and what a person has settled."""

from __future__ import annotations

from collections.abc import Callable

from jobs.reaudit.facts import RunFacts
from jobs.reaudit.look import Looked, Seen, Standard
from jobs.reaudit.result import COLOURS, EDITS, LARGE, UNKEPT, Change, RunResult
from jobs.reaudit.standing import Standing

OUT_OR_HELD = frozenset({"accepted", "accepted_after_steering", "review", "quarantined"})


def concerns(standing: Standing) -> Callable[[str, str], bool]:
    """Whether a sample matters to a claim: it is out, may come out by a review, or is held back until a claim ends."""
    return lambda sample_id, born: standing.outcome(sample_id, born) in OUT_OR_HELD


def sort_hits(
    looked: Looked, standing: Standing, result: RunResult, *, claim: str, acts: Callable[[Seen], bool] = lambda seen: True
) -> None:
    """Put every hit into one list of the result.

    Args:
        looked: what was seen.
        standing: the state of the samples before.
        result: filled here.
        claim: for what samples are held back.
        acts: whether a hit leads to quarantine; False: the policy only observes it.
    """
    result.take(looked)
    for seen in looked.hits:
        result.hits += 1
        before = standing.outcome(seen.sample_id, seen.born)
        change = Change.of(seen, before)
        if not acts(seen):
            result.observed.append(change)
        elif set(change.ref_ids) <= standing.held_for(seen.sample_id).get(claim, set()):
            result.held_already += 1
        elif settled(seen, change, standing):
            result.by_person.append(change)
        else:
            result.quarantined.append(change)


def settled(seen: Seen, change: Change, standing: Standing) -> bool:
    """Whether a person accepted the sample knowing every one of these references: from its row, or from an event before."""
    named = standing.settled_by_person(seen.sample_id)
    if named is None:
        return False
    shown = {str(finding["ref_id"]) for finding in seen.row.get("findings", ()) if finding["triggered"]}
    return set(change.ref_ids) <= named | shown


def notes(facts: RunFacts, standard: Standard) -> list[str]:
    """What a reader must know beside the numbers of a run."""
    found = []
    if facts.committed < facts.shards:
        found.append(f"The run is not finished: {facts.committed} of {facts.shards} shards are committed and were looked at.")
    if standard.hues == 1:
        found.append("The policy does not look for copies in other colours (copies.hues = 1), and neither did this.")
    elif not standard.every_picture and (standard.views is None or standard.views.turned.any()):
        found.append(COLOURS if standard.views is not None else LARGE)
    if standard.unkept:
        found.append(UNKEPT)
    if standard.edits and not standard.every_picture:
        found.append(EDITS)
    return found
