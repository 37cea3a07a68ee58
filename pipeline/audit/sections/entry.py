"""One request as plain data: its row, every attempt with findings and references, its events, and the state in force.

The report, its pages and ``clearance show`` are made from it. Pictures and embeddings are left out; their digests stand in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.errors import ClearanceError
from index.storage import open_file
from pipeline.audit.requests import Ended, Opener, Row, ended_requests
from pipeline.audit.schema import ATTEMPT_COLUMNS, LINKS, SAMPLE_COLUMNS, attempts_schema, samples_schema

if TYPE_CHECKING:
    from pipeline.audit.state import SampleState

_LEFT_OUT = {"image", "embedding", "thumbnail"}
_NAMED = set(
    "sample_id request_key row_no prompt negative_prompt outcome reason findings nearest accepted_attempt interventions".split()
)
_LISTS = {column.name for column in (*SAMPLE_COLUMNS, *ATTEMPT_COLUMNS) if column.type.startswith("list of ")}

_AS_IT_IS = (str, float, int)  # most values of a row, asked for first: to ask whether something is a Mapping takes long


def attempt_id(sample_id: str, attempt: int) -> str:
    """What the picture of an attempt is called among a report's pictures."""
    return f"attempt:{sample_id}:{attempt}"


def entries(
    folder: Path,
    wanted: Collection[str] | None = None,
    *,
    shards: Collection[str] | None = None,
    damaged: list[ClearanceError] | None = None,
    opener: Opener = open_file,
) -> Iterator[tuple[Ended, dict[str, bytes]]]:
    """The requests of a run with all their columns but the large payloads, and the thumbnails of their attempts by id.

    Args:
        folder: the run folder.
        wanted: only these, by sample_id; all when not given. shards: they stand in these; all are read when not given.
        damaged: when given, a shard that cannot be read is left out and its error appended here.
        opener: opens the files; see :data:`pipeline.audit.requests.Opener`.

    Raises:
        IntegrityError: a file cannot be read (and ``damaged`` is not given).
    """
    samples = [name for name in samples_schema().names if name not in _LEFT_OUT]
    wanted_columns = samples, attempts_schema().names
    for ended in ended_requests(folder, *wanted_columns, shards=shards, damaged=damaged, opener=opener):
        if wanted is None or ended.sample["sample_id"] in wanted:
            yield ended, _thumbnails(ended)


def _thumbnails(ended: Ended) -> dict[str, bytes]:
    sample_id = str(ended.sample["sample_id"])
    found = {attempt_id(sample_id, one["attempt"]): (one["thumbnail"] or {}).get("bytes") for one in ended.attempts}
    return {name: data for name, data in found.items() if data}


def entry_of(ended: Ended, state: SampleState, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A request as plain data; ``events`` are those that concern it, as far as they do, ``state`` is what they make of it."""
    sample = ended.sample
    named = ("sample_id", "request_key", "row_no", "prompt", "negative_prompt", "outcome", "reason", "accepted_attempt")
    return {
        **{name: sample[name] for name in named},
        "drawn_with": drawn_with(sample),
        "outcome_in_force": state.outcome or sample["outcome"],
        "state": state_facts(sample, state),
        "findings": plain(sample["findings"] or []),
        "nearest": plain(sample["nearest"] or []),
        "attempts": [_attempt(sample, one) for one in ended.attempts],
        "events": [plain(dict(event)) for event in events],
        "row": {name: plain(sample[name]) for name in sample if name not in _NAMED | _LEFT_OUT | LINKS},
        "links": {name: sample[name] for name in sorted(LINKS) if name in sample},
        "where": ended.where,
    }


def drawn_with(row: Mapping[str, Any]) -> str:
    """What a request was drawn with, for people: sampler, steps, guidance, preset, adapters, group; empty: it was not drawn."""
    if not row.get("attempts"):
        return ""
    parts = [
        row.get("scheduler") or "",
        f"{row['steps']} steps",
        f"guidance {row['guidance']:g}" if row.get("guidance") is not None else "",
    ]
    parts += [f"preset {row['preset']}" if row.get("preset") else ""]
    parts += [f"adapter {one['name']} (weight {one['weight']:g})" for one in row.get("adapters") or []]
    if group := row.get("group"):
        parts.append(f"in the group {group['id']}, whose members push one another apart")
    return ", ".join(part for part in parts if part)


def state_facts(sample: Row, state: SampleState) -> dict[str, Any]:
    """What is in force for a request now: the row's columns, and what events have changed since."""
    born = {name: plain(sample.get(name)) for name in ("review_state", "legal_hold", "retain_until")}
    return {
        "review_state": state.review_state or born["review_state"],
        "claims": list(state.claims),
        "holds": list(state.holds) or (["at birth"] if born["legal_hold"] else []),
        "retain_until": plain(state.retain_until) or born["retain_until"],
        "erased": sorted(state.erased),
    }


def _attempt(sample: Row, row: Row) -> dict[str, Any]:
    left_out = _LEFT_OUT | LINKS | {"sample_id", "request_key"}
    # A damaged row may lack a list; the verdict says so, and the rest of it is still shown.
    kept = {name: plain(value) if value is not None else [] if name in _LISTS else None for name, value in row.items()}
    kept = {name: value for name, value in kept.items() if name not in left_out}
    return {**kept, "picture": attempt_id(str(sample["sample_id"]), row["attempt"])}


def plain(value: Any) -> Any:
    """A value as JSON has it: times as ISO 8601 text."""
    if value is None or isinstance(value, _AS_IT_IS):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
