"""Text from outside (titles, keys, paths, messages of libraries), made safe to show on a terminal or a page."""

from __future__ import annotations

import re

# Control characters (C0, DEL, C1), line and paragraph separators, bidirectional overrides, and halves of surrogate pairs
# (a file name that is not UTF-8 holds them).
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

SHORT = 80  # signs of a value in a message


def visible(text: str, *, lines: bool = True) -> str:
    r"""The text with unprintable characters escaped (``\x1b``); without ``lines`` ends of lines as well."""
    shown = UNPRINTABLE.sub(_escaped, text)
    return shown if lines else shown.replace("\n", r"\n").replace("\t", r"\t")


def short(value: object) -> str:
    """The beginning of what Python shows of a value, for a message about it."""
    return visible(repr(value)[:SHORT], lines=False)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
