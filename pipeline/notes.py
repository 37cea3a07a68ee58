"""Notes: what is done differently from what somebody may expect, said before the first picture is drawn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Note:
    """One thing worth knowing that stops nothing.

    Attributes:
        topic: what it is about, one word: ``prompts``, ``scheduler``, ``device``, ``guards``, …
        text: a sentence for people.
    """

    topic: str
    text: str
