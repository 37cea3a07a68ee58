"""The metrics of a run, by the names under which Prometheus knows them: one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

RAY_PREFIX = "ray_"  # Ray puts it before every name; infra/monitoring takes it away when it scrapes


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One line of the table.

    Attributes:
        name: as Prometheus knows it. kind: its type. labels: their names.
        text: what it is, with its unit.
        buckets: upper bounds of a histogram.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name=name, kind="counter", text=text, labels=labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name=name, kind="gauge", text=text, labels=labels)


_TABLE = (
    # counted by workers when a shard is committed
    _counter("clearance_requests_total", "requests that ended, by outcome", "outcome"),
    _counter("clearance_pictures_total", "pictures drawn and checked: the attempts of all requests"),
    _counter(
        "clearance_flags_total",
        "pictures on which a guard's finding reached its threshold, by guard and by the finding's category",
        "guard",
        "reason",
    ),
    _counter("clearance_probe_catches_total", "tries that a probe stopped before their picture was finished"),
    _counter("clearance_evaluations_total", "denoiser evaluations, waste included; a step with guidance is 1"),
    _counter("clearance_device_seconds_total", "seconds of denoiser calls, shared out over the requests in them"),
    _counter("clearance_guard_seconds_total", "seconds that a guard took", "guard"),
    _counter("clearance_guard_skipped_total", "pictures that an optional guard could not look at", "guard"),
    _counter("clearance_errors_total", "requests that ended as errors, by reason code and class", "reason", "error_class"),
    _counter(
        "clearance_denoiser_seconds_total",
        "seconds of workers that were at a shard, by what the denoiser did: computing or waiting",
        "state",
    ),
    _counter("clearance_commits_total", "shards committed"),
    Metric(
        name="clearance_commit_seconds",
        kind="histogram",
        text="seconds that a commit took, marking and encoding included; on Ray the sum is approximate",
        buckets=(0.1, 0.3, 1, 3, 10, 30, 100),
    ),
    _counter("clearance_guard_process_deaths_total", "guard processes beside the denoiser that died and were replaced"),
    _gauge("clearance_guard_processes", "guard processes beside the denoiser that are ready, of a worker"),
    _gauge("clearance_queue_depth", "samples that wait in a worker, by queue", "queue"),
    # set by the driver
    _gauge("clearance_run_info", "1; its labels name the run and its data set", "run_id", "dataset_id"),
    _gauge("clearance_run_active", "1 while the run goes, 0 once it has ended or stopped"),
    _gauge("clearance_requests_open", "requests of the plan that have not ended"),
    _gauge("clearance_shards_open", "shards of the plan that are not committed"),
    _gauge("clearance_workers_ready", "workers that have loaded their models, those that died meanwhile included"),
    _counter("clearance_worker_deaths_total", "workers that died; their shards are leased again or given up"),
    _gauge(
        "clearance_last_commit_timestamp_seconds",
        "Unix time of the last commit; before the first one, of the start of the session",
    ),
    _gauge("clearance_lease_timestamp_seconds", "Unix time at which the run's lease was last seen to be renewed"),
    _gauge("clearance_index_changed_timestamp_seconds", "Unix time of the last change of the reference index"),
    _gauge("clearance_calibration_changed_timestamp_seconds", "Unix time at which the calibration in force was written"),
    _gauge("clearance_calibration_stale", "1 where the calibration was measured on another state of the index, else 0"),
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _TABLE}
