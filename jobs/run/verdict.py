"""Whether a run is whole: what verifying recomputes, what only the plan holds, and which of it is damage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from index.errors import ClearanceError
from jobs.run.planning.stored_plan import stored_plan
from pipeline.audit.event_parts import EVENTS_FOLDER
from pipeline.audit.events import scan_events
from pipeline.audit.ledger import NEVER_SEALED, scan_statement
from pipeline.audit.report_digest import REPORT_HTML, REPORT_JSON, report_state
from pipeline.audit.shards import RUN_FILE
from pipeline.audit.stage import EVENTS, FILES, Problem
from pipeline.audit.stage_proof import NOBODY, Trust
from pipeline.audit.verify import Verification, verify


def verify_run(
    folder: Path, salt: str | None = None, trust: Trust = NOBODY, *, reports: bool = True, head: str = ""
) -> Verification:
    """Recompute every digest of a run folder, and hold plan, requests and shards against one another.

    Args:
        folder: the run folder.
        salt, trust: as :func:`pipeline.audit.verify.verify`.
        reports: whether a report that was changed is a problem; who writes it again does not mind.
        head: digest of an event that was kept elsewhere: the events have to hold it. Empty: none was kept.

    Raises:
        InputError: there is no such folder, or it holds no run.
    """
    from jobs.run.folder import check_begun
    from jobs.run.plan import Plan
    from jobs.run.planning.begun import prompts_erased
    from pipeline.audit.binding import PLAN_FILE, is_first_version
    from pipeline.audit.shards import committed

    found = verify(folder, salt, trust)
    events, _ = scan_events(folder)
    found = _with_reports(folder, found, events) if reports else found
    if head and head not in {event["record_sha256"] for event in events}:
        what = (
            f"hold no event of digest {head}: events were removed or changed since that digest was kept, or it is another run's"
        )
        found = found.with_problem(EVENTS, Problem(EVENTS_FOLDER, what))
    try:
        receipts = committed(folder)
        if is_first_version(folder, receipts):
            left = Problem(PLAN_FILE, "its digest was checked, its content was not: the first version wrote it in another form")
            return replace(found, not_covered=(*found.not_covered, left))
        # Without prompts the requests do not have the digest that the plan binds; the statement and the events name theirs.
        check_begun(folder, None if prompts_erased(folder) else Plan.load(folder), receipts)
    except ClearanceError as error:
        where = error.where.removeprefix(f"{folder}/")
        if not any(problem.where == where or problem.where.startswith(f"{where} ") for problem in found.problems):
            found = found.with_problem(FILES, Problem(where, error.what))
    return found


def identity_of_run(folder: Path) -> dict[str, str]:
    """Which run was verified: its folder and its ``run_id``, empty where it cannot be read. See its ``anchors``, too."""
    statement, _ = scan_statement(folder)
    stated = (statement or {}).get("predicate")
    run_id = stated.get("run_id") if isinstance(stated, dict) else None
    with suppress(ClearanceError):
        run_id = run_id or stored_plan(folder)["run_id"]
    return {"folder": str(folder), "run_id": str(run_id or "")}


@dataclass(frozen=True, kw_only=True)
class SameAs:
    """Whether another run has the same content.

    Attributes:
        ok: it has, and it is intact.
        sentence: the same for people.
        content_roots: of the two runs.
        requests: how many of each. differing: how many of them differ, or stand in one run alone.
        first: the key of the first of them; empty: there is none. what: how it differs.
        problems: how many problems verifying the other run found.
    """

    ok: bool
    sentence: str
    content_roots: tuple[str, str]
    requests: tuple[int, int]
    differing: int
    first: str
    what: str
    problems: int


def compare_runs(folder: Path, other: Path) -> SameAs:
    """Verify another run, and compare the content of both; see :mod:`pipeline.audit.content`.

    Raises:
        InputError: there is no such folder, or it holds no run.
        IntegrityError: a shard of either cannot be read.
    """
    from pipeline.audit.content import compare

    problems = len(damage(verify_run(other).problems))
    found = compare(folder, other)
    if not found.same:
        differ = f"{found.differing:,} of {max(found.requests):,} requests differ"
        sentence = f"OTHER CONTENT than {other}: {differ}, the first is {found.first!r}: {found.what}"
    elif problems:
        sentence = f"the same content as {other}, which is NOT INTACT: {problems} problems"
    else:
        sentence = f"the same content as {other}: {found.requests[0]:,} requests, content root {found.roots[0]}"
    return SameAs(
        ok=found.same and not problems,
        sentence=sentence,
        content_roots=found.roots,
        requests=found.requests,
        differing=found.differing,
        first=found.first,
        what=found.what,
        problems=problems,
    )


def _with_reports(folder: Path, found: Verification, events: Sequence[Mapping[str, Any]]) -> Verification:
    """The same with what is known of the reports in the folder: they are no part of the record, and may be written again."""
    states = {name: report_state(folder, name, events) for name in (REPORT_HTML, REPORT_JSON)}
    left = [Problem(p.where, states[p.where][1]) if p.where in states else p for p in found.not_covered]
    changed = [
        Problem(name, f"{why}; `clearance report` writes it again")
        for name, (state, why) in states.items()
        if state == "changed"
    ]
    found = replace(found, not_covered=tuple(p for p in left if p.where not in {problem.where for problem in changed}))
    for problem in changed:
        found = found.with_problem(FILES, problem)
    return found


def damage(problems: Sequence[Any]) -> list[tuple[str, str]]:
    """The problems of a run, as (where, what), without the one that every unfinished run has: that it is not sealed."""
    found = [(p["where"], p["what"]) if isinstance(p, dict) else (p.where, p.what) for p in problems]
    return [problem for problem in found if problem != (RUN_FILE, NEVER_SEALED)]
