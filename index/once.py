"""JSON that people or other programs wrote: an object that names a key twice is refused.

Python's reader takes the last of the values, other readers the first: what one person reads is then not what is carried out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Twice(ValueError):
    """A JSON object that names a key twice."""


def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The ``object_pairs_hook`` of a reader of JSON.

    Raises:
        Twice: a key stands there twice.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Twice(f"{name!r} appears twice")
        found[name] = value
    return found
