"""The content of a report, as plain data: ``report.json``, and what the page is made from.

Counted from the Parquet tables in one pass, with what ``run.json`` and the events hold beside them; the verdict on
integrity is recomputed, never copied.
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
from pipeline.audit.events import read_events
from pipeline.audit.ledger import RUN_FILE
from pipeline.audit.numbers import Counting, Counts, count_into
from pipeline.audit.requests import Row
from pipeline.audit.summary import plain
from pipeline.audit.tables import ClearedTable, GuardTable, InterventionTable, ReferenceTable, Similarities
from pipeline.audit.verify import Verification, verify
from pipeline.copy_check import CopyCheck

REPORT_VERSION = 2
_FACTS = (
    "run_id dataset_id model_id model_revision model_digest model_licence scheduler steps guidance dtype device_kind rows "
    "threads index_id embedder_id calibration_id copy_threshold policy_id policy_sha256 policy_name software_version adapters"
).split()
COLUMNS = [*_FACTS, "media_type", "worker_id", "skipped_guards"]


class _Facts:
    """What is the same in every row of a run, and the few things that may differ."""

    def __init__(self) -> None:
        self.first: dict[str, Any] = {}
        self.media_types: set[str] = set()
        self.workers: set[str] = set()
        self.skipped: Counter[str] = Counter()

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        if not self.first:
            self.first = {name: sample[name] for name in _FACTS} | {"adapters": [dict(one) for one in sample["adapters"]]}
        self.media_types |= {sample["media_type"]} - {None}
        self.workers.add(str(sample["worker_id"]))
        self.skipped.update(sample["skipped_guards"])


def report_numbers(
    folder: Path,
    salt: str | None = None,
    *,
    copy_check: Mapping[str, Any] | None = None,
    also: Sequence[Counting] = (),
    columns: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of the report: ``measures`` by name, sentences, and tables beside them.

    Args:
        folder: the run folder.
        salt: the run's prompt salt when it had a secret one.
        copy_check: the record of the copy check, for a run whose ``run.json`` does not hold it (it was not finished).
        also: what else counts in the same pass. columns: what it needs of the samples.

    Raises:
        InputError: there is no such run folder.
        IntegrityError: it holds no committed sample that can be read, or a row that cannot be counted.
    """
    verification, predicate = verify(folder, salt), _predicate(folder)
    counts, facts, guards, interventions = Counts(), _Facts(), GuardTable(), InterventionTable()
    likeness, references, cleared = Similarities(), ReferenceTable(), ClearedTable()
    countings: list[Counting] = [counts, facts, guards, interventions, likeness, references, cleared, *also]
    damaged: list[ClearanceError] = []
    count_into(countings, folder, sample_columns=[*COLUMNS, *columns], damaged=damaged)
    if not counts.requested:
        if damaged:
            raise damaged[0]
        fix = "Finish the run with --resume, then report again"
        raise IntegrityError("holds no committed sample", where=str(folder), fix=fix)
    record = predicate.get("copy_check", copy_check or {})
    try:
        check = CopyCheck.read(record, where=RUN_FILE)
    except IntegrityError:
        check = None  # the verdict on the cover says so
    policy = _table(predicate.get("policy"))
    numbers = {
        "report_version": REPORT_VERSION,
        "generated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "integrity": _integrity(folder, verification, predicate) | {"shards_left_out": len(damaged)},
        "run": _run(counts, facts, predicate),
        **plain(counts, check),
        "guards": guards.rows(policy),
        "interventions": interventions.rows(),
        "similarity": likeness.rows(counts.copy_threshold),
        "cleared": cleared.rows(),
        "references": references.rows(),
        "skipped_guards": dict(sorted(facts.skipped.items())),
        "guard_notes": _guard_notes(predicate.get("guards")),
        "policy": policy or None,
        "bill_of_materials": _bill(predicate.get("bill_of_materials")),
        "events": _events(folder),
    }
    finite: dict[str, Any] = _finite(numbers)
    return finite


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


def _events(folder: Path) -> list[dict[str, str]]:
    try:
        return [{key: str(event[key]) for key in ("at", "kind", "actor", "reason")} for event in read_events(folder)]
    except (IntegrityError, KeyError, TypeError):
        return []  # the verdict on the cover says so


def _integrity(folder: Path, verification: Verification, predicate: Mapping[str, Any]) -> dict[str, Any]:
    sealed = entry_of(folder, RUN_FILE)
    return {
        "ok": verification.ok,
        "problems": [{"where": problem.where, "what": problem.what} for problem in verification.problems],
        "counts": dict(verification.counts),
        "stages": [{"name": stage.name, "state": stage.state, "sentence": stage.sentence} for stage in verification.stages],
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
