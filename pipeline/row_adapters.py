"""Adapters of single rows, as prompt files name them: ``style``, ``style:0.8`` or ``style:0.8, ink``."""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches
from typing import NamedTuple

from index.errors import InputError

LEAST, MOST = -10.0, 10.0  # strengths, as `weight` in the run file
_STRENGTH = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")


class Named(NamedTuple):
    """One adapter of a row; ``strength`` None: the run file's `weight`."""

    name: str
    strength: float | None = None

    def __str__(self) -> str:
        return self.name if self.strength is None else f"{self.name}:{self.strength:g}"


def row_adapters(text: str, known: Collection[str]) -> tuple[Named, ...]:
    """The adapters that a row names.

    Args:
        text: the value of the column; empty: none.
        known: names of the run file's adapters with ``rows = "named"``.

    Raises:
        InputError: a name is not known or stands twice, or a strength is no number from −10 to 10.
    """
    found: list[Named] = []
    for part in (part.strip() for part in text.split(",")):
        if not part:
            continue
        name, colon, strength = (piece.strip() for piece in part.partition(":"))
        if name not in known:
            near = get_close_matches(name, known, 1)
            several = [one for one in re.split(r"[;|+\s]+", part) if one]  # names, with another sign between them
            if len(several) > 1 and all(one.partition(":")[0] in known for one in several):
                near = [", ".join(several)]
            fix = f"Write {near[0]!r}" if near else f"Name one of {', '.join(sorted(known))}"
            raise InputError(f'there is no adapter {name!r} with rows = "named"', where="adapter", fix=fix)
        if name in [one.name for one in found]:
            raise InputError(f"adapter {name!r} is named twice", where="adapter", fix="Name it once")
        if colon and (not _STRENGTH.fullmatch(strength) or not LEAST <= float(strength) <= MOST):
            what = f"the strength {strength!r} of {name!r} is no number from {LEAST:g} to {MOST:g}"
            raise InputError(what, where="adapter", fix=f"Write it as {name}:0.8")
        found.append(Named(name, float(strength) if colon else None))
    return tuple(found)
