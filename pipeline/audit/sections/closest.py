"""The released pictures that came closest to a reference, by both looks; chosen while counting, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.audit.numbers import in_force, is_too_near, looked_at_for_copies
from pipeline.audit.requests import Row
from pipeline.outcome import ACCEPTED

BELOW, CLEARED, TOO_NEAR = "below the threshold", "near, cleared by the second look", "too near"


class ClosestTable:
    """Accepted pictures by their highest similarity to a reference in force, the closest first.

    Args:
        most: how many are kept.
    """

    COLUMNS = ("prompt",)

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows: list[dict[str, Any]] = []
        self.total = 0

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        if sample["outcome"] not in ACCEPTED or not looked_at_for_copies(sample["findings"]):
            return
        nearest = in_force(sample["nearest"])
        if not nearest:
            return
        self.total += 1
        self._rows.append(_row(sample, nearest[0]))
        if len(self._rows) >= 4 * self._most:
            self._rows = self.rows()

    def rows(self) -> list[dict[str, Any]]:
        return sorted(self._rows, key=lambda row: (-row["similarity"], row["request_key"]))[: self._most]


def _row(sample: Row, match: Row) -> dict[str, Any]:
    near = match["similarity"] >= sample["copy_threshold"]
    return {
        **{name: sample[name] for name in ("sample_id", "request_key", "prompt", "outcome")},
        **{name: match[name] for name in ("ref_id", "title", "rights_basis", "similarity", "confirm")},
        "attempt": sample["accepted_attempt"],
        "threshold": sample["copy_threshold"],
        "verdict": TOO_NEAR if is_too_near(sample["findings"]) else CLEARED if near else BELOW,
    }
