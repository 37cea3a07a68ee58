"""What listens to a run beside its display: the structured log, and several listeners as one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jobs.log import Log, log_in_use, wanted
from jobs.run.metrics.sinks import in_ray_worker

if TYPE_CHECKING:
    from jobs.run.event import Event, OnEvent
    from jobs.run.plan import Plan
    from pipeline.outcome import Sample

PROGRESS_EVERY = 10.0  # seconds between lines about requests that ended


def all_of(listeners: Sequence[OnEvent]) -> OnEvent:
    """One listener that hands every event to each of them, in order."""

    def listen(event: Event) -> None:
        for one in listeners:
            one(event)

    return listen


class LogEvents:
    """A listener that writes every event of a run as a line of JSON; those about single requests rarely."""

    def __init__(self, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._clock, self._last = log, clock, float("-inf")

    def __call__(self, event: Event) -> None:
        if event.kind == "sample":
            if self._clock() - self._last < PROGRESS_EVERY:
                return
            self._last = self._clock()
        self._log(
            event.kind,
            level="warning" if event.kind in ("retried", "waiting") else "info",
            run_id=event.run_id,
            shard=event.shard,
            worker=event.worker,
            done=event.done,
            total=event.total,
            outcomes=dict(event.outcomes),
            shards_open=event.shards_open,
            message=event.detail,
        )


class LogShards:
    """What a worker logs: every shard that it commits, and every request that ended as an error.

    In a worker of Ray the lines go to the worker's own log; the environment there says whether they are written.
    """

    def __init__(self, plan: Plan, run_id: str, worker: str) -> None:
        self._log = log_in_use()
        if self._log is None and in_ray_worker() and wanted():
            self._log = Log(prompts=lambda: prompts_of(plan))
        self._about = {"run_id": run_id, "worker": worker}

    def committed(self, shard: str, samples: Sequence[Sample], seconds: float) -> None:
        if self._log is None:
            return
        for sample in samples:
            if sample.error_class:
                self._log(
                    "failed",
                    level="warning",
                    shard=shard,
                    row=sample.request.row_no,
                    reason=sample.reason,
                    error_class=sample.error_class,
                    **self._about,
                )
        outcomes: dict[str, int] = {}
        for sample in samples:
            outcomes[str(sample.outcome)] = outcomes.get(str(sample.outcome), 0) + 1
        self._log("committed", shard=shard, outcomes=outcomes, seconds=round(seconds, 3), **self._about)


def prompts_of(plan: Plan) -> list[str]:
    """The texts of a plan that no log may hold."""
    texts = {text for request in plan.requests for text in (request.prompt, request.negative_prompt, request.columns)}
    return sorted(texts - {""}, key=len, reverse=True)
