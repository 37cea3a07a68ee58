"""The guards by name: open the ones a policy asks for, and say what is here and what is missing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

from guards.base import Guard, GuardClass, Probe
from index.errors import ClearanceError, ConfigError, GuardUnavailable

T = TypeVar("T")

# Cheap ones first: in this order they look at a picture.
SHIPPED = {
    "codes": "guards.codes:CodesGuard",
    "marks": "guards.marks:MarksGuard",
    "yolo": "guards.yolo:YoloMarksGuard",
    "unsafe": "guards.unsafe:UnsafeGuard",
    "text": "guards.text:TextGuard",
}


class GuardSettings(Protocol):
    """What a policy says about one guard. A guard may have further settings of its own."""

    @property
    def enabled(self) -> bool: ...
    @property
    def required(self) -> bool: ...
    @property
    def threshold(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class GuardInfo:
    """One line of ``clearance doctor``. ``reason`` says why a guard is not available and what to do."""

    name: str
    version: str
    licence: str
    categories: tuple[str, ...]
    available: bool
    reason: str = ""


def guard_classes() -> dict[str, GuardClass]:
    """Every guard's class by name, in the order in which they look at a picture. Imports no heavy package."""
    return {name: _load(place) for name, place in SHIPPED.items()}


def open_guards(settings: Mapping[str, GuardSettings]) -> tuple[list[Guard], list[str]]:
    """Open every enabled guard, in the registry's order.

    Args:
        settings: guard name → settings with ``enabled``, ``required``, ``threshold`` and what the guard itself knows.

    Returns:
        The guards, and for each optional one that cannot run here a text "name: reason".

    Raises:
        GuardUnavailable: a required guard cannot be loaded.
        IntegrityError: a guard's weights are damaged; also where the guard is optional.
        ConfigError: a name that is no guard's, or a setting that a guard refuses.
    """
    return _each(settings, lambda cls, wanted: cls.open(wanted))


def probe_guards(settings: Mapping[str, GuardSettings]) -> tuple[dict[str, Probe], list[str]]:
    """The same without loading anything: what every enabled guard is on this machine, by name."""
    names: list[str] = []

    def probe(cls: GuardClass, wanted: GuardSettings) -> Probe:
        found = cls.probe(wanted)
        names.append(cls.name)
        return found

    probes, skipped = _each(settings, probe)
    return dict(zip(names, probes, strict=True)), skipped


def describe() -> list[GuardInfo]:
    """Every guard with version, licence and whether it could run here; loads no model and imports no heavy package."""
    lines = []
    for name, cls in guard_classes().items():
        version = reason = ""
        try:
            version = cls.probe(None).version
        except ClearanceError as error:
            reason = str(error)
        info = GuardInfo(
            name=name, version=version, licence=cls.licence, categories=cls.categories, available=not reason, reason=reason
        )
        lines.append(info)
    return lines


def _each(settings: Mapping[str, GuardSettings], do: Callable[[GuardClass, GuardSettings], T]) -> tuple[list[T], list[str]]:
    classes = guard_classes()
    for name in settings:
        if name not in classes:
            raise ConfigError(f"unknown guard {name!r}", where="policy", fix=f"Known guards: {', '.join(classes)}")
    done: list[T] = []
    skipped: list[str] = []
    for name, cls in classes.items():
        wanted = settings.get(name)
        if wanted is None or not wanted.enabled:
            continue
        try:
            done.append(do(cls, wanted))
        except GuardUnavailable as error:
            if wanted.required:
                fix = f"{error.fix.rstrip('.')}; or set `required = false` for {name} in the policy (rows then say so)"
                raise GuardUnavailable(error.what, where=error.where, fix=fix) from error
            skipped.append(f"{name}: {error}")
    return done, skipped


def _load(place: str) -> GuardClass:
    module, _, name = place.partition(":")
    return cast(GuardClass, getattr(importlib.import_module(module), name))
