"""How far a run is: from its folder alone, wherever it lies, while it goes and after.

Reads markers, events, the lease, and of the latest shards a few columns. What was read of a shard is remembered, so that a
second look costs the new shards only.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from index.errors import ClearanceError
from index.storage import entry_of
from jobs.run.lease.lock import holder
from jobs.run.metrics.meters import renewed
from jobs.run.planning.stored_plan import stored_plan
from jobs.run.progress import duration
from pipeline.audit.events import read_events
from pipeline.audit.requests import rows_in
from pipeline.audit.shards import RUN_FILE, ShardReceipt, markers, receipts_of
from pipeline.outcome import ACCEPTED

LATEST = 64  # shards from which rate and activity are taken
SEALED, RUNNING, STOPPED = "sealed", "running", "stopped"
_SESSIONS = ("run.started", "run.resumed", "run.stopped")
_DEATHS = ("shard.retried", "shard.given_up", "run.worker_lost")
_COLUMNS = ("worker_id", "started_at", "finished_at", "device_seconds")


@dataclass(frozen=True, kw_only=True)
class Look:
    """A run at one moment.

    Attributes:
        state: ``sealed``, ``running`` or ``stopped``. holder: the process that holds it, in words; empty: none is seen.
        lease_age: seconds since the lease was renewed; None: there is none.
        shards, shards_done, requests, requests_done: of the plan, and of those what is committed.
        outcomes: of the committed requests.
        deaths: workers that died, over all sessions. stopped: why the last session ended early, if it did.
        rate: requests a second, from the latest shards; None: nothing ended in this session.
        seconds_left: at that rate; None while it is unknown, or the run does not go.
        quiet: seconds since the latest committed request ended; None: nothing is committed.
        workers: that committed the latest shards.
        busy: share of their time in which the denoiser computed for these shards; None: unknown.
    """

    run_id: str
    state: str
    holder: str
    lease_age: float | None
    shards: int
    shards_done: int
    requests: int
    requests_done: int
    outcomes: Mapping[str, int]
    deaths: int
    stopped: str
    rate: float | None = None
    seconds_left: float | None = None
    quiet: float | None = None
    workers: tuple[str, ...] = ()
    busy: float | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "workers": list(self.workers)}

    def lines(self) -> dict[str, str]:
        """Name and value, for people."""
        accepted = sum(self.outcomes.get(name, 0) for name in ACCEPTED)
        share = f", {100 * accepted / self.requests_done:.0f} % accepted" if self.requests_done else ""
        rest = {name: count for name, count in self.outcomes.items() if name not in ACCEPTED}
        found = {
            "state": self.state_line(),
            "shards": f"{self.shards_done} of {self.shards} committed",
            "requests": f"{self.requests_done} of {self.requests} ended{share}",
        }
        if rest:
            found["not accepted"] = ", ".join(f"{count} {name}" for name, count in sorted(rest.items()))
        if self.state == RUNNING:
            left = "" if self.seconds_left is None else f", about {duration(self.seconds_left)} left"
            found["rate"] = (
                "unknown: no shard of this session is committed" if self.rate is None else f"{self.rate:.2f}/s{left}"
            )
            if self.quiet is not None:
                found["last result"] = f"{duration(self.quiet)} ago"
        if self.workers and self.state == RUNNING:
            found["workers"] = f"{len(self.workers)}: {', '.join(self.workers[:8])}{' …' if len(self.workers) > 8 else ''}"
        if self.busy is not None and self.state == RUNNING:
            found["denoiser busy"] = f"{100 * self.busy:.0f} % of the time of these workers, in the latest shards"
        if self.deaths:
            found["deaths"] = f"{self.deaths} workers died"
        return found

    def state_line(self) -> str:
        if self.state == RUNNING:
            age = "" if self.lease_age is None else f", lease renewed {duration(self.lease_age)} ago"
            return f"running: {self.holder}{age}"
        if self.state == STOPPED:
            return "stopped; continue with --resume" + (f" ({self.stopped})" if self.stopped else "")
        if gone := self.shards - self.shards_done:
            return f"damaged: sealed, and {gone} of {self.shards} shards are gone; see clearance verify"
        return SEALED


@dataclass(frozen=True)
class _Pace:
    """What a shard tells of the pace: its workers, when its requests began and ended, and the denoiser's seconds."""

    workers: frozenset[str]
    began: float
    ended: float
    device_seconds: float


@dataclass
class Watched:
    """A run folder that is looked at again and again.

    Attributes:
        folder: the run folder. clock: Unix time.
    """

    folder: Path
    clock: Callable[[], float] = time.time
    _receipts: dict[str, ShardReceipt] = field(default_factory=dict)
    _paces: dict[str, _Pace | None] = field(default_factory=dict)

    def look(self) -> Look:
        """Look now.

        Raises:
            ClearanceError: the folder is no run, or a file in it was changed.
        """
        folder = self.folder
        stored, events = stored_plan(folder), read_events(folder)
        done = markers(folder)
        self._receipts |= receipts_of(folder, [shard for shard in done if shard not in self._receipts])
        outcomes = sum((Counter(self._receipts[shard].outcomes) for shard in done), Counter[str]())
        held, sealed = holder(folder), entry_of(folder, RUN_FILE) is not None
        kinds = [event["kind"] for event in events]
        last = next((event for event in reversed(events) if event["kind"] in _SESSIONS), None)
        look: dict[str, Any] = {
            "run_id": str(stored["run_id"]),
            "state": SEALED if sealed else RUNNING if held else STOPPED,
            "holder": held,
            "lease_age": self._lease_age() if held and not sealed else None,
            "shards": len(stored["shards"]),
            "shards_done": len(done),
            "requests": int(stored["requests"]),
            "requests_done": outcomes.total(),
            "outcomes": dict(sorted(outcomes.items())),
            "deaths": sum(kinds.count(kind) for kind in _DEATHS),
            "stopped": str(last["reason"]) if last is not None and last["kind"] == "run.stopped" else "",
        }
        return Look(**look, **({} if sealed else self._pace(done, events, look)))

    def _lease_age(self) -> float | None:
        at = renewed(self.folder)
        return None if at is None else max(0.0, time.time() - at)

    def _pace(self, done: list[str], events: list[dict[str, Any]], look: Mapping[str, Any]) -> dict[str, Any]:
        """Rate, time left and activity, from the latest shards of this session."""
        begun = [_seconds(event["at"]) for event in events if event["kind"] in ("run.started", "run.resumed")]
        since, now = max(begun, default=0.0), self.clock()
        paces = {}
        for shard in done[-LATEST:]:  # the shards of a plan are leased in its order
            if shard not in self._paces:
                self._paces[shard] = self._pace_of(shard)
            if (pace := self._paces[shard]) is not None and pace.ended >= since:
                paces[shard] = pace
        if not paces:
            return {}
        requests = sum(self._receipts[shard].rows for shard in paces)
        began, ended = max(since, min(p.began for p in paces.values())), max(p.ended for p in paces.values())
        workers = sorted(set().union(*(pace.workers for pace in paces.values())))
        seconds = ended - began
        rate = requests / seconds if seconds > 0 else None
        left = look["requests"] - look["requests_done"]
        computed = sum(pace.device_seconds for pace in paces.values())
        return {
            "rate": rate,
            "seconds_left": left / rate if rate and look["state"] == RUNNING else None,
            "quiet": max(0.0, now - ended),
            "workers": tuple(workers),
            "busy": min(1.0, computed / (seconds * len(workers))) if seconds > 0 and computed > 0 else None,
        }

    def _pace_of(self, shard: str) -> _Pace | None:
        path = next(file.path for file in self._receipts[shard].files if file.table == "samples")
        try:
            rows = [row for _, row in rows_in(self.folder, path, "samples", _COLUMNS)]
        except ClearanceError:
            return None  # damage is for `verify`; how far the run is can be shown all the same
        return _Pace(
            frozenset(str(row["worker_id"]) for row in rows),
            min(_seconds(row["started_at"]) for row in rows),
            max(_seconds(row["finished_at"]) for row in rows),
            sum(float(row["device_seconds"]) for row in rows),
        )


def _seconds(at: Any) -> float:
    """Unix seconds of a moment in events or rows."""
    if isinstance(at, datetime):
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    return datetime.fromisoformat(str(at)).timestamp()
