"""The guards by name: open those that a policy enables, and list what is here and what is missing.

A guard of another package is found by its entry point in the group ``clearance.guards``: the entry point's name is the guard's,
and its object the guard's class (:class:`guards.base.GuardClass`). It is used by runs whose policy names it, and by no others.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint
from typing import Any, Protocol, TypeVar, cast

from guards.base import Defaults, Guard, GuardClass, Probe
from index.entry_points import entries, load, origin
from index.errors import ClearanceError, ConfigError, GuardUnavailable
from index.meant import meant
from index.printable import short, visible

T = TypeVar("T")

GROUP = "clearance.guards"
ACTIONS = ("steer", "review", "reject", "observe")
# Cheap ones first: in this order they look at a picture.
SHIPPED = {
    "codes": "guards.codes:CodesGuard",
    "marks": "guards.marks:MarksGuard",
    "yolo": "guards.yolo:YoloMarksGuard",
    "unsafe": "guards.unsafe:UnsafeGuard",
    "text": "guards.text:TextGuard",
}
# A policy may have several of each, with a name of its own ("classifier:NAME"); they look last.
SEVERAL = {"classifier": "guards.classifier:ClassifierGuard", "question": "guards.vision_language:QuestionGuard"}
# Guards that do not look at pictures alone, and are no part of the loop over pictures: a run's runtime opens them itself.
BESIDE = {"prompt": "guards.prompt:PromptGuard", "faithfulness": "guards.faithfulness:FaithfulnessGuard"}


class GuardSettings(Protocol):
    """The policy's settings of one guard. A guard may have further settings of its own."""

    @property
    def enabled(self) -> bool: ...
    @property
    def required(self) -> bool: ...
    @property
    def threshold(self) -> float | None: ...


def kind_of(name: str) -> str:
    """The guard that ships behind a name: ``classifier`` of ``classifier:nsfw``; any other name is its own."""
    kind, colon, _ = name.partition(":")
    return kind if colon and kind in SEVERAL else name


@dataclass(frozen=True, kw_only=True)
class GuardInfo:
    """One line of ``clearance doctor``. ``reason`` is why a guard is not available, and what to do."""

    name: str
    version: str
    licence: str
    categories: tuple[str, ...]
    available: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class OutsideSettings:
    """The policy's settings of a guard of another package, completed by the guard's own defaults."""

    enabled: bool
    required: bool
    threshold: float
    options: tuple[str, ...]


def guard_classes() -> dict[str, GuardClass]:
    """The class of every guard that ships, by name, in the order in which they look at a picture. Imports no heavy package."""
    return {name: _class_at(place) for name, place in SHIPPED.items()}


def classes_beside() -> dict[str, GuardClass]:
    """The class of every guard that a policy may have several of, and of those that need more than pictures, by name."""
    return {name: _class_at(place) for name, place in (SEVERAL | BESIDE).items()}


def outside_guards() -> dict[str, EntryPoint]:
    """The guards of other packages, by name.

    Raises:
        ConfigError: two packages have a guard of one name, or a package has one of ours.
    """
    return entries(GROUP, taken={*SHIPPED, *SEVERAL, *BESIDE, "copies"}, called="guards")


def guard_class(name: str) -> GuardClass:
    """The class of a guard by its name.

    Raises:
        ConfigError: there is no such guard, or its class does not declare what a guard declares.
        GuardUnavailable: its package cannot be imported.
    """
    if (place := SHIPPED.get(name) or SEVERAL.get(kind_of(name))) is not None:
        return _class_at(place)
    others = outside_guards()
    if name not in others:
        known = [*SHIPPED, *others]
        fix = meant(name, known, otherwise=f"Known guards: {', '.join(known)}")
        raise ConfigError(f"unknown guard {name!r}", where="policy", fix=fix)
    entry = others[name]
    cls = load(entry, where=f"guard {name}", error=GuardUnavailable)
    if lacks := _undeclared(name, cls):
        raise ConfigError(f"{origin(entry)} {lacks}", where=f"guard {name}", fix="See guards/base.py: GuardClass")
    return cast(GuardClass, cls)


def open_guards(settings: Mapping[str, GuardSettings]) -> tuple[list[Guard], list[str]]:
    """Open every enabled guard, in the registry's order.

    Args:
        settings: guard name → settings with ``enabled``, ``required``, ``threshold`` and what the guard itself knows.

    Returns:
        The guards, and for each optional one that cannot run here a text "name: reason".

    Raises:
        GuardUnavailable: a required guard cannot be loaded.
        IntegrityError: a guard's weights are damaged; also where the guard is optional.
        ConfigError: an unknown name, a class that is not a guard, or a setting that a guard refuses.
    """
    guards, skipped = _each(settings, _opened)
    return [*guards.values()], skipped


def probe_guards(settings: Mapping[str, GuardSettings]) -> tuple[dict[str, Probe], list[str]]:
    """The same without loading anything: what every enabled guard is on this machine, by name."""
    return _each(settings, _probed)


def describe() -> list[GuardInfo]:
    """Every guard with version, licence and whether it could run here; loads no model and imports no heavy package."""
    lines = []
    for name in (*SHIPPED, *SEVERAL, *BESIDE, *outside_guards()):
        version = licence = reason = ""
        categories: tuple[str, ...] = ()
        try:
            cls = classes_beside()[name] if name in (SEVERAL | BESIDE) else guard_class(name)
            licence, categories = cls.licence, cls.categories
            version = _asked(name, partial(_probed, cls), _filled(cls, None)).version
        except ClearanceError as error:
            reason = str(error)
        info = GuardInfo(
            name=name, version=version, licence=licence, categories=categories, available=not reason, reason=reason
        )
        lines.append(info)
    return lines


def _each(
    settings: Mapping[str, GuardSettings], do: Callable[[GuardClass, GuardSettings], T]
) -> tuple[dict[str, T], list[str]]:
    done: dict[str, T] = {}
    skipped: list[str] = []
    rank = {name: number for number, name in enumerate((*SHIPPED, *SEVERAL))}
    for name, wanted in sorted(settings.items(), key=lambda item: (rank.get(kind_of(item[0]), len(rank)), item[0])):
        try:
            cls = guard_class(name)
            if wanted.enabled:
                done[name] = _asked(name, partial(do, cls), _filled(cls, wanted))
        except GuardUnavailable as error:
            if not wanted.enabled:
                continue
            if wanted.required:
                fix = f"{error.fix.rstrip('.')}; or set `required = false` for {name} in the policy (rows then list it)"
                raise GuardUnavailable(error.what, where=error.where, fix=fix) from error
            skipped.append(f"{name}: {error}")
    return done, skipped


def _asked(name: str, call: Callable[[GuardSettings], T], settings: GuardSettings) -> T:
    """What a guard's class answers.

    Raises:
        GuardUnavailable: it is of another package, and raises what no guard should, answers what no guard should, or wants to
            end the process.
    """
    try:
        return call(settings)
    except ClearanceError:
        raise
    except (Exception, SystemExit) as error:
        if name in SHIPPED or kind_of(name) in SEVERAL | BESIDE:
            raise
        what = f"{origin(outside_guards()[name])} cannot be opened ({type(error).__name__}: {error})"
        fix = "Try guards.conformance.check_guard on it, or ask its author"
        raise GuardUnavailable(visible(what), where=f"guard {name}", fix=fix) from error


def _probed(cls: GuardClass, settings: GuardSettings) -> Probe:
    """What a guard is on this machine.

    Raises:
        TypeError: its class answers something else than a probe; a plan would hold what nobody can read.
    """
    probe = cls.probe(settings)
    if not isinstance(probe, Probe) or not all(isinstance(text, str) for text in (probe.version, probe.calibrated_on)):
        raise TypeError(f"its probe() answers {short(probe)}, and no Probe with a text as version")
    if not isinstance(probe.weights, Mapping) or not all(
        isinstance(text, str) for pair in probe.weights.items() for text in pair
    ):
        raise TypeError(f"its probe() answers the weights {short(probe.weights)}, and no digests of files")
    return probe


def _opened(cls: GuardClass, settings: GuardSettings) -> Guard:
    """A guard that looks.

    Raises:
        TypeError: its class answers something else than a guard, or another one than its probe says, which a plan binds.
    """
    guard = cls.open(settings)
    if cls.name in SHIPPED | SEVERAL:
        return guard
    if not isinstance(guard, Guard) or guard.name != cls.name:
        raise TypeError(f"its open() answers {short(guard)}, and no guard called {cls.name!r}")
    if guard.version != (version := _probed(cls, settings).version):
        raise TypeError(f"its open() answers version {short(guard.version)}, and its probe() {version!r}")
    return guard


def _filled(cls: GuardClass, settings: GuardSettings | None) -> GuardSettings:
    """The settings, with the guard's own threshold where they have none."""
    if settings is not None and getattr(settings, "threshold", None) is not None:
        return settings
    return OutsideSettings(
        enabled=settings is None or settings.enabled,
        required=settings is None or settings.required,
        threshold=cls.defaults.threshold,
        options=tuple(getattr(settings, "options", ())),
    )


def _undeclared(name: str, cls: Any) -> str:
    """What the class of another package lacks to be a guard; empty when nothing is missing."""
    if getattr(cls, "name", None) != name:
        return f"calls itself {getattr(cls, 'name', None)!r} and not {name!r}"
    categories = getattr(cls, "categories", None)
    if not isinstance(categories, tuple) or not categories or not all(isinstance(one, str) and one for one in categories):
        return "has no categories: a tuple of texts"
    if not isinstance(getattr(cls, "licence", None), str) or not cls.licence:
        return "states no licence"
    defaults = getattr(cls, "defaults", None)
    if not isinstance(defaults, Defaults) or defaults.action not in ACTIONS or not math.isfinite(defaults.threshold):
        return f"states no defaults: a finite threshold, and an action out of {', '.join(ACTIONS)}"
    absent = [method for method in ("probe", "open", "check") if not callable(getattr(cls, method, None))]
    return f"has no {absent[0]}()" if absent else ""


def _class_at(place: str) -> GuardClass:
    module, _, name = place.partition(":")
    return cast(GuardClass, getattr(importlib.import_module(module), name))
