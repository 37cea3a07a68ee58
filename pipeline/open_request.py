"""An open request: its attempts so far, the references it came near to, and the one sample it ends as."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guards.base import Finding, is_copy
from index.padding import out_of_memory
from pipeline.outcome import Attempt, Caught, Decision, Intervention, Outcome, Request, Sample, Verdict

if TYPE_CHECKING:
    from pipeline.engine.trajectory import Trajectory
    from pipeline.respond.marks import Erasure


@dataclass(kw_only=True)
class OpenRequest:
    """An open request: its current trajectory and what has been tried so far."""

    request: Request
    started_at: float
    truncated: bool
    seed: int
    intervention: Intervention | None = None
    resumed_from: int = 0
    marked: int = 0  # attempts steered for a mark
    erasure: Erasure | None = None  # in the negative conditioning of the current attempt
    negative_text: str | None = None  # the negative prompt in force, where a rung wrote another one than the request's
    attempts: list[Attempt] = field(default_factory=list)
    caught: list[Caught] = field(default_factory=list)
    asked: frozenset[str] = frozenset()  # categories of marks that the prompt asks for and the policy keeps
    unlooked: str = ""  # why a probe could not look
    drawn_prompt: str | None = None  # in place of the request's own
    prompt_findings: tuple[Finding, ...] = ()
    began: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        """Unix seconds by a clock that is never set back, so that no request ends before it started."""
        return self.started_at + time.monotonic() - self.began

    @property
    def prompt(self) -> str:
        """What is drawn."""
        return self.request.prompt if self.drawn_prompt is None else self.drawn_prompt

    @property
    def negative_prompt(self) -> str:
        """The negative prompt in force, without an eraser's tokens."""
        return self.request.negative_prompt if self.negative_text is None else self.negative_text

    @property
    def rungs(self) -> int:
        """Rungs used up when the current trajectory ends: an interrupted try uses one too."""
        return len(self.attempts) + len(self.caught)

    @property
    def copy_rungs(self) -> int:
        """Of these, the rungs of the ladder for copies; where the policy has no other ladder, all of them."""
        return self.rungs - self.marked

    @property
    def steered(self) -> bool:
        """Whether anything but another seed steers the attempt under way."""
        return self.intervention is not None and self.intervention.kind != "reseed"

    @property
    def catches(self) -> list[Caught]:
        """The interrupted tries of the attempt under way."""
        return self.caught[sum(len(attempt.caught) for attempt in self.attempts) :]

    def own_references(self) -> list[str]:
        """The references that the sample was caught by or flagged for so far; it is steered away from them."""
        caught = [caught.nearest[0].ref_id for caught in reversed(self.caught)]  # the others it was only near to
        found = [f for attempt in reversed(self.attempts) for f in attempt.findings if f.triggered]
        return list(dict.fromkeys([*caught, *(f.ref_id for f in found if is_copy(f.category))]))

    def nearest_references(self) -> list[str]:
        """The sample's own references: those it was just caught by, those it was flagged for, the nearest; then earlier."""

        def of(attempt: Attempt) -> list[str]:
            flagged = [f.ref_id for f in attempt.findings if f.triggered and is_copy(f.category)]
            before = [match.ref_id for caught in reversed(attempt.caught) for match in caught.nearest]
            return [*flagged, *(match.ref_id for match in attempt.nearest), *before]

        now = [match.ref_id for caught in reversed(self.catches) for match in caught.nearest]
        return list(dict.fromkeys([*now, *(ref_id for attempt in reversed(self.attempts) for ref_id in of(attempt))]))

    def ended(self, decision: Decision) -> Sample:
        """Ended by a decision about its last attempt."""
        accepted = decision.verdict is Verdict.ACCEPT
        steered = self.attempts[-1].intervention is not None
        outcome = {
            Verdict.ACCEPT: Outcome.ACCEPTED_AFTER_STEERING if steered else Outcome.ACCEPTED,
            Verdict.REVIEW: Outcome.REVIEW,
        }.get(decision.verdict, Outcome.REJECTED)
        return Sample(
            request=self.request,
            outcome=outcome,
            reason=decision.reason,
            attempts=tuple(self.attempts),
            accepted_attempt=self.attempts[-1].number if accepted else None,
            prompt_truncated=self.truncated,
            drawn_prompt=self.drawn_prompt,
            started_at=self.started_at,
            finished_at=self.now(),
        )

    def refused(self, reason: str) -> Sample:
        """Ended by the guard of prompts, before anything was drawn."""
        return Sample(
            request=self.request,
            outcome=Outcome.REJECTED,
            reason=reason,
            prompt_findings=self.prompt_findings,
            started_at=self.started_at,
            finished_at=self.now(),
        )

    def broken(self, reason: str, error: Exception, unfinished: Trajectory | None = None) -> Sample:
        """Ended by an exception. The reason is ``oom`` where something did not fit into memory.

        Args:
            reason: for every other exception.
            error: the exception.
            unfinished: the trajectory under way, if it is in no attempt and no catch; its cost counts as lost.
        """
        message = ": ".join([*getattr(error, "__notes__", ()), str(error)])
        return self.failed("oom" if out_of_memory(error) else reason, message, type(error).__name__, unfinished)

    def failed(self, reason: str, message: str, error_class: str, unfinished: Trajectory | None = None) -> Sample:
        """Ended without a decision."""
        lost = [(caught.denoiser_evals, caught.device_seconds) for caught in self.catches]
        if unfinished is not None:
            lost.append((unfinished.evals, unfinished.device_seconds))
        evals, seconds = (sum(spent) for spent in zip((0.0, 0.0), *lost, strict=True))
        return Sample(
            request=self.request,
            outcome=Outcome.ERROR,
            reason=reason,
            attempts=tuple(self.attempts),
            prompt_truncated=self.truncated,
            prompt_findings=self.prompt_findings,
            drawn_prompt=self.drawn_prompt,
            error_class=error_class,
            error_message=message[:500],
            started_at=self.started_at,
            finished_at=self.now(),
            lost_evals=evals,
            lost_seconds=seconds,
        )
