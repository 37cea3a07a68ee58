"""What to do about a name that nothing has: most are slips of one that is known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def meant(name: str, known: Iterable[str], *, otherwise: str) -> str:
    """Advice for an error: the nearest of the known names, or what is said where none is near."""
    near = get_close_matches(name, list(known), 1)
    return f"Did you mean {near[0]!r}?" if near else otherwise
