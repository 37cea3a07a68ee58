"""The columns with which a row states its own picture: ``width``, ``height``, ``steps`` and ``guidance_scale``."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from index.errors import ConfigError
from pipeline.config import GenerationConfig, ModelConfig
from pipeline.fields import Range, keys
from pipeline.model.sides import Sides
from pipeline.outcome import AS_THE_RUN, Stated

GAPS = {"", "nan", "none", "null", "<na>"}  # how programs write "no number" into a text file
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)

Problem = tuple[str, str]
Rule = Callable[[], Sides | None]


class _Unfit(ValueError):
    """A value that cannot stand there."""


def stated_of(row: Mapping[str, Any], rule: Rule) -> tuple[Stated, Problem | None]:
    """What a row states of its picture, and what is wrong with it.

    Args:
        row: column → value; a gap is as the run file says.
        rule: gives the rule for sides, once one is stated; None: any side may do.
    """
    if not any(name in row for name in Stated._fields):
        return AS_THE_RUN, None
    found: dict[str, Any] = {}
    for name in Stated._fields:
        code = ".".join(("input", f"bad_{name}"))
        try:
            value = _number(name, row.get(name))
            if value is not None and name in ("width", "height") and (sides := rule()) is not None:
                value = sides.fit(int(value))
        except _Unfit as error:
            return Stated(), (code, str(error))
        except ConfigError as error:
            return Stated(), (code, f"{name} {error.what}; {error.fix[0].lower()}{error.fix[1:]}")
        found[name] = value
    return Stated(**found), None


def _number(name: str, value: Any) -> int | float | None:
    if value is None or value != value or (isinstance(value, str) and value.strip().lower() in GAPS):
        return None
    allowed, whole = _range(name), name != "guidance_scale"
    number = value.strip() if isinstance(value, str) else value
    if isinstance(number, str) and NUMBER.fullmatch(number):
        number = float(number)
    if not isinstance(number, int | float) or isinstance(number, bool) or number not in allowed or (whole and number % 1):
        shown = repr(value) if len(str(value)) <= 40 else f"{str(value)[:40]}…"
        raise _Unfit(f"{name} {shown} is not a {'whole ' if whole else ''}number {allowed}")
    return int(number) if whole else float(number)


@functools.cache
def _range(name: str) -> Range:
    """That of the run file's key of the same name."""
    section = ModelConfig if name in ("width", "height") else GenerationConfig
    found = next(key.range for key in keys(section) if key.loc == (name,))
    assert found is not None
    return found
