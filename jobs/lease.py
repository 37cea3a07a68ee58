"""One run folder, one run: a lock that dies with its process."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from index.errors import RunStopped

LEASE_FILE = ".lease"


def holder(folder: Path) -> str:
    """Who runs in this folder now, in words; empty when nobody does (on this host)."""
    path = folder / LEASE_FILE
    try:
        with path.open("r+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return _told(file.read())
            return ""
    except OSError:
        return ""


@contextmanager
def lease(folder: Path) -> Iterator[None]:
    """Hold the run folder for the time of the block.

    The lock is the kernel's (``flock``): it goes when the process does, so a killed run leaves nothing to clean up. On shared
    storage without locks across hosts, the host written inside is what protects.

    Raises:
        RunStopped: another run holds the folder.
    """
    path = folder / LEASE_FILE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunStopped(
                f"another run is writing to this folder ({_told(file.read())})",
                where=str(folder),
                fix="Wait for it, or stop it first",
            ) from None
        content = file.read()
        if content and _host(content) not in ("", socket.gethostname()):
            raise RunStopped(
                f"a run on another machine holds this folder ({_told(content)})",
                where=str(folder),
                fix=f"If that run is dead, delete {LEASE_FILE} in the folder",
            )
        file.seek(0)
        file.truncate()
        json.dump(
            {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
            file,
        )
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.truncate()  # emptied, not removed: removing would race with a run that waits for the lock
            file.flush()


def _host(content: str) -> str:
    try:
        return str(json.loads(content).get("host", ""))
    except (ValueError, AttributeError):
        return ""


def _told(content: str) -> str:
    try:
        who = json.loads(content)
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (ValueError, KeyError, TypeError):
        return "unknown process"
