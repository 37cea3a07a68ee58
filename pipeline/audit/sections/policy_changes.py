"""How two policies differ, key by key, and how two runs of one data set do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.audit.policy_rows import LADDERS, plain_value, rungs_of
from pipeline.fields import keys
from pipeline.policy import Policy

_NOT_RULES = ("about", "name", "version")
_ABSENT = object()


def policy_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, str]]:
    """The keys whose values differ, as rows of ``key``, ``before`` and ``now``; name, version and ``about`` are no rules."""
    return _differences(_rules(before), _rules(now))


def _rules(policy: Mapping[str, Any]) -> dict[str, Any]:
    """The rules of a policy by key; a rung of a ladder is one of them, in words."""
    rules = dict(_flat({key: value for key, value in policy.items() if key not in (*_NOT_RULES, *LADDERS)}))
    in_force = {".".join(map(str, key.loc)): key.absent for key in keys(Policy) if key.absent}
    rules = {key: in_force.get(key) if value is None else value for key, value in rules.items()}
    for key in LADDERS:
        ordered = [dict(sorted(rung.items())) for rung in policy.get(key) or ()]  # a statement sorts its keys, a file does not
        for number, (kind, settings) in enumerate(rungs_of({key: ordered}, key), 1):
            rules[f"{key}, rung {number}"] = f"{kind}: {settings}"
    return rules


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {"key": key, "before": _shown(one.get(key, _ABSENT)), "now": _shown(other.get(key, _ABSENT))}
        for key in dict.fromkeys((*one, *other))
        if one.get(key, _ABSENT) != other.get(key, _ABSENT) and not _in_parts(key, one, other)
    ]


def _in_parts(key: str, *policies: Mapping[str, Any]) -> bool:
    """Whether a policy has parts of this key, [[tables]], where the other has an empty list: the rows of the parts tell it."""
    return any(part.startswith(f"{key}[") for policy in policies for part in policy)


def run_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a run's statement says otherwise than that of the run before it: model, references, check, guards, drawing."""
    return _differences(_facts(before), _facts(now))


def _facts(predicate: Mapping[str, Any]) -> dict[str, Any]:
    model = _table(predicate.get("model"))
    facts: dict[str, Any] = {f"model {name}": model.get(name) for name in ("id", "revision", "digest", "dtype", "licence")}
    facts |= {f"generation {name}": value for name, value in sorted(_table(predicate.get("generation")).items())}
    named = (
        "index_id",
        "embedder_id",
        "calibration_id",
        "copy_threshold",
        "image_format",
        "retention_days",
        "software_version",
    )
    facts |= {name.replace("_", " "): predicate.get(name) for name in named}
    guards = predicate.get("guards")
    for guard in guards if isinstance(guards, list) else []:
        facts[f"guard {_table(guard).get('name')}"] = f"{_table(guard).get('version')}"
    adapters = predicate.get("adapters")
    facts["adapters"] = [f"{_table(one).get('name')} {_table(one).get('digest')}"[:40] for one in adapters or []]
    return facts


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value, 1):
            yield from _flat(item, f"{name}[{number}]")
    else:
        yield name, list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return "not there" if value is _ABSENT else plain_value(value)
