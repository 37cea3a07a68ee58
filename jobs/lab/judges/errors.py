"""What may go wrong with a judge."""

from __future__ import annotations

from index.errors import ClearanceError


class JudgeUnavailable(ClearanceError):
    """A judge cannot be opened here; the message says what is missing and how to install it."""
