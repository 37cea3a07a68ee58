"""The journal of an index: what happened, when, to which references, and the ``index_id`` after it.

Each change writes one leaf, a JSON file named after its own sha256, which names the leaf before it. The snapshot names the
last. So a change costs one small file, however many came before, and none of them can be altered without the next one's digest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index.errors import IntegrityError
from index.files import RESTORE, read_known, write_whole

JOURNAL = "journal"


@dataclass(frozen=True)
class Change:
    """What a commit is about: the journal's ``event``, the references, the reason, and more about it."""

    event: str
    ref_ids: Sequence[str]
    reason: str = ""
    more: Mapping[str, str] = field(default_factory=dict)

    def event_at(self, at: float, index_id: str) -> dict[str, Any]:
        """As the journal has it: the moment (seconds), and the id of the index after it."""
        about = {"event": self.event, "ref_ids": self.ref_ids, "reason": self.reason, "index_id": index_id}
        return {"at": at, **about, **self.more}


def append(folder: Path, previous: str, events: Sequence[Mapping[str, Any]]) -> str:
    """Write a leaf after another one; returns its sha256.

    Args:
        folder: of the index.
        previous: sha256 of the leaf before; empty: this is the first.
        events: ``at`` (seconds), ``event``, ``ref_ids``, ``reason``, ``index_id``, and for a status ``change``.
    """
    # Ids as one text: a million of them in a list take a second to parse.
    plain = {"previous": previous, "events": [{**event, "ref_ids": " ".join(event["ref_ids"])} for event in events]}
    content = (json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    digest = hashlib.sha256(content).hexdigest()
    (folder / JOURNAL).mkdir(exist_ok=True)
    write_whole(folder / JOURNAL / f"{digest}.json", content)
    return digest


def read(folder: Path, last: str) -> list[dict[str, Any]]:
    """Every event up to a leaf, oldest first.

    Raises:
        IntegrityError: a leaf is missing, was changed, or is none.
    """
    leaves: list[list[dict[str, Any]]] = []
    while last:
        path = folder / JOURNAL / f"{last}.json"
        content = read_known(path, last)
        try:
            stored = json.loads(content)
            leaves.append([event_of({**event, "ref_ids": text(event["ref_ids"]).split()}) for event in items(stored["events"])])
            last = text(stored["previous"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            what = f"is not a leaf of a journal ({type(error).__name__}: {error})"
            raise IntegrityError(what, where=str(path), fix=RESTORE) from None
    return [event for leaf in reversed(leaves) for event in leaf]


def moments(history: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], dict[str, float]]:
    """When each reference was first added and last retired: two maps from its id to seconds."""
    added: dict[str, float] = {}
    retired: dict[str, float] = {}
    for event in history:
        for ref_id in event["ref_ids"]:
            if event["event"] == "retired":
                retired[ref_id] = event["at"]
            else:
                added.setdefault(ref_id, event["at"])
    return added, retired


def event_of(event: Any) -> dict[str, Any]:
    """An event, once parsed.

    Raises:
        ValueError, TypeError, KeyError: a part is missing or of another kind.
    """
    if not math.isfinite(event["at"]) or not all(isinstance(event[name], str) for name in ("event", "reason", "index_id")):
        raise ValueError(f"{event!r} is not an event")
    if any(not isinstance(ref_id, str) for ref_id in items(event["ref_ids"])):
        raise ValueError(f"{event!r} names no references")
    return dict(event)


def items(value: Any) -> Sequence[Any]:
    """A list, once parsed; ValueError for anything else."""
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list")
    return value


def text(value: Any) -> str:
    """A text, once parsed; ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value
