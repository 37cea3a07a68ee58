"""Who does something to a run after it has ended, and why."""

from __future__ import annotations

from dataclasses import dataclass

from index.errors import InputError


@dataclass(frozen=True, kw_only=True)
class By:
    """Who does something to a run, and why: what every event of the kind states.

    Attributes:
        role: the role, as in ``counsel``. reason: a sentence. person: a pseudonym; empty: none is given.
    """

    role: str
    reason: str
    person: str = ""

    def __post_init__(self) -> None:
        for name, option in (("role", "--by"), ("reason", "--reason")):
            if not getattr(self, name).strip():
                raise InputError(f"the {name} is empty", where=option, fix=f"Name the {name}; it stays in the run's events")
