"""What a run counts of itself, for Prometheus.

Workers count a shard when it is committed (:class:`ShardMeter`), so that the counters agree with the rows: a worker that dies
has counted nothing of the shard that it was at. The driver sets how far the run is (:class:`RunMeter`). The numbers leave the
process as :mod:`jobs.run.metrics.sinks` says.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.at_uri import beside
from index.errors import ClearanceError
from index.storage import is_remote, place, read_tagged
from jobs.run.metrics.sinks import Nowhere, Sink, sink_in_use
from pipeline.audit.coverage import LEASE_FILE
from pipeline.outcome import Sample

if TYPE_CHECKING:
    from jobs.run.event import Event
    from jobs.run.plan import Plan

TICK_SECONDS = 10.0


class ShardMeter:
    """Counts what a worker commits."""

    def __init__(self, sink: Sink | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._sink = sink if sink is not None else sink_in_use()
        self._clock = clock
        self._since = clock()
        self._computed = self._worked = 0.0  # of denoiser_seconds, where the runtime does not count them itself
        self._counted = Counter[str]()  # of what a runtime counts since its start, what was added so far

    def begin(self, *, resting: bool) -> None:
        """The worker takes up a shard. Where it had none before (it was ``resting``), that time is not counted as waiting."""
        if resting:
            self._since = self._clock()

    def committed(self, samples: Sequence[Sample], seconds: float, activity: Mapping[str, Any] | None = None) -> None:
        """A shard was committed.

        Args:
            samples: of the shard.
            seconds: that the commit took.
            activity: of the runtime, if it counts: ``computed`` and ``waited`` in seconds, ``queues`` by name, ``processes``
                and ``deaths`` of guard processes (:meth:`pipeline.looking.activity.Activity.plain`).
        """
        sink = self._sink
        for sample in samples:
            _count(sink, sample)
        sink.add("clearance_commits_total")
        sink.observe("clearance_commit_seconds", seconds)
        if activity is None:
            now = self._clock()
            self._computed += sum(sample.device_seconds for sample in samples)
            self._worked, self._since = self._worked + now - self._since, now
            activity = {"computed": self._computed, "waited": self._worked - self._computed}
        for state, name in (("computing", "computed"), ("waiting", "waited")):
            more = activity[name] - self._counted[state]
            if more > 0:
                self._counted[state] += more
                sink.add("clearance_denoiser_seconds_total", more, state=state)
        if (died := activity.get("deaths", 0) - self._counted["deaths"]) > 0:
            self._counted["deaths"] += died
            sink.add("clearance_guard_process_deaths_total", died)
        if "processes" in activity:
            sink.put("clearance_guard_processes", activity["processes"])
        for queue, depth in activity.get("queues", {}).items():
            sink.put("clearance_queue_depth", depth, queue=queue)
        sink.flush()


def _count(sink: Sink, sample: Sample) -> None:
    sink.add("clearance_requests_total", outcome=str(sample.outcome))
    if sample.error_class:
        sink.add("clearance_errors_total", reason=sample.reason, error_class=sample.error_class)
    sink.add("clearance_pictures_total", len(sample.attempts))
    sink.add("clearance_evaluations_total", sample.denoiser_evals)
    sink.add("clearance_device_seconds_total", sample.device_seconds)
    for attempt in sample.attempts:
        sink.add("clearance_probe_catches_total", len(attempt.caught))
        for guard, reason in {(one.guard, one.category) for one in attempt.findings if one.triggered}:
            sink.add("clearance_flags_total", guard=guard, reason=reason)
        for guard, seconds in attempt.guard_seconds:
            sink.add("clearance_guard_seconds_total", seconds, guard=guard)
        for skipped in attempt.skipped_guards:
            sink.add("clearance_guard_skipped_total", guard=skipped.partition(":")[0])


class RunMeter:
    """A listener for :class:`jobs.run.session.Event` that sets how far a run is; use it in ``with``.

    Args:
        sink: where the numbers go.
        plan: of the run.
        lease: gives the Unix time at which the run's lease was last renewed; None: unknown.
        clock: Unix time.
    """

    def __init__(
        self,
        sink: Sink,
        plan: Plan,
        *,
        lease: Callable[[], float | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sink, self._plan, self._lease, self._clock = sink, plan, lease, clock
        self._committed: float | None = None
        self._workers = 0
        self._times = {} if isinstance(sink, Nowhere) else times_of(plan)  # which opens the index
        self._ended = threading.Event()
        self._ticking = threading.Thread(target=self._tick, name="metrics", daemon=True)

    def __enter__(self) -> RunMeter:
        if not isinstance(self._sink, Nowhere):
            self._ticking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._ticking.ident is not None:
            self._ticking.join()
        self._sink.put("clearance_run_active", 0)
        self._sink.flush(now=True)

    def __call__(self, event: Event) -> None:
        sink = self._sink
        if event.kind == "shard" or self._committed is None:
            self._committed = self._clock()
        self._workers += event.kind == "worker"
        if event.kind == "retried":
            sink.add("clearance_worker_deaths_total")
        sink.put("clearance_run_info", 1, run_id=event.run_id, dataset_id=self._plan.config.dataset_id)
        values = {
            "clearance_run_active": float(event.kind != "finished"),
            "clearance_requests_open": event.total - event.done,
            "clearance_shards_open": event.shards_open,
            "clearance_workers_ready": self._workers,
            "clearance_last_commit_timestamp_seconds": self._committed,
            **self._times,
        }
        for name, value in values.items():
            sink.put(name, value)
        sink.flush(now=event.kind in ("started", "finished"))

    def _renewed(self) -> None:
        if (renewed := self._lease()) is not None:
            self._sink.put("clearance_lease_timestamp_seconds", renewed)

    def _tick(self) -> None:
        """Look at the lease, which on an object store is a request, and flush: a long shard keeps events apart."""
        while True:
            self._renewed()
            self._sink.flush()
            if self._ended.wait(TICK_SECONDS):
                return


def renewed(folder: Path) -> float | None:
    """Unix time at which a run's lease was last renewed; None where there is none, or it cannot be read."""
    try:
        found = read_tagged(folder, LEASE_FILE)
    except ClearanceError:
        return None
    return time.time() - found.age if found is not None and found.data else None


def times_of(plan: Plan) -> dict[str, float]:
    """When index and calibration of a plan were last changed, as metrics; what cannot be seen is left out."""
    from index.store import ReferenceIndex
    from pipeline.opening import stale_calibration

    found: dict[str, float] = {}
    if not plan.config.index:
        return found
    folder = place(plan.config.index, plan.base)
    with contextlib.suppress(ClearanceError, OSError):  # what opens the index for the run reports it
        history = ReferenceIndex.open(folder).events()
        if history:
            found["clearance_index_changed_timestamp_seconds"] = max(event["at"] for event in history)
    with contextlib.suppress(ClearanceError, OSError):
        stale = stale_calibration(plan.config, plan.policy, base=plan.base)
        found["clearance_calibration_stale"] = float(bool(stale))
    with contextlib.suppress(ClearanceError, OSError):
        calibration = beside(folder, "calibration.json")
        if not is_remote(folder):  # when a copy was fetched says nothing
            found["clearance_calibration_changed_timestamp_seconds"] = calibration.stat().st_mtime
    return found
