"""What rows alone tell a re-audit: findings of the other guards, references of steered samples, samples held for copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from guards.base import Finding, is_copy
from guards.vision_language import UNANSWERED
from index.storage import open_file
from jobs.reaudit.result import Change
from jobs.reaudit.standing import Standing
from pipeline.audit.ledger import attempt_rows
from pipeline.audit.requests import Opener, Row
from pipeline.audit.stored import chosen_rows, samples_of
from pipeline.decide import decide
from pipeline.outcome import Verdict
from pipeline.policy import ASKED, Policy, guard_tables, kept_if_asked

LADDER_USED_UP = 1_000_000
FOLLOWS = ("enabled", "required", "threshold", "action", "allow_download")
HELD = frozenset({"review", "rejected"})


def own_references(folder: Path, opener: Opener = open_file) -> dict[str, list[str]]:
    """Of every steered sample: the references that its last attempt was steered away from, as the run's own guard knew them."""
    own: dict[str, list[str]] = {}
    before: dict[str, list[str]] = {}
    for row in attempt_rows(folder, ["sample_id", "attempt", "findings", "caught"], opener=opener):
        sample_id = row["sample_id"]
        caught = [one["ref_ids"][0] for one in row["caught"] or [] if one["ref_ids"]]
        flagged = [f["ref_id"] for f in row["findings"] or [] if f["triggered"] and is_copy(str(f["category"]))]
        known = before.get(sample_id, [])
        if mine := list(dict.fromkeys([*caught, *known])):
            own[sample_id] = mine
        if found := [*known, *caught, *flagged]:
            before[sample_id] = found
    return own


def held_at_birth(folder: Path, standing: Standing, opener: Opener = open_file) -> Iterator[Change]:
    """Samples that the run itself held back, and that no person has decided about; with the references of their copies."""
    columns = ("sample_id", "request_key", "outcome", "reason", "findings")
    for part in samples_of(folder, opener=opener):
        pairs = enumerate(zip(part.ids, part.outcomes, strict=True))
        rows = [row for row, (sample_id, born) in pairs if born in HELD and standing.outcome(sample_id, born) in HELD]
        for _, row in chosen_rows(folder, part.path, rows, columns, opener=opener):
            yield Change(
                sample_id=row["sample_id"],
                request_key=str(row["request_key"]),
                before=standing.outcome(row["sample_id"], row["outcome"]),
                ref_ids=tuple(sorted(copies_of(row))),
                category=str(row["reason"]),
            )


def held_for_copies(folder: Path, standing: Standing, opener: Opener = open_file) -> dict[str, Change]:
    """Of these, by sample id, the ones that the run held back as copies."""
    return {one.sample_id: one for one in held_at_birth(folder, standing, opener) if is_copy(one.category)}


def copies_of(row: Row) -> set[str]:
    """The references that the copies guard found a row's picture too near to."""
    triggered = (f for f in row["findings"] or [] if f["triggered"] and is_copy(str(f["category"])))
    return {str(finding["ref_id"]) for finding in triggered}


@dataclass(frozen=True)
class OtherGuards:
    """The guards beside the copies guard, judged again from the scores in the rows.

    A finding holds its score, so another threshold needs no picture. Other settings of a guard decide what it sees; where they
    differ, or where a guard did not run, the rows do not tell: ``unknown`` names the guard, with the reason.
    """

    then: Policy
    now: Policy
    unknown: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        then, now = _tables(self.then), _tables(self.now)
        for name, table in now.items():
            if not table.enabled:
                continue
            if name not in then or not then[name].enabled:
                self.unknown[name] = "did not run then"
            elif _sees(table, self.now) != _sees(then[name], self.then):
                self.unknown[name] = "ran with other settings then"

    @property
    def differ(self) -> bool:
        """Whether any threshold or action differs, so that rows may be judged differently."""
        then, now = ((_tables(policy), policy.blocked, policy.asked) for policy in (self.then, self.now))
        return then != now

    def held(self, folder: Path, standing: Standing, claim: str, opener: Opener = open_file) -> list[Change]:
        """Samples that are out, or held back for that claim, and that these rules would not let out, but for copies."""
        if not self.differ and not any(claim in standing.held_for(sample_id) for sample_id in standing.held()):
            return []
        rows = _out(folder, standing, claim, opener)
        return [change for row, before in rows for change in self._judged(row, before)]

    def _judged(self, row: Row, before: str) -> Iterator[Change]:
        tables = _tables(self.now)
        findings = [again for one in row["findings"] or [] if (again := _again(one, tables)) is not None]
        asked = kept_if_asked(self.now) & {one["category"] for one in row["findings"] or [] if one.get("action") == ASKED}
        decision = decide(findings, LADDER_USED_UP, self.now, LADDER_USED_UP, another=False, asked=asked)
        if decision.verdict is not Verdict.ACCEPT:
            worst = max((f for f in findings if f.triggered and f.category not in asked), key=lambda f: f.score - f.threshold)
            yield Change(
                sample_id=row["sample_id"],
                request_key=str(row["request_key"]),
                before=before,
                category=worst.category,
                by="row",
            )


def _tables(policy: Policy) -> dict[str, Any]:
    """The settings of every guard but copies, by its name in rows."""
    return {**guard_tables(policy), "prompt": policy.prompt, "faithfulness": policy.faithfulness}


def _sees(table: Any, policy: Policy) -> dict[str, Any]:
    """What decides a guard's scores: not what follows from them, and not what only a request to a server takes."""
    stated = {one.name: getattr(table, one.name) for one in fields(table) if one.name not in FOLLOWS}
    if (server := stated.pop("server", None)) is not None:
        stated["server"] = (server.model, server.answer, server.side)
    return stated | ({"blocked": policy.blocked} if table is policy.prompt else {})


def _again(stored: Row, tables: Mapping[str, object]) -> Finding | None:
    table = tables.get(stored["guard"])
    if table is None or not getattr(table, "enabled", False):
        return None
    threshold = None if stored["category"] == UNANSWERED else getattr(table, "threshold", None)
    return Finding(
        guard=stored["guard"], version=stored["version"], category=stored["category"], score=stored["score"],
        threshold=stored["threshold"] if threshold is None else threshold, confirmed=stored["confirmed"],
    )  # fmt: skip


def _out(folder: Path, standing: Standing, claim: str, opener: Opener) -> Iterator[tuple[Row, str]]:
    columns: Sequence[str] = ("sample_id", "request_key", "outcome", "findings")
    for part in samples_of(folder, opener=opener):
        pairs = enumerate(zip(part.ids, part.outcomes, strict=True))
        rows = [
            row for row, (sample_id, born) in pairs if standing.is_out(sample_id, born) or claim in standing.held_for(sample_id)
        ]
        for _, row in chosen_rows(folder, part.path, rows, columns, opener=opener):
            yield row, standing.outcome(row["sample_id"], row["outcome"])
