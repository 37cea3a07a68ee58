"""Whether a run is whole: what verifying recomputes, what only the plan holds, and which of it is damage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from index.errors import ClearanceError
from pipeline.audit.ledger import NEVER_SEALED, RUN_FILE
from pipeline.audit.stage import FILES, Problem
from pipeline.audit.verify import Verification, verify


def verify_run(folder: Path) -> Verification:
    """Recompute every digest of a run folder, and hold plan, requests and shards against one another.

    Raises:
        InputError: there is no such folder, or it holds no run.
    """
    from jobs.run.folder import check_begun
    from jobs.run.plan import Plan
    from pipeline.audit.binding import PLAN_FILE, is_first_version
    from pipeline.audit.shards import committed

    found = verify(folder)
    try:
        receipts = committed(folder)
        if is_first_version(folder, receipts):
            left = Problem(PLAN_FILE, "its digest was checked, its content was not: the first version wrote it in another form")
            return replace(found, not_covered=(*found.not_covered, left))
        check_begun(folder, Plan.load(folder), receipts)
    except ClearanceError as error:
        where = error.where.removeprefix(f"{folder}/")
        if not any(problem.where == where or problem.where.startswith(f"{where} ") for problem in found.problems):
            found = found.with_problem(FILES, Problem(where, error.what))
    return found


def damage(problems: Sequence[Any]) -> list[tuple[str, str]]:
    """The problems of a run, as (where, what), without the one that every unfinished run has: that it is not sealed."""
    found = [(p["where"], p["what"]) if isinstance(p, dict) else (p.where, p.what) for p in problems]
    return [problem for problem in found if problem != (RUN_FILE, NEVER_SEALED)]
