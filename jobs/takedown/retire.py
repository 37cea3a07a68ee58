"""A retired reference lets go of the samples that were held back for it, where nothing else holds them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from jobs.reaudit.facts import RunFacts
from jobs.reaudit.look import EMBEDDING, Progress, Standard, look
from jobs.reaudit.result import Change, RunResult
from jobs.reaudit.rows import held_at_birth
from jobs.reaudit.standing import Standing
from pipeline.audit.requests import Opener


def release(
    facts: RunFacts,
    standing: Standing,
    standard: Standard,
    retired: Collection[str],
    harmless: Callable[[str], bool],
    result: RunResult,
    *,
    progress: Progress,
) -> Mapping[str, list[str]]:
    """Find the samples that a retired reference held back and that nothing else does.

    A claim lets a sample go when every reference that it named is harmless now, and the copies guard, held against the whole
    index, finds nothing in the picture. Without a picture a sample stays held back. One that a person rejected is
    let go by the claim, and counts as held back before: it does not go out.

    Args:
        facts: the run.
        standing: the state of its samples.
        standard: the index as it is without the retired references.
        retired: ids of the references that this claim retires.
        harmless: whether a reference forbids nothing.
        result: filled here.
        progress: see :func:`jobs.reaudit.look.look`.

    Returns:
        Claim → ids of the samples that it lets go.
    """
    over: dict[str, list[str]] = {}
    for sample_id in standing.held():
        held_for = standing.held_for(sample_id)
        ended = [claim for claim, refs in held_for.items() if refs & set(retired) and all(map(harmless, refs))]
        if ended:
            over[sample_id] = ended
    files = facts.files()
    looked = look(facts.folder, standard, only=over, files=files, progress=progress)
    result.take(looked)
    blind = {where for where, _ in looked.unreached}
    lets_go: dict[str, list[str]] = {}
    for seen in looked.seen:
        if seen.hits:
            result.hits += 1
        if seen.hits or seen.by == EMBEDDING or seen.sample_id in blind:
            result.held_already += 1
            continue
        for claim in over[seen.sample_id]:
            lets_go.setdefault(claim, []).append(seen.sample_id)
        nothing_else = set(over[seen.sample_id]) == set(standing.held_for(seen.sample_id))
        if nothing_else and standing.goes_out(seen.sample_id, seen.born):
            before = standing.outcome(seen.sample_id, seen.born)
            result.released.append(Change(sample_id=seen.sample_id, request_key=seen.request_key, before=before, by=seen.by))
        else:
            result.held_already += 1
    result.held_at_birth += _held_at_birth(facts, standing, retired, files.open)
    return lets_go


def _held_at_birth(facts: RunFacts, standing: Standing, retired: Collection[str], opener: Opener) -> list[Change]:
    """Samples that the run itself held back for nothing but these references: their pictures carry no marks and cannot go out
    by themselves."""
    found = held_at_birth(facts.folder, standing, opener)
    return [replace(one, category="copy") for one in found if one.ref_ids and set(one.ref_ids) <= set(retired)]
