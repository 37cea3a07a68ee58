"""Guard processes beside the denoiser: a bounded queue in, studies out, and a process that dies or hangs is replaced.

Processes, not threads: a guard that crashes or never returns must not take the denoiser with it, and one thread per process
here only waits for its pipe. A process is started as a program of its own, so that nothing of this one is imported again.

A process that ends in the middle of a look leaves pictures without an answer. They are looked at again, each alone; the one
that ends a process a second time gets a failure in place of a study, and so never passes.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.looking.activity import Activity
from pipeline.looking.process import send
from pipeline.looking.study import Failed, Study

if TYPE_CHECKING:
    import torch

DEATHS = 2  # of processes that one picture may cause: the first beside others, the second alone
OPEN_SECONDS = 900.0  # for imports and weights
KILLED_SECONDS = 10.0
PAUSES = (1.0, 5.0)  # seconds before a process that cannot take another's place is started once more
PROGRAM = "from pipeline.looking.process import main; main()"

Answer = Study | Failed | None  # None: nobody beside the denoiser can look


@dataclass(kw_only=True)
class _Job:
    """Pictures that are looked at together.

    Attributes:
        tags: the caller's names of them.
        latents: float32 (N, C, h, w).
        own: ids of every sample's own references.
        deaths: processes that ended while they looked at these.
    """

    tags: list[int]
    latents: np.ndarray
    own: list[Sequence[str]]
    deaths: int = 0

    def alone(self) -> list[_Job]:
        return [
            _Job(tags=[tag], latents=self.latents[i : i + 1], own=[self.own[i]], deaths=self.deaths)
            for i, tag in enumerate(self.tags)
        ]


class GuardDied(Exception):
    """A guard process ended, or was ended because it took too long."""


class Changed(GuardDied):
    """A guard process is not what the run began with."""


class Pool:
    """Guard processes, started at once; until the first is ready, :attr:`ready` is False.

    Args:
        opening: makes a process's :class:`pipeline.looking.study.Looker`; it is sent there, so it must be picklable.
        workers: number of processes.
        deadline: seconds for one look, after which its process is ended.
        identity: what the processes must be; one that is something else does not look.
        activity: where deaths and processes are counted.
        pauses: before each further try to replace a process: what it lacks (memory, a file of a share) may come back.
    """

    def __init__(
        self,
        opening: Callable[[], Any],
        workers: int,
        *,
        deadline: float = 600.0,
        identity: Mapping[str, str] | None = None,
        activity: Activity | None = None,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        self.opening, self.workers, self.deadline, self.identity = opening, workers, deadline, dict(identity or {})
        self.activity = activity or Activity()
        self.closed, self.pauses = False, tuple(pauses)
        self._jobs: deque[_Job] = deque()
        self._answers: SimpleQueue[list[tuple[int, Answer]]] = SimpleQueue()
        self._lock = threading.Condition()
        self._opened = False
        self._seats = [_Seat(self) for _ in range(workers)]
        self._serving = len(self._seats)
        for seat in self._seats:
            seat.start()

    @property
    def ready(self) -> bool:
        """Whether pictures handed over now are looked at beside the denoiser: a process was ready, and not all have left."""
        return self._opened and self._serving > 0

    def wait_ready(self) -> bool:
        """Wait until the first process is ready, or none can be; returns :attr:`ready`."""
        with self._lock:
            self._lock.wait_for(lambda: self._opened or not self._serving)
        return self.ready

    def submit(self, tags: Sequence[int], latents: Sequence[torch.Tensor | np.ndarray], own: Sequence[Sequence[str]]) -> None:
        """Hand over N latents (C, h, w), with names for the answers and the ids of every sample's own references."""
        array = np.stack([latent if isinstance(latent, np.ndarray) else latent.cpu().numpy() for latent in latents])
        self._put([_Job(tags=list(tags), latents=array, own=list(own))])

    def answers(self, seconds: float = 0.0) -> list[tuple[int, Answer]]:
        """Tags and answers that have come, in the order of coming; where there is none, waits so long for one."""
        found: list[tuple[int, Answer]] = []
        with suppress(Empty):
            found += self._answers.get(block=seconds > 0, timeout=seconds or None)
            while True:
                found += self._answers.get(block=False)
        return found

    def close(self) -> None:
        """End all processes; pictures at the guards get no answer."""
        with self._lock:
            self.closed = True
            self._jobs.clear()
            self._lock.notify_all()
        for seat in self._seats:
            seat.kill()
        for seat in self._seats:
            seat.join(KILLED_SECONDS)

    # --- for the seats ------------------------------------------------------------------------------------------------

    def _put(self, jobs: Sequence[_Job], *, first: bool = False) -> None:
        with self._lock:
            if not self._serving and not self.closed:
                return self._return(jobs)
            if first:
                self._jobs.extendleft(reversed(jobs))
            else:
                self._jobs.extend(jobs)
            self._lock.notify_all()

    def take(self) -> _Job | None:
        """The next job, when there is one; None once the pool is closed."""
        with self._lock:
            self._lock.wait_for(lambda: self._jobs or self.closed)
            return None if self.closed else self._jobs.popleft()

    def rest(self, seconds: float) -> None:
        """Wait, or until the pool is closed."""
        with self._lock:
            self._lock.wait_for(lambda: self.closed, timeout=seconds)

    def came(self) -> None:
        """A process is ready."""
        with self._lock:
            self._opened = True
            self.activity.processes += 1
            self._lock.notify_all()

    def went(self) -> None:
        """A process that was ready is no more."""
        with self._lock:
            self.activity.processes -= 1

    def answer(self, job: _Job, answers: Sequence[Answer]) -> None:
        self._answers.put(list(zip(job.tags, answers, strict=True)))

    def died(self, job: _Job, why: str) -> None:
        """A process ended at this job: its pictures are looked at again, each alone, or fail."""
        with self._lock:
            self.activity.deaths += 1
        job.deaths += 1
        if job.deaths < DEATHS:
            return self._put(job.alone(), first=True)
        message = f"{why}; it is the second time at this picture. If it was only slow, raise guards.deadline_seconds"
        self.answer(job, [Failed(error_class="GuardDied", message=message)] * len(job.tags))

    def leave(self, why: str) -> None:
        """A seat can have no process; with the last one what still waits goes back to where it came from."""
        with self._lock:
            self._serving -= 1
            self.activity.note = f"{self._serving} of {len(self._seats)} guard processes: {why}"
            self._lock.notify_all()
            if not self._serving:
                jobs = list(self._jobs)
                self._jobs.clear()
                self._return(jobs)

    def _return(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            suspect = Failed(error_class="GuardDied", message="a guard process died at this picture and cannot be replaced")
            self.answer(job, [suspect if job.deaths else None] * len(job.tags))


class _Seat(threading.Thread):
    """A place for one process, which may be replaced."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(name="clearance-guards", daemon=True)
        self._pool = pool
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Any = None

    def run(self) -> None:
        pool, pauses = self._pool, deque[float]()
        while not pool.closed:
            try:
                self._open()
            except Exception as error:
                self._end()
                if pauses and not isinstance(error, Changed):
                    pool.rest(pauses.popleft())
                    continue
                return None if pool.closed else pool.leave(str(error) or type(error).__name__)
            pauses = deque(pool.pauses)  # for its successor: a first process that cannot be opened needs no second try
            pool.came()
            self._serve()
            pool.went()
            self._end()

    def kill(self) -> None:
        """End the process, if there is one, from another thread; this one then finds its pipe at its end, and closes it."""
        process = self._process
        if process is not None:
            process.kill()

    def _serve(self) -> None:
        """Look at one job after the other until the process ends."""
        while (job := self._pool.take()) is not None:
            try:
                answers = self._ask((job.latents, job.own, self._pool.deadline), self._pool.deadline, "looking")
                self._pool.answer(job, answers)
            except Exception as error:
                if not self._pool.closed:
                    self._pool.died(job, self._cause(error))
                return

    def _open(self) -> None:
        """Start a process and wait until it has opened its guards.

        Raises:
            GuardDied: it cannot. Changed: it is not what the denoiser's own guards are.
        """
        self._connection, theirs = Pipe()
        found = os.pathsep.join(path for path in sys.path if path)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=2, env={**os.environ, "PYTHONPATH": found},
            )  # fmt: skip
        if self._pool.closed:  # between the question and the start
            raise GuardDied("the pool is closed")
        state, found_identity = self._ask(self._pool.opening, OPEN_SECONDS, "opening its guards")
        if state != "ready":
            raise GuardDied(str(found_identity))
        wanted = self._pool.identity
        if changed := sorted(name for name in {*wanted, *found_identity} if wanted.get(name) != found_identity.get(name)):
            raise Changed(f"{', '.join(changed)} changed since the run began")

    def _ask(self, message: Any, seconds: float, doing: str) -> Any:
        """Send a message and take the answer. A process that takes longer is ended, wherever in the exchange it hangs."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            send(self._connection, message)
            return pickle.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            if late.is_set():
                raise GuardDied(f"a guard process took more than {seconds:g} s for {doing} and was ended") from None
            raise GuardDied(self._cause(error)) from None
        finally:
            timer.cancel()

    def _cause(self, error: Exception) -> str:
        if isinstance(error, GuardDied):
            return str(error)
        assert self._process is not None
        try:
            code = self._process.wait(KILLED_SECONDS)
        except subprocess.TimeoutExpired:
            return "a guard process closed its pipe"
        return f"a guard process was ended by signal {-code}" if code < 0 else f"a guard process exited with {code}"

    def _end(self) -> None:
        """End the process, if there is one, and close the pipe."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        if self._connection is not None:
            self._connection.close()
