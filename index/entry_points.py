"""Objects that other packages bring by entry point: listed by name without an import, loaded when one is used."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Container
from importlib.metadata import EntryPoint
from typing import Any

from index.errors import ClearanceError, ConfigError
from index.printable import visible


def entries(group: str, *, taken: Container[str], called: str) -> dict[str, EntryPoint]:
    """The entry points of a group, by name.

    Args:
        group: of the entry points, such as ``clearance.guards``.
        taken: names that no package may bring, because something here has them.
        called: the objects in the plural, for messages.

    Raises:
        ConfigError: two packages bring one name, or a package brings a taken one.
    """
    found: dict[str, EntryPoint] = {}
    for entry in sorted(importlib.metadata.entry_points(group=group), key=lambda entry: (entry.name, entry.value)):
        if entry.name in taken or (entry.name in found and entry.value != found[entry.name].value):
            what = f"there are two {called} called {entry.name!r}, one of them {origin(entry)}"
            raise ConfigError(what, where=f"entry points {group}", fix="Uninstall the package that you do not want")
        found[entry.name] = entry
    return found


def load(entry: EntryPoint, *, where: str, error: type[ClearanceError]) -> Any:
    """Import the object of an entry point; raises ``error`` where its package cannot be imported."""
    try:
        return entry.load()
    except (Exception, SystemExit) as cause:  # importing the package may raise anything, or want to end the process
        what = f"{origin(entry)} cannot be imported ({type(cause).__name__}: {cause})"
        raise error(visible(what), where=where, fix="Install the package again") from cause


def origin(entry: EntryPoint) -> str:
    """The object's place and its package, for messages: "toy.guard:Guard of toy-guard"."""
    return f"{entry.value} of {package(entry)}"


def package(entry: EntryPoint) -> str:
    """The name of the package that brings the entry point."""
    return entry.dist.name if entry.dist is not None else "an unknown package"
