"""Hold finished runs against other rules: another policy, another threshold, another state of the index. Nothing is drawn."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from index.at_uri import place_of
from index.counted import counted
from jobs.reaudit.facts import RunFacts, in_force
from jobs.reaudit.judge import OUT_OR_HELD, notes, sort_hits
from jobs.reaudit.look import Looked, Seen, Standard, Standards, look
from jobs.reaudit.reach import Progress, reach, silent
from jobs.reaudit.result import Change, RunResult
from jobs.reaudit.rows import LADDER_USED_UP, OtherGuards, held_for_copies, own_references
from jobs.reaudit.standing import QUARANTINED, RELEASED, Standing
from pipeline.audit.events import NewEvent
from pipeline.decide import decide
from pipeline.outcome import Verdict
from pipeline.policy import Policy, policy_digest

if TYPE_CHECKING:
    from index.calibrate import OperatingPoint
    from index.embed import Embedder
    from index.store import ReferenceIndex

ACTOR = "reaudit"
CLAIM = "re-audit"  # what its quarantines are for; a later re-audit may end them, a claim's only the claim
DONE = "reaudit.done"
FORMAT = "clearance re-audit receipt 1"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What runs are held against.

    Attributes:
        policy: the policy; None: each run's own.
        point: the operating point; None: that of the policy, or each run's own.
        threshold: in place of the operating point's.
        actor: the role. person: its pseudonym.
        dry_run: change nothing. every_picture: look at every picture.
    """

    policy: Policy | None = None
    point: OperatingPoint | None = None
    threshold: float | None = None
    actor: str = ACTOR
    person: str = ""
    dry_run: bool = False
    every_picture: bool = False

    def point_for(self, facts: RunFacts) -> OperatingPoint:
        """The operating point that a run is held against."""
        point = self.point or facts.point
        return point if self.threshold is None else point.at(self.threshold)

    def policy_for(self, facts: RunFacts) -> Policy:
        return self.policy or facts.policy

    def plain(self) -> dict[str, Any]:
        """For events and receipts."""
        return {
            "policy": self.policy.name if self.policy is not None else "",
            "policy_sha256": policy_digest(self.policy) if self.policy is not None else "",
            "threshold": self.threshold,
        }


@dataclass(kw_only=True)
class Done:
    """What came of a re-audit: rules, index and its id, runs, when."""

    rules: Rules
    index: str
    index_id: str
    runs: list[RunResult] = field(default_factory=list)
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def gaps(self) -> list[str]:
        """Why it is not complete; empty where it is."""
        return [gap for run in self.runs for gap in run.gaps()]

    def plain(self) -> dict[str, Any]:
        """The receipt as plain data."""
        return {
            "format": FORMAT, "at": self.at, "dry_run": self.rules.dry_run, "rules": self.rules.plain(),
            "by": {"role": self.rules.actor, "person": self.rules.person},
            "index": {"folder": self.index, "index_id": self.index_id},
            "runs": [run.plain() for run in self.runs], "complete": not self.gaps, "not_complete_because": self.gaps,
        }  # fmt: skip


def reaudit(
    index: ReferenceIndex,
    embedder: Embedder,
    rules: Rules,
    runs: Sequence[str],
    *,
    progress: Progress = silent,
) -> Done:
    """Look at runs again, and hold back or release what the rules ask for.

    Args:
        index: the index, in the state to hold them against.
        embedder: the one that the index is bound to.
        rules: the rules.
        runs: run folders. One that cannot be reached is named in the result; the others are dealt with.
        progress: called with the run and the numbers of :data:`jobs.reaudit.look.Progress`.
    """
    done = Done(rules=rules, index=str(place_of(index.folder)), index_id=index.index_id)
    standards = Standards(index, embedder, every_picture=rules.every_picture)

    def look_at(facts: RunFacts, standing: Standing, result: RunResult) -> list[NewEvent]:
        standard = standards.of(rules.point_for(facts), rules.policy_for(facts).copies)
        return _one(facts, standing, standard, done, result, progress)

    done.runs += [reach(run, embedder.embedder_id, look_at, dry_run=rules.dry_run) for run in runs]
    return done


def _one(
    facts: RunFacts, standing: Standing, standard: Standard, done: Done, result: RunResult, progress: Progress
) -> list[NewEvent]:
    """Look at a run; returns the events that tell of it."""
    policy = in_force(done.rules.policy_for(facts), facts)
    result.events = (standing.head, standing.head)
    files = facts.files()
    held = held_for_copies(facts.folder, standing, files.open)
    looked = look(
        facts.folder,
        standard,
        wanted=lambda sample_id, born: sample_id in held or standing.outcome(sample_id, born) in OUT_OR_HELD,
        own=own_references(facts.folder, files.open),
        fully={*held, *(sample_id for sample_id in standing.held() if CLAIM in standing.held_for(sample_id))},
        progress=partial(progress, result.run),
        files=files,
    )

    def acts(seen: Seen) -> bool:
        return decide(seen.findings, LADDER_USED_UP, policy, another=False).verdict is not Verdict.ACCEPT

    out = replace(looked, seen=[seen for seen in looked.seen if seen.sample_id not in held])
    sort_hits(out, standing, result, claim=CLAIM, acts=acts)
    result.hits = len(looked.hits)
    blind = {where for where, _ in looked.unreached}
    near = {seen.sample_id for seen in looked.hits if acts(seen)}
    others = OtherGuards(facts.policy, policy)
    marked = others.held(facts.folder, standing, CLAIM, files.open)
    result.quarantined += [
        change for change in marked if change.sample_id not in near and CLAIM not in standing.held_for(change.sample_id)
    ]
    result.unreached += [
        (f"guard {name}", f"{why}; its findings would need the pictures") for name, why in others.unknown.items()
    ]
    lets_go = _release(looked, standing, result, near | blind | {change.sample_id for change in marked})
    cleared = {seen.sample_id for seen in looked.seen} - near - blind
    result.held_at_birth += [change for sample_id, change in held.items() if sample_id in cleared]
    result.notes += notes(facts, standard)
    return _events(facts, done, result, standing, lets_go)


def _release(looked: Looked, standing: Standing, result: RunResult, stays: Collection[str]) -> list[str]:
    """Samples that an earlier re-audit held back and that these rules let go. What a claim holds, a claim lets go.

    Only what was looked at is let go: a picture that lies in a file that cannot be read was not. A sample that a person
    rejected, or that a claim holds as well, is let go too, and counts as held back before: it does not go out.

    Returns:
        Ids of all that are let go.
    """
    lets_go = []
    for seen in looked.seen:
        sample_id, held_for = seen.sample_id, standing.held_for(seen.sample_id)
        if CLAIM not in held_for or sample_id in stays:
            continue
        lets_go.append(sample_id)
        if len(held_for) == 1 and standing.goes_out(sample_id, seen.born):
            result.released.append(Change(sample_id=sample_id, request_key=seen.request_key, before="quarantined", by=seen.by))
        else:
            result.held_already += 1
    return lets_go


def _events(facts: RunFacts, done: Done, result: RunResult, standing: Standing, lets_go: Sequence[str]) -> list[NewEvent]:
    """What is to be written of a run; nothing where the last re-audit says the same and nothing changes."""
    rules = done.rules
    before = facts.stored["identity"]
    against = {"index_before": str(before.get("index_id", "")), "index_after": done.index_id}
    digests = against | {"receipt_part_sha256": result.part_sha256()}
    details = {"rules": rules.plain(), "counts": result.counts(), "not_reached": [[w, t] for w, t in result.unreached]}

    def event(kind: str, reason: str, samples: Sequence[str], more: Mapping[str, Any]) -> NewEvent:
        return NewEvent(
            kind=kind, actor=rules.actor, person=rules.person, reason=reason, samples=samples, details=more, digests=digests
        )

    changes = []
    if result.quarantined:
        ids = [change.sample_id for change in result.quarantined]
        looks = {change.sample_id: change.look() for change in result.quarantined}
        reason = f"{counted(len(ids), 'sample')} would not be released today"
        changes.append(event(QUARANTINED, reason, ids, {"claim": CLAIM, "looks": looks}))
    if lets_go:
        reason = f"{counted(len(lets_go), 'sample')} {'is' if len(lets_go) == 1 else 'are'} not held back by these rules"
        changes.append(event(RELEASED, reason, lets_go, {"claim": CLAIM}))
    same = {name: details[name] for name in ("rules", "not_reached")}
    if not changes and any(_says(event, same, against) for event in standing.events):
        return []
    compared = counted(result.compared, "sample")
    reason = f"{compared} compared again: {len(result.quarantined)} held back, {len(result.released)} released"
    return [event(DONE, reason, (), details), *changes]


def _says(event: Mapping[str, Any], details: Mapping[str, Any], digests: Mapping[str, str]) -> bool:
    """Whether an earlier re-audit found the same under the same rules."""
    if event["kind"] != DONE:
        return False
    return bool(details.items() <= event["details"].items() and digests.items() <= event["digests"].items())
