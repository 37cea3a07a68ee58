"""The error of the judges."""

from __future__ import annotations

from index.errors import ClearanceError


class JudgeUnavailable(ClearanceError):
    """A judge cannot be opened here; the message names what is missing and how to install it."""
