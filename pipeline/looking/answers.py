"""What a guard answers, held against what guards promise (:class:`guards.base.Guard`).

A guard of another package may break a promise that a picture's release rests on: without a finding nothing was found, a finding
with another guard's name goes by that guard's action, and a text that cannot be written ends the run. A look with a wrong
answer fails: its pictures do not pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from guards.base import Finding, Guard
from index.errors import ClearanceError
from index.printable import short

FIX = "The guard's author can try it with guards.conformance.check_guard"
MOST_FINDINGS = 1000  # of one picture: rows hold them, reports and pages show them
MOST_DETAIL = 16_384  # signs of one finding's text


class WrongAnswer(ClearanceError):
    """A guard answered something else than the findings that guards promise."""


def answered(guard: Guard, pictures: np.ndarray) -> list[list[Finding]]:
    """A guard's findings about uint8 RGB pictures (N, H, W, 3), of which it gets a copy; see :func:`shown`.

    Raises:
        WrongAnswer: it answers something else than a guard promises, or wants to end the process.
    """
    try:
        found = guard.check(shown(pictures))
    except SystemExit as error:  # it would end the run, and say nothing
        raise WrongAnswer(f"it wants to end the process ({short(error.code)})", fix=FIX) from error
    if not isinstance(found, list | tuple) or len(found) != len(pictures):
        given = f"{len(found)} lists" if isinstance(found, list | tuple) else type(found).__name__
        raise WrongAnswer(f"it gives {given} for {len(pictures)} pictures, and not one list for each", fix=FIX)
    for findings in found:
        if wrong := _wrong(guard, findings):
            raise WrongAnswer(wrong, fix=FIX)
    return [list(findings) for findings in found]


def shown(pictures: np.ndarray) -> np.ndarray:
    """A copy that cannot be written to: what looks at pictures changes nothing of those that are released.

    Not the same memory, because libraries write into what numpy calls read-only.
    """
    made = pictures.copy()
    made.setflags(write=False)
    return made


def _wrong(guard: Guard, findings: Any) -> str:
    """What is wrong with the findings of one picture; empty: nothing."""
    if not isinstance(findings, list | tuple) or not all(isinstance(one, Finding) for one in findings):
        return "it gives something else than a list of findings for a picture"
    if len(findings) > MOST_FINDINGS:
        return f"it gives {len(findings):,} findings for a picture, more than {MOST_FINDINGS:,}"
    for one in findings:
        if not all(map(_is_text, (one.guard, one.version, one.category, one.ref_id, one.detail))):
            return "a finding holds something else than text where text belongs, or text that is not Unicode"
        if one.guard != guard.name:
            return f"a finding names the guard {short(one.guard)}"
        if one.version != guard.version:
            return f"a finding names the version {short(one.version)}, and the guard's is {short(guard.version)}"
        if one.category not in guard.categories:
            return f"a finding has the category {short(one.category)}, and the guard declares {', '.join(guard.categories)}"
        if not isinstance(one.confirmed, bool | np.bool_):
            return f"a finding is confirmed = {short(one.confirmed)}, neither true nor false"
        if len(one.detail) > MOST_DETAIL:
            return f"a finding's detail has {len(one.detail):,} signs, more than {MOST_DETAIL:,}"
        if one.box is not None and not _is_box(one.box):
            return f"a finding's box is {short(one.box)}, not x0, y0, x1, y1 as fractions of the picture"
    if absent := [category for category in guard.categories if category not in {one.category for one in findings}]:
        return f"it gives no finding of {', '.join(absent)} for a picture: one is due for every category, with a low score too"
    return ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= sign <= "\udfff" for sign in value)  # halves of pairs: no UTF-8


def _is_box(box: Any) -> bool:
    try:
        x0, y0, x1, y1 = box
        return bool(0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1)
    except (TypeError, ValueError):
        return False
