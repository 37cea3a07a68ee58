"""The runners: with one worker in this process, and on Ray (:mod:`jobs.run.ray.runner`).

Each takes the same plan and returns the same result (see :mod:`jobs.run.session`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from jobs.run.event import OnEvent, ignore
from jobs.run.plan import Plan
from jobs.run.ray.runner import run_ray
from jobs.run.session import RunResult, run_session
from jobs.run.worker import OpenLoop, Worker, shards_ahead


def run_local(
    plan: Plan, folder: Path, on_event: OnEvent = ignore, *, open_loop: OpenLoop | None = None, resume: bool = True
) -> RunResult:
    """Run the plan with one worker in this process; ``config.workers`` plays no role here.

    Args:
        plan: what to do.
        folder: the run folder; made when the worker is ready.
        on_event: listener for progress.
        open_loop: how to open a runtime and its loop; the default is the real one.
        resume: go on where a run of the same plan stopped; otherwise such a folder is refused.

    Raises:
        ClearanceError: the run could not begin, or had to stop; committed shards are kept, and a resumed run continues.
    """
    with run_session(plan, folder, "local", on_event, open_loop, resume) as session:
        pending = session.pending()
        if pending:
            opened = Worker(
                session.plan, session.folder, session.run_id, "local-0", open_loop=open_loop, on_sample=session.sample_ended
            )
            with closing(opened) as worker:
                session.ready(worker.context, "local-0")
                ahead = shards_ahead(plan.config)
                for place, shard_no in enumerate(pending, 1):
                    session.committed(worker.work(shard_no, pending[place : place + ahead], session.anchors))
                session.activity = worker.activity()
        return session.finish(1)


RUNNERS: dict[str, Callable[..., RunResult]] = {"local": run_local, "ray": run_ray}
