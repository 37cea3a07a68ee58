"""Notes: what a run does differently from what its files let a reader expect, collected before it draws."""

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
