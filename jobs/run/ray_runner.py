"""Run a plan on Ray: a pool of long-lived actors that hold the models and pull one shard lease after the other.

An actor holds leases ahead, so that its calls are full while a shard comes to its end. An actor that dies is replaced, its
shards are leased again, each alone, and a shard that keeps killing its worker ends as error rows: nothing is lost silently.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import ClearanceError, RunStopped
from jobs import signals
from jobs.run.plan import Plan
from jobs.run.session import DEATHS_PER_SHARD, OnEvent, RunResult, Session, ignore, run_session
from jobs.run.worker import OpenLoop, Worker, shards_ahead
from pipeline.keys import ENVIRONMENT as KEYS_VARIABLE

if TYPE_CHECKING:
    from pipeline.audit.context import Anchors, RunContext

WAIT_SECONDS = 30.0  # between reports that a run is waiting for workers
LOOK_SECONDS = 1.0  # between checks that Ray itself still lives


def run_ray(
    plan: Plan, folder: Path, on_event: OnEvent = ignore, *, open_loop: OpenLoop | None = None, resume: bool = True
) -> RunResult:
    """Run the plan with ``config.workers`` Ray actors, one CPU each (and one GPU each for a CUDA model).

    Joins the Ray that is initialised, or the cluster that RAY_ADDRESS names (there, Clearance must be installed and the folder
    shared); otherwise starts one on this machine and shuts it down again. Arguments and result as :func:`run_local`.

    Raises:
        ClearanceError: the run could not begin, or had to stop; committed shards are kept, and a resumed run continues.
    """
    with run_session(plan, folder, "ray", on_event, open_loop, resume) as session:
        pending = session.pending()
        if pending:
            with ray_session(plan.config.workers), _Pool(session, pending) as pool:
                pool.run()
        return session.finish(plan.config.workers)


class _Actor:
    """The worker as a Ray actor. Errors go back as values, so that their class and text arrive unwrapped."""

    def __init__(
        self, plan: Plan, folder: Path, run_id: str, worker_id: str, open_loop: OpenLoop | None, keys: str = ""
    ) -> None:
        self._arguments = (plan, folder, run_id, worker_id)
        self._open_loop = open_loop
        if keys:  # the driver's folder, unless this machine has its own
            os.environ.setdefault(KEYS_VARIABLE, keys)
        self._worker: Worker | None = None

    def open(self) -> Any:
        def opened() -> RunContext:
            self._worker = Worker(*self._arguments, open_loop=self._open_loop)
            return self._worker.context

        return _caught(opened)

    def work(self, shard_no: int, ahead: Sequence[int], anchors: Anchors) -> Any:
        assert self._worker is not None
        worker = self._worker
        return _caught(lambda: worker.work(shard_no, ahead, anchors))


def _caught(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except ClearanceError as error:
        return _Failure(error, traceback.format_exc())
    except Exception as error:
        stopped = RunStopped(
            f"worker failed to start: {type(error).__name__}: {error}", fix="See the traceback with CLEARANCE_DEBUG=1"
        )
        return _Failure(stopped, traceback.format_exc())


@dataclass(frozen=True)
class _Failure:
    error: ClearanceError
    trace: str


@dataclass(kw_only=True)
class _Seat:
    """A place for one worker; its actor may be replaced.

    Attributes:
        shard_no: what it works at; None: the worker is opening its runtime.
        ahead: leases it holds beside, the next first.
    """

    number: int
    actor: Any
    worker_id: str
    shard_no: int | None = None
    ahead: list[int] = field(default_factory=list)


class _Pool:
    """Actors pulling shard leases until none is open."""

    def __init__(self, session: Session, pending: Sequence[int]) -> None:
        import ray

        self.session = session
        self.todo = deque(pending)
        self.suspects: set[int] = set()  # under way when a worker died: which of them it was shows when each is alone
        self.opening_deaths = 0
        self.waiting: dict[Any, _Seat] = {}
        self._hired: Counter[int] = Counter()
        self._plan = ray.put(session.plan)
        gpus = 1 if session.plan.config.model.device.startswith("cuda") else 0
        self._actor: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Actor)

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for seat in self.waiting.values():
            ray.kill(seat.actor)
        self.waiting.clear()

    def run(self) -> None:
        import ray

        for number in range(min(self.session.plan.config.workers, len(self.todo))):
            self._hire(number)
        reported = time.monotonic()
        while self.waiting:
            ready, _ = ray.wait(list(self.waiting), num_returns=1, timeout=LOOK_SECONDS)
            signals.check()
            self._check_ray()
            if not ready and self.session.context is None and time.monotonic() - reported > WAIT_SECONDS:
                reported = time.monotonic()
                self.session.report("waiting", "no worker is ready yet: models are loading, or the cluster has no free CPU")
            for future in ready:
                self._settle(future, self.waiting.pop(future))

    def _check_ray(self) -> None:
        """Without its own processes Ray would only wait, and in the end print its state and exit."""
        for name in ended_processes():
            committed = len(self.session.receipts)
            raise RunStopped(
                f"Ray's process {name} died in the middle of the run; {committed} shards are committed",
                where=str(self.session.folder),
                fix="Check the memory of this machine (a killed process is often that), then continue with --resume",
            )

    def _settle(self, future: Any, seat: _Seat) -> None:
        """Take what a worker answers and give it the next lease."""
        import ray
        from ray import exceptions

        try:
            answer = ray.get(future)
        except (
            exceptions.RayActorError,
            exceptions.WorkerCrashedError,
            exceptions.OutOfMemoryError,
            exceptions.ObjectLostError,
        ) as error:
            self._check_ray()
            self._bury(seat, str(error).splitlines()[0] if str(error) else type(error).__name__)
            return
        if isinstance(answer, _Failure):
            ray.kill(seat.actor)
            answer.error.add_note(answer.trace)
            raise answer.error
        if seat.shard_no is None:
            self.session.ready(answer, seat.worker_id)
        else:
            self.session.committed(answer)
        self._lease(seat)

    def _lease(self, seat: _Seat) -> None:
        import ray

        if not (seat.ahead or self.todo):
            ray.kill(seat.actor)
            return
        seat.shard_no = seat.ahead.pop(0) if seat.ahead else self.todo.popleft()
        workers, most = self.session.plan.config.workers, shards_ahead(self.session.plan.config)
        # The last shards go to the worker that is free first.
        while seat.shard_no not in self.suspects and len(seat.ahead) < most and len(self.todo) >= workers:
            if self.todo[0] in self.suspects:
                break
            seat.ahead.append(self.todo.popleft())
        self.waiting[seat.actor.work.remote(seat.shard_no, seat.ahead, self.session.anchors)] = seat

    def _hire(self, number: int) -> None:
        session = self.session
        self._hired[number] += 1
        worker_id = f"ray-{number}" if self._hired[number] == 1 else f"ray-{number}.{self._hired[number] - 1}"
        keys = os.environ.get(KEYS_VARIABLE, "")
        keys = os.path.abspath(os.path.expanduser(keys)) if keys else ""
        actor = self._actor.remote(self._plan, session.folder, session.run_id, worker_id, session.open_loop, keys)
        self.waiting[actor.open.remote()] = _Seat(number=number, actor=actor, worker_id=worker_id)

    def _bury(self, seat: _Seat, cause: str) -> None:
        """A worker died: put its shard back (or give it up), and hire another."""
        import ray

        from pipeline.audit.shards import committed

        with suppress(Exception):
            ray.kill(seat.actor)  # an actor that is only unreachable must not commit behind our back
        session = self.session
        if seat.shard_no is None:
            self.opening_deaths += 1
            if self.opening_deaths >= DEATHS_PER_SHARD:
                raise RunStopped(
                    f"{self.opening_deaths} workers died while loading the models ({cause})",
                    where=str(session.folder),
                    fix="Give them more memory or use fewer workers, then continue with --resume",
                )
        else:
            done = committed(session.folder)
            for shard_no in (seat.shard_no, *seat.ahead):
                shard_id = session.plan.shards[shard_no].shard_id
                self.suspects.add(shard_no)
                if shard_id in done:  # it died between its commit and its answer
                    session.committed(done[shard_id])
                elif shard_no != seat.shard_no or session.worker_died(shard_id, seat.worker_id, cause) < DEATHS_PER_SHARD:
                    self.todo.append(shard_no)  # at the back: a poisonous shard should not hold up the others
                else:
                    session.give_up(shard_no)
        if self.todo:
            self._hire(seat.number)


@contextmanager
def ray_session(workers: int) -> Iterator[None]:
    """Ray, quiet: the one that is there, the one RAY_ADDRESS names, or one of our own for the time of the block."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray would give its workers 15, and any other program the processor
    try:
        import ray
    except ImportError:
        raise RunStopped(
            "the package ray is not installed", where="--runner ray", fix="Install ray, or use --runner local"
        ) from None
    with ExitStack() as stack:
        if not ray.is_initialized():
            import logging

            address = os.environ.get("RAY_ADDRESS")
            own: dict[str, Any] = (
                {} if address else {"num_cpus": workers, "object_store_memory": 128 * 2**20, "include_dashboard": False}
            )
            handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
            try:
                ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
            except Exception as error:
                raise RunStopped(
                    f"Ray does not start ({type(error).__name__}: {error})",
                    where=address or "this machine",
                    fix="Use --runner local, or check RAY_ADDRESS",
                ) from error
            stack.callback(ray.shutdown)
            _quieten(handlers)
        yield


def _quieten(handlers: Mapping[signal.Signals, Any]) -> None:
    """Keep Ray from taking SIGTERM for itself and from printing the state of a node that died."""
    from ray._private import worker

    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_, **__: None


def ended_processes() -> list[str]:
    """Which of the processes that Ray needs, where this process started them, have ended."""
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    started = getattr(node, "all_processes", None) or {}
    needed = {name: processes for name, processes in started.items() if name in ("raylet", "gcs_server")}
    return [name for name, processes in needed.items() if any(info.process.poll() is not None for info in processes)]
