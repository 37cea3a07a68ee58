"""The process that holds a run folder: named for people, and whether it still lives, as far as this machine can see."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ENDED = ("Z", "X")  # states of a process that has ended and that nobody has waited for yet


@dataclass(frozen=True, kw_only=True)
class Process:
    """The process that holds a folder.

    Attributes:
        pid, host: the process. since: when it took the folder, for people.
        boot: the running kernel; processes with the same one see each other's locks.
        space: its space of process numbers (a container has its own).
        started: when the process started, in the kernel's ticks: distinguishes it from a later one with the same number.
    """

    pid: int
    host: str
    since: str = ""
    boot: str = ""
    space: str = ""
    started: str = ""

    @classmethod
    def this(cls) -> Process:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return cls(
            pid=os.getpid(), host=socket.gethostname(), since=now, boot=_boot(), space=_space(), started=_started(os.getpid())
        )

    @classmethod
    def parse(cls, content: bytes) -> Process | None:
        """From the file's content; None when it is something else."""
        try:
            plain: dict[str, Any] = json.loads(content)
            known = {field.name: field.type for field in fields(cls)}
            values = {name: value for name, value in plain.items() if name in known}
            wrong = [name for name, value in values.items() if type(value).__name__ != known[name]]
            return None if wrong else cls(**values)
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None

    def same_kernel(self, other: Process) -> bool:
        return self.boot == other.boot if self.boot and other.boot else self.host == other.host

    def lives(self) -> bool | None:
        """Whether the process lives; None: that cannot be seen, because it is on another machine or in another container."""
        if self.space != _space() or not self.same_kernel(Process.this()):
            return None
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            pass
        if state_of(self.pid) in ENDED:
            return False
        return not self.started or self.started == _started(self.pid)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f" since {self.since}" if self.since else "")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _boot() -> str:
    return _read("/proc/sys/kernel/random/boot_id")


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    behind = _stat(pid)
    return behind[19] if len(behind) > 19 else ""


def state_of(pid: int) -> str:
    """The kernel's letter for the state of a process; empty where there is none, or it cannot be seen."""
    return "".join(_stat(pid)[:1])


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process from its state on, the third field; before it stands a name that may hold spaces."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
