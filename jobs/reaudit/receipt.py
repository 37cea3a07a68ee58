"""What looking again came to, in lines of text, and the receipt of a re-audit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from index.counted import counted
from index.storage import write_file
from jobs.reaudit.result import LIMITS, Change, RunResult

if TYPE_CHECKING:
    from jobs.reaudit.reaudit import Done

NAMED = 20  # of a list in the text; the JSON names all


def write_receipt(done: Done, folder: Path) -> Path:
    """Write the receipt of a re-audit as JSON; a dry run's is named so.

    Raises:
        RunStopped: it cannot be written.
    """
    data = (json.dumps(done.plain(), indent=1, ensure_ascii=False) + "\n").encode()
    name = f"reaudit-{hashlib.sha256(data).hexdigest()[:12]}" + ("-dry-run" if done.rules.dry_run else "")
    write_file(folder, f"{name}.json", data)
    return folder / f"{name}.json"


def lines(done: Done) -> Iterator[str]:
    """A re-audit in lines of text."""
    rules, dry_run = done.rules, done.rules.dry_run
    against = [f"policy {rules.policy.name} {rules.policy.version}" if rules.policy is not None else "each run's own policy"]
    against += [f"threshold {rules.threshold:g}"] if rules.threshold is not None else []
    yield f"Re-audit against {', '.join(against)}, index {done.index_id}" + (
        " (dry run: nothing was changed)" if dry_run else ""
    )
    for run in done.runs:
        yield ""
        yield from run_lines(run, dry_run=dry_run)
    yield ""
    yield from gap_lines(done.runs)


def gap_lines(runs: Sequence[RunResult]) -> Iterator[str]:
    """Whether all of it was reached, and why not; and what the way of looking may miss."""
    gaps = [gap for run in runs for gap in run.gaps()]
    yield from (f"Note: {limit}" for limit in LIMITS if any(limit in run.notes for run in runs))
    if not gaps:
        yield "Complete: every named run was reached, and every embedding was compared."
        return
    what = "1 thing was" if len(gaps) == 1 else f"{len(gaps)} things were"
    again = " Give the same command again when that can be reached." if any(run.may_be_mended for run in runs) else ""
    yield f"NOT COMPLETE: {what} not reached.{again}"
    yield from (f"  {gap}" for gap in gaps[:NAMED])
    yield from more(len(gaps))
    if lasting := sum(len(run.lasting) for run in runs):
        were = f"{counted(lasting, 'sample')} of these {'was' if lasting == 1 else 'were'} erased on purpose"
        them = "it" if lasting == 1 else "them"
        yield f"{were}, and nothing can look at {them} any more: whether a copy went anywhere, people must find out."


def run_lines(run: RunResult, *, dry_run: bool) -> Iterator[str]:
    """One run in lines of text."""
    if not run.reached:
        yield f"Run {run.run}: NOT REACHED. {run.why_not}"
        return
    would = "would be " if dry_run else ""
    yield f"Run {run.run} ({run.run_id})"
    yield (
        f"  {counted(run.compared, 'embedding')} compared, {counted(run.looked, 'sample')} looked at, {run.cleared} cleared by "
        f"the second look, {run.hits} too near"
    )
    held, released = len(run.quarantined), len(run.released)
    yield f"  {held} {would}quarantined, {released} {would}released, {run.held_already} held back before"
    yield from _changes("quarantined", run.quarantined)
    yield from _changes("released", run.released)
    yield from _changes("accepted by a person who knew the reference; left alone", run.by_person)
    yield from _changes("too near, and the policy only observes it", run.observed)
    yield from _changes("held back by the run itself, and no longer for this; a person may accept it", run.held_at_birth)
    if run.unreached:
        yield f"  {len(run.unreached)} not looked at:"
        yield from (f"    {where}: {what}" for where, what in run.unreached[:NAMED])
        yield from more(len(run.unreached))
    yield from (f"  note: {note}" for note in run.notes if note not in LIMITS)
    if run.changed:
        yield f"  events: the last one was {run.events[0][:16]} and is {run.events[1][:16]}"


def _changes(what: str, changes: Sequence[Change]) -> Iterator[str]:
    if not changes:
        return
    yield f"  {what}:"
    for change in changes[:NAMED]:
        near = "" if change.similarity is None else f", similarity {change.similarity:.3f}"
        look = "" if change.confirm is None else f", second look {change.confirm:.3f}"
        about = f" ({', '.join(change.ref_ids)}{near}{look})" if change.ref_ids else ""
        yield f"    {change.request_key} {change.sample_id}{about}"
    yield from more(len(changes))


def more(count: int) -> Iterator[str]:
    """A line for what the text leaves out."""
    if count > NAMED:
        yield f"    … and {count - NAMED} more; the JSON names all"
