"""The lease of a run on an object store: an object with holder, epoch and heartbeat, replaced only by whoever saw it last.

An object store has no locks, and no process ends there. So the holder replaces the object every few seconds, each time only
if it is still the version that it wrote itself. A run that finds another's lease waits for the next beat, and takes over when
none comes, with the next epoch; of several that wait, one wins. A holder that was cut off then finds another version, and
stops.

Its workers may not have noticed. Every commit, and the seal, therefore look whether the lease still holds the token of their
session (:func:`index.storage.fenced`). Nothing of this stands in a commit marker: the content of a run does not depend on it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from index.errors import ClearanceError, IntegrityError, RunStopped
from index.storage import Tagged, create_once, entry_of, impatient, read_tagged, replace_if
from jobs.run.lease.process import Process
from pipeline.audit.coverage import LEASE_FILE

_WAIT = "Wait for it, or stop it first"


@dataclass(frozen=True, kw_only=True)
class Lease:
    """What the object holds.

    Attributes:
        process: the driver. token: of its session; what commits compare.
        epoch: how many sessions held the folder so far, this one included.
        beat: how often this one gave a sign of life.
        held: False: the session ended, and the next one need not wait.
    """

    process: Process
    token: str
    epoch: int
    beat: int = 0
    held: bool = True

    @property
    def content(self) -> bytes:
        """The object's bytes; unlike those of any other beat of any session."""
        own = {"token": self.token, "epoch": self.epoch, "beat": self.beat, "held": self.held}
        return json.dumps({**asdict(self.process), **own}).encode()

    @classmethod
    def parse(cls, data: bytes) -> Lease | None:
        """From the object's bytes; None when it is something else.

        The lease of a local run, copied while the run went, names its process alone: it is held, and never beats.
        """
        process = Process.parse(data)
        try:
            plain: dict[str, Any] = json.loads(data)
            if process is not None and not plain.keys() & {"token", "epoch", "beat", "held"}:
                return cls(process=process, token="", epoch=0)
            token, epoch, beat, held = (plain[name] for name in ("token", "epoch", "beat", "held"))
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        if process is None or [type(value) for value in (token, epoch, beat, held)] != [str, int, int, bool]:
            return None
        return cls(process=process, token=token, epoch=epoch, beat=beat, held=held)


class Held:
    """A lease while it is held."""

    def __init__(self, folder: Path, lease: Lease, tag: str) -> None:
        self.folder, self.lease, self._tag = folder, lease, tag
        self._turn, self._lost = threading.Lock(), False

    def require(self) -> None:
        """Refuse to go on when another session took the folder over; raises RunStopped."""
        if self._lost:
            raise lost(self.folder)

    def beat(self) -> None:
        """Give a sign of life; where the lease is another's by now, remember that."""
        self._write(replace(self.lease, beat=self.lease.beat + 1))

    def let_go(self) -> None:
        """Mark the lease as free, if it is still this session's."""
        self._write(replace(self.lease, beat=self.lease.beat + 1, held=False))

    def _write(self, lease: Lease) -> None:
        with self._turn:
            if self._lost:
                return
            tag = replace_if(self.folder, LEASE_FILE, lease.content, self._tag)
            if tag is None:
                self._lost = True
            else:
                self.lease, self._tag = lease, tag


def lost(folder: Path) -> RunStopped:
    """The sentence for a session whose lease is another's by now."""
    there = current(folder)
    return taken_over(folder, f"{there.process}, epoch {there.epoch}" if there is not None else "")


def taken_over(folder: Path, by: str) -> RunStopped:
    """The same, by whom it is known that they hold it now; empty: that is not known."""
    fix = "Let the other run finish; see `clearance status`. What this one committed counts"
    return RunStopped(f"another run took this folder over{f' ({by})' if by else ''}", where=str(folder), fix=fix)


def current(folder: Path) -> Lease | None:
    """The lease that is there, as far as it can be read."""
    with suppress(ClearanceError):
        found = read_tagged(folder, LEASE_FILE)
        return None if found is None else Lease.parse(found.data)
    return None


def holder(folder: Path, fresh: float) -> str:
    """The session that holds the folder, in words; empty when none gave a sign of life in the last ``fresh`` seconds."""
    try:
        found = read_tagged(folder, LEASE_FILE)
    except ClearanceError:
        return ""
    lease = None if found is None else Lease.parse(found.data)
    if found is None or lease is None or not lease.held or lease.process.lives() is False or found.age > fresh:
        return ""
    return f"{lease.process}, epoch {lease.epoch}"


@contextmanager
def object_lease(
    folder: Path, token: str, *, note: Callable[[str], None], me: Process, beat: float, patience: float
) -> Iterator[Held]:
    """Hold the folder for the time of the block; arguments and errors as :func:`jobs.run.lease.lock.lease`.

    Args:
        folder: the place.
        token: of this session.
    """
    held = _take(folder, token, note, me, patience)
    ended = threading.Event()

    def keep() -> None:
        seen, noted = time.monotonic(), False
        while not ended.wait(beat):
            try:
                with impatient():  # the next beat asks again, and what is wrong is said in time
                    held.beat()
                seen, noted = time.monotonic(), False
            except ClearanceError as error:  # a store that is away for a moment; the next beat shows whose the lease is
                if not noted and time.monotonic() - seen > patience:
                    noted = True
                    note(
                        f"no sign of life could be given for {patience:.0f} s ({error}): another run may take this folder over"
                    )

    beating = threading.Thread(target=copy_context().run, args=(keep,), name="lease", daemon=True)
    beating.start()
    try:
        yield held
    finally:
        ended.set()
        beating.join()
        with suppress(ClearanceError):
            held.let_go()


def _take(folder: Path, token: str, note: Callable[[str], None], me: Process, patience: float) -> Held:
    found = read_tagged(folder, LEASE_FILE)
    if found is None:
        first = Lease(process=me, token=token, epoch=1)
        made = read_tagged(folder, LEASE_FILE) if create_once(folder, LEASE_FILE, first.content) else None
        if made is not None and made.data == first.content:
            return Held(folder, first, made.tag)
        raise _same_moment(folder)
    before = Lease.parse(found.data)
    if before is None and found.data:  # a local run that ended leaves an empty file, which a copy of it brings here
        where = f"{folder}/{LEASE_FILE}"
        raise IntegrityError("is not the lease of a run", where=where, fix="Move it away, then try again")
    if before is not None and before.held:
        found = _ended(folder, found, before, note, patience)
    mine = Lease(process=me, token=token, epoch=before.epoch + 1 if before is not None else 1)
    tag = replace_if(folder, LEASE_FILE, mine.content, found.tag)
    if tag is None:
        raise _same_moment(folder)
    return Held(folder, mine, tag)


def _ended(folder: Path, found: Tagged, before: Lease, note: Callable[[str], None], patience: float) -> Tagged:
    """Make sure that the holder has ended; raises RunStopped when it lives."""
    lives = before.process.lives()
    if lives is False:
        return found
    if lives:
        raise held_by(folder, before.process)
    note(f"{before.process} may still hold this folder: waiting {patience:.0f} s for a sign of life")
    deadline = time.monotonic() + patience
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(1.0, patience / 8, left))
        now = read_tagged(folder, LEASE_FILE)
        if now is None or now.tag != found.tag:
            what = f"a run on another machine holds this folder ({before.process})"
            raise RunStopped(what, where=str(folder), fix=_WAIT)
    note(f"{before.process} gave no sign of life for {patience:.0f} s: going on in its place, as epoch {before.epoch + 1}")
    return found


def held_by(folder: Path, process: Process | None) -> RunStopped:
    """The refusal where another process writes to a folder: a run; or, where the run is finished, a short command."""
    from pipeline.audit.shards import RUN_FILE

    with suppress(ClearanceError):
        if entry_of(folder, RUN_FILE) is not None:
            what = (
                f"another command is writing to this folder ({process or 'unknown process'}): a decision, a claim or the like"
            )
            return RunStopped(what, where=str(folder), fix="Try again when it has ended")
    what = f"another run is writing to this folder ({process or 'unknown process'})"
    return RunStopped(what, where=str(folder), fix=_WAIT)


def _same_moment(folder: Path) -> RunStopped:
    return RunStopped("another run was here at the same moment", where=str(folder), fix="Try again")
