"""The named stages of verifying a run. Each passes, fails or is skipped on its own, and no stage hides behind another.

A stage that nothing contradicted and that looked at nothing is *skipped*, never passed: a run that was not signed has no
signature that could be right or wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

FILES, CHAINS, TREE, STATEMENT, SIGNATURE = "files", "chains", "tree", "statement", "signature"
TIME_STAMP, PICTURES, PROMPTS, EVENTS = "time stamp", "pictures", "prompts", "events"
# In the order in which they are shown.
STAGES = (FILES, CHAINS, TREE, STATEMENT, SIGNATURE, TIME_STAMP, PICTURES, PROMPTS, EVENTS)
State = Literal["pass", "fail", "skip"]


@dataclass(frozen=True)
class Problem:
    """One thing that does not hold: where (file, row, column) and what."""

    where: str
    what: str


@dataclass(frozen=True)
class Stage:
    """What one stage of verifying came to.

    Attributes:
        name: one of :data:`STAGES`.
        state: ``pass``, ``fail`` or ``skip``.
        sentence: what was compared, how many problems there are, or why nothing was compared.
        problems: what does not hold; empty unless the stage failed.
    """

    name: str
    state: State
    sentence: str
    problems: tuple[Problem, ...] = ()


class Findings:
    """Collects, stage by stage, what does not hold, what was compared and what could not be.

    Attributes:
        counts: how much was recomputed, by name.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._problems: dict[tuple[str, Problem], None] = {}  # in the order found, each once in its stage
        self._compared: dict[str, str] = {}
        self._skipped: dict[str, str] = {}

    def problem(self, stage: str, where: str, what: str) -> None:
        """Something does not hold."""
        self._problems.setdefault((stage, Problem(where, what)))

    def add(self, stage: str, found: Iterable[tuple[str, str]]) -> None:
        """Several things do not hold, as (where, what)."""
        for where, what in found:
            self.problem(stage, where, what)

    def compared(self, stage: str, sentence: str) -> None:
        """What a stage held against what; its sentence unless it failed or was skipped."""
        self._compared[stage] = sentence

    def skipped(self, stage: str, reason: str) -> None:
        """Why a stage, or a part of it, was not compared; it does not pass then."""
        self._skipped[stage] = reason

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What does not hold, in the order found."""
        return tuple(dict.fromkeys(problem for _, problem in self._problems))

    def stages(self, most: int) -> tuple[Stage, ...]:
        """Every stage of :data:`STAGES` with its result, and at most ``most`` of its problems."""
        return tuple(self._stage(name, most) for name in STAGES)

    def _stage(self, name: str, most: int) -> Stage:
        problems = tuple(problem for stage, problem in self._problems if stage == name)
        if problems:
            number = f"{len(problems):,} problems, the first in" if len(problems) > 1 else "1 problem, in"
            return Stage(name, "fail", f"{number} {problems[0].where}", problems[:most])
        if name in self._skipped:
            return Stage(name, "skip", self._skipped[name])
        if name in self._compared:
            return Stage(name, "pass", self._compared[name])
        return Stage(name, "skip", "nothing in the folder belongs to this stage")
