"""Other runs of the same data set that lie beside a run folder: what they say of themselves, and their unsteered pictures.

Nothing of them is verified here; what a report takes from them is named as theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from index.errors import ClearanceError
from index.storage import digest_of, entry_of, read_object
from jobs.run.dataset.chain import folders_in
from pipeline.audit.sections.beside import Unsteered
from pipeline.audit.shards import RUN_FILE

MOST_FOLDERS = 1000  # beside a run folder; what lies beyond is not looked at
# Two runs that agree in these draw the same picture of the same request and seed, unless something steers it.
_DRAWING = ("scheduler", "steps", "guidance")


@dataclass(frozen=True, kw_only=True)
class OtherRun:
    """A sealed run: its folder, and the predicate of its statement as it stands there."""

    folder: Path
    predicate: Mapping[str, Any]

    @property
    def started(self) -> float:
        value = self.predicate.get("started_at")
        return float(value) if isinstance(value, int | float) else 0.0


def runs_beside(folder: Path, dataset_id: str) -> list[OtherRun]:
    """The sealed runs of a data set in the folders beside this one, those behind links too, the latest first.

    Those that cannot be read are left out.
    """
    folder = folder.resolve()
    try:
        places = [place for place in folders_in(folder.parent)[0] if place.name != folder.name]
    except ClearanceError:
        return []
    found = []
    for place in places[:MOST_FOLDERS]:
        try:
            predicate = read_object(place, RUN_FILE)["predicate"] if entry_of(place, RUN_FILE) is not None else None
        except (ClearanceError, KeyError):
            continue
        if isinstance(predicate, dict) and predicate.get("dataset_id") == dataset_id:
            found.append(OtherRun(folder=place, predicate=predicate))
    return sorted(found, key=lambda run: (-run.started, run.folder.name))


def previous_run(mine: Mapping[str, Any], others: Collection[OtherRun]) -> dict[str, Any] | None:
    """The run of the data set before this one: the one that it names, else the latest that began before it.

    Args:
        mine: the predicate of this run's statement, or what its plan holds of it.
        others: as :func:`runs_beside` gives them.
    """
    named_sha256, plan = mine.get("previous_run_sha256"), mine.get("plan")
    parent = plan.get("parent_plan_sha256") if isinstance(plan, dict) else None
    started = mine.get("started_at")
    before = [run for run in others if not isinstance(started, int | float) or run.started < started]
    for run in [*others]:
        sha256 = digest_of(run.folder, RUN_FILE)
        if (named_sha256 and sha256 == named_sha256) or (parent and run.predicate.get("plan_sha256") == parent):
            return _previous(run, sha256, named=True)
    return _previous(before[0], digest_of(before[0].folder, RUN_FILE), named=False) if before else None


def _previous(run: OtherRun, sha256: str, *, named: bool) -> dict[str, Any]:
    run_id = str(run.predicate.get("run_id", ""))
    return {"run_id": run_id, "folder": run.folder.name, "run_sha256": sha256, "named": named, "predicate": run.predicate}


def unsteered(mine: Mapping[str, Any], others: Collection[OtherRun], sample_ids: Collection[str]) -> dict[str, Unsteered]:
    """The pictures that other runs drew of the same samples with the same model and settings, and that nothing steered.

    A sample has the same id in two runs when data set, key, prompt and seed are equal.
    """
    from pipeline.audit.ledger import attempt_rows

    found: dict[str, Unsteered] = {}
    columns = ["sample_id", "attempt", "intervention", "caught", "nearest", "thumbnail"]
    for run in others:
        wanted = set(sample_ids) - set(found)
        if not wanted or _drawing(run.predicate) != _drawing(mine):
            continue
        for row in attempt_rows(run.folder, columns, damaged=[]):
            free = row["attempt"] == 0 and row["intervention"] is None and not row["caught"]
            data = (row["thumbnail"] or {}).get("bytes")
            if free and data and row["sample_id"] in wanted:
                found[row["sample_id"]] = Unsteered(
                    run_id=str(run.predicate.get("run_id", "")), folder=run.folder.name, nearest=tuple(row["nearest"]),
                    thumbnail=data,
                )  # fmt: skip
    return found


def _drawing(predicate: Mapping[str, Any]) -> list[Any]:
    model, generation = (predicate.get(name) for name in ("model", "generation"))
    model, generation = (one if isinstance(one, dict) else {} for one in (model, generation))
    return [model.get("digest"), model.get("dtype"), *(generation.get(name) for name in _DRAWING)]


def index_facts(index: Any, since: str) -> dict[str, Any]:
    """What an index holds now, for the report; ``since``: the state that the run was compared with.

    Args:
        index: an open :class:`index.store.ReferenceIndex`.
        since: an ``index_id``; changes after it are listed, all of them where the history does not know it.
    """
    history = index.events()
    known = [number for number, entry in enumerate(history) if entry["index_id"] == since]
    after = history[known[-1] + 1 :] if known else history

    def ranked(name: str) -> list[list[Any]]:
        return [[value, count] for value, count in sorted(index.counts(name).items(), key=lambda one: (-one[1], one[0]))]

    return {
        "index_id": index.index_id,
        "references": len(index),
        "rightsholders": ranked("rightsholder"),
        "bases": ranked("rights_basis"),
        "statuses": ranked("status"),
        "since": [
            {
                "at": datetime.fromtimestamp(entry["at"], UTC).isoformat(timespec="seconds"),
                "event": str(entry["event"]),
                "references": len(entry["ref_ids"]),
                "reason": str(entry["reason"]),
                "index_id": str(entry["index_id"]),
            }
            for entry in after
        ],
    }
