"""The worker opens a runtime once, moderates the requests of shard after shard, and commits each shard when it has ended.

Shards overlap: while the last samples of one are drawn, those of the next have begun, so that the calls stay full. A sample's
bytes do not depend on the other samples of a call.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from index.errors import ClearanceError, PlanMismatch, RunStopped
from index.heap import Heap
from index.storage import advice
from jobs.run.commits import Commits
from jobs.run.folder import without_paths
from jobs.run.metrics.listeners import LogShards
from jobs.run.metrics.meters import ShardMeter
from jobs.run.openers import openers
from jobs.run.plan import Plan
from jobs.run.planning.stored_plan import difference
from jobs.run.retries import with_retries
from pipeline.config import RunConfig
from pipeline.outcome import Request, Sample
from pipeline.policy import Policy

if TYPE_CHECKING:
    from pipeline.audit.context import Anchors, RunContext
    from pipeline.audit.shards import ShardReceipt
    from pipeline.marking.markers import Markers


class RuntimeLike(Protocol):
    """What a worker needs of :class:`pipeline.runtime.Runtime`."""

    def context(self, run_id: str, plan_sha256: str, worker_id: str) -> RunContext: ...
    def identity(self) -> dict[str, str]: ...
    @property
    def markers(self) -> Markers: ...


class LoopLike(Protocol):
    """What a worker needs of :class:`pipeline.moderate.Moderation`."""

    @property
    def runtime(self) -> RuntimeLike: ...
    @property
    def room(self) -> bool: ...
    @property
    def busy(self) -> bool: ...
    def submit(self, request: Request) -> list[Sample]: ...
    def step(self) -> list[Sample]: ...
    def give_up(self, row_no: int, reason: str, message: str) -> list[Sample]: ...


OpenLoop = Callable[[RunConfig, Policy, Path], LoopLike]


class Worker:
    """Opens a runtime once and moderates shard after shard.

    Args:
        plan: what to do.
        folder: the run folder, reachable from where the worker runs.
        run_id: the run's id.
        worker_id: recorded in every row.
        open_loop: how to open a runtime and its loop; the default is that of :mod:`jobs.run.openers`.
        on_sample: called with each sample when it ends, before its shard is committed.
        pause: waits before a commit is tried again, in seconds.
        commits: where commits are made; by default beside a denoiser that computes on an accelerator, else in its place.

    Raises:
        ClearanceError: the runtime cannot be opened, or model and index here are not those of the plan.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        run_id: str,
        worker_id: str,
        *,
        open_loop: OpenLoop | None = None,
        on_sample: Callable[[Sample], None] | None = None,
        pause: Callable[[float], None] = time.sleep,
        commits: Commits | None = None,
    ) -> None:
        self.plan, self.folder, self.on_sample, self._pause = plan, folder, on_sample, pause
        self._commits = commits or Commits(beside=plan.config.model.device != "cpu")
        self._loop = (open_loop or openers().loop)(plan.config, plan.policy, plan.base)
        try:
            self.context = self._context(run_id, worker_id)
            self._meter, self._log = ShardMeter(), LogShards(plan, run_id, worker_id)
        except BaseException:
            self.close()  # what the loop started beside this process would outlive the failure
            raise
        self._todo: deque[Request] = deque()
        self._ended: dict[int, list[Sample]] = {}  # by shard, of those under way
        self._shard_of: dict[int, int] = {}  # row → shard, of those under way
        self._receipts: dict[int, ShardReceipt] = {}  # of shards that ended before their turn
        self._heap = Heap()
        self._begun: dict[int, float] = {}  # row → when the loop got it, of those under way; the oldest first
        self.calling_since: float | None = None  # when the loop was called, while it has not answered

    def _context(self, run_id: str, worker_id: str) -> RunContext:
        runtime, plan = self._loop.runtime, self.plan
        if (here := runtime.identity()) != plan.identity:
            raise PlanMismatch(
                f"worker {worker_id} is not what the plan was made with ({difference(here, plan.identity)})",
                where=str(self.folder),
                fix="Bring back what changed (model, index, policy, guards, keys or libraries), or start a new run",
            )
        return runtime.context(run_id, plan.plan_sha256, worker_id)

    def work(self, shard_no: int, ahead: Sequence[int] = (), anchors: Anchors | None = None) -> ShardReceipt:
        """Moderate one shard and commit it.

        Args:
            shard_no: the shard.
            ahead: those that come next. They begin where this one leaves rows free, and may be committed before their turn.
            anchors: the run folder's entries that the shards' headers name.

        Raises:
            RunStopped: a shard could not be moderated or written; nothing of it is committed.
        """
        shard_id = self.plan.shards[shard_no].shard_id
        if anchors is not None:
            self.context = dataclasses.replace(self.context, anchors=anchors)
        self._meter.begin(resting=not self._ended)
        try:
            for number in (shard_no, *ahead):
                self._take(number)
            while shard_no not in self._receipts:
                while self._loop.room and self._todo:
                    self._submit(self._todo.popleft())
                if self._loop.busy:
                    self._end(self._call(self._loop.step))
                    self._end_overdue()
                elif not self._todo and shard_no in self._ended:
                    self._commit(shard_no)  # raises: samples are missing
                self._take_receipts(wait=not (self._loop.busy or self._todo))
            return self._receipts.pop(shard_no)
        except ClearanceError:
            raise
        except OSError as error:
            raise RunStopped(f"shard {shard_id}: {error}", where=str(self.folder), fix=advice(error)) from error
        except Exception as error:
            raise RunStopped(
                f"shard {shard_id}: {type(error).__name__}: {error}",
                where=str(self.folder),
                fix="Committed shards are kept; see the traceback with CLEARANCE_DEBUG=1 and continue with --resume",
            ) from error

    def activity(self) -> dict[str, Any]:
        """What the worker's time went into; empty for a runtime that does not count it."""
        count = getattr(self._loop.runtime, "activity", None)
        return dict(count()) if count is not None else {}

    def close(self) -> None:
        """End what the loop started beside this process, if anything; call it once no more shards come."""
        try:
            self._commits.close()
        finally:
            end = getattr(self._loop, "close", None)
            if end is not None:
                end()

    def _take(self, shard_no: int) -> None:
        if shard_no in self._ended or shard_no in self._receipts or shard_no in self._commits:
            return
        requests = self.plan.shards[shard_no].requests
        self._ended[shard_no] = []
        self._shard_of |= {request.row_no: shard_no for request in requests}
        self._todo += requests
        expect = getattr(self._loop, "expect", None)
        if expect is not None:
            expect(request.prompt for request in requests if request.problem is None)

    def _submit(self, request: Request) -> None:
        self._begun[request.row_no] = time.monotonic()
        self._end(self._call(lambda: self._loop.submit(request)))

    def _call(self, do: Callable[[], list[Sample]]) -> list[Sample]:
        self.calling_since = time.monotonic()
        try:
            return do()
        finally:
            self.calling_since = None

    def _end_overdue(self) -> None:
        """End the requests that have no verdict after ``deadline_seconds`` as error rows."""
        deadline = self.plan.config.deadline_seconds
        while deadline and self._begun:
            row_no, since = next(iter(self._begun.items()))
            if time.monotonic() - since <= deadline:
                return
            del self._begun[row_no]
            message = f"no verdict within {deadline:g} s (deadline_seconds)"
            self._end(self._loop.give_up(row_no, "error.deadline", message))

    def _end(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            self._begun.pop(sample.request.row_no, None)
            if self.on_sample is not None:
                self.on_sample(sample)
            shard_no = self._shard_of[sample.request.row_no]
            self._ended[shard_no].append(sample)
            if len(self._ended[shard_no]) == len(self.plan.shards[shard_no].requests):
                self._commit(shard_no)

    def _commit(self, shard_no: int) -> None:
        shard, samples = self.plan.shards[shard_no], self._ended.pop(shard_no)
        for request in shard.requests:
            del self._shard_of[request.row_no]
        samples = [self._portable(sample) for sample in samples]
        context, markers = self.context, self._loop.runtime.markers

        def made() -> ShardReceipt:
            return commit(self.folder, shard.shard_id, shard.requests, samples, context, markers)

        # A second commit of a shard replaces nothing.
        self._commits.add(shard_no, samples, lambda: with_retries(made, self._pause))
        self._take_receipts()

    def _take_receipts(self, *, wait: bool = False) -> None:
        for one in self._commits.ended(wait=wait):
            self._receipts[one.shard_no] = one.receipt
            self._meter.committed(one.samples, one.seconds, self.activity() or None)
            self._log.committed(self.plan.shards[one.shard_no].shard_id, one.samples, one.seconds)
            self._heap.give_back()

    def _portable(self, sample: Sample) -> Sample:
        if not sample.error_message:
            return sample
        return dataclasses.replace(sample, error_message=without_paths(sample.error_message, self.folder, self.plan.base))


def shards_ahead(config: RunConfig) -> int:
    """Shards that a worker holds beside the one it works at: as many as fill the calls while that one comes to its end."""
    from pipeline.engine.packing import WINDOW

    return math.ceil(WINDOW * config.generation.rows / 2 / config.shard_size)


def commit(
    folder: Path,
    shard_id: str,
    requests: Sequence[Request],
    samples: Sequence[Sample],
    context: RunContext,
    markers: Markers | None = None,
) -> ShardReceipt:
    """Write a shard's samples, with the accepted pictures marked, its attempts and the pictures kept of what was not released.

    All are in the order of its requests.
    """
    from pipeline.audit.kept import kept_files, kept_table
    from pipeline.audit.records import attempt_table, sample_table
    from pipeline.audit.shards import commit_shard

    by_row = {sample.request.row_no: sample for sample in samples}
    if len(samples) != len(requests) or any(request.row_no not in by_row for request in requests):
        raise RuntimeError(
            f"{len(requests)} requests went in, {len(samples)} samples came out"
        )  # a bug, never a user's mistake
    ordered = [by_row[request.row_no] for request in requests]
    kept = kept_files(ordered, context)
    return commit_shard(
        folder,
        shard_id,
        sample_table(ordered, context, shard_id, markers, kept=kept),
        attempt_table(ordered, context, shard_id),
        kept_table(ordered, kept, context, shard_id),
    )
