"""The policy as tables of the report: its settings, and each ladder with the keys that differ from their defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pipeline.fields import keys
from pipeline.policy import NEWER, Policy
from pipeline.rungs import METHODS, MarkRung

LADDERS: dict[str, tuple[str, tuple[type[Any], ...]]] = {  # key of the policy → title of its table, its rungs' classes
    "ladder": ("Ladder: what is done about copies", tuple(method.rung for method in METHODS)),
    "mark_ladder": ("Mark ladder: what is done about marks", get_args(MarkRung)),
}


ENTRIES = {"guards": "guard", "classifiers": "classifier", "questions": "question", "blocked": "blocked"}  # lists of tables
_UNSAID = dataclasses.asdict(Policy())


def policy_rows(policy: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The policy as rows of (setting, value), name first, without its ladders; an absent key shows what is in force."""
    rows = []
    in_force = {key.loc: key.absent for key in keys(Policy) if key.absent}
    order = sorted((policy or {}).items(), key=lambda item: (item[0] not in ("name", "version"), isinstance(item[1], dict)))
    for name, value in order:
        if name in LADDERS or name == "about":  # the report shows who answers for it apart from the rules
            continue
        if name in ENTRIES:
            rows += [_entry(ENTRIES[name], number, one) for number, one in enumerate(value, 1)]
            continue
        if name in NEWER and value == _UNSAID[name]:  # a guard that the policy says nothing of
            continue
        if isinstance(value, dict):
            rows.append(
                (name, _listed({key: in_force.get((name, key)) if item is None else item for key, item in value.items()}))
            )
        else:
            rows.append((name, plain_value(in_force.get((name,)) if value is None else value)))
    return rows


def ladders(policy: Mapping[str, Any] | None) -> list[tuple[str, list[tuple[str, str]]]]:
    """Every ladder of the policy that has rungs: its title, and for each rung (kind, keys that differ from their defaults).

    Of a kind that does not ship every key is shown: the report is the same wherever it is made.
    """
    rungs = {key: rungs_of(policy, key) for key in LADDERS}
    return [(title, rungs[key]) for key, (title, _) in LADDERS.items() if rungs[key]]


def rungs_of(policy: Mapping[str, Any] | None, key: str) -> list[tuple[str, str]]:
    """The rungs of one ladder, as :func:`ladders` gives them."""
    kinds = LADDERS[key][1]
    defaults = {made().kind: {str(one.loc[0]): one.default for one in keys(made)} for made in kinds}
    rungs: Sequence[Mapping[str, Any]] = (policy or {}).get(key) or []
    return [(str(one.get("kind", "")), _changed(one, defaults)) for one in rungs]


def _entry(title: str, number: int, one: Mapping[str, Any]) -> tuple[str, str]:
    """An entry of a list of tables: its name, or its number where it has none, and its settings."""
    settings = {key: value for key, value in one.items() if key != "name" and value not in ("", None, [], ())}
    return f"{title} {one.get('name') or f'no. {number}'}", _listed(settings)


def _changed(rung: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> str:
    """The keys that differ from their defaults; an unknown key is among them."""
    mine = defaults.get(str(rung.get("kind")), {})
    changed = {key: value for key, value in rung.items() if key != "kind" and (key not in mine or value != mine[key])}
    return _listed(changed) or "all at their defaults"


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} = {plain_value(value)}" for key, value in settings.items())


def plain_value(value: Any) -> str:
    """A value of a policy as words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain_value(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else "none" if value in ("", None) else str(value)
