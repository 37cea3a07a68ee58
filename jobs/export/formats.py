"""The formats of an export: a table of those that ship, and those of other packages (entry points ``clearance.exports``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from index.errors import InputError
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
        InputError: there is none, or what a package brings under that name is no format.
    """
    if name in SHIPPED:
        found = import_module(f"jobs.export.{name}").FORMAT
    else:
        points = {point.name: point for point in entry_points(group=GROUP)}
        if name not in points:
            fix = f"Use {', '.join((*SHIPPED, *points))}; packages bring more as entry points {GROUP}"
            raise InputError(f"there is no format {name!r}", where="--format", fix=fix)
        found = points[name].load()
    if not isinstance(found, Format):
        what = f"the package's {name!r} is a {type(found).__name__}, not a jobs.export.formats.Format"
        raise InputError(what, where=GROUP, fix="Report this to the package's authors")
    return found
