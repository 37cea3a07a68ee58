"""Carry a claim out: the index changes at once, then every named run is looked at again from its stored embeddings.

The order makes a stop harmless. First the index, so that nothing new is released from then on; then run after run, each with
its events in one part. The same command again finds what is done and does the rest; once all is done, it changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from guards.copies import HARMLESS
from index.at_uri import place_of
from index.counted import counted
from index.errors import InputError
from index.storage import place
from jobs.reaudit.facts import RunFacts
from jobs.reaudit.judge import concerns, notes, sort_hits
from jobs.reaudit.look import References, Standards, look
from jobs.reaudit.reach import Progress, reach, silent
from jobs.reaudit.result import RunResult
from jobs.reaudit.standing import QUARANTINED, RELEASED, Standing
from jobs.takedown.claim import FiledClaim
from jobs.takedown.retire import release
from pipeline.audit.events import NewEvent

if TYPE_CHECKING:
    from index.chosen import ChosenReferences, IndexWithout
    from index.embed import Embedder
    from index.reference import NewReference
    from index.store import ReferenceIndex

ACTOR = "takedown"
APPLIED = "takedown.applied"
ADD, RETIRE = "add", "retire"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a claim asks for.

    Attributes:
        filed: the claim. action: ``add`` references, or ``retire`` them.
        works: the pictures to add. ref_ids: the references to retire.
        actor: the role that carries it out. person: its pseudonym.
        dry_run: change nothing. every_picture: look at every picture of the runs.
    """

    filed: FiledClaim
    action: str
    works: Sequence[NewReference] = ()
    ref_ids: Sequence[str] = ()
    actor: str = ACTOR
    person: str = ""
    dry_run: bool = False
    every_picture: bool = False


@dataclass(kw_only=True)
class Done:
    """What came of a claim.

    Attributes:
        order: the claim.
        index: the index's folder. before, after: the index id. changed: whether it changed (or would, in a dry run).
        references: of each: id, title, and what became of it.
        runs: what came of each run.
        at: when it was carried out.
    """

    order: Order
    index: str
    before: str
    after: str = ""
    changed: bool = False
    references: list[dict[str, str]] = field(default_factory=list)
    runs: list[RunResult] = field(default_factory=list)
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def gaps(self) -> list[str]:
        """Why the claim is not carried out in full; empty where it is."""
        return [gap for run in self.runs for gap in run.gaps()]

    @property
    def nothing_new(self) -> bool:
        """Whether all of it was done before."""
        return not self.changed and not any(run.changed or run.quarantined or run.released for run in self.runs)


def carry_out(
    index: ReferenceIndex, embedder: Embedder, order: Order, runs: Sequence[str], *, progress: Progress = silent
) -> Done:
    """Carry a claim out.

    Args:
        index: the index; it changes first.
        embedder: the one that the index is bound to.
        order: the claim.
        runs: run folders. One that cannot be reached is named in the result; the others are dealt with.
        progress: called with the run and the numbers of :data:`jobs.reaudit.look.Progress`.

    Raises:
        InputError: nothing is claimed, a reference does not exist, or a run is named twice.
        IndexMismatch: another process is changing the index.
    """
    _require_runs(runs)
    done = Done(order=order, index=str(place_of(index.folder)), before=index.index_id, after=index.index_id)
    if order.action == ADD:
        held_against: References = _added(index, embedder, order, done)
    else:
        held_against = _retired(index, order, done)
    every_picture = order.every_picture or order.action == RETIRE
    standards = Standards(held_against, embedder, every_picture=every_picture)
    work = _Work(index=index, standards=standards, done=done, progress=progress)
    done.runs += [reach(run, embedder.embedder_id, work.look_at, dry_run=order.dry_run) for run in runs]
    return done


def _require_runs(runs: Sequence[str]) -> None:
    if not runs:
        raise InputError("names no run", where="--runs", fix="Name the runs that may hold copies of the works")
    resolved = [os.path.realpath(str(place(run))) for run in runs]  # Path.resolve raises on a link that leads to itself
    twice = sorted({run for run, path in zip(runs, resolved, strict=True) if resolved.count(path) > 1})
    if twice:
        raise InputError(f"names a run twice: {twice[0]}", where="--runs", fix="Name every run once")


# --- the index -------------------------------------------------------------------------------------------------------------


def _added(index: ReferenceIndex, embedder: Embedder, order: Order, done: Done) -> ChosenReferences:
    """The claim's works as references, added to the index unless this is a dry run."""
    from index.chosen import ChosenReferences
    from index.reference import MATCHING

    claim_id = order.filed.claim_id
    works = [replace(work, claim_id=work.claim_id or claim_id) for work in order.works]
    for work in works:
        if work.status not in MATCHING:
            what = f"a claimed work has the status {work.status!r}"
            raise InputError(
                what, where=f"reference {work.place!r}", fix="Remove the status from its metadata: it would match nothing"
            )
    chosen = ChosenReferences.of_works(works, embedder)
    known = {ref_id: found.status for ref_id in chosen.ref_ids if (found := index.get(ref_id)) is not None}
    if not order.dry_run:
        index.add(works, embedder, reason=f"{claim_id}: {order.filed.claim.basis}")
        done.after = index.index_id
    for ref_id, match in chosen.matches.items():
        state = "new" if ref_id not in known else f"known, {known[ref_id]}"
        done.references.append({"ref_id": ref_id, "title": match.title, "state": state})
    done.changed = (
        done.before != done.after
        if not order.dry_run
        else any(ref_id not in known or known[ref_id] not in MATCHING for ref_id in chosen.matches)
    )
    return chosen


def _retired(index: ReferenceIndex, order: Order, done: Done) -> ReferenceIndex | IndexWithout:
    """Retire the claim's references unless this is a dry run; returns the index as it is without them."""
    from index.chosen import IndexWithout
    from index.reference import RETIRED

    known = {full: index.reference(full) for full in map(index.full_id, order.ref_ids)}
    full = [*known]
    for ref_id, reference in known.items():
        done.references.append({"ref_id": ref_id, "title": reference.title, "state": f"was {reference.status}"})
    done.changed = any(reference.status != RETIRED for reference in known.values())
    if order.dry_run:
        return IndexWithout(index, frozenset(full))
    index.retire(full, reason=f"{order.filed.claim_id}: {order.filed.claim.basis}")
    done.after = index.index_id
    return index


# --- the runs --------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Work:
    """What every run is held against, and the index as a whole."""

    index: ReferenceIndex
    standards: Standards
    done: Done
    progress: Progress

    def _harmless(self, ref_id: str) -> bool:
        """Whether a reference forbids nothing, once the claim is carried out."""
        reference = self.index.get(ref_id)
        gone = any(one["ref_id"] == ref_id for one in self.done.references)
        return gone or reference is None or reference.status in HARMLESS

    def look_at(self, facts: RunFacts, standing: Standing, result: RunResult) -> list[NewEvent]:
        """Look at a run; returns the events that tell of it."""
        result.events = (standing.head, standing.head)
        order, standard = self.done.order, self.standards.of(facts.point, facts.policy.copies)  # the guard as the run had it
        result.notes += notes(facts, standard)
        if order.action == ADD:
            looked = look(
                facts.folder, standard, wanted=concerns(standing), files=facts.files(),
                progress=partial(self.progress, result.run),
            )  # fmt: skip
            sort_hits(looked, standing, result, claim=order.filed.claim_id)
            return _events(self.done, result, standing, {})
        retired = {one["ref_id"] for one in self.done.references}
        told = partial(self.progress, result.run)
        lets_go = release(facts, standing, standard, retired, self._harmless, result, progress=told)
        return _events(self.done, result, standing, lets_go)


def _events(done: Done, result: RunResult, standing: Standing, lets_go: Mapping[str, list[str]]) -> list[NewEvent]:
    """What is to be written of a run; nothing where all of it stands there already."""
    order, claim = done.order, done.order.filed.plain()
    refs = [one["ref_id"] for one in done.references]
    digests = {
        "claim_sha256": order.filed.sha256, "index_before": done.before, "index_after": done.after,
        "receipt_part_sha256": result.part_sha256(),
    }  # fmt: skip
    details = {
        "claim": claim["id"], "about": claim, "action": order.action, "references": refs, "counts": result.counts(),
        "not_reached": [[where, what] for where, what in result.unreached],
    }  # fmt: skip

    def event(kind: str, reason: str, samples: Sequence[str], more: Mapping[str, Any]) -> NewEvent:
        return NewEvent(
            kind=kind, actor=order.actor, person=order.person, reason=reason, samples=samples, details=more, digests=digests
        )

    changes = []
    if result.quarantined:
        ids = [change.sample_id for change in result.quarantined]
        looks = {change.sample_id: change.look() for change in result.quarantined}
        reason = f"{counted(len(ids), 'sample')} {'is' if len(ids) == 1 else 'are'} too near to what {claim['id']} claims"
        changes.append(event(QUARANTINED, reason, ids, {"claim": claim["id"], "looks": looks}))
    for held_for, ids in lets_go.items():
        held, them = ("was", "it") if len(ids) == 1 else ("were", "them")
        of_them = f"the references that {counted(len(ids), 'sample')} {held} held back for"
        reason = f"{of_them} are retired, and nothing else is found in {them}"
        changes.append(event(RELEASED, reason, ids, {"claim": held_for, "because_of": claim["id"]}))
    if not changes and _applied_before(standing, details):
        return []
    reason = (
        f"{order.action} {counted(len(refs), 'reference')}: {counted(len(result.quarantined), 'sample')} held back, "
        f"{len(result.released)} released"
    )
    return [event(APPLIED, reason, (), details), *changes]


def _applied_before(standing: Standing, details: dict[str, Any]) -> bool:
    """Whether an event says of this claim what would be said now."""
    same = ("claim", "action", "references", "not_reached")
    return any(
        event["kind"] == APPLIED and all(event["details"].get(name) == details[name] for name in same)
        for event in standing.events
    )
