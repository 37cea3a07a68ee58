"""What every runner shares: the worker, which moderates one shard at a time and commits it, and a session's book-keeping.

What is committed is never done again. The runners are :data:`jobs.run.RUNNERS`.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from index.errors import ClearanceError, IntegrityError, PlanMismatch, RunStopped
from jobs.lease import lease
from jobs.plan import PLAN_FILE, REQUESTS_FILE, Plan, stored_plan
from pipeline.config import Policy, RunConfig
from pipeline.outcome import Outcome, Request, Sample

if TYPE_CHECKING:
    from pipeline.audit.records import RunContext
    from pipeline.shard import ShardReceipt

DEATHS_PER_SHARD = 3  # after so many dead workers a shard is given up and recorded as errors


class StudioLike(Protocol):
    """What a worker needs of :class:`pipeline.studio.Studio`."""

    def context(self, run_id: str, plan_sha256: str, worker_id: str) -> RunContext: ...
    def moderate(self, requests: Sequence[Request]) -> Iterator[Sample]: ...
    def identity(self) -> dict[str, str]: ...


OpenStudio = Callable[[RunConfig, Policy, Path], StudioLike]


@dataclass(frozen=True)
class Event:
    """What a run reports while it goes.

    Attributes:
        kind: ``started`` and ``finished`` frame the run; ``worker`` a worker is ready; ``sample`` one request ended (local
            runner); ``shard`` a shard is committed; ``retried`` a worker died; ``waiting`` no worker is free yet.
        done: requests that have ended, earlier sessions of a resumed run included.
        total: requests of the plan.
        outcomes: ended requests by outcome.
        detail: a sentence for people.
    """

    kind: Literal["started", "worker", "sample", "shard", "retried", "waiting", "finished"]
    done: int
    total: int
    outcomes: Mapping[str, int]
    detail: str = ""


OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener of a run that nobody watches."""


@dataclass(frozen=True)
class RunResult:
    """What a finished run is.

    Attributes:
        run_id: the run's id.
        folder: the run folder.
        plan_sha256: digest of the plan.
        shards: receipts in the order of the plan.
        outcomes: number of requests by outcome.
        requests: number of requests; equals the sum of ``outcomes``.
        attempts: pictures generated.
        deaths: worker deaths by shard id.
        statement: what run.json holds.
        seconds: wall time of this session.
    """

    run_id: str
    folder: Path
    plan_sha256: str
    shards: tuple[ShardReceipt, ...]
    outcomes: dict[str, int]
    requests: int
    attempts: int
    deaths: dict[str, int] = field(default_factory=dict)
    statement: dict[str, Any] = field(default_factory=dict, compare=False)
    seconds: float = field(default=0.0, compare=False)


class Worker:
    """Opens a studio once and moderates shard after shard.

    Args:
        plan: what to do.
        folder: the run folder, reachable from where the worker runs.
        run_id: the run's id.
        worker_id: recorded in every row.
        open_studio: how to open a studio; the default is the real one.
        on_sample: called with each sample when it ends, before its shard is committed.

    Raises:
        ClearanceError: the studio cannot be opened, or model and index here are not those of the plan.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        run_id: str,
        worker_id: str,
        *,
        open_studio: OpenStudio | None = None,
        on_sample: Callable[[Sample], None] | None = None,
    ) -> None:
        self.plan, self.folder, self.on_sample = plan, folder, on_sample
        self._studio = (open_studio or _open_studio)(plan.config, plan.policy, plan.base)
        here = self._studio.identity()
        differ = [name for name in sorted({*here, *plan.identity}) if here.get(name) != plan.identity.get(name)]
        if differ:
            raise PlanMismatch(
                f"{', '.join(differ)} of worker {worker_id} is not what the plan was made with",
                where=str(folder),
                fix="Restore the model, index or policy, or start a new run",
            )
        self.context = self._studio.context(run_id, plan.plan_sha256, worker_id)

    def work(self, shard_no: int) -> ShardReceipt:
        """Moderate one shard and commit it.

        Raises:
            RunStopped: the shard could not be moderated or written; nothing of it is committed.
        """
        shard = self.plan.shards[shard_no]
        try:
            samples = [sample for sample in map(self._seen, self._studio.moderate(shard.requests))]
            return _commit(self.folder, shard.shard_id, shard.requests, samples, self.context)
        except ClearanceError:
            raise
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            fix = "Free some space, then continue with --resume" if full else "Mend the storage, then continue with --resume"
            raise RunStopped(f"shard {shard.shard_id}: {error}", where=str(self.folder), fix=fix) from error
        except Exception as error:
            raise RunStopped(
                f"shard {shard.shard_id}: {type(error).__name__}: {error}",
                where=str(self.folder),
                fix="Committed shards are kept; see the traceback with CLEARANCE_DEBUG=1 and continue with --resume",
            ) from error

    def _seen(self, sample: Sample) -> Sample:
        if self.on_sample is not None:
            self.on_sample(sample)
        return sample


class Session:
    """Book-keeping that both runners share: which shards are open, what ended how, events, and the seal at the end."""

    def __init__(self, plan: Plan, folder: Path, runner: str, on_event: OnEvent, open_studio: OpenStudio | None) -> None:
        from pipeline.shard import committed, sweep

        self.plan, self.folder, self.runner, self.on_event, self.open_studio = plan, folder, runner, on_event, open_studio
        self.context: RunContext | None = None  # what a worker tells when it is ready
        self.run_id = str(stored_plan(folder)["run_id"])
        self.started = time.monotonic()
        self.deaths: Counter[str] = Counter()
        self._under_way: Counter[str] = Counter()  # outcomes of the shard that the local worker is at
        sweep(folder)
        self.receipts: dict[str, ShardReceipt] = dict(committed(folder))
        foreign = set(self.receipts) - {shard.shard_id for shard in plan.shards}
        if foreign:
            raise IntegrityError(
                f"holds shard {sorted(foreign)[0]} that the plan does not know",
                where=str(folder),
                fix="Start the run again in a new folder",
            )
        self.done_before = not self.pending() and (folder / "run.json").exists()

    def pending(self) -> list[int]:
        return [number for number, shard in enumerate(self.plan.shards) if shard.shard_id not in self.receipts]

    def outcomes(self) -> Counter[str]:
        total = Counter(self._under_way)
        for receipt in self.receipts.values():
            total.update(receipt.outcomes)
        return total

    def report(self, kind: Any, detail: str = "") -> None:
        outcomes = self.outcomes()
        self.on_event(Event(kind, outcomes.total(), len(self.plan.requests), dict(outcomes), detail))

    def event(self, kind: str, reason: str, **digests: str) -> None:
        from pipeline.audit.ledger import append_event

        append_event(self.folder, kind, f"runner.{self.runner}", reason, **digests)

    def begin(self) -> None:
        if self.done_before:
            return
        if self.receipts:
            open_shards = len(self.pending())
            self.event(
                "run.resumed", f"{open_shards} of {len(self.plan.shards)} shards were open", plan_sha256=self.plan.plan_sha256
            )
        else:
            parent = {"parent_sha256": self.plan.parent} if self.plan.parent else {}
            self.event("run.started", f"{len(self.plan.requests)} requests", plan_sha256=self.plan.plan_sha256, **parent)
        self.report("started", f"{len(self.pending())} of {len(self.plan.shards)} shards to do")

    def sample_ended(self, sample: Sample) -> None:
        self._under_way[str(sample.outcome)] += 1
        self.report("sample")

    def committed(self, receipt: ShardReceipt) -> None:
        self._under_way.clear()
        self.receipts[receipt.shard_id] = receipt
        self.report("shard", f"shard {receipt.shard_id} committed")

    def worker_died(self, shard_id: str, worker_id: str, cause: str) -> int:
        """Write a death down; returns how many workers this shard has cost."""
        self.deaths[shard_id] += 1
        deaths = self.deaths[shard_id]
        given_up = deaths >= DEATHS_PER_SHARD
        what = "given up" if given_up else "leased again"
        reason = f"worker {worker_id} died at shard {shard_id} (death {deaths}); shard {what}: {cause}"
        self.event("shard.retried" if not given_up else "shard.given_up", reason)
        self.report("retried", reason)
        return deaths

    def give_up(self, shard_no: int) -> None:
        """Commit every request of a shard that keeps killing its workers as an error row."""
        shard, now = self.plan.shards[shard_no], time.time()
        message = f"{DEATHS_PER_SHARD} workers died while moderating shard {shard.shard_id}"
        samples = [
            Sample(
                request,
                Outcome.ERROR,
                "worker.died",
                error_class="WorkerDied",
                error_message=message,
                started_at=now,
                finished_at=now,
            )
            for request in shard.requests
        ]
        assert self.context is not None  # a worker that died at a shard was ready before
        context = dataclasses.replace(self.context, worker_id="driver")
        self.committed(_commit(self.folder, shard.shard_id, shard.requests, samples, context))

    def finish(self, workers: int) -> RunResult:
        """Seal the run and say what came out. Needs :attr:`context` unless the run was sealed before."""
        from pipeline.audit.ledger import seal
        from pipeline.shard import sweep

        outcomes = dict(sorted(self.outcomes().items()))
        statement: dict[str, Any] = {}
        if not self.done_before:
            told = ", ".join(f"{count} {name}" for name, count in outcomes.items())
            self.event("run.finished", told, plan_sha256=self.plan.plan_sha256)
            # Stopped between its last commit and its seal: nothing was left to do, so no worker has told the context yet.
            context = (
                self.context or Worker(self.plan, self.folder, self.run_id, "driver", open_studio=self.open_studio).context
            )
            # A worker of a run that was stopped may have lived a moment longer than that run, and have died while writing.
            sweep(self.folder)
            statement = seal(self.folder, self._predicate(workers, context))
        self.report("finished")
        receipts = tuple(self.receipts[shard.shard_id] for shard in self.plan.shards)
        return RunResult(
            run_id=self.run_id,
            folder=self.folder,
            plan_sha256=self.plan.plan_sha256,
            shards=receipts,
            outcomes=outcomes,
            requests=len(self.plan.requests),
            attempts=sum(receipt.attempts for receipt in receipts),
            deaths=dict(self.deaths),
            statement=statement,
            seconds=time.monotonic() - self.started,
        )

    def _predicate(self, workers: int, context: RunContext) -> dict[str, Any]:
        from pipeline.audit.ledger import run_predicate

        stored, device = stored_plan(self.folder), self.plan.config.model.device
        return run_predicate(
            context,
            started_at=float(stored["created_at"]),
            requested=len(self.plan.requests),
            plan={
                "plan_sha256": self.plan.plan_sha256,
                "parts": self.plan.parts,
                "parent_plan_sha256": self.plan.parent,
                "shards": len(self.plan.shards),
                "files": {
                    name: hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in (PLAN_FILE, REQUESTS_FILE)
                },
            },
            config=dataclasses.asdict(self.plan.config),
            policy=dataclasses.asdict(self.plan.policy),
            identity=dict(self.plan.identity),
            runner={"kind": self.runner, "workers": workers, "deaths": dict(self.deaths)},
            devices=[device] * workers,
        )


@contextmanager
def run_session(plan: Plan, folder: Path, runner: str, on_event: OnEvent, open_studio: OpenStudio | None) -> Iterator[Session]:
    """A session that holds the folder's lease, and writes down why it ended early if it does."""
    stored = stored_plan(folder)
    if stored["plan_sha256"] != plan.plan_sha256:
        raise PlanMismatch("the folder belongs to another plan", where=str(folder), fix="Open it with open_folder()")
    with lease(folder):
        session = Session(plan, folder, runner, on_event, open_studio)
        session.begin()
        try:
            yield session
        except BaseException as error:
            # The reason of the stop stays with the run, unless the disk is what failed.
            with suppress(Exception):
                session.event("run.stopped", f"{type(error).__name__}: {error}"[:500], plan_sha256=plan.plan_sha256)
            raise


def _commit(
    folder: Path, shard_id: str, requests: Sequence[Request], samples: Sequence[Sample], context: RunContext
) -> ShardReceipt:
    from pipeline.audit.records import attempt_table, sample_table
    from pipeline.shard import commit_shard

    by_row = {sample.request.row_no: sample for sample in samples}
    if len(samples) != len(requests) or any(request.row_no not in by_row for request in requests):
        raise RuntimeError(
            f"{len(requests)} requests went in, {len(samples)} samples came out"
        )  # a bug, never a user's mistake
    ordered = [by_row[request.row_no] for request in requests]
    return commit_shard(folder, shard_id, sample_table(ordered, context, shard_id), attempt_table(ordered, context, shard_id))


def _open_studio(config: RunConfig, policy: Policy, base: Path) -> StudioLike:
    from pipeline.studio import Studio

    return Studio.open(config, policy, base=base)
