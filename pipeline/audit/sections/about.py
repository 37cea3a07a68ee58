"""The events of single requests: each as far as it concerns the request.

An event of a takedown or of a retention may name every sample of a run, with a look or a file for each. What it says of the
others is left out: with it the pages of a run would grow with the square of its samples, and show what is of another request.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

_BY_SAMPLE = "looks"  # a mapping whose keys are sample_ids
_FILES = "files"  # of payload.erased: files, each with sample_ids by column
_NAMES = ("held", "waiting_for_review", "without_picture")  # lists of request keys or sample_ids
_NUMBERS = "events"  # of retention.applied: the numbers of the events that erased


class EventsAbout:
    """The events of a run that name samples, by sample.

    Args:
        events: all of the run's, in their order.
    """

    def __init__(self, events: Iterable[Mapping[str, Any]]) -> None:
        self._events: dict[str, list[_Named]] = defaultdict(list)
        for event in events:
            named = _Named(event)
            for sample_id in event.get("samples") or ():
                self._events[str(sample_id)].append(named)

    def of(self, sample_id: str, request_key: str) -> list[dict[str, Any]]:
        """The events that name a sample, in their order; ``samples`` and ``details`` without what they say of others."""
        mine = self._events.get(sample_id, [])
        numbers = {named.event["seq"] for named in mine}
        return [named.about(sample_id, request_key, numbers) for named in mine]


class _Named:
    """An event that names samples."""

    def __init__(self, event: Mapping[str, Any]) -> None:
        self.event = event
        self._details: Any = event.get("details") or {}

    def about(self, sample_id: str, request_key: str, numbers: set[Any]) -> dict[str, Any]:
        """The event as far as it concerns a sample; ``numbers`` are those of the events that name it."""
        details: dict[str, Any] = {}
        for name, value in self._details.items():
            if name == _BY_SAMPLE and isinstance(value, Mapping):
                details[name] = {sample_id: value[sample_id]} if sample_id in value else {}
            elif name == _FILES and isinstance(value, list):
                details[name] = self._files.get(sample_id, [])
            elif name in _NAMES and isinstance(value, list):
                details[name] = [one for one in (request_key, sample_id) if one in self._sets[name]]
            elif name == _NUMBERS and isinstance(value, list):
                details[name] = sorted(numbers & self._sets[name])
            else:
                details[name] = value
        return {**self.event, "samples": [sample_id], "details": details}

    @cached_property
    def _sets(self) -> dict[str, frozenset[Any]]:
        """The lists of names and numbers, once an event: details are anybody's, and may hold what cannot be looked up."""
        lists = ((name, self._details.get(name)) for name in (*_NAMES, _NUMBERS))
        return {
            name: frozenset(one for one in value if isinstance(one, str | int))
            for name, value in lists
            if isinstance(value, list)
        }

    @cached_property
    def _files(self) -> dict[str, list[dict[str, Any]]]:
        """The files of an erasure by sample, each with the columns that were emptied of it."""
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for file in self._details[_FILES]:
            columns = file.get("columns") if isinstance(file, Mapping) else None
            mine: dict[str, dict[str, list[str]]] = defaultdict(dict)
            for column, samples in columns.items() if isinstance(columns, Mapping) else ():
                for sample_id in samples if isinstance(samples, list) else ():
                    if isinstance(sample_id, str):
                        mine[sample_id][str(column)] = [sample_id]
            for sample_id, own in mine.items():
                found[sample_id].append({**file, "columns": own})
        return found
