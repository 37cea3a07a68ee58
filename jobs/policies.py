"""Look at policies: check one, show one with where each value comes from, compare two.

A policy is named by the name of one that ships, by a policy file, by a run file (the policy that it names), or by a run folder
(the policy that the run was drawn under).
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index import storage
from index.errors import ClearanceError, ConfigError
from index.places.cache import local_copy
from index.storage import entry_of, is_folder
from jobs.run.plan import read_policy, shipped_policies, ships
from jobs.run.planning.stored_plan import stored_plan
from pipeline.audit.binding import PLAN_FILE
from pipeline.audit.sections.policy_changes import policy_changes
from pipeline.fields import REQUIRED, Key, keys
from pipeline.idle import actions, idle
from pipeline.policy import Policy, guard_tables, remarks
from pipeline.refusal import line_of

DEFAULT, PLAN = "default", "plan.json of the run"


@dataclass(frozen=True, kw_only=True)
class Named:
    """A policy, and what it was read from.

    Attributes:
        source: the file, or the run folder; for people.
        rules: the policy as plain data, every key.
        policy: the policy itself; None where it is that of a run.
        text: the file's text; empty for a run.
    """

    source: str
    rules: Mapping[str, Any]
    policy: Policy | None = None
    text: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class Value:
    """One value that is in force.

    Attributes:
        key: as the file spells it: "copies.action", "ladder no. 2: kind".
        value: in words. source: where it comes from: "line 7", or the default.
        differs: whether it is another than without the key.
    """

    key: str
    value: str
    source: str
    differs: bool


def named(name: str, base: Path) -> Named:
    """The policy that a name means.

    Raises:
        ConfigError: there is none, or its file is refused.
        ClearanceError: the plan of a run cannot be read.
    """
    place = storage.place(name, base)
    if name not in shipped_policies() and is_folder(place):
        if entry_of(place, PLAN_FILE) is None:
            fix = "Name a policy, a policy file, a run file or a run folder"
            raise ConfigError("is a folder, and no run", where=str(place), fix=fix)
        return Named(source=str(place), rules=stored_plan(place)["policy"])
    if name not in shipped_policies() and _is_run_file(place):
        from pipeline.config import RunConfig
        from pipeline.settings import read_toml

        config = read_toml(RunConfig, place)
        return named(config.policy, place.resolve().parent)
    policy = read_policy(name, base)
    path = shipped_policies().get(name, place)
    text = local_copy(path).read_text(encoding="utf-8-sig")
    return Named(source=name if name in shipped_policies() else str(path), rules=_plain(policy), policy=policy, text=text)


def _is_run_file(place: Path) -> bool:
    try:
        return not storage.is_remote(place) and "prompts" in tomllib.loads(place.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False  # reading it as a policy says what is wrong


def _plain(policy: Policy) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(policy)))
    return plain


# --- check -----------------------------------------------------------------------------------------------------------------


def slips(policy: Policy, base: Path = Path()) -> list[str]:
    """What a policy allows and its owner may not have meant, one sentence each; ``base``: where its relative paths start."""
    found = [*remarks(policy), *idle(policy)]
    steered = [name for name, action in actions(policy).items() if name != "copies" and action == "steer"]
    if policy.mark_ladder and not steered:
        found.append("there is a [[mark_ladder]], and no guard but copies steers: its rungs are never used")
    faithful = policy.faithfulness.enabled and policy.faithfulness.action == "steer"
    if policy.ladder and policy.copies.action != "steer" and not steered and not faithful:
        found.append("there is a [[ladder]], and no guard steers: its rungs are never used")
    found += _of_guards(policy, base)
    if policy.name in shipped_policies() and not ships(policy):
        what = f"name = {policy.name!r} is that of a policy that ships, and the rules are others: every row would name it so"
        found.append(f"{what}; write a name of your own")
    if not policy.about.owner and policy.name not in shipped_policies():
        found.append("nobody is named who answers for it: about.owner")
    return found


def _of_guards(policy: Policy, base: Path) -> Iterator[str]:
    """Guards that the policy wants and this machine lacks."""
    from guards.registry import describe, guard_class, kind_of

    here = {guard.name: guard for guard in describe()}
    for name, table in guard_tables(policy, base).items():
        brought = kind_of(name) != name
        reason = here[name].reason if name in here else "" if brought else "no installed package brings it"
        if table.enabled and brought:
            try:
                guard_class(name).probe(table)
            except ClearanceError as error:
                reason = str(error)
        if table.enabled and reason:
            end = "a run stops here" if table.required else "every row records that it was skipped"
            yield f"{name} is not available on this machine ({reason}): {end}"


# --- show ------------------------------------------------------------------------------------------------------------------


def values(policy: Named) -> list[Value]:
    """Every value in force, those that differ from their default first."""
    known = {key.loc: key for key in keys(Policy, outside=True)}
    raw = tomllib.loads(policy.text) if policy.text else None
    found = [_value(loc, value, policy, raw, known) for loc, value in _leaves(policy.rules, ())]
    return sorted(found, key=lambda one: not one.differs)


def _leaves(value: Any, loc: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, (*loc, str(name)))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from _leaves(item, (*loc, number))
    else:
        yield loc, value


def _value(
    loc: tuple[str | int, ...], value: Any, policy: Named, raw: Any, known: Mapping[tuple[str | int, ...], Key]
) -> Value:
    key = known.get(_general(loc, policy.rules))
    default = None if key is None or key.default is REQUIRED else key.default
    default = list(default) if isinstance(default, tuple) else default
    words = key.absent if key is not None and value is None and key.absent else _words(value)
    stated = _stated(raw, loc)
    source = PLAN if raw is None else (f"line {line}" if (line := line_of(policy.text, loc)) else "file") if stated else DEFAULT
    in_a_list = any(isinstance(part, int) for part in loc)
    return Value(key=_spelled(loc), value=words, source=source, differs=value != default or (in_a_list and loc[-1] == "kind"))


def _general(loc: tuple[str | int, ...], rules: Mapping[str, Any]) -> tuple[str | int, ...]:
    """The place of the key in the class: of a rung, with its kind."""
    if len(loc) == 3 and isinstance(loc[1], int):
        kind = rules[str(loc[0])][loc[1]].get("kind")
        return (loc[0], 0, kind, loc[2]) if kind else (loc[0], 0, loc[2])
    return loc


def _stated(raw: Any, loc: tuple[str | int, ...]) -> bool:
    for part in loc:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _spelled(loc: tuple[str | int, ...]) -> str:
    words = ""
    for part in loc:
        words += f" no. {part + 1}: " if isinstance(part, int) else ("." if words and not words.endswith(": ") else "") + part
    return words


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_words, value))}]"
    return "absent" if value is None else f'"{value}"' if isinstance(value, str) else f"{value:g}"


# --- diff ------------------------------------------------------------------------------------------------------------------


def changes(before: Named, now: Named) -> list[dict[str, str]]:
    """The rules in which two policies differ, as rows of ``key``, ``before`` and ``now``."""
    return policy_changes(before.rules, now.rules)
