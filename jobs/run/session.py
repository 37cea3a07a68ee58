"""Shared by all runners: a session's book-keeping and its result.

A committed shard is never done again. The runners are in :data:`jobs.run.local_runner.RUNNERS`; :mod:`jobs.run.worker` does the
work.
"""

from __future__ import annotations

import dataclasses
import secrets
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.counted import counted
from index.errors import RunStopped
from index.storage import digest_of, entry_of, fenced, require_held
from jobs import signals
from jobs.proof import signer_of
from jobs.run.error_budget import beyond, stop_beyond
from jobs.run.event import Event, Kind, OnEvent
from jobs.run.folder import check_begun, claimed, look, without_paths
from jobs.run.plan import Plan
from jobs.run.planning.stored_plan import stored_plan
from jobs.run.planning.stored_requests import row_numbers
from jobs.run.retries import MOST_DEATHS, REASONS, Cause
from jobs.run.worker import OpenLoop, Worker, commit
from pipeline.audit.binding import PLAN_FILE, REQUESTS_FILE
from pipeline.audit.coverage import LEASE_FILE
from pipeline.keys import Keys, refuse_inside
from pipeline.outcome import Outcome, Sample

if TYPE_CHECKING:
    from jobs.run.lease.lock import Held
    from pipeline.audit.context import Anchors, RunContext
    from pipeline.audit.shards import ShardReceipt

DRIVER = "driver"  # the worker id of rows that no worker made


@dataclass(frozen=True, kw_only=True)
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
        too_many_errors: a sentence where more requests ended as errors than ``max_error_rate`` allows; else empty.
        activity: what the local worker's time went into (:class:`pipeline.looking.activity.Activity`); empty on Ray.
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
    too_many_errors: str = ""
    activity: dict[str, Any] = field(default_factory=dict, compare=False)


class Session:
    """Book-keeping that both runners share: which shards are open, what ended how, events, and the seal at the end.

    A session of a new run has no folder until :meth:`ready`: a start that fails leaves nothing.

    ``keys`` are those of the plan unless they are named: a plan that was read from its run folder may not know where they are.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        runner: str,
        on_event: OnEvent,
        open_loop: OpenLoop | None,
        resume: bool,
        keys: Keys | None = None,
    ) -> None:
        keys = keys if keys is not None else Keys.find(plan.config.marks.keys, base=plan.base)
        refuse_inside(keys, folder)
        self.runner, self.on_event, self.open_loop = runner, on_event, open_loop
        # On an object store every commit, also one of a worker, looks whether the folder is still this session's.
        self.folder = fenced(folder, LEASE_FILE, secrets.token_hex(8))
        self.place = look(folder, plan, resume=resume)
        self.plan, self.run_id = self.place.plan, self.place.run_id
        self.context: RunContext | None = None  # set by the first worker that is ready
        self.anchors: Anchors | None = None  # what the headers of this session's shards name
        self.started = time.monotonic()
        self.deaths: Counter[str] = Counter()
        self._causes: Counter[tuple[str, Cause]] = Counter()  # deaths by shard and cause
        self.receipts: dict[str, ShardReceipt] = {}
        self.activity: dict[str, Any] = {}  # of the local worker
        self.drawn_by = runner  # what the statement names; a session that only ends a run draws nothing
        self._here: Counter[str] = Counter()  # outcomes in the shards that this session committed
        self.sealed = False
        self._signer = signer_of(keys)  # before anything is drawn: a damaged key must not be found at the seal
        self._under_way: dict[str, Counter[str]] = {}  # outcomes in shards that the local worker is at
        self._ended: Counter[str] = Counter()  # outcomes in committed shards: summing the receipts again would cost N² in a run
        self._claim = ExitStack()
        self._held: Held | None = None

    @property
    def begun(self) -> bool:
        """Whether this session holds the folder."""
        return self.anchors is not None

    def pending(self) -> list[int]:
        return [number for number, shard in enumerate(self.plan.shards) if shard.shard_id not in self.receipts]

    def outcomes(self) -> Counter[str]:
        total = Counter(self._ended)
        for outcomes in self._under_way.values():
            total.update(outcomes)
        return total

    @cached_property
    def _shard_of(self) -> dict[int, str]:
        """The shard of each row that this session may draw: of a million rows most may be committed."""
        shards = [self.plan.shards[number] for number in self.pending()]
        return {row_no: shard.shard_id for shard in shards for row_no in row_numbers(shard.requests)}

    def report(self, kind: Kind, detail: str = "", *, shard: str = "", worker: str = "") -> None:
        signals.check()
        if self._held is not None:
            self._held.require()
        outcomes, about = self.outcomes(), {"detail": detail, "shard": shard, "worker": worker, "run_id": self.run_id}
        shards_open = len(self.plan.shards) - len(self.receipts)
        done, total = outcomes.total(), len(self.plan.requests)
        self.on_event(Event(kind=kind, done=done, total=total, outcomes=dict(outcomes), shards_open=shards_open, **about))

    def _require_held(self) -> None:
        """Refuse to go on where the folder is another session's by now, asking the storage; raises RunStopped."""
        if self._held is not None:
            self._held.require()
        require_held(self.folder)

    def event(self, kind: str, reason: str, **digests: str) -> None:
        from pipeline.audit.events import NewEvent, append_events

        event = NewEvent(kind=kind, actor=f"runner.{self.runner}", reason=reason, digests=digests)
        append_events(self.folder, [event])

    def begin(self) -> None:
        """Take the folder, compare what is in it with the plan, and record that the run continues or begins.

        Raises:
            RunStopped: another run holds the folder, or it cannot be written.
            IntegrityError: what a stopped or sealed run left was changed.
        """
        from pipeline.audit.context import Anchors
        from pipeline.audit.events import events_head, read_events
        from pipeline.audit.shards import committed, sweep

        plan_sha256, place = self.plan.plan_sha256, self.place
        self._held = self._claim.enter_context(claimed(self.folder, self.plan, place, lambda text: self.report("note", text)))
        self.receipts = dict(committed(self.folder))
        self._ended = Counter()
        for receipt in self.receipts.values():
            self._ended.update(receipt.outcomes)
        self.sealed = check_begun(self.folder, self.plan, self.receipts)
        if not self.sealed:
            sweep(self.folder, known=self.receipts)
        files = {"plan_file_sha256": digest_of(self.folder, PLAN_FILE)}
        events = read_events(self.folder)
        if self.sealed:
            pass
        elif events:
            shards = f"{len(self.pending())} of {len(self.plan.shards)} shards were open"
            self.event("run.resumed", shards, plan_sha256=plan_sha256)
        else:
            before = {"parent_sha256": self.plan.parent} if self.plan.parent else {}
            if place.state == "replaced":
                before["replaced_sha256"] = place.plan_file_sha256
                self.report("note", place.note)
            requests = counted(len(self.plan.requests), "request")
            self.event("run.started", requests, run_id=self.run_id, plan_sha256=plan_sha256, **files, **before)
            for note in self.plan.notes:
                text = without_paths(f"{note.topic}: {note.text}", self.folder, self.plan.base)
                self.event("run.noted", text, plan_sha256=plan_sha256)
        self.anchors = Anchors(files["plan_file_sha256"], events_head(read_events(self.folder)))

    def ready(self, context: RunContext, worker_id: str) -> None:
        """A worker can work: from now on the run exists."""
        if not self.begun:
            self.begin()
        if self.context is None and self.anchors is not None:
            self.context = dataclasses.replace(context, anchors=self.anchors)
        drawn = f"{context.scheduler}, {context.steps} steps, guidance {context.guidance:g}"
        self.report("worker", f"worker {worker_id} is ready: {drawn}", worker=worker_id)

    def close(self, error: BaseException | None) -> None:
        """Write down why the run ended early, if it did, and let the folder go."""
        with self._claim:  # whatever ends the writing as well
            if error is not None and self.begun and not self.sealed:
                # The reason of the stop stays with the run, unless the disk is what failed.
                with suppress(Exception):
                    self._require_held()  # else the run is another session's to record
                    self.event("run.stopped", self._reason(error), plan_sha256=self.plan.plan_sha256)

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, KeyboardInterrupt):
            number = signals.received() or signal.SIGINT
            return f"{signals.name(number)}: {self._committed()} of {len(self.plan.shards)} shards are committed"
        return without_paths(f"{type(error).__name__}: {error}", self.folder, self.plan.base)[:500]

    def _committed(self) -> int:
        """Shards whose commit is in the folder: a worker may have made some that this session was not told of yet."""
        from pipeline.audit.shards import markers

        with suppress(Exception):
            return len({shard.shard_id for shard in self.plan.shards} & set(markers(self.folder)))
        return len(self.receipts)

    def sample_ended(self, sample: Sample) -> None:
        self._under_way.setdefault(self._shard_of[sample.request.row_no], Counter())[str(sample.outcome)] += 1
        self.report("sample")

    def committed(self, receipt: ShardReceipt) -> None:
        self._under_way.pop(receipt.shard_id, None)
        if receipt.shard_id not in self.receipts:
            self._ended.update(receipt.outcomes)
        self.receipts[receipt.shard_id] = receipt
        self._here.update(receipt.outcomes)
        self.report("shard", f"shard {receipt.shard_id} committed", shard=receipt.shard_id)
        if len(self.receipts) < len(self.plan.shards):  # with the last shard nothing is left to be stopped: the run is sealed
            stop_beyond(self._here, self.plan.config.max_error_rate, self.plan.config.shard_size, self.folder)

    def worker_died(self, shard_id: str, worker_id: str, cause: Cause, what: str) -> bool:
        """Write a death down; returns whether the shard has cost as many workers as it may, for that cause."""
        self.deaths[shard_id] += 1
        self._causes[shard_id, cause] += 1
        deaths = self._causes[shard_id, cause]
        given_up = deaths >= MOST_DEATHS[cause]
        then = "given up" if given_up else "leased again"
        what = without_paths(what, self.folder, self.plan.base)
        reason = f"worker {worker_id} died at shard {shard_id} (death {self.deaths[shard_id]}); shard {then}: {what}"
        self.event("shard.retried" if not given_up else "shard.given_up", reason)
        self.report("retried", reason, shard=shard_id, worker=worker_id)
        return given_up

    def worker_lost(self, worker_id: str, when: str, what: str) -> None:
        """Write down a death that cost no shard."""
        reason = without_paths(f"worker {worker_id} died {when}: {what}", self.folder, self.plan.base)
        if self.begun:
            self.event("run.worker_lost", reason)
        self.report("retried", reason, worker=worker_id)

    def give_up(self, shard_no: int, cause: Cause) -> None:
        """Commit every request of a shard that keeps killing its workers as an error row."""
        shard_id = self.plan.shards[shard_no].shard_id
        message = f"{self._causes[shard_id, cause]} workers died while moderating shard {shard_id}"
        self.committed(self.undrawn(shard_no, REASONS[cause], "WorkerDied", message))

    def end_early(self, message: str) -> None:
        """Commit every request that is open as an error row, however many there are: a person decided so."""
        for shard_no in self.pending():
            receipt = self.undrawn(shard_no, "error.ended_early", "EndedEarly", message)
            self.receipts[receipt.shard_id] = receipt
            self._ended.update(receipt.outcomes)
            self.report("shard", f"shard {receipt.shard_id} committed", shard=receipt.shard_id)

    def undrawn(self, shard_no: int, reason: str, error_class: str, message: str) -> ShardReceipt:
        """Commit a shard of which nothing was drawn. A row that could not be used keeps its own problem."""
        shard, now = self.plan.shards[shard_no], time.time()
        samples = []
        for request in shard.requests:
            code, text, kind = (*request.problem, "InputError") if request.problem else (reason, message, error_class)
            samples.append(
                Sample(
                    request=request, outcome=Outcome.ERROR, reason=code, error_class=kind, error_message=text, started_at=now,
                    finished_at=now,
                )
            )  # fmt: skip
        assert self.context is not None  # of a worker that was ready before, or of the rows that are there
        return commit(self.folder, shard.shard_id, shard.requests, samples, dataclasses.replace(self.context, worker_id=DRIVER))

    def finish(self, workers: int) -> RunResult:
        """Seal the run and return its result. Needs :attr:`context` unless the run was sealed before."""
        from jobs.export.card import write_run_card
        from pipeline.audit.envelope import sign_run
        from pipeline.audit.ledger import seal
        from pipeline.audit.shards import sweep

        outcomes = dict(sorted(self.outcomes().items()))
        too_many_errors = beyond(outcomes, self.plan.config.max_error_rate)
        statement: dict[str, Any] = {}
        if not self.sealed:
            self._require_held()
            self._require_shards()
            if too_many_errors:
                self.event("run.error_rate", too_many_errors, plan_sha256=self.plan.plan_sha256)
            counts = ", ".join(f"{count} {name}" for name, count in outcomes.items())
            self.event("run.finished", counts, plan_sha256=self.plan.plan_sha256)
            # Stopped between its last commit and its seal: no shard was left, so no worker has set the context yet.
            context = self.context or self._opened_here()
            # A worker of a run that was stopped may have lived a moment longer than that run, and have died while writing.
            sweep(self.folder, complete=True)
            statement = seal(self.folder, self._predicate(workers, context))
            self.sealed = True
            if self._signer is not None:
                sign_run(self.folder, self._signer, f"runner.{self.runner}")
            write_run_card(self.folder, statement)
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
            too_many_errors=too_many_errors,
            activity=self.activity,
        )

    def _opened_here(self) -> RunContext:
        """The context of a worker that is opened for this alone."""
        with closing(Worker(self.plan, self.folder, self.run_id, DRIVER, open_loop=self.open_loop)) as worker:
            return worker.context

    def _require_shards(self) -> None:
        """What workers answered must be in this folder: on a cluster it may be another one of the same name."""
        from pipeline.audit.shards import markers

        lost = sorted({shard.shard_id for shard in self.plan.shards} - set(markers(self.folder)))
        if lost and entry_of(self.folder, PLAN_FILE) is None:
            what = "plan.json and committed shards are gone: the folder was emptied while the run went"
            raise RunStopped(
                what, where=str(self.folder), fix="Restore what was there from a copy; or name a new folder as --out"
            )
        if lost:
            raise RunStopped(
                f"{len(lost)} committed shards are not in the run folder, the first is {lost[0]}",
                where=str(self.folder),
                fix="Put the folder on storage that every worker shares, or leave it alone while the run goes; then --resume",
            )

    def _predicate(self, workers: int, context: RunContext) -> dict[str, Any]:
        from pipeline.audit.ledger import run_predicate

        stored, device = stored_plan(self.folder), self.plan.config.model.device
        started = float(stored["created_at"])
        return run_predicate(
            context,
            started_at=started,
            # A clock that was set back must not make a run that ended before it began.
            finished_at=datetime.fromtimestamp(max(time.time(), started), UTC).isoformat(timespec="seconds"),
            requested=len(self.plan.requests),
            plan={
                "plan_sha256": self.plan.plan_sha256,
                "parts": self.plan.parts,
                "parent_plan_sha256": self.plan.parent,
                "shards": len(self.plan.shards),
                "files": {name: digest_of(self.folder, name) for name in (PLAN_FILE, REQUESTS_FILE)},
            },
            config=stored["config"],
            policy=dataclasses.asdict(self.plan.policy),
            identity=dict(self.plan.identity),
            copy_check=dict(self.plan.copy_check),
            guards=[dict(guard) for guard in self.plan.guards],
            runner={"kind": self.drawn_by, "workers": workers, "deaths": dict(self.deaths)},
            devices=[device] * workers,
        )


@contextmanager
def run_session(
    plan: Plan,
    folder: Path,
    runner: str,
    on_event: OnEvent,
    open_loop: OpenLoop | None,
    resume: bool,
    keys: Keys | None = None,
) -> Iterator[Session]:
    """A session that holds the folder's lease once the folder exists; it records the reason if it ends early."""
    session = Session(plan, folder, runner, on_event, open_loop, resume, keys)
    try:
        if session.place.state == "begun":
            session.begin()
        if not session.sealed:
            session.report("started", f"{len(session.pending())} of {counted(len(session.plan.shards), 'shard')} to do")
        yield session
    except BaseException as error:
        session.close(error)
        raise
    session.close(None)
