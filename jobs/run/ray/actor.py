"""The worker as a Ray actor: as nice as its machine's Ray, and gone as soon as its driver or its machine's Ray is."""

from __future__ import annotations

import math
import os
import pickle
import select
import socket
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import ClearanceError, RunStopped
from index.storage import digest_of, entry_of
from jobs.run.lease.process import Process
from jobs.run.plan import Plan
from jobs.run.ray.placement import guards_on_ray
from jobs.run.retries import STORAGE_WAITS
from jobs.run.worker import OpenLoop, Worker
from pipeline.audit.binding import PLAN_FILE
from pipeline.keys import ENVIRONMENT as KEYS_VARIABLE

if TYPE_CHECKING:
    from pipeline.audit.context import Anchors, RunContext

NICENESS = "RAY_worker_niceness"  # Ray's own setting; without it Ray gives its workers 15, and any other program the processor
PIECE, MOST_PIECES = 90_000, 80  # bytes: Ray sends arguments of up to 100 KB along, and up to 10 MB of them
HUNG = 2.0  # deadlines after which a call that has not returned counts as one that never will


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What a worker knows of the process that runs the plan.

    Attributes:
        process: the process. niceness: its own.
        keys: its folder of keys, for machines that name none; empty: it has none.
    """

    process: Process
    niceness: int = 0
    keys: str = ""

    @classmethod
    def this(cls) -> Driver:
        keys = os.environ.get(KEYS_VARIABLE, "")
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        return cls(process=Process.this(), niceness=niceness, keys=os.path.abspath(os.path.expanduser(keys)) if keys else "")


@dataclass(frozen=True)
class Opened:
    """What a worker answers when it is ready: the rows' context, and where it is (Ray's id of the machine)."""

    context: RunContext
    node_id: str
    niceness: int


@dataclass(frozen=True)
class Failure:
    """An error as a value, so that its class and text arrive unwrapped; and the machine: its name and Ray's id of it."""

    error: ClearanceError
    trace: str
    machine: str
    node_id: str

    def told(self, worker_id: str, *, opening: bool) -> ClearanceError:
        """The error of another machine than the driver's, saying so: what it misses may well be there on the driver's.

        Args:
            worker_id: the worker's. opening: whether it had not begun to work.
        """
        error = self.error
        where = f"{worker_id} on {self.machine}" + (f": {error.where}" if error.where else "")
        needs = "every machine of the cluster needs the same files, keys and versions" if opening else ""
        return type(error)(error.what, where=where, fix="; ".join(part for part in (error.fix, needs) if part))


class Actor:
    """One :class:`Worker`, opened and used from afar."""

    def __init__(
        self, plan: Plan, folder: Path, run_id: str, worker_id: str, open_loop: OpenLoop | None, driver: Driver
    ) -> None:
        self._arguments = (for_this_card(plan), folder, run_id, worker_id)
        self._open_loop = open_loop
        self._worker: Worker | None = None
        self._knows_folder = False
        if driver.keys:  # the driver's folder, unless this machine has its own
            os.environ.setdefault(KEYS_VARIABLE, driver.keys)

    def open(self) -> Any:
        def opened() -> Opened:
            self._worker = Worker(*self._arguments, open_loop=self._open_loop)
            return Opened(self._worker.context, this_node(), os.getpriority(os.PRIO_PROCESS, 0))

        return _caught(opened)

    def work(self, shard_no: int, ahead: Sequence[int], anchors: Anchors) -> Any:
        assert self._worker is not None
        worker, folder = self._worker, self._arguments[1]

        def worked() -> Any:
            if not self._knows_folder:
                require_folder_of_driver(folder, anchors)
                self._knows_folder = True
            return worker.work(shard_no, ahead, anchors)

        return _caught(worked)

    def hangs(self, seconds: float) -> bool:
        """Whether a call of the worker's loop has not returned for so long."""
        since = self._worker.calling_since if self._worker is not None else None
        return since is not None and time.monotonic() - since > seconds


class ActorProcess(Actor):
    """An actor that has a process of its own."""

    def __init__(
        self, folder: Path, run_id: str, worker_id: str, open_loop: OpenLoop | None, driver: Driver, *pieces: Any
    ) -> None:
        plan = joined(pieces)
        super().__init__(plan, folder, run_id, worker_id, open_loop, driver)
        be_as_nice_as_ray()
        patience = HUNG * plan.config.deadline_seconds or math.inf
        threading.Thread(target=self._watch, args=(driver.process, patience), name="driver", daemon=True).start()

    def _watch(self, driver: Process, patience: float) -> None:
        """End this process with its driver, with its machine's Ray, or when it hangs.

        Ray ends the actors of a driver that is gone too, and takes up to 20 s for it. What a worker wrote of a shard that it
        had not committed is swept by the next session. A driver on another machine cannot be seen from here: there Ray's way
        remains.
        """
        ended, seen = select.poll(), driver.lives()
        for pid in (driver.pid if seen else 0, os.getppid()):
            if (handle := _handle(pid)) is not None:
                ended.register(handle, select.POLLIN)
        while not ended.poll(1000):
            if (seen and not driver.lives()) or self.hangs(patience):
                break
        os._exit(1)


def require_folder_of_driver(folder: Path, anchors: Anchors, pause: Callable[[float], None] = time.sleep) -> None:
    """Refuse to work for a run folder that is another one here: what is committed to it would be missing where the run ends.

    Args:
        folder: the run folder, as this machine sees it.
        anchors: of the run; they hold the digest of its plan.json.
        pause: waits for so many seconds; a network folder may show a new file late.

    Raises:
        RunStopped: the plan.json there is missing or another one.
    """

    def there() -> str:
        return digest_of(folder, PLAN_FILE) if entry_of(folder, PLAN_FILE) is not None else ""

    for wait in STORAGE_WAITS:
        if there() == anchors.plan_file_sha256:
            return
        pause(wait)
    if there() != anchors.plan_file_sha256:
        raise RunStopped(
            "the run folder is another one on this machine: the run's plan.json is not in it",
            where=str(folder),
            fix="Put the run folder on storage that every machine of the cluster shares, or into an object store (--out s3://…)",
        )


def pieces_of(plan: Plan) -> list[Any]:
    """A plan as arguments of an actor that stay below what Ray puts into its store; a very large one as an object of the store.

    Who owns an object there is ended by Ray without a word when its machine's Ray ends in order (`ray stop`, a node that is
    drained): it looks for the object's store and finds none. A driver that owns nothing can stop the run with a sentence.
    """
    import ray
    from ray import cloudpickle

    data = zlib.compress(cloudpickle.dumps(plan), 1)  # type: ignore[no-untyped-call]
    if len(data) > PIECE * MOST_PIECES:
        return [ray.put(plan)]
    return [data[start : start + PIECE] for start in range(0, len(data), PIECE)]


def joined(pieces: Sequence[Any]) -> Plan:
    """The plan of :func:`pieces_of`; Ray has replaced an object of its store by what it holds."""
    if isinstance(pieces[0], bytes):
        return pickle.loads(zlib.decompress(b"".join(pieces)))  # type: ignore[no-any-return]
    return pieces[0]  # type: ignore[no-any-return]


def _handle(pid: int) -> int | None:
    """A handle that becomes readable when a process ends, also one that nobody waits for; None where there is no such thing."""
    with suppress(OSError, AttributeError):
        return os.pidfd_open(pid) if pid > 1 else None
    return None


def for_this_card(plan: Plan) -> Plan:
    """A plan as a worker of Ray carries it out; it binds the same.

    Ray shows each worker its own GPU alone, as the first: the run file's number counts those of the driver's machine. And a
    worker has the CPUs that it asked for, whatever its machine has.
    """
    config = replace(plan.config, guards=replace(plan.config.guards, workers=guards_on_ray(plan.config)))
    if config.model.device.startswith("cuda:"):
        config = replace(config, model=replace(config.model, device="cuda"))
    return replace(plan, config=config)


def be_as_nice_as_ray() -> None:
    """Undo the niceness that Ray gives its workers, where this user may; a cluster that sets it on purpose keeps it."""
    if NICENESS in os.environ:
        return
    with suppress(OSError):
        niceness = os.getpriority(os.PRIO_PROCESS, os.getppid())
        for thread in os.listdir("/proc/self/task"):  # Linux keeps it per thread; later ones inherit it
            os.setpriority(os.PRIO_PROCESS, int(thread), niceness)


def this_node() -> str:
    """Ray's id of this machine; empty where no Ray is."""
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def _caught(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except ClearanceError as error:
        return Failure(error, traceback.format_exc(), socket.gethostname(), this_node())
    except Exception as error:
        stopped = RunStopped(
            f"worker failed to start: {type(error).__name__}: {error}", fix="See the traceback with CLEARANCE_DEBUG=1"
        )
        return Failure(stopped, traceback.format_exc(), socket.gethostname(), this_node())
