"""Choose the requests that the page shows with their pictures: steered ones before and after, those held back, errors.

Chosen while counting, so that only what is shown is kept; the pictures are fetched afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guards.base import is_copy
from pipeline.audit.numbers import in_force, triggered
from pipeline.audit.requests import Row
from pipeline.outcome import ACCEPTED, Outcome

HELD = (Outcome.REVIEW, Outcome.REJECTED, Outcome.QUARANTINED)


class Showcase:
    """What the page shows of a run.

    Args:
        pairs: how many steered requests: accepted ones first, the largest changes first.
        listed: how many of those held back, and of the errors: the first ones.
    """

    COLUMNS = ("prompt", "drawn_prompt", "error_class", "error_message", "attempts")

    def __init__(self, pairs: int, listed: int) -> None:
        self._most_pairs, self._listed = pairs, listed
        self._pairs: list[dict[str, Any]] = []
        self.pairs_total = 0
        self.held: list[dict[str, Any]] = []
        self.held_total = 0
        self.errors: list[dict[str, Any]] = []
        self.errors_total = 0

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        if attempts and (len(attempts) > 1 or attempts[0]["caught"]):
            self.pairs_total += 1
            self._pairs.append(before_and_after(sample, attempts))
            if len(self._pairs) >= 4 * self._most_pairs:
                self._pairs = self.pairs()
        shown = {name: sample[name] for name in ("sample_id", "request_key", "outcome", "reason", "prompt", "drawn_prompt")}
        if sample["outcome"] in HELD:
            self.held_total += 1
            if len(self.held) < self._listed:
                names = ("guard", "category", "score", "threshold", "confirmed", "detail")
                findings = [
                    {**{name: f[name] for name in names}, "ref_id": f.get("ref_id") or ""}
                    for f in triggered(sample["findings"])
                ]
                last = attempts[-1]["attempt"] if attempts else None
                self.held.append({**shown, "findings": findings, "last": last})
        elif sample["outcome"] == Outcome.ERROR:
            self.errors_total += 1
            if len(self.errors) < self._listed:
                self.errors.append({**shown, **{name: sample[name] for name in ("error_class", "error_message", "attempts")}})

    def pairs(self) -> list[dict[str, Any]]:
        return sorted(self._pairs, key=_order)[: self._most_pairs]


def before_and_after(sample: Row, attempts: Sequence[Row]) -> dict[str, Any]:
    """A steered request: its first picture, the reference it was too near to, and its last picture, with their similarities.

    Keys ``first`` and ``last`` are the numbers of the attempts; ``first`` is None where a probe ended the first in mid-flight.
    """
    first = attempts[0]
    stopped = first["caught"][0] if first["caught"] else None
    last = next((one for one in attempts if one["attempt"] == sample["accepted_attempt"]), attempts[-1])
    ref_id = str(stopped["ref_ids"][0]) if stopped else _copied(first)
    before, after = (next((m for m in one["nearest"] if m["ref_id"] == ref_id), None) for one in (first, last))
    nearest = in_force(last["nearest"])
    return {
        **{name: sample[name] for name in ("sample_id", "request_key", "prompt", "outcome", "reason")},
        "first": None if stopped else first["attempt"],
        "last": last["attempt"],
        "caught": f"caught after {stopped['step']} steps on its way to the reference" if stopped else "",
        "flagged": sorted({str(finding["category"]) for finding in triggered(first["findings"])}) if not stopped else [],
        "ref_id": ref_id,
        "title": str((before or after or {}).get("title", "")),
        "sim_before": before["similarity"] if before and not stopped else None,
        # Against the same reference where it is still among the nearest: the fair comparison.
        "sim_after": after["similarity"] if after else None,
        "sim_nearest": nearest[0]["similarity"] if nearest else None,
        "nearest_before": _nearest(first) if not stopped else None,
        "nearest_after": _nearest(last),
        "least_listed": min((match["similarity"] for match in last["nearest"]), default=None),
        "steps": [str(one["intervention"]["kind"]) for one in attempts[0 if stopped else 1 :] if one["intervention"]],
    }


def _nearest(attempt: Row) -> dict[str, Any] | None:
    """The reference in force that is nearest to an attempt's picture."""
    match = next(iter(in_force(attempt["nearest"])), None)
    return match and {name: match.get(name, "") for name in ("ref_id", "title", "similarity")}


def _copied(first: Row) -> str:
    """The reference that the first picture was found too near to; empty where it was flagged for something else."""
    found = [finding for finding in triggered(first["findings"]) if is_copy(str(finding["category"]))]
    # Rows of schema 1 name the reference in the text for people.
    named = [str(finding.get("ref_id") or finding["detail"]) for finding in found]
    near = [match["ref_id"] for match in in_force(first["nearest"])]
    return next((ref_id for ref_id in near if ref_id in named), named[0] if named else "")


def _order(pair: dict[str, Any]) -> tuple[bool, float]:
    """The order of steered requests: accepted ones first, then by the size of the change."""
    end = pair["sim_after"] if pair["sim_after"] is not None else pair["sim_nearest"]
    drop = (1.0 if pair["caught"] else pair["sim_before"] or 0.0) - (end or 0.0)
    return pair["outcome"] not in ACCEPTED, -drop
