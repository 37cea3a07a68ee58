"""The formats of an export: a table of those that ship, and those of other packages (entry points ``clearance.exports``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from index.entry_points import entries, load, origin
from index.errors import InputError
from index.meant import meant
from jobs.export.select import Item

if TYPE_CHECKING:
    import pyarrow as pa

GROUP = "clearance.exports"
SHIPPED = ("parquet", "webdataset", "folder")  # each a module of this name beside this one, with a FORMAT


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of an export.

    Attributes:
        name: what ``--format`` takes. what: a line for people.
        data_files: pattern of its data files below the export, for the card.
        write: writes items into a folder that is there; given the items, the schema of image and columns, and the folder.
    """

    name: str
    what: str
    data_files: str
    write: Callable[[Iterator[Item], pa.Schema, Path], None]


def format_named(name: str) -> Format:
    """The format of that name.

    Raises:
        InputError: there is none, its package cannot be imported, or what it brings is no format.
        ConfigError: two packages bring one name, or a package brings one of ours.
    """
    if name in SHIPPED:
        return cast(Format, import_module(f"jobs.export.{name}").FORMAT)
    others = entries(GROUP, taken=SHIPPED, called="formats of exports")
    if name not in others:
        known = [*SHIPPED, *others]
        fix = meant(name, known, otherwise=f"Use {', '.join(known)}; packages bring more as entry points {GROUP}")
        raise InputError(f"there is no format {name!r}", where="--format", fix=fix)
    found = load(others[name], where="--format", error=InputError)
    if not isinstance(found, Format):
        what = f"{origin(others[name])} is a {type(found).__name__}, not a format"
        raise InputError(what, where=f"entry points {GROUP}", fix="See jobs/export/formats.py: Format")
    return found
