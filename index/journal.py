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

import numpy as np

from index.errors import IntegrityError
from index.files import RESTORE, read_known, write_whole
from index.ids import Ids, numbers_of

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
    """Every event up to a leaf, oldest first; ``ref_ids`` as :class:`index.ids.Ids`, because one leaf may name a million.

    Raises:
        IntegrityError: a leaf is missing, was changed, or is none.
    """
    leaves: list[list[dict[str, Any]]] = []
    while last:
        path = folder / JOURNAL / f"{last}.json"
        content = read_known(path, last)
        try:
            stored = json.loads(content)
            leaves.append([_event({**event, "ref_ids": _ids(text(event["ref_ids"]))}) for event in items(stored["events"])])
            last = text(stored["previous"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            what = f"is not a leaf of a journal ({type(error).__name__}: {error})"
            raise IntegrityError(what, where=str(path), fix=RESTORE) from None
    return [event for leaf in reversed(leaves) for event in leaf]


class Moments:
    """When each reference was first added and last retired, in 32 bytes a reference.

    Args:
        history: the events, oldest first.
    """

    def __init__(self, history: Sequence[Mapping[str, Any]]) -> None:
        self._added = self._first([event for event in history if event["event"] != "retired"])
        self._retired = self._first([event for event in reversed(history) if event["event"] == "retired"])

    def added(self, ref_ids: Sequence[str]) -> np.ndarray:
        """Seconds float64 (N,) of some references; 0 for one that no event names."""
        found = self._at(self._added, ref_ids)
        found[np.isnan(found)] = 0.0
        return found

    def retired(self, ref_ids: Sequence[str]) -> np.ndarray:
        """Seconds float64 (N,) of some references; NaN for one that was never retired."""
        return self._at(self._retired, ref_ids)

    @staticmethod
    def _first(events: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        """The ids that some events name, sorted, and of each the moment of the first event that does."""
        named = [_numbers(event["ref_ids"]) for event in events]
        if not named:
            return np.zeros(0, np.uint64), np.zeros(0)
        at = np.repeat([float(event["at"]) for event in events], [len(numbers) for numbers in named])
        numbers, first = np.unique(np.concatenate(named), return_index=True)
        return numbers, at[first]

    @staticmethod
    def _at(known: tuple[np.ndarray, np.ndarray], ref_ids: Sequence[str]) -> np.ndarray:
        numbers, moments = known
        found = np.full(len(ref_ids), np.nan)
        if len(numbers) and len(ref_ids):
            wanted = numbers_of(ref_ids)
            at = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
            found[numbers[at] == wanted] = moments[at[numbers[at] == wanted]]
        return found


def _numbers(ref_ids: Sequence[str]) -> np.ndarray:
    return ref_ids.numbers() if isinstance(ref_ids, Ids) else numbers_of(ref_ids)


def _ids(plain: str) -> Ids:
    """The ids of a leaf, which stand in one text with a space between two; ValueError for anything else."""
    digits = plain.replace(" ", "")
    if len(digits) % 16 or len(plain) != max(0, len(digits) + len(digits) // 16 - 1):
        raise ValueError("ids of other than 16 digits")
    return Ids.of_numbers(np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64))


def event_of(event: Any) -> dict[str, Any]:
    """An event of a snapshot that held its history, once parsed.

    Raises:
        ValueError, TypeError, KeyError: a part is missing or of another kind.
    """
    if any(not isinstance(ref_id, str) for ref_id in items(event["ref_ids"])):
        raise ValueError(f"{event!r} names no references")
    return _event(event)


def _event(event: Any) -> dict[str, Any]:
    if not math.isfinite(event["at"]) or not all(isinstance(event[name], str) for name in ("event", "reason", "index_id")):
        raise ValueError(f"{event['event']!r} is not an event")
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
