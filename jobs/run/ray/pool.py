"""The actors of a run on Ray: hired while leases are open, replaced when they die, and let go when nothing is left for them.

An actor holds leases ahead, so that its calls are full while a shard comes to its end. When it dies, its shards are leased
again, each alone, and a shard that keeps killing its workers ends as error rows: nothing is lost silently.
"""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from index.errors import RunStopped
from jobs import signals
from jobs.run.ray.actor import ActorProcess, Driver, Failure, Opened, pieces_of, this_node
from jobs.run.ray.cluster import Cluster
from jobs.run.ray.placement import Need
from jobs.run.retries import MOST_DEATHS, Cause
from jobs.run.session import Session
from jobs.run.worker import shards_ahead

WAIT_SECONDS = 30.0  # between reports that a run is waiting for workers
LOOK_SECONDS = 1.0  # between checks that Ray itself still lives
_COLOUR = re.compile(r"\x1b\[[0-9;]*m|\\x1b\[[0-9;]*m")  # Ray colours what it says, and may have written the escape out
COUNT_SECONDS = 5.0  # between counts of the cluster's machines
MACHINE_DIED, NEVER_RAN = "its node has died", "The actor never ran"  # of Ray's text about an actor that died
_OPENING_FIX = {
    Cause.DEATH: "See the workers' logs in Ray's folder on their machines; where they are killed without a word, give them "
    "more memory or use fewer workers",
    Cause.MEMORY: "Give them more memory or use fewer workers",
    Cause.MACHINE: "See why machines leave the cluster, or use others",
}


@dataclass(kw_only=True)
class _Seat:
    """A place for one worker; its actor may be replaced.

    Attributes:
        shard_no: what it works at; None: the worker is opening its runtime, or Ray has no room for it yet.
        ahead: leases it holds beside, the next first.
        node_id: Ray's id of the machine it is on; empty: it has none yet.
    """

    number: int
    actor: Any
    worker_id: str
    shard_no: int | None = None
    ahead: list[int] = field(default_factory=list)
    node_id: str = ""


class Pool:
    """Actors pulling shard leases until none is open."""

    def __init__(self, session: Session, cluster: Cluster, need: Need, pending: Sequence[int]) -> None:
        import ray

        self.session, self.cluster, self.need = session, cluster, need
        self.todo = deque(pending)
        self.suspects: set[int] = set()  # under way when a worker died: which of them it was shows when each is alone
        self.opening_deaths: Counter[Cause] = Counter()  # since a worker was last ready
        self.waiting: dict[Any, _Seat] = {}
        self._workers = session.plan.config.workers
        self._fewer = 0  # workers that memory was too small for
        self._most = 0  # workers that were ready at once
        self._fits, self._counted = 0, -COUNT_SECONDS
        self._hired: Counter[int] = Counter()
        self._plan = pieces_of(session.plan)
        self._driver = Driver.this()
        asked: dict[str, Any] = {"num_cpus": need.cpus, "num_gpus": need.gpus, "max_restarts": 0, "max_task_retries": 0}
        self._actor: Any = ray.remote(**asked)(ActorProcess)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.cluster.ended():  # a Ray that is gone would be waited for
            for seat in self.waiting.values():
                self._let_go(seat)
        self.waiting.clear()

    def run(self) -> int:
        """Do every pending shard; returns how many workers were ready at once, at most."""
        self._staff()
        since = time.monotonic()  # when a worker was last at work, or that none is was last reported
        while self.todo or self._at_work():
            ready = self._ready()
            signals.check()
            self._check_ray()
            if self._at_work():
                since = time.monotonic()
            elif not ready and time.monotonic() - since > WAIT_SECONDS:
                since = time.monotonic()
                self.session.report("waiting", self._why_none())
            for future in ready:
                self._settle(future, self.waiting.pop(future))
            self._staff()
        return self._most

    def _at_work(self) -> int:
        """How many workers hold a lease."""
        return sum(seat.shard_no is not None for seat in self.waiting.values())

    def _ready(self) -> list[Any]:
        """Futures that have an answer; waits for one, and not for long."""
        import ray

        if not self.waiting:  # the last worker died, and Ray does not answer
            time.sleep(LOOK_SECONDS)
            return []
        return ray.wait(list(self.waiting), num_returns=1, timeout=LOOK_SECONDS)[0]

    # --- how many --------------------------------------------------------------------------------------------------------

    def _limit(self) -> int:
        """How many workers there may be, those that wait for room included."""
        if self._workers != "auto":
            return max(1, self._workers - self._fewer)
        if time.monotonic() - self._counted >= COUNT_SECONDS:
            self._counted = time.monotonic()
            self._fits = self.need.fits_in_all(self.cluster.machines().values())
        # To an autoscaler the actors that wait are the demand: as many again as there are, so that it doubles.
        beyond = 0 if self.cluster.own else max(1, self._at_work())
        return max(1, self._fits + beyond - self._fewer)

    def _staff(self) -> None:
        """Hire while leases are open that nobody is to take, and let go who would find none."""
        if not self.cluster.answers:
            return
        coming = [future for future, seat in self.waiting.items() if seat.shard_no is None]
        while len(coming) > len(self.todo):
            self._let_go(self.waiting.pop(coming.pop()))
        limit = self._limit() if len(coming) < len(self.todo) else 0
        taken = {seat.number for seat in self.waiting.values()}
        free = (number for number in range(limit) if number not in taken)
        for number in free:
            if len(coming) == len(self.todo) or len(self.waiting) >= limit:
                return
            coming.append(self._hire(number))

    def _why_none(self) -> str:
        machines, none = self.cluster.machines(), "no worker is at work" if self.session.begun else "no worker is ready yet"
        if not any(self.need.fits(resources) for resources in machines.values()):
            return (
                f"{none}: no machine of the cluster has {self.need}, which a worker asks for "
                "(generation.threads, model.device, device_share); the run waits for one that has"
            )
        return f"{none}: models are loading, or nothing is free ({self.need} a worker)"

    def _hire(self, number: int) -> Any:
        session = self.session
        self._hired[number] += 1
        worker_id = f"ray-{number}" if self._hired[number] == 1 else f"ray-{number}.{self._hired[number] - 1}"
        actor = self._actor.remote(session.folder, session.run_id, worker_id, session.open_loop, self._driver, *self._plan)
        future = actor.open.remote()
        self.waiting[future] = _Seat(number=number, actor=actor, worker_id=worker_id)
        return future

    def _let_go(self, seat: _Seat) -> None:
        import ray

        if self.cluster.answers:  # else it ends with its machine's Ray
            with suppress(Exception):
                ray.kill(seat.actor)

    # --- answers and deaths ----------------------------------------------------------------------------------------------

    def _check_ray(self) -> None:
        if what := self.cluster.ended():
            raise RunStopped(
                f"{what} in the middle of the run; {len(self.session.receipts)} shards are committed",
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
            exceptions.NodeDiedError,
        ) as error:
            self._check_ray()
            if getattr(error, "actor_init_failed", False):
                raise cannot_begin(seat.worker_id, error) from error
            if seat.shard_no is None and never_ran(error):
                return  # no worker was lost: its place was on a machine that was
            self._bury(seat, *self._cause(seat, error))
            return
        if isinstance(answer, Failure):
            self._let_go(seat)
            here = answer.node_id == this_node()
            told = answer.error if here else answer.told(seat.worker_id, opening=seat.shard_no is None)
            told.add_note(answer.trace)
            raise told
        if isinstance(answer, Opened):
            seat.node_id = answer.node_id
            self.opening_deaths.clear()  # a long run loses some on the way; only where all of them die is it useless to go on
            self.session.ready(answer.context, seat.worker_id)
            if answer.niceness > self._driver.niceness:
                text = (
                    f"worker {seat.worker_id} has niceness {answer.niceness} and yields to every other program of its machine"
                )
                self.session.report("note", f"{text}; start the cluster with RAY_worker_niceness=0")
        else:
            self.session.committed(answer)
        self._lease(seat)

    def _cause(self, seat: _Seat, error: Exception) -> tuple[Cause, str]:
        """Why a worker died, and a sentence about it."""
        from ray import exceptions

        if isinstance(error, exceptions.OutOfMemoryError):
            return Cause.MEMORY, "its machine ran out of memory, and Ray ended it"
        if getattr(error, "preempted", False):
            return Cause.MACHINE, "its machine was taken back"
        left = MACHINE_DIED in str(error) or (seat.node_id and seat.node_id not in self.cluster.machines())
        if left or isinstance(error, exceptions.NodeDiedError):
            return Cause.MACHINE, "its machine left the cluster"
        if isinstance(error, exceptions.ActorUnavailableError):
            return Cause.MACHINE, "it cannot be reached any more: its machine or the network failed"
        return Cause.DEATH, _first_line(error)

    def _lease(self, seat: _Seat) -> None:
        if not (seat.ahead or self.todo):
            self._let_go(seat)
            return
        seat.shard_no = seat.ahead.pop(0) if seat.ahead else self.todo.popleft()
        workers, most = len(self.waiting) + 1, shards_ahead(self.session.plan.config)
        # The last shards go to the worker that is free first.
        while seat.shard_no not in self.suspects and len(seat.ahead) < most and len(self.todo) >= workers:
            if self.todo[0] in self.suspects:
                break
            seat.ahead.append(self.todo.popleft())
        self.waiting[seat.actor.work.remote(seat.shard_no, seat.ahead, self.session.anchors)] = seat
        self._most = max(self._most, self._at_work())

    def _bury(self, seat: _Seat, cause: Cause, what: str) -> None:
        """A worker died: put its shards back, or give up the one that it worked at."""
        from pipeline.audit.shards import committed

        self._let_go(seat)  # an actor that is only unreachable must not commit behind our back
        session = self.session
        if cause is Cause.MEMORY and len(self.waiting) > 0:
            self._fewer += 1  # another one in its place would take the same memory
        if seat.shard_no is None:
            self.opening_deaths[cause] += 1
            session.worker_lost(seat.worker_id, "while it loaded the models", what)
            if self.opening_deaths[cause] >= MOST_DEATHS[cause]:
                raise RunStopped(
                    f"{self.opening_deaths[cause]} workers died while loading the models ({what})",
                    where=str(session.folder),
                    fix=f"{_OPENING_FIX[cause]}; then continue with --resume",
                )
            return
        done = committed(session.folder)
        for shard_no in (seat.shard_no, *seat.ahead):
            shard_id = session.plan.shards[shard_no].shard_id
            self.suspects.add(shard_no)
            if shard_id in done:  # it died between its commit and its answer
                if shard_no == seat.shard_no:
                    session.worker_lost(seat.worker_id, f"after it had committed shard {shard_id}", what)
                session.committed(done[shard_id])
            elif shard_no != seat.shard_no or not session.worker_died(shard_id, seat.worker_id, cause, what):
                self.todo.append(shard_no)  # at the back: a poisonous shard should not hold up the others
            else:
                session.give_up(shard_no, cause)


def cannot_begin(worker_id: str, error: Exception) -> RunStopped:
    """For a worker whose process could not read what it is: no death, and the next one on that machine would end as it did.

    Args:
        worker_id: the worker's.
        error: of Ray, whose text ends in the last line of a traceback, and names the address of a machine in its first.
    """
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    machine = re.search(r"\bip=([^,)\s]+)", lines[0]) if lines else None
    return RunStopped(
        f"a worker cannot begin ({lines[-1] if lines else type(error).__name__})",
        where=worker_id + (f" on {machine[1]}" if machine else ""),
        fix="Install this version of Clearance on every machine of the cluster, for the Python that runs its Ray",
    )


def never_ran(error: Exception) -> bool:
    """Whether Ray had chosen a machine for an actor that was lost before the actor began, as those that wait for room are."""
    return MACHINE_DIED in str(error) and NEVER_RAN in str(error)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
