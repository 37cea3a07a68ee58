"""Run a plan on Ray: as many long-lived actors as there are devices and open shards, that pull one lease after the other."""

from __future__ import annotations

from pathlib import Path

from jobs.run.event import OnEvent, ignore
from jobs.run.plan import Plan
from jobs.run.ray.cluster import cluster
from jobs.run.ray.placement import Need
from jobs.run.ray.pool import Pool
from jobs.run.session import RunResult, run_session
from jobs.run.worker import OpenLoop


def run_ray(
    plan: Plan, folder: Path, on_event: OnEvent = ignore, *, open_loop: OpenLoop | None = None, resume: bool = True
) -> RunResult:
    """Run the plan with ``config.workers`` Ray actors, each with the CPUs of its threads and its share of a GPU.

    Joins the Ray that is initialised, or the cluster that RAY_ADDRESS names (there, Clearance must be installed and the folder
    shared); otherwise starts one on this machine and shuts it down again. Arguments and result as :func:`run_local`.

    Raises:
        ClearanceError: the run could not begin, or had to stop; committed shards are kept, and a resumed run continues.
    """
    with run_session(plan, folder, "ray", on_event, open_loop, resume) as session:
        pending, workers = session.pending(), plan.config.workers
        most = 1
        if pending:
            need, asked = Need.of(plan.config), None if workers == "auto" else workers
            with cluster(need, asked) as ray:
                if not ray.own and ray.address:
                    session.report("note", ray.about(need, asked))
                with Pool(session, ray, need, pending) as pool:
                    most = pool.run()
        return session.finish(most)
