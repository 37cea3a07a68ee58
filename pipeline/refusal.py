"""The message of a refused configuration: the key, the file's line, what is wrong in a sentence, and what to write instead."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from typing import Any

from pydantic import ValidationError

from index.errors import ConfigError
from pipeline.fields import AUTO, CONTRADICTION, REQUIRED, Key, OneOf, finite, keys, shown

UNKNOWN = "unexpected_keyword_argument"
SHOWN = 60  # characters of a value that a message repeats
LIKELY, SURE = 0.6, 0.8  # how alike a key must be to one that is known to be a slip; of one that another file knows
LINES, PARSED = 5000, 200  # beyond these the search for a line takes too long
NUMBERS = {"int_type", "float_type", "finite_number", "greater_than", "greater_than_equal", "less_than_equal"}
Loc = tuple[str | int, ...]


@dataclass(frozen=True)
class Where:
    """What the configuration was read from.

    Attributes:
        name: of the file, for messages.
        text: its text, where lines can be named.
        other: the class of the file that people confuse it with; None: there is none. other_name: what that file is called.
    """

    name: str = ""
    text: str = ""
    other: type[Any] | None = None
    other_name: str = ""

    def of(self, path: str, loc: Loc) -> str:
        """The place of a key: "run.toml, line 7: generation.steps"."""
        line = line_of(self.text, loc) if self.text else 0
        return ": ".join(part for part in (f"{self.name}, line {line}" if line else self.name, path) if part)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One finding of pydantic's.

    Attributes:
        type: pydantic's name for it.
        loc: where, with the kinds of list entries.
        value: what stands there.
        context: what pydantic adds.
        key: the key concerned; None for an unknown one and for the whole.
        known: every key of the class by its place.
        where: what was read.
    """

    type: str
    loc: Loc
    value: Any
    context: Mapping[str, Any]
    key: Key | None
    known: Mapping[Loc, Key]
    where: Where

    @property
    def name(self) -> str:
        return str(next((part for part in reversed(self.loc) if isinstance(part, str)), ""))

    @property
    def parent(self) -> Loc:
        return _general(self.loc[:-1])


def refusal(cls: type[Any], error: ValidationError, where: Where | None = None) -> ConfigError:
    """The refusal of data that a class cannot be built from.

    Args:
        cls: the class.
        error: what pydantic found.
        where: what it was read from; nothing when it was built in Python.
    """
    known = {key.loc: key for key in keys(cls, outside=True)}
    # A misspelt key explains one that is missing.
    found = min(error.errors(include_url=False), key=lambda one: one["type"] != UNKNOWN)
    loc, context = tuple(found["loc"]), found.get("ctx", {})
    if found["type"] == CONTRADICTION:
        loc = (*loc, context["key"])
    elif found["type"] in ("union_tag_invalid", "union_tag_not_found"):
        loc = (*loc, "kind")
    key = known.get(_general(loc)) or (known.get(_general(loc[:-1])) if loc and isinstance(loc[-1], int) else None)
    where = where or Where()
    problem = Problem(type=found["type"], loc=loc, value=found["input"], context=context, key=key, known=known, where=where)
    what, fix = _sentences(problem, found["msg"])
    at = _plain(loc[:-1] if problem.type in ("missing", "union_tag_not_found") else loc, known)
    return ConfigError(what, where=where.of(_path(at), at), fix=fix)


def _general(loc: Loc) -> Loc:
    return tuple(0 if isinstance(part, int) else part for part in loc)


def _plain(loc: Loc, known: Mapping[Loc, Key]) -> Loc:
    """The place as it is in the file: without the kinds of entries."""
    keys = [known.get(_general(loc[: i + 1])) for i in range(len(loc))]
    return tuple(part for part, key in zip(loc, keys, strict=True) if key is None or key.shape != "kind")


def _path(loc: Loc) -> str:
    """The place in words: "generation.steps", "ladder no. 2: iterations"."""
    words = ""
    for part in loc:
        if isinstance(part, int):
            words += f" no. {part + 1}: "
        else:
            words += ("" if not words or words.endswith(": ") else ".") + seen(part)[1:-1]
    return words.removesuffix(": ")


def _sentences(problem: Problem, message: str) -> tuple[str, str]:
    """What is wrong, and what to do."""
    key = problem.key
    if problem.type == CONTRADICTION:
        return problem.context["what"], problem.context["fix"]
    if problem.type == UNKNOWN:
        return _unknown(problem)
    if problem.type == "missing":
        need = f": {key.what}" if key is not None and key.what else ""
        return f"missing key {problem.name!r}", f"Add it{need}"
    if problem.type in ("union_tag_invalid", "union_tag_not_found"):
        return _kind(problem)
    if problem.type in NUMBERS and key is not None and key.range is not None:
        return _number(problem, key)
    if problem.type in ("dataclass_type", "model_attributes_type", "tuple_type"):
        return _shape(problem)
    if problem.type == "literal_error" and key is not None:
        words = list(map(str, typing.get_args(key.type)))
        if key.nearest is not None and isinstance(problem.value, str) and (near := key.nearest(problem.value)):
            others = ", ".join(map(repr, words))
            return f"{seen(problem.value)} is not among them", f"Use {near!r}, the nearest, or another of {others}"
        return _choice(problem.value, words)
    if problem.type == "bool_type":
        return f"must be true or false, not {seen(problem.value)}", "Write true or false, in small letters and without quotes"
    if problem.type == "string_type":
        fix = f'Write it in double quotes: {problem.name} = "{seen(problem.value)}"'
        plain = isinstance(problem.value, (int, float)) and not isinstance(problem.value, bool)
        return f"must be text, not {seen(problem.value)}", fix if plain else f'Write {problem.name} = "…"'
    if problem.type == "string_pattern_mismatch":
        fix = "Take the character out; text stands in one line"
        if problem.loc[-1] == "pattern":  # \\b of a regular expression, which TOML reads as a backspace
            fix = "TOML reads a backslash between double quotes as a sign of its own: write the pattern in 'single quotes'"
        return f"has a control character in it: {seen(problem.value)}", fix
    if problem.type in ("string_too_short", "string_too_long"):
        if problem.type == "string_too_long":
            return "is too long", "Shorten it to 4096 characters"
        if not problem.value:
            return "is empty", f'Write {problem.name} = "…"'
        least = problem.context["min_length"]
        return f"is too short: {seen(problem.value)} has {len(problem.value)} characters", f"Write at least {least} characters"
    if problem.type == "too_long":
        most, count = problem.context["max_length"], problem.context["actual_length"]
        return f"must have at most {most} entries, not {count}", "Take some out"
    if problem.type == "too_short" and key is not None and key.default is REQUIRED:
        return "must not be empty", f'Write {problem.name} = "…"'
    if problem.type == "too_short":
        return "must not be empty", f"Write at least {problem.context['min_length']}, or remove the key to use the default"
    return message[:1].lower() + message[1:], "See infra/docs/reference.md for what the key may be"


def _unknown(problem: Problem) -> tuple[str, str]:
    siblings = [str(loc[-1]) for loc, key in problem.known.items() if loc[:-1] == problem.parent and key.shape != "kind"]
    name = str(problem.loc[-1])
    own = problem.known.get(problem.parent)
    if own is not None and own.shape == "kind":
        others = {loc[-1] for loc in problem.known if loc[:-2] == problem.parent[:-1]}
        if name in others:
            uses = sorted(set(siblings) - {"kind"})
            fix = f"Leave it out; this kind knows {', '.join(uses)}" if uses else "Leave it out; this kind knows no keys"
            return f"{name!r} means nothing to kind {problem.parent[-1]!r}", fix
    theirs = problem.where.other is not None and problem.loc in {key.loc for key in keys(problem.where.other)}
    elsewhere = [
        loc[:-1] for loc, key in problem.known.items() if loc[-1] == name and 0 not in loc and _of_its_type(problem.value, key)
    ]
    near = _nearest(name, siblings, SURE if theirs else LIKELY)
    meant = f"Did you mean {near}? " if near else ""
    if theirs:
        fix = f"{meant}{_path(problem.loc)!r} is a key of the {problem.where.other_name}: write it there, if that is meant"
    elif meant:
        fix = meant + (f"Or write it below {_listed(elsewhere)}" if elsewhere and () not in elsewhere else "")
    elif len(elsewhere) > 1 and problem.parent and () not in elsewhere:
        fix = f"Known keys here: {', '.join(siblings)}; it is a key of {_listed(elsewhere)}"
    elif elsewhere:
        at_top = "at the top, above the first [table]"
        listed = elsewhere == [()] and problem.known[(name,)].shape == "tables"
        fix = f"Write it {at_top}" if elsewhere == [()] else f"Write it below {_listed([loc for loc in elsewhere if loc])}"
        fix += f", or {at_top}" if len(elsewhere) > 1 and () in elsewhere else ""
        fix = f"Write it as [[{name}]], a list of its own" if listed else fix
    else:
        fix = f"Known keys: {', '.join(siblings)}"
    return f"unknown key {seen(name)}", fix.strip()


def _nearest(name: str, siblings: list[str], least: float) -> str:
    """The keys that are meant most likely, in quotes: several where they are equally near."""
    near = get_close_matches(name, siblings, 3, least)
    ratios = [SequenceMatcher(None, one, name).ratio() for one in near]
    return " or ".join(repr(one) for one, ratio in zip(near, ratios, strict=True) if ratio == ratios[0])


def _listed(tables: list[Loc]) -> str:
    names = [f"[{'.'.join(map(str, loc))}]" for loc in tables]
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _of_its_type(value: Any, key: Key) -> bool:
    """Whether a value could stand at a key, whatever its size: the other keys of that name are not meant."""
    if key.shape == "table":
        return isinstance(value, dict)
    if key.shape != "value":
        return isinstance(value, (list, str))
    if typing.get_origin(key.type) is typing.Literal or key.type is str:
        return isinstance(value, str)
    return isinstance(value, bool) if key.type is bool else isinstance(value, str) or _real(value)  # text: a number in quotes


def _kind(problem: Problem) -> tuple[str, str]:
    entry = problem.parent
    table = problem.known.get(entry[:-1])
    if table is not None and isinstance(table.type, OneOf):
        kinds = table.type.kinds()
    else:
        kinds = [str(loc[-1]) for loc, key in problem.known.items() if key.shape == "kind" and loc[:-1] == entry]
    if problem.type == "union_tag_not_found":
        return "missing key 'kind'", f'Write kind = "{kinds[0]}", or another of {", ".join(kinds)}'
    return _choice(problem.value.get("kind") if isinstance(problem.value, dict) else problem.value, kinds)


def _choice(value: Any, allowed: list[str]) -> tuple[str, str]:
    near = get_close_matches(seen(value).strip("'\"").lower(), allowed, 1, 0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{seen(value)} is not allowed", f"{hint}Use one of {', '.join(map(repr, allowed))}"


def _shape(problem: Problem) -> tuple[str, str]:
    key, name = problem.key, problem.name
    full = ".".join(map(str, problem.loc)) if not any(isinstance(part, int) for part in problem.loc) else name
    if key is not None and dataclasses.is_dataclass(problem.value):  # built in Python
        made = type(problem.value).__name__
        return f"must be a {key.type.__name__}, not a {made}", f"Build a {key.type.__name__}"
    if key is None:
        return f"must be a table, not {seen(problem.value)}", "Write key = value, line by line"
    if isinstance(problem.loc[-1], int):
        return f"must be a table, not {seen(problem.value)}", f"Write [[{name}]] once for each entry, its keys below"
    if key.shape == "table":
        if isinstance(problem.value, list):
            return f"must be one table, not {seen(problem.value)}", f"Write [{full}] once, with single brackets"
        return f"must be a table, not {seen(problem.value)}", f"Write [{full}], its keys below"
    if key.shape == "tables":
        fix = f"Write [[{name}]] with double brackets, once for each entry, its keys below"
        return f"must be a list of tables, not {seen(problem.value)}", fix
    example = problem.value if key.range is not None and _real(problem.value) and problem.value in key.range else None
    values = ['"…"'] if key.range is None else list(key.default) if example is None else [example]
    return f"must be a list, not {seen(problem.value)}", f"Write {name} = [{', '.join(map(str, values))}]"


def _number(problem: Problem, key: Key) -> tuple[str, str]:
    assert key.range is not None
    value, whole = problem.value, key.type is int
    wrong_type = problem.type.endswith("_type") or not finite(value)
    kind = ("a whole number " if whole else "a number ") if wrong_type else ""
    if isinstance(problem.loc[-1], int) or key.default is REQUIRED:
        fix = f"Set it {key.range}"
    elif key.default is None:
        fix = f"Set it {key.range}, or remove the key to use {key.absent}"
    else:
        default = ", ".join(map(shown, key.default)) if isinstance(key.default, tuple) else shown(key.default)
        fix = f"Set it {key.range}, or remove the key to use the default {default}"
    fix += ', or write "auto"' if key.auto and key.default != AUTO else ""
    meant = key.hint or _meant(value, key)
    return f"must be {kind}{key.range}, not {seen(value)}", f"{meant} {fix}".strip()


def _meant(value: Any, key: Key) -> str:
    """A guess at what was meant by a number that cannot be: percent for a share, a wrong sign, quotes, a decimal comma."""
    assert key.range is not None
    if isinstance(value, str):
        return _without_quotes(value, key)
    if not _real(value) or not finite(value):
        return ""
    percent = key.range.high <= 10 and 10 <= abs(value) <= 100 and key.type is float  # 2 is no percentage
    guesses = (value, value / 100, -value, -value / 100) if percent else (value, -value)
    guess = next((one for one in guesses if _fits(one, key)), None)
    return "" if guess is None else f"Did you mean {_written(guess, key)}?"


def _without_quotes(value: str, key: Key) -> str:
    plain = value.strip()
    try:
        number = float(plain.removesuffix("%").replace(",", "."))
    except ValueError:
        return ""
    number = number / 100 if plain.endswith("%") else number
    return f"Write it without quotes: {_written(number, key)}." if _fits(number, key) else ""


def _fits(value: float, key: Key) -> bool:
    return key.range is not None and value in key.range and (key.type is not int or value == int(value))


def _written(value: float, key: Key) -> str:
    return str(int(value)) if key.type is int else f"{value:.10g}"


def _real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def seen(value: Any) -> str:
    """A value of the file, in a few words."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "a list of tables" if value and all(isinstance(one, dict) for one in value) else "a list"
    try:
        text = repr(value) if isinstance(value, str) else str(value)
    except ValueError:  # a whole number of more than 4300 digits
        return "a number too long to print"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 2]}…{text[-1]}"


def line_of(text: str, loc: Loc) -> int:
    """The line of a TOML text on which a key ends, from 1; 0 where it is not there.

    A beginning of the text that is TOML itself either has the key or has not, and once it has it all longer ones have it: so
    the first line can be found by halving, whatever the key is written like.
    """
    lines = [line + "\n" for line in text.split("\n")]
    if not loc or len(lines) > LINES:
        return 0
    left = PARSED

    def there(count: int) -> bool:
        nonlocal left
        for some in range(count, -1, -1):
            left -= 1
            try:
                found: Any = tomllib.loads("".join(lines[:some])) if left > 0 else {}
            except (ValueError, RecursionError):
                continue
            for part in loc:
                try:
                    found = found[part]
                except (KeyError, IndexError, TypeError):
                    return False
            return True
        return False

    if not there(len(lines)):
        return 0
    low, high = 0, len(lines)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if there(middle) else (middle, high)
    return high if left > 0 else 0
