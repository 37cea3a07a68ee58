"""Count what a run did, from its Parquet files alone: the funnel, what it cost, and how near pictures came to references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ACCEPTED = ("accepted", "accepted_after_steering")


@dataclass(frozen=True)
class Tally:
    """A run in numbers.

    Attributes:
        requested: requests with a row.
        flagged: requests whose first picture triggered any guard, or that were caught in mid-flight.
        copied: requests whose first picture triggered the copies guard, whatever the policy made of it, or that were caught.
        caught: requests caught on the way to their first picture.
        steered: requests that got a second attempt, or were caught.
        outcomes: requests by outcome.
        reasons: requests that were not accepted, by reason.
        attempts: pictures generated.
        denoiser_evals: denoiser evaluations, in guided steps.
        nearest_accepted: highest similarity of an accepted picture to a reference that the second look did not clear; None
            without accepted pictures or index.
        copy_threshold: the operating point of the copies guard (the lowest, should rows differ).
    """

    requested: int
    flagged: int
    copied: int
    caught: int
    steered: int
    outcomes: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    attempts: int = 0
    denoiser_evals: float = 0.0
    nearest_accepted: float | None = None
    copy_threshold: float | None = None

    @property
    def accepted(self) -> int:
        return sum(self.outcomes.get(name, 0) for name in ACCEPTED)

    @property
    def evals_per_accepted(self) -> float | None:
        """Denoiser evaluations of the whole run, waste included, per accepted picture."""
        return self.denoiser_evals / self.accepted if self.accepted else None


def tally(folder: Path, keys: Collection[str] | None = None) -> Tally:
    """Count a run folder.

    Args:
        folder: the run folder; committed shards are counted, also of an unfinished run.
        keys: count only these requests.

    Raises:
        ClearanceError: a file cannot be read.
    """
    from pipeline.audit.ledger import attempt_rows, sample_rows

    outcomes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    evals, attempts, steered = 0.0, 0, 0
    similarities: list[float] = []
    thresholds: list[float] = []
    for row in sample_rows(
        folder, "request_key outcome reason attempts interventions denoiser_evals nearest findings copy_threshold".split()
    ):
        if keys is not None and row["request_key"] not in keys:
            continue
        outcomes[row["outcome"]] += 1
        if row["reason"]:
            reasons[row["reason"]] += 1
        attempts += row["attempts"]
        steered += row["attempts"] > 1 or bool(row["interventions"])
        evals += row["denoiser_evals"]
        if row["nearest"]:
            thresholds.append(row["copy_threshold"])
            if row["outcome"] in ACCEPTED:
                # The findings' scores leave out whom the second look cleared: near to the embedder, yet another drawing.
                similarities += [f["score"] for f in row["findings"] if f["category"] in ("copy.protected", "copy.memorised")]
    flagged, copied, caught = 0, 0, 0
    for row in attempt_rows(folder, ["request_key", "attempt", "findings", "caught"]):
        if row["attempt"] == 0 and (keys is None or row["request_key"] in keys):
            categories = [finding["category"] for finding in row["findings"] if finding["triggered"]]
            flagged += bool(categories or row["caught"])
            copied += bool(row["caught"]) or any(category.startswith("copy.") for category in categories)
            caught += bool(row["caught"])
    return Tally(
        requested=outcomes.total(),
        flagged=flagged,
        copied=copied,
        caught=caught,
        steered=steered,
        outcomes=dict(sorted(outcomes.items())),
        reasons=dict(reasons.most_common()),
        attempts=attempts,
        denoiser_evals=evals,
        nearest_accepted=max(similarities, default=None),
        copy_threshold=min(thresholds, default=None),
    )


def funnel(columns: Mapping[str, Tally]) -> Any:
    """The table a run ends with, one column per run."""
    from rich.table import Table

    table = Table("", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    runs = list(columns.values())

    def row(name: str, *values: str) -> None:
        table.add_row(name, *values)

    row("requested", *(str(t.requested) for t in runs))
    row("flagged at first sight", *(str(t.flagged) for t in runs))
    row("  of these caught in mid-flight", *(str(t.caught) for t in runs))
    row("steered", *(str(t.steered) for t in runs))
    row("accepted", *(str(t.accepted) for t in runs))
    row("  of these after steering", *(str(t.outcomes.get("accepted_after_steering", 0)) for t in runs))
    for name in ("review", "rejected", "quarantined", "error"):
        if name in ("review", "rejected") or any(t.outcomes.get(name) for t in runs):
            row(name, *(str(t.outcomes.get(name, 0)) for t in runs))
    row("pictures generated", *(str(t.attempts) for t in runs))
    row(
        "denoiser evaluations per accepted",
        *("-" if t.evals_per_accepted is None else f"{t.evals_per_accepted:.1f}" for t in runs),
    )
    return table


def same_first_pictures(one: Path, other: Path) -> tuple[int, int]:
    """How many first attempts have the same pixels in both runs, of how many that both drew unsteered."""
    from pipeline.audit.ledger import attempt_rows

    def firsts(folder: Path) -> dict[str, str]:
        rows = attempt_rows(folder, ["request_key", "attempt", "pixel_sha256", "caught"])
        return {row["request_key"]: row["pixel_sha256"] for row in rows if row["attempt"] == 0 and not row["caught"]}

    left, right = firsts(one), firsts(other)
    both = left.keys() & right.keys()
    return sum(left[key] == right[key] for key in both), len(both)
