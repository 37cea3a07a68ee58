"""The tables of a report: guards, interventions, similarities, references, and what the second look cleared.

Each counts request by request, as :class:`pipeline.audit.numbers.Counts` does, and in the same words.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from pipeline.audit.numbers import in_force, is_near, is_too_near, larger, looked_at_for_copies, per, rate, similarity
from pipeline.audit.requests import Row
from pipeline.outcome import ACCEPTED

LOWEST, BIN = -1.0, 0.025  # similarities are counted in bins of that width, from there to 1
BINS = round((1 - LOWEST) / BIN)
CLEARED = 40  # pictures that the second look cleared: the nearest ones are listed
_Key = tuple[str, str]


def bin_of(value: float) -> int:
    """The bin of a similarity; values outside are in the end bins."""
    # The epsilon keeps a value that sits on an edge (0.8 stored as 0.7999…) in the bin that starts there.
    return min(max(math.floor((value - LOWEST) / BIN + 1e-9), 0), BINS - 1)


class GuardTable:
    """Per guard and category: how often it fired on first and on accepted pictures, and what steering made of it."""

    def __init__(self) -> None:
        self._versions: dict[_Key, set[str]] = defaultdict(set)
        self._thresholds: dict[_Key, set[float]] = defaultdict(set)
        self._actions: dict[_Key, set[str]] = defaultdict(set)
        self._counts: dict[_Key, Counter[str]] = defaultdict(Counter)

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        last = self._fired(sample["findings"])
        # One that was caught has no first picture. One that was not drawn may have findings about its prompt.
        if not attempts or not attempts[0]["caught"]:
            for key, hit in (self._fired(attempts[0]["findings"]) if attempts else last).items():
                counts = self._counts[key]
                counts["first_n"] += 1
                counts["first_k"] += hit
                if hit and len(attempts) > 1:
                    counts["steered_n"] += 1
                    counts["steered_k"] += not last.get(key, True)
        if sample["outcome"] in ACCEPTED:
            for key, hit in last.items():
                self._counts[key]["accepted_n"] += 1
                self._counts[key]["accepted_k"] += hit

    def _fired(self, findings: Sequence[Row]) -> dict[_Key, bool]:
        fired: dict[_Key, bool] = {}
        for finding in findings:
            key = (str(finding["guard"]), str(finding["category"]))
            fired[key] = fired.get(key, False) or bool(finding["triggered"])
            self._versions[key].add(str(finding["version"]))
            self._thresholds[key].add(float(finding["threshold"]))
            self._actions[key] |= {str(finding.get("action") or "")} - {""}  # rows of schema 1 have none
        return fired

    def rows(self, policy: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows of the table; each guard's action comes from the audit's rows, or else from ``policy``."""
        table = []
        for (guard, category), versions in sorted(self._versions.items()):
            counts, settings = self._counts[(guard, category)], policy.get(guard)
            stated = str(settings.get("action") or "") if isinstance(settings, dict) else ""
            named = f"any(findings: guard = {guard} and category = {category} and triggered)"
            gone = f"of first pictures with {named} that were steered: share whose final picture has none"
            table.append(
                {
                    "guard": guard,
                    "category": category,
                    "action": ", ".join(sorted(self._actions[(guard, category)])) or stated,
                    "versions": sorted(versions),
                    "thresholds": sorted(self._thresholds[(guard, category)]),
                    "first": rate(
                        counts["first_k"],
                        counts["first_n"],
                        f"attempts where attempt = 0 and caught = [], and samples where attempts = 0: share with {named}",
                    ),
                    "gone": rate(counts["steered_k"], counts["steered_n"], gone),
                    "accepted": rate(counts["accepted_k"], counts["accepted_n"], f"accepted samples: share with {named}"),
                }
            )
        return table


class InterventionTable:
    """Per kind of intervention: how often its attempt was accepted, how far it moved it, and what it cost."""

    def __init__(self) -> None:
        self._sums: dict[str, Counter[str]] = defaultdict(Counter)
        self._drops: dict[str, float] = defaultdict(float)
        self._evals: dict[str, float] = defaultdict(float)

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        # Caught in mid-flight: steered without a picture before it.
        for before, after in [*((None, one) for one in attempts[:1] if one["caught"]), *pairwise(attempts)]:
            kind = str((after["intervention"] or {}).get("kind") or "none")
            self._sums[kind]["n"] += 1
            self._sums[kind]["k"] += after["decision"] == "accept"
            self._evals[kind] += after["denoiser_evals"]
            old, new = similarity(before["nearest"]) if before else None, similarity(after["nearest"])
            if old is not None and new is not None:
                self._sums[kind]["compared"] += 1
                self._drops[kind] += old - new

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "kind": kind,
                "accepted": rate(sums["k"], sums["n"], f"attempts where intervention.kind = {kind}: share decided accept"),
                "mean_drop": per(
                    self._drops[kind], sums["compared"], "mean(similarity of the attempt before - similarity of this attempt)"
                ),
                "mean_evals": per(self._evals[kind], sums["n"], "mean(attempts.denoiser_evals)"),
            }
            for kind, sums in sorted(self._sums.items())
        ]


class Similarities:
    """How many first and final pictures have which similarity, in bins, on either side of the threshold."""

    def __init__(self) -> None:
        names = ("first_below", "first_reached", "accepted", "accepted_cleared", "accepted_too_near", "held_back")
        self._bins = {name: [0] * BINS for name in names}

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        if attempts and not attempts[0]["caught"]:
            value = similarity(attempts[0]["nearest"])
            if value is not None:
                reached = value >= sample["copy_threshold"]
                self._bins["first_reached" if reached else "first_below"][bin_of(value)] += 1
        value = similarity(sample["nearest"])
        if value is None or not attempts:
            return
        if sample["outcome"] not in ACCEPTED:
            name = "held_back"
        elif is_too_near(sample["findings"]):
            name = "accepted_too_near"
        else:
            name = "accepted_cleared" if is_near(sample) else "accepted"
        self._bins[name][bin_of(value)] += 1

    def rows(self, threshold: float | None) -> dict[str, Any]:
        return {
            "threshold": threshold,
            "lowest": LOWEST,
            "bin": BIN,
            **self._bins,
            "expression": "max(nearest.similarity in force) of attempt 0 where caught = [], and of each sample's final picture",
        }


class ReferenceTable:
    """Every reference that was the nearest one of a first attempt or of an accepted picture, most wanted first."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, Any]] = {}

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        for match in (*sample["nearest"], *(match for one in attempts for match in one["nearest"])):
            if known := self._found.get(match["ref_id"]):
                known |= {name: match[name] for name in ("title", "rights_basis", "status")}
        if attempts and attempts[0]["caught"]:
            ref_id = str(attempts[0]["caught"][0]["ref_ids"][0])
            match = next((m for m in attempts[0]["nearest"] if m["ref_id"] == ref_id), {"ref_id": ref_id})
            row = self._row(match)
            row["nearest"] += 1
            row["caught"] += 1
        elif attempts and (nearest := in_force(attempts[0]["nearest"])):
            row = self._row(nearest[0])
            row["nearest"] += 1
            row["reached"] += nearest[0]["similarity"] >= sample["copy_threshold"]
            row["highest_first"] = larger(row["highest_first"], float(nearest[0]["similarity"]))
        if sample["outcome"] in ACCEPTED and (nearest := in_force(sample["nearest"])):
            row = self._row(nearest[0])
            row["highest_accepted"] = larger(row["highest_accepted"], float(nearest[0]["similarity"]))

    def _row(self, match: Mapping[str, Any]) -> dict[str, Any]:
        about = {name: match.get(name, "") for name in ("title", "rights_basis", "status")}
        blank = {"nearest": 0, "reached": 0, "caught": 0, "highest_first": None, "highest_accepted": None}
        return self._found.setdefault(str(match["ref_id"]), {**about, **blank})

    def rows(self) -> list[dict[str, Any]]:
        def wanted(item: tuple[str, dict[str, Any]]) -> tuple[int, float, str]:
            ref_id, row = item
            return -(row["reached"] + row["caught"]), -(row["highest_first"] or -1.0), ref_id

        return [{"ref_id": ref_id, **row} for ref_id, row in sorted(self._found.items(), key=wanted)]


class ClearedTable:
    """Accepted pictures that are near by the embedder and that the second look cleared, the nearest first."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        findings = sample["findings"]
        if (
            sample["outcome"] not in ACCEPTED
            or not looked_at_for_copies(findings)
            or is_too_near(findings)
            or not is_near(sample)
        ):
            return
        near = [match for match in in_force(sample["nearest"]) if match["similarity"] >= sample["copy_threshold"]]
        match = near[0]
        self._rows.append(
            {
                **{name: sample[name] for name in ("sample_id", "request_key", "outcome")},
                **{name: match[name] for name in ("ref_id", "title", "rights_basis", "similarity", "confirm")},
                "threshold": sample["copy_threshold"],
                "references": len(near),
                "attempt": sample["accepted_attempt"],
            }
        )
        if len(self._rows) >= 4 * CLEARED:
            self._rows = self.rows()

    def rows(self) -> list[dict[str, Any]]:
        return sorted(self._rows, key=lambda row: (-row["similarity"], row["request_key"]))[:CLEARED]
