"""Reach a run that was named: held while it is looked at, and its events appended; or why it was not reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from index.errors import ClearanceError
from index.storage import place
from jobs.reaudit.facts import RunFacts
from jobs.reaudit.result import RunResult
from jobs.reaudit.standing import Standing
from pipeline.audit.events import NewEvent, append_events, events_head, read_events

Progress = Callable[[str, int, int, int], None]  # the run, and the numbers of :data:`jobs.reaudit.look.Progress`
LookAt = Callable[[RunFacts, Standing, RunResult], Sequence[NewEvent]]
"""Looks at a run, fills the result, and returns the events that tell of it."""


def silent(run: str, compared: int, looked: int, near: int) -> None:
    """Reports no progress."""


def reach(run: str, embedder_id: str, look_at: LookAt, *, dry_run: bool) -> RunResult:
    """Look at a run and append the events that tell of it.

    Args:
        run: the run folder, as it was named.
        embedder_id: the embedder that its embeddings must be of.
        look_at: looks at it, while it is held.
        dry_run: change nothing.

    Returns:
        What it came to; a run that cannot be reached has :attr:`RunResult.why_not`.
    """
    result = RunResult(run=run)
    try:
        facts = RunFacts.of(place(run), embedder_id)
        result.run_id = facts.run_id
        with alone_in(facts.folder, dry_run=dry_run):
            standing = Standing.of(facts.folder)
            events = look_at(facts, standing, result)
            if events and not dry_run:
                append_events(facts.folder, events)
                result.events = (standing.head, events_head(read_events(facts.folder)))
    except ClearanceError as error:
        result.why_not = _why(error, run)
    return result


@contextmanager
def alone_in(folder: Path, *, dry_run: bool) -> Iterator[None]:
    """Hold a run folder while its events are read and appended, so that no run, review or takedown comes between.

    Raises:
        RunStopped: another process holds it, or it cannot be written.
    """
    if dry_run:
        yield
        return
    from jobs.run.lease.lock import lease

    with lease(folder):
        yield


def _why(error: ClearanceError, run: str) -> str:
    """An error as a reason in a receipt: the file of the run that it is about, but not the run, which stands beside it."""
    file = error.where.removeprefix(f"{place(run)}/")
    what = error.what if file in ("", str(place(run))) else f"{file}: {error.what}"
    return f"{what}. {error.fix}" if error.fix else what
