"""The runners: with one worker in this process, and on Ray (:mod:`jobs.ray_runner`).

Each takes the same plan and returns the same result (see :mod:`jobs.session`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs.plan import Plan
from jobs.ray_runner import run_ray
from jobs.session import OnEvent, RunResult, ignore, run_session
from jobs.worker import OpenLoop, Worker, shards_ahead


def run_local(plan: Plan, folder: Path, on_event: OnEvent = ignore, *, open_loop: OpenLoop | None = None) -> RunResult:
    """Run the plan with one worker in this process; ``config.workers`` plays no role here.

    Args:
        plan: what to do.
        folder: a folder opened for this plan with :func:`jobs.plan.open_folder`.
        on_event: listener for progress.
        open_loop: how to open a studio and its loop; the default is the real one.

    Raises:
        ClearanceError: the run had to stop; committed shards are kept and a resumed run goes on behind them.
    """
    with run_session(plan, folder, "local", on_event, open_loop) as session:
        pending = session.pending()
        if pending:
            worker = Worker(plan, folder, session.run_id, "local-0", open_loop=open_loop, on_sample=session.sample_ended)
            session.context = worker.context
            session.report("worker", "worker local-0 is ready")
            ahead = shards_ahead(plan.config)
            for place, shard_no in enumerate(pending, 1):
                session.committed(worker.work(shard_no, pending[place : place + ahead]))
        return session.finish(1)


RUNNERS: dict[str, Callable[..., RunResult]] = {"local": run_local, "ray": run_ray}
