"""A retired reference lets go of the samples that were held back for it, where nothing else holds them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from jobs.reaudit.facts import RunFacts
from jobs.reaudit.look import EMBEDDING, Standard, look
from jobs.reaudit.result import Change, RunResult
from jobs.reaudit.rows import HELD, copies_of
from jobs.reaudit.standing import Standing
from pipeline.audit.requests import Opener
from pipeline.audit.stored import chosen_rows, samples_of


def release(
    facts: RunFacts,
    standing: Standing,
    standard: Standard,
    retired: Collection[str],
    harmless: Callable[[str], bool],
    result: RunResult,
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
    looked = look(facts.folder, standard, only=over, files=files)
    result.compared, result.looked, result.cleared = looked.compared, len(looked.seen), looked.cleared
    result.unreached += looked.unreached
    result.lasting |= looked.lasting
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
    found = []
    columns = ("sample_id", "request_key", "outcome", "findings")
    for part in samples_of(facts.folder, opener=opener):
        pairs = enumerate(zip(part.ids, part.outcomes, strict=True))
        rows = [row for row, (sample_id, born) in pairs if born in HELD and standing.outcome(sample_id, born) in HELD]
        for _, row in chosen_rows(facts.folder, part.path, rows, columns, opener=opener):
            refs = copies_of(row)
            if refs and refs <= set(retired):
                before = standing.outcome(row["sample_id"], row["outcome"])
                key, category = str(row["request_key"]), "copy"
                found.append(
                    Change(
                        sample_id=row["sample_id"],
                        request_key=key,
                        before=before,
                        ref_ids=tuple(sorted(refs)),
                        category=category,
                    )
                )
    return found
