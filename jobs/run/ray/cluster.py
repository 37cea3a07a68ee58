"""The Ray that a run works on: the one that is initialised, a cluster that RAY_ADDRESS names, or one of the run's own."""

from __future__ import annotations

import math
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

from index.counted import counted
from index.errors import RunStopped
from jobs.run.lease.process import ENDED, state_of
from jobs.run.ray.actor import NICENESS
from jobs.run.ray.address import ASK_SECONDS, ASKED, VARIABLE, address_of_ray, answers, require_joinable, require_ray, within
from jobs.run.ray.placement import Need
from pipeline.model.device import cores

GCS_PATIENCE_SECONDS = 15.0  # of a cluster's control service that does not answer; Ray itself waits 60 s and then exits
OBJECTS = 128 * 2**20  # bytes of a Ray of our own: plan and receipts go through it, pictures do not
BUSY = "Repeat the command when this machine is less busy: Ray's processes may not have answered in time"
UNUSED = ("start_monitor", "start_log_monitor", "start_api_server")  # of Ray's node; see :func:`_without_unused`
PRIVATE = "clearance-private"  # a resource of a Ray that a run started for itself
SHUTDOWN_SECONDS = 20.0  # a Ray whose processes were killed may never let go


class Cluster:
    """A Ray that is there.

    Args:
        own: it was started for this run and ends with it: no machine joins it.
    """

    def __init__(self, *, own: bool) -> None:
        from ray._private import worker

        self.own = own
        node = getattr(worker, "_global_node", None)
        self._started: Mapping[str, Any] = getattr(node, "all_processes", None) or {}
        self._raylet = "" if self._started else _text(node, "raylet_socket_name")
        self._raylet_pid = _listener(self._raylet) if self._raylet else 0
        self._gcs = "" if self._started else _text(node, "gcs_address")
        self._gcs_seen = self._gcs_asked = time.monotonic()
        self._machines: dict[str, Mapping[str, float]] = {}

    @property
    def address(self) -> str:
        """Of its control service; empty where that is not known."""
        return self._gcs

    def about(self, need: Need, workers: int | None) -> str:
        """A sentence about what was joined and how many workers it holds now.

        Args:
            need: what each worker asks for. workers: how many the run file asks for; None: as many as there is room for.
        """
        machines = self.machines().values()
        room = need.fits_in_all(machines)
        cpus, gpus = (sum(resources.get(name, 0.0) for resources in machines) for name in ("CPU", "GPU"))
        have = f"{counted(len(machines), 'machine')}, {counted(int(cpus), 'CPU')}" + (
            f", {counted(int(gpus), 'GPU')}" if gpus else ""
        )
        text = f"joined the Ray at {self.address}: {have}, room for {counted(room, 'worker')} of {need}"
        if (taken := self._taken()) >= 1:
            text += f"; other work has {counted(math.ceil(taken), 'CPU')} of them now"
        return text if workers is None or workers <= room else f"{text}; {workers} are asked for, and the others wait for room"

    def _taken(self) -> float:
        """CPUs that somebody else's actors and tasks hold now; 0 while Ray does not answer."""
        import ray

        free: list[float] = []
        ask: Any = ray.available_resources
        within(ASK_SECONDS, lambda: free.append(float(ask().get("CPU", 0.0))))
        return sum(resources.get("CPU", 0.0) for resources in self.machines().values()) - free[0] if free else 0.0

    @property
    def answers(self) -> bool:
        """Whether its control service answered when it was last asked; without it most calls of Ray wait for a minute."""
        return self._gcs_seen == self._gcs_asked

    def ended(self) -> str:
        """What of Ray has ended that this process cannot do without; empty: nothing.

        Without it Ray would only wait, and in the end print its state and exit.
        """
        for name in ("raylet", "gcs_server"):
            if any(info.process.poll() is not None for info in self._started.get(name, ())):
                return f"Ray's process {name} died"
        if self._raylet_pid and state_of(self._raylet_pid) in ("", *ENDED):
            return "Ray's process raylet of this machine died"
        if self._gcs and time.monotonic() - self._gcs_asked > ASK_SECONDS:
            there, self._gcs_asked = answers(self._gcs), time.monotonic()
            if there:
                self._gcs_seen = self._gcs_asked
        if not self.answers and self._gcs_asked - self._gcs_seen > GCS_PATIENCE_SECONDS:
            return f"Ray's control service at {self._gcs} has not answered for {GCS_PATIENCE_SECONDS:.0f} s"
        return ""

    def machines(self) -> dict[str, Mapping[str, float]]:
        """The resources of every machine that lives, by Ray's id of it; as last known while Ray does not answer."""
        import ray

        nodes: Any = ray.nodes

        def ask() -> None:
            self._machines = {str(node["NodeID"]): node["Resources"] for node in nodes() if node["Alive"]}

        if self.answers:  # where none is known yet, a slow answer must not pass for a cluster without a machine
            within(ASK_SECONDS if self._machines else ASKED * ASK_SECONDS, ask)
        return self._machines


@contextmanager
def cluster(need: Need, workers: int | None = None) -> Iterator[Cluster]:
    """Ray, quiet: the one that is there, the one RAY_ADDRESS names, or one of our own for the time of the block.

    Args:
        need: what each worker asks for.
        workers: how many there shall be room for in a Ray of our own; None: as many as this machine holds.

    Raises:
        RunStopped: Ray is not installed or does not start, or RAY_ADDRESS names nothing that a run can join.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(NICENESS, "0")
    require_ray()
    import ray

    if ray.is_initialized():
        yield Cluster(own=False)
        return
    address = address_of_ray()
    require_joinable(address)
    with ExitStack() as stack:
        _start(address, own_cpus(need, workers, cores()))
        stack.callback(lambda: within(SHUTDOWN_SECONDS, ray.shutdown))
        joined = Cluster(own=not address)
        if address and any(PRIVATE in resources for resources in joined.machines().values()):
            raise RunStopped(
                f"the Ray at {joined.address} is that of another run on this machine, and ends with it",
                where=f"{VARIABLE}={address}",
                fix=f"Start a cluster (`ray start --head`), or name its HOST:PORT; without {VARIABLE} this run starts a Ray",
            )
        yield joined


def own_cpus(need: Need, workers: int | None, there: int) -> int:
    """CPUs in name of a Ray of our own, on a machine that has ``there``: room for one worker at least.

    A worker that asks for more than the machine has shares its processors. It would wait for another machine for ever.
    """
    return need.cpus * workers if workers is not None else max(need.cpus, there)


def _start(address: str, cpus: int) -> None:
    import logging

    import ray

    own: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": OBJECTS, "include_dashboard": False}
    own["resources"] = {PRIVATE: 1}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        with nullcontext() if address else _without_unused():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **({} if address else own))
    except Exception as error:
        cause = error.__cause__ if isinstance(error, ConnectionError) and error.__cause__ is not None else error
        why = f"{type(cause).__name__}: {' '.join(str(cause).split())}"  # Ray's own sentences have lines
        fix = f"Check {VARIABLE}" if address else BUSY
        if "ersion mismatch" in why:
            fix = "Start the run with the cluster's versions of Ray and Python, best in the image of its machines"
        raise RunStopped(
            f"{'the cluster cannot be joined' if address else 'Ray does not start'} ({why})",
            where=f"{VARIABLE}={address}" if address else "this machine",
            fix=f"{fix}, or use --runner local",
        ) from error
    _quieten(handlers)


@contextmanager
def _without_unused() -> Iterator[None]:
    """Let a Ray that is started in the block do without three processes that a run of its own has no use for.

    An autoscaler has no machine to ask for, logs go to no driver, and a server without its dashboard only counts usage, which
    is off; Ray waits for that server before it starts its node. The three took 1.7 s of processor time and 280 MB (Ray 2.60).
    """
    from ray._private.node import Node

    kept = {name: getattr(Node, name) for name in UNUSED if hasattr(Node, name)}
    for name in kept:
        setattr(Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


def _quieten(handlers: Mapping[signal.Signals, Any]) -> None:
    """Keep Ray from taking SIGTERM for itself and from printing the state of a node that died."""
    from ray._private import worker

    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_, **__: None


def _text(node: Any, name: str) -> str:
    return str(getattr(node, name, "") or "")


def _listener(path: str) -> int:
    """The process that listens on a socket of this machine; 0 where that cannot be found out."""
    with suppress(OSError, AttributeError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as there:
        there.settimeout(1)
        there.connect(path)
        pid, _, _ = struct.unpack("3i", there.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        return int(pid)
    return 0
