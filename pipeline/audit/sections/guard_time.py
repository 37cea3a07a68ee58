"""The time that guards took, by guard: summed from the attempts, whose rows share it out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from pipeline.audit.numbers import count, per
from pipeline.audit.requests import Row


class GuardTime:
    """Seconds of the clock by guard. Rows of earlier versions have none, and then there is nothing to show."""

    COLUMNS = ("guard_seconds",)

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._pictures: Counter[str] = Counter()

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        for attempt in attempts:
            for entry in attempt["guard_seconds"] or ():
                self._seconds[str(entry["guard"])] += float(entry["seconds"])
                self._pictures[str(entry["guard"])] += 1

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "guard": guard,
                "seconds": count(seconds, f"sum(attempts.guard_seconds where guard = {guard})"),
                "each": per(seconds, self._pictures[guard], f"mean(attempts.guard_seconds where guard = {guard})"),
            }
            for guard, seconds in sorted(self._seconds.items(), key=lambda item: (-item[1], item[0]))
        ]
