"""The content of a report, as plain data: ``report.json``, and what the page is made from.

Counted from the Parquet tables in one pass, with what ``run.json`` and the events hold beside them; the verdict on
integrity is recomputed, never copied. The sections that have more to say are modules of :mod:`pipeline.audit.sections`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from index.errors import ClearanceError, IntegrityError
from index.storage import digest_of, entry_of, read_object
from pipeline.audit.envelope import ENVELOPE_FILE
from pipeline.audit.events import scan_events
from pipeline.audit.numbers import Counting, Counts, count_into
from pipeline.audit.policy_rows import ladders, policy_rows
from pipeline.audit.requests import Row
from pipeline.audit.sections import funnel
from pipeline.audit.sections.beside import Beside
from pipeline.audit.sections.closest import ClosestTable
from pipeline.audit.sections.controls import controls
from pipeline.audit.sections.guard_time import GuardTime
from pipeline.audit.sections.in_force import InForce
from pipeline.audit.sections.marks import MarksTable
from pipeline.audit.sections.people import Waiting, changes, claims, listed, people
from pipeline.audit.sections.policy_changes import policy_changes, run_changes
from pipeline.audit.sections.retention import RetentionTable
from pipeline.audit.sections.training import TrainingTable
from pipeline.audit.shards import RUN_FILE
from pipeline.audit.state import State, fold
from pipeline.audit.summary import plain
from pipeline.audit.tables import ClearedTable, GuardTable, InterventionTable, ReferenceTable, Similarities
from pipeline.audit.timestamp import STAMP_FILE
from pipeline.audit.verify import Verification, verify
from pipeline.copy_check import CopyCheck, looked_for
from pipeline.marking.markers import SIGNED

REPORT_VERSION = 3
CLOSEST = 12  # released pictures shown beside their nearest reference
_FACTS = (
    "run_id dataset_id model_id model_revision model_digest model_licence scheduler steps guidance dtype device_kind rows "
    "threads index_id embedder_id calibration_id copy_threshold policy_id policy_sha256 policy_name software_version adapters"
).split()
_SINGLE = ["media_type", "worker_id", "skipped_guards"]
COLUMNS = sorted(
    {
        *_FACTS, *_SINGLE, *ClosestTable.COLUMNS, *MarksTable.COLUMNS, *RetentionTable.COLUMNS, *TrainingTable.COLUMNS,
    }
)  # fmt: skip


class _Facts:
    """What is the same in every row of a run, and the few things that may differ."""

    def __init__(self) -> None:
        self.first: dict[str, Any] = {}
        self.media_types: set[str] = set()
        self.workers: set[str] = set()
        self.skipped: Counter[str] = Counter()
        self.ended_early = 0

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        if not self.first:
            self.first = {name: sample[name] for name in _FACTS} | {"adapters": []}
        known = self.first["adapters"]  # a row may have some of its own
        known += [found for one in sample["adapters"] if (found := dict(one)) not in known]
        self.media_types |= {sample["media_type"]} - {None}
        self.workers.add(str(sample["worker_id"]))
        self.ended_early += sample["reason"] == "error.ended_early"
        self.skipped.update(sample["skipped_guards"])


class _Tables:
    """Everything that counts in the pass over the rows."""

    def __init__(self, events: Sequence[Mapping[str, Any]], state: State) -> None:
        self.counts, self.facts, self.guards, self.interventions = Counts(), _Facts(), GuardTable(), InterventionTable()
        self.likeness, self.references, self.cleared = Similarities(), ReferenceTable(), ClearedTable()
        self.closest, self.marks, self.retention = ClosestTable(CLOSEST), MarksTable(), RetentionTable()
        self.training, self.in_force, self.guard_time = TrainingTable(), InForce(state), GuardTime()
        self.waiting = Waiting([event for event in events if event["kind"] == "review.decided"], state)

    def all(self) -> list[Counting]:
        return list(vars(self).values())


def report_numbers(
    folder: Path,
    salt: str | None = None,
    *,
    copy_check: Mapping[str, Any] | None = None,
    beside: Beside | None = None,
    also: Sequence[Counting] = (),
    columns: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of the report: ``measures`` by name, sentences, and tables beside them.

    Args:
        folder: the run folder.
        salt: the run's prompt salt when it had a secret one.
        copy_check: the record of the copy check, for a run whose ``run.json`` does not hold it (it was not finished).
        beside: what the report shows beside the content of the folder.
        also: what else counts in the same pass. columns: what it needs of the samples.

    Raises:
        InputError: there is no such run folder.
        IntegrityError: it holds no committed sample that can be read, or a row that cannot be counted.
    """
    beside, damaged = beside or Beside(), list[ClearanceError]()
    verification, predicate = beside.verification or verify(folder, salt), _predicate(folder)
    events, _ = scan_events(folder)  # problems are part of the verdict
    state = fold(events)
    tables = _Tables(events, state)
    count_into(
        [*tables.all(), *also], folder, sample_columns=[*COLUMNS, *columns], attempt_columns=GuardTime.COLUMNS, damaged=damaged
    )
    counts = tables.counts
    if not counts.requested:
        if damaged:
            raise damaged[0]
        fix = "Finish the run with --resume, then report again"
        raise IntegrityError("holds no committed sample", where=str(folder), fix=fix)
    check = _check(predicate.get("copy_check", copy_check or beside.planned.get("copy_check") or {}))
    policy = _table(predicate.get("policy") or beside.planned.get("policy"))
    config = _table(predicate.get("config") or beside.planned.get("config"))
    counted = plain(counts, check)
    similarity = tables.likeness.rows(counts.copy_threshold)
    numbers = {
        "report_version": REPORT_VERSION,
        "generated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": folder.name,
        "integrity": _integrity(folder, verification, predicate) | {"shards_left_out": len(damaged)},
        "run": _run(counts, tables.facts, predicate),
        **counted,
        "in_force": tables.in_force.rows(),
        "funnel": funnel.bars(counted["measures"], check),
        "beside_zero": funnel.beside_zero(check),
        "look_from": _look_from(predicate.get("copy_check", copy_check)),
        "copies_by_form": looked_for(_table(policy.get("copies"))) if check is not None and policy else None,
        "guards": tables.guards.rows(policy),
        "interventions": tables.interventions.rows(),
        "similarity": similarity,
        "histogram": funnel.histogram(similarity),
        "closest": {"rows": tables.closest.rows(), "total": tables.closest.total},
        "cleared": tables.cleared.rows(),
        "references": _about(tables.references.rows(), beside),
        "index": beside.index,
        "skipped_guards": dict(sorted(tables.facts.skipped.items())),
        "guard_notes": _guard_notes(predicate.get("guards")),
        "guards_in_force": _guards(predicate.get("guards") or beside.planned.get("guards")),
        "policy": policy or None,
        **_policy(policy, predicate, beside),
        "people": people(events, tables.waiting, len(state.contradictions)),
        "claims": claims(events, str(config.get("claims_contact") or "")),
        "changes": changes(events),
        "marks": tables.marks.rows(beside.robustness, str(_table(predicate.get("identity")).get(SIGNED, ""))),
        "retention": tables.retention.rows(events, tables.in_force)
        | {"days": predicate.get("retention_days", config.get("retention_days"))},
        "guard_seconds": tables.guard_time.rows(),
        "training": tables.training.rows(),
        "controls": controls(),
        "bill_of_materials": _bill(predicate.get("bill_of_materials")),
        "ended": _ended(events, tables.facts.ended_early),
        "events": listed(events),
    }
    finite: dict[str, Any] = _finite(numbers)
    return finite


def _ended(events: Sequence[Mapping[str, Any]], requests: int) -> dict[str, Any] | None:
    """Who ended the run before all of it was drawn, and of how many requests nothing was; None where nobody did."""
    event = next((event for event in reversed(listed(events)) if event["kind"] == "run.ended"), None)
    return {"requests": requests, **{name: event[name] for name in ("at", "actor", "reason")}} if event and requests else None


def _check(record: Any) -> CopyCheck | None:
    try:
        return CopyCheck.read(record, where=RUN_FILE)
    except IntegrityError:
        return None  # the verdict on the cover says so


def _look_from(record: Any) -> float | None:
    """The similarity from which the second look is taken at all."""
    value = _table(record).get("look_from")
    return value if isinstance(value, float) else None


def _policy(policy: Mapping[str, Any], predicate: Mapping[str, Any], beside: Beside) -> dict[str, Any]:
    """Who answers for the policy, its rules as tables, and how it differs from the default and from the run before."""
    about = _table(policy.get("about"))
    previous = None
    if beside.previous is not None:
        before = _table(beside.previous.get("predicate"))
        previous = {
            **{name: beside.previous.get(name) for name in ("run_id", "folder", "run_sha256", "named")},
            "policy_id": str(before.get("policy_id", "")),
            "policy": policy_changes(_table(before.get("policy")), policy) if policy else None,
            "run": run_changes(before, predicate) if predicate else None,
        }
    default = policy_changes(beside.default_policy, policy) if policy and beside.default_policy else None
    return {
        "policy_about": {name: str(about.get(name) or "") for name in ("owner", "approver", "approved_on")},
        "policy_rows": policy_rows(policy),
        "policy_ladders": ladders(policy),
        "policy_against_default": default,
        "previous": previous,
    }


def _about(references: list[dict[str, Any]], beside: Beside) -> list[dict[str, Any]]:
    names = ("rightsholder", "licence", "source_uri", "claim_id")
    found = ((row, beside.about(row["ref_id"])) for row in references)
    return [{**row, "about": {name: str(about.get(name, "")) for name in names}} for row, about in found]


def _guards(guards: Any) -> list[dict[str, str]]:
    """The guards that the run opened: name, version, action."""
    found = [_table(guard) for guard in guards] if isinstance(guards, list) else []
    return [{name: str(guard.get(name) or "") for name in ("name", "version", "action", "note")} for guard in found]


def _predicate(folder: Path) -> dict[str, Any]:
    try:
        return _table(read_object(folder, RUN_FILE)["predicate"])
    except (ClearanceError, KeyError):
        return {}  # the verdict on the cover says so


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _bill(value: Any) -> list[dict[str, str]]:
    entries = value if isinstance(value, list) else []
    return [{key: str(_table(entry).get(key, "")) for key in ("name", "version", "licence")} for entry in entries]


def _guard_notes(guards: Any) -> list[str]:
    """What the guards of the run do otherwise than elsewhere, as sentences."""
    notes = [str(_table(guard).get("note") or "") for guard in (guards if isinstance(guards, list) else [])]
    return [note[0].upper() + note[1:] + "." for note in notes if note]


def _integrity(folder: Path, verification: Verification, predicate: Mapping[str, Any]) -> dict[str, Any]:
    sealed = entry_of(folder, RUN_FILE)
    return {
        "ok": verification.ok,
        "problems": [{"where": problem.where, "what": problem.what} for problem in verification.problems],
        "counts": dict(verification.counts),
        "stages": [{"name": stage.name, "state": stage.state, "sentence": stage.sentence} for stage in verification.stages],
        "signed": entry_of(folder, ENVELOPE_FILE) is not None,
        "stamped": entry_of(folder, STAMP_FILE) is not None,
        "run_sha256": digest_of(folder, RUN_FILE) if sealed is not None and sealed.kind == "file" else "",
        "merkle_root": str(predicate.get("merkle_root", "")),
    }


def _run(counts: Counts, facts: _Facts, predicate: Mapping[str, Any]) -> dict[str, Any]:
    assert counts.started is not None and counts.finished is not None  # at least one sample was counted
    return {
        **facts.first,
        "media_types": sorted(facts.media_types),
        "workers": sorted(facts.workers),
        "plan_sha256": str(predicate.get("plan_sha256", "")),
        "runner": predicate.get("runner"),
        "started_at": counts.started.isoformat(timespec="seconds"),
        "finished_at": counts.finished.isoformat(timespec="seconds"),
    }


def _finite(value: Any) -> Any:
    """Replace infinities and NaN, which JSON lacks, by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
