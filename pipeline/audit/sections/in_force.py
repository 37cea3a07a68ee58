"""The outcomes in force now: those of the rows, with what reviews, takedowns and re-audits have changed since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.audit.requests import Row

if TYPE_CHECKING:
    from pipeline.audit.state import State

LISTED = 40


class InForce:
    """Counts outcomes as they are now, and lists the requests whose outcome is not the one they were born with."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._now: Counter[str] = Counter()
        self._moved: list[dict[str, Any]] = []
        self._changed = 0
        self.holds = 0
        self.erased_requests = 0
        self.erased: Counter[str] = Counter()  # payloads that were erased, by column

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        state, now = self._state.of(str(sample["sample_id"])), self._state.outcome(sample)
        self._now[now] += 1
        self.holds += state.hold or bool(sample["legal_hold"])
        self.erased.update(state.erased)
        self.erased_requests += bool(state.erased)
        if now == sample["outcome"]:
            return
        self._changed += 1
        if len(self._moved) < LISTED:
            about = {name: sample[name] for name in ("sample_id", "request_key", "outcome")}
            self._moved.append({**about, "outcome_in_force": now})

    def rows(self) -> dict[str, Any]:
        return {"outcomes": dict(sorted(self._now.items())), "changed": self._changed, "moved": self._moved}
