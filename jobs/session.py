"""What every runner shares: a session's book-keeping, events and the result.

What is committed is never done again. The runners are :data:`jobs.run.RUNNERS`, who does the work :mod:`jobs.worker`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from index.errors import IntegrityError, PlanMismatch
from jobs.lease import lease
from jobs.plan import PLAN_FILE, REQUESTS_FILE, Plan, stored_plan
from jobs.worker import OpenLoop, Worker, commit
from pipeline.outcome import Outcome, Sample

if TYPE_CHECKING:
    from pipeline.audit.records import RunContext
    from pipeline.shard import ShardReceipt

DEATHS_PER_SHARD = 3  # after so many dead workers a shard is given up and recorded as errors


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


class Session:
    """Book-keeping that both runners share: which shards are open, what ended how, events, and the seal at the end."""

    def __init__(self, plan: Plan, folder: Path, runner: str, on_event: OnEvent, open_loop: OpenLoop | None) -> None:
        from pipeline.shard import committed, sweep

        self.plan, self.folder, self.runner, self.on_event, self.open_loop = (
            plan,
            folder,
            runner,
            on_event,
            open_loop,
        )
        self.context: RunContext | None = None  # what a worker tells when it is ready
        self.run_id = str(stored_plan(folder)["run_id"])
        self.started = time.monotonic()
        self.deaths: Counter[str] = Counter()
        self._shard_of = {request.row_no: shard.shard_id for shard in plan.shards for request in shard.requests}
        self._under_way: dict[str, Counter[str]] = {}  # outcomes in shards that the local worker is at
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
        total: Counter[str] = Counter()
        for receipt in self.receipts.values():
            total.update(receipt.outcomes)
        for outcomes in self._under_way.values():
            total.update(outcomes)
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
        self._under_way.setdefault(self._shard_of[sample.request.row_no], Counter())[str(sample.outcome)] += 1
        self.report("sample")

    def committed(self, receipt: ShardReceipt) -> None:
        self._under_way.pop(receipt.shard_id, None)
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
                request=request,
                outcome=Outcome.ERROR,
                reason="worker.died",
                error_class="WorkerDied",
                error_message=message,
                started_at=now,
                finished_at=now,
            )
            for request in shard.requests
        ]
        assert self.context is not None  # a worker that died at a shard was ready before
        context = dataclasses.replace(self.context, worker_id="driver")
        self.committed(commit(self.folder, shard.shard_id, shard.requests, samples, context))

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
            context = self.context or Worker(self.plan, self.folder, self.run_id, "driver", open_loop=self.open_loop).context
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
            copy_check=dict(self.plan.copy_check),
            runner={"kind": self.runner, "workers": workers, "deaths": dict(self.deaths)},
            devices=[device] * workers,
        )


@contextmanager
def run_session(plan: Plan, folder: Path, runner: str, on_event: OnEvent, open_loop: OpenLoop | None) -> Iterator[Session]:
    """A session that holds the folder's lease, and writes down why it ended early if it does."""
    stored = stored_plan(folder)
    if stored["plan_sha256"] != plan.plan_sha256:
        raise PlanMismatch("the folder belongs to another plan", where=str(folder), fix="Open it with open_folder()")
    with lease(folder):
        session = Session(plan, folder, runner, on_event, open_loop)
        session.begin()
        try:
            yield session
        except BaseException as error:
            # The reason of the stop stays with the run, unless the disk is what failed.
            with suppress(Exception):
                session.event("run.stopped", f"{type(error).__name__}: {error}"[:500], plan_sha256=plan.plan_sha256)
            raise
