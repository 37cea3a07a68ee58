"""What RAY_ADDRESS names: whether a run can join it, asked before Ray itself waits for minutes."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from functools import partial

from index.errors import RunStopped

VARIABLE = "RAY_ADDRESS"
AUTH_MODE = "RAY_AUTH_MODE"
OWN = ("", "local")  # a Ray of the run's own
ASKED = 5  # times that a cluster is asked for, before a run that wants it is refused
ASK_SECONDS = 1.0  # between questions to the control service; how long an answer of Ray's is waited for
GREETING_SECONDS = 15.0  # for the first answer of a control service; Ray itself waits for minutes


def address_of_ray() -> str:
    """The cluster that the environment names: ``auto``, or host and port; empty: none, a run starts a Ray of its own."""
    address = os.environ.get(VARIABLE, "").strip()
    return "" if address in OWN else address


def require_ray() -> None:
    """Refuse to go on without the package.

    Raises:
        RunStopped: Ray is not installed.
    """
    try:
        import ray  # noqa: F401
    except ImportError:
        fix = "Install ray, or use --runner local"
        raise RunStopped("the package ray is not installed", where="--runner ray", fix=fix) from None


def require_joinable(address: str) -> None:
    """Refuse an address at which no run can join a cluster. ``auto`` is Ray's to find.

    Args:
        address: of :func:`address_of_ray`.

    Raises:
        RunStopped: it is of another kind, nothing answers there, something else does, or the cluster lets nobody in without its
            token.
    """
    if address in (*OWN, "auto"):
        return
    where = f"{VARIABLE}={address}"
    if address.startswith("ray://"):
        raise RunStopped(
            "a run cannot be driven through Ray Client, which ends it with its connection",
            where=where,
            fix="Submit it: `ray job submit --address http://HEAD:8265 -- clearance run RUN.toml --runner ray`; or start it on "
            "a machine of the cluster with RAY_ADDRESS=auto",
        )
    if address.startswith(("http://", "https://")):
        raise RunStopped(
            "is the address of a dashboard, where jobs are submitted; a run joins a cluster at its control service",
            where=where,
            fix=f"Submit it: `ray job submit --address {address} -- clearance run RUN.toml --runner ray`; or start it on a "
            f"machine of the cluster with {VARIABLE}=auto",
        )
    host, _, port = address.rpartition(":")
    if not host or "://" in address or not port.isdecimal():
        fix = "Set it to HOST:PORT (`ray start --port`, by default 6379) or to auto; without it the run starts a Ray here"
        raise RunStopped("is not an address of a Ray cluster", where=where, fix=fix)
    if not _reached(address):  # Ray itself waits for minutes
        raise RunStopped("nothing answers there", where=where, fix=f"Check {VARIABLE}, or use --runner local")
    _require_control_service(address, where)


def answers(address: str) -> bool:
    """Whether something accepts connections there, within a second."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=1):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def within(seconds: float, do: Callable[[], object]) -> None:
    """Do something in a thread of its own, and wait for it so long at most: a Ray that is gone answers after a minute."""
    thread = threading.Thread(target=do, name="ray", daemon=True)
    thread.start()
    thread.join(seconds)


def _reached(address: str) -> bool:
    """Whether a cluster's control service answers, now or within a few seconds."""
    for _ in range(ASKED - 1):
        if answers(address):
            return True
        time.sleep(ASK_SECONDS)
    return answers(address)


def _require_control_service(address: str, where: str) -> None:
    """Ask for the cluster's id, as Ray does first."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    require_token, refused = _tokens()
    said: list[Exception | None] = []

    def greet() -> None:
        try:
            require_token()  # without a token the client would abort this process
            GcsClient(address=address)
            said.append(None)
        except Exception as error:
            said.append(error)

    within(GREETING_SECONDS, greet)
    if not said:
        raise RunStopped(
            f"what answers there is not the control service of a Ray cluster, or has not answered for {GREETING_SECONDS:.0f} s",
            where=where,
            fix="Name the port of `ray start --port` (by default 6379; 8265 is the dashboard's), or use --runner local",
        )
    if isinstance(said[0], refused):  # whatever else it is, Ray says it when it joins
        raise RunStopped(
            "the cluster asks for its token, and this process sends none or another",
            where=where,
            fix=f"Set {AUTH_MODE}=token, and give the cluster's token in RAY_AUTH_TOKEN or in ~/.ray/auth_token",
        )


def _tokens() -> tuple[Callable[[], object], tuple[type[Exception], ...]]:
    """How Ray is asked whether it has the token that its settings demand, and what it raises without a right one."""
    try:
        from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
        from ray.exceptions import AuthenticationError
    except ImportError:  # before 2.52 Ray knew no tokens
        return (lambda: None), ()
    return partial(ensure_token_if_auth_enabled, create_token_if_missing=False), (AuthenticationError,)
