"""The steering methods by kind: those that ship, those of other packages, and those that a program registers.

A method of another package is found by its entry point in the group ``clearance.steering``: the entry point's name is the kind
of its rungs, and its object the method (:class:`pipeline.rungs.SteeringMethod`). The package is imported where a policy's
ladder names the kind, and nowhere else.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Annotated, Any, Literal, cast, get_args

from index.entry_points import entries, load, origin, package
from index.errors import ConfigError
from pipeline.fields import OneOf, keys
from pipeline.rungs import METHODS, MarkRung, Rung, SteeringMethod

GROUP = "clearance.steering"
STEERING = "steering."  # before a kind: the part of a plan's identity that names the package of its method
SHIPPED = {method.kind: method for method in METHODS}
TAKEN = {*SHIPPED, *(rung.__pydantic_fields__["kind"].default for rung in get_args(MarkRung))}

_loaded: dict[str, SteeringMethod] = {}  # of other packages, once a policy named them
_registered: dict[str, SteeringMethod] = {}


def register(method: SteeringMethod) -> None:
    """Make a method known in this process; a package that is installed brings an entry point instead.

    Raises:
        ConfigError: it does not declare what a method declares, or there is another one of its kind.
    """
    where = f"steering method {_kind_of(method)!r}"
    if lacks := _undeclared(_kind_of(method), method):
        raise ConfigError(f"it {lacks}", where=where, fix="See pipeline/rungs.py: SteeringMethod")
    if method.kind in TAKEN or _registered.get(method.kind, method) != method:
        what = f"there are two kinds of rung called {method.kind!r}"
        raise ConfigError(what, where=where, fix="Call one of them otherwise")
    _registered[method.kind] = method


def outside_methods() -> dict[str, EntryPoint]:
    """The methods of other packages, by kind; imports none of them.

    Raises:
        ConfigError: two packages have a method of one kind, or a package has one of a kind that ships.
    """
    return entries(GROUP, taken={*TAKEN, *_registered}, called="kinds of rung")


def known_kinds() -> list[str]:
    """Every kind that a ladder may name here, those that ship first."""
    return [*SHIPPED, *_registered, *outside_methods()]


def method_of(kind: str) -> SteeringMethod | None:
    """The method whose rungs are of this kind; None where there is none.

    Raises:
        ConfigError: its package cannot be imported, or does not declare what a method declares.
    """
    for known in (SHIPPED, _registered, _loaded):
        if kind in known:
            return known[kind]
    entry = outside_methods().get(kind)
    if entry is None:
        return None
    where = f"steering method {kind!r}"
    method = load(entry, where=where, error=ConfigError)
    if lacks := _undeclared(kind, method):
        raise ConfigError(f"{origin(entry)} {lacks}", where=where, fix="See pipeline/rungs.py: SteeringMethod")
    _loaded[kind] = method
    return cast(SteeringMethod, method)


def answer_of(rung: Rung) -> Callable[..., Any]:
    """The function that answers rungs like this one: (failed, rung, tools) → NextTry."""
    method = method_of(rung.kind)
    if method is None:
        raise ConfigError(f"there is no steering method {rung.kind!r}", where="ladder", fix="Install the package that has it")
    if callable(method.answer):
        return method.answer
    module, _, name = method.answer.partition(":")
    return cast(Callable[..., Any], getattr(importlib.import_module(module), name))


def versions(kinds: set[str]) -> dict[str, str]:
    """The packages of those of these kinds that do not ship, with their versions: "toy-method 1.0"."""
    found = {}
    for kind, entry in outside_methods().items():
        if kind in kinds:
            found[kind] = f"{package(entry)} {entry.dist.version}" if entry.dist is not None else entry.value
    return found


def _rung_classes(value: Any, *, outside: bool) -> dict[str, type[Any]]:
    """Kind → class of its rungs: of the methods that ship; with ``outside`` also of those in use and the one named."""
    if not outside:
        return {kind: method.rung for kind, method in SHIPPED.items()}
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    if isinstance(kind, str):
        method_of(kind)
    return {kind: method.rung for kind, method in (SHIPPED | _registered | _loaded).items()}


def _kind_of(method: Any) -> str:
    field = getattr(getattr(method, "rung", None), "__pydantic_fields__", {}).get("kind")
    return str(getattr(field, "default", ""))


def _undeclared(kind: str, method: Any) -> str:
    """What an object lacks to be the method of a kind; empty when nothing is missing."""
    if not isinstance(method, SteeringMethod):
        return f"is no SteeringMethod but a {type(method).__name__}"
    rung = method.rung
    fields = getattr(rung, "__pydantic_fields__", {})
    strict = getattr(rung, "__pydantic_config__", {}).get("extra") == "forbid"
    if not strict or not dataclasses.is_dataclass(rung) or "kind" not in fields:
        return "has a rung that is not a class made by pipeline.settings.settings with a key `kind`"
    if fields["kind"].annotation != Literal[kind] or fields["kind"].default != kind:
        return f"has a rung whose key `kind` is not Literal[{kind!r}] with that default"
    if loose := [str(key.loc[0]) for key in keys(rung) if key.type in (int, float) and key.range is None]:
        return f"has a rung whose key {loose[0]!r} has no range: make it with pipeline.fields.number"
    return "" if callable(method.answer) else "has an answer that is not a function"


LadderRung = Annotated[Rung, OneOf(_rung_classes, known_kinds)]
