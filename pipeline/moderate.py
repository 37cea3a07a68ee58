"""Request → outcome: the loop a reader opens first.

Every request is drawn, looked at by every guard, decided about and, while the policy's ladder has rungs left, steered
away from its own nearest references and drawn again, in the same batches as all others. Whatever happens, it
ends as exactly one sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from index.errors import SteeringFailed
from index.fingerprint import pixel_digest
from pipeline.decide import decide
from pipeline.engine.trajectory import Trajectory
from pipeline.model.latent import PICTURE_ROWS
from pipeline.next_attempt import affordable, first, steer, steer_caught
from pipeline.open_request import OpenRequest
from pipeline.outcome import Attempt, Caught, Decision, Intervention, Request, Sample, Verdict
from pipeline.runtime import Runtime, Study

if TYPE_CHECKING:
    pass

RESEEDED = Intervention(kind="reseed")
T = TypeVar("T")


def moderate(runtime: Runtime, requests: Iterable[Request]) -> Iterator[Sample]:
    """Draw and clear every request; yields each sample when it ends, in the order of ending.

    Requests are taken as rows become free for them: the source may be longer than memory.
    One bad request becomes one error sample and does not disturb the others. Raises nothing on purpose.
    """
    loop, source = Moderation(runtime), iter(requests)
    while True:
        while loop.room and (request := next(source, None)) is not None:
            yield from loop.submit(request)
        if not loop.busy:
            return
        yield from loop.step()


class Moderation:
    """The requests under way on a runtime. While there is room, submit; step until it is not busy any more."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime: Runtime = runtime
        self._cases: dict[int, OpenRequest] = {}
        self._unseen: list[Trajectory] = []  # finished; they wait for company as long as the calls are full without them
        self._submitted = 0

    @property
    def room(self) -> bool:
        """Whether one more request would help to fill the calls."""
        return self.runtime.engine.room

    @property
    def busy(self) -> bool:
        return bool(self._cases)

    def submit(self, request: Request) -> list[Sample]:
        """Queue a request; returns its sample where it has ended already."""
        case = OpenRequest(
            request=request, started_at=time.time(), truncated=False, seed=request.seed, erasure=self.runtime.standing
        )
        if request.problem is not None:
            return [case.failed(*request.problem, "InputError")]
        tag, self._submitted = self._submitted, self._submitted + 1
        try:
            case.truncated = self.runtime.model.truncated(request.prompt)
            self.runtime.engine.submit(first(self.runtime, tag, request))
        except Exception as error:
            return [case.broken("error.prompt", error)]
        self._cases[tag] = case
        return []

    def step(self) -> list[Sample]:
        """One call of the denoiser, and a look at what it finished; returns the samples that ended."""
        runtime, cases = self.runtime, self._cases
        if not runtime.engine.busy and not self._unseen:
            message = "the engine stopped before this request was drawn"
            return [cases.pop(tag).failed("error.lost", message, "RuntimeError") for tag in [*cases]]
        ended: list[Sample] = []
        try:
            finished, lost = runtime.engine.make_call()
        except Exception as error:  # it fails for everybody: all in it end as error rows, nobody is lost
            finished, lost = [], [(trajectory, error) for trajectory in runtime.engine.abandon()]
        for trajectory, failure in lost:
            reason = "error.steering" if isinstance(failure, SteeringFailed) else "error.engine"
            ended.append(cases.pop(trajectory.tag).broken(reason, failure, trajectory))
        for trajectory, found in _look(runtime, cases):
            case = cases[trajectory.tag]
            try:
                steer_caught(runtime, trajectory, case, found)
            except Exception as error:
                ended.append(cases.pop(trajectory.tag).broken("error.steering", error))
        self._unseen += finished
        if len(self._unseen) >= PICTURE_ROWS or not runtime.engine.full:
            finished, self._unseen = self._unseen, []
            ended += self._examine(finished)
        return ended

    def _examine(self, finished: list[Trajectory]) -> list[Sample]:
        """Look at finished pictures; steer on or end each."""
        runtime, cases, ended = self.runtime, self._cases, list[Sample]()
        studied, failures = _together_or_alone(
            lambda some: runtime.study([t.latent for t in some], [cases[t.tag].own_references() for t in some]), finished
        )
        for trajectory, failure in failures:
            ended.append(cases.pop(trajectory.tag).broken("error.guard", failure, trajectory))
        for trajectory, study in studied:
            case, reason = cases[trajectory.tag], "error.guard"
            flight: Trajectory | None = trajectory
            try:
                decision, flight = _decided(runtime, trajectory, case, study), None
                if decision.verdict is Verdict.STEER:
                    reason = "error.steering"
                    steer(runtime, trajectory, case, decision)
            except Exception as error:
                ended.append(cases.pop(trajectory.tag).broken(reason, error, flight))
            else:
                if decision.verdict is not Verdict.STEER:
                    ended.append(cases.pop(trajectory.tag).ended(decision))
        return ended


def _together_or_alone(
    look: Callable[[list[Trajectory]], Sequence[T]], those: list[Trajectory]
) -> tuple[list[tuple[Trajectory, T]], list[tuple[Trajectory, Exception]]]:
    """Look at trajectories together, or, if that fails, at each alone; returns what was seen, and which failed."""
    if not those:
        return [], []
    try:
        return list(zip(those, look(those), strict=True)), []
    except Exception as error:
        if len(those) == 1:
            return [], [(those[0], error)]
    alone = [_together_or_alone(look, [trajectory]) for trajectory in those]
    return [pair for seen, _ in alone for pair in seen], [pair for _, failed in alone for pair in failed]


def _decided(runtime: Runtime, trajectory: Trajectory, case: OpenRequest, study: Study) -> Decision:
    """Decide about a picture that was looked at, and put its attempt on record."""
    another, catches = affordable(runtime, case, trajectory), tuple(case.catches)
    decision = decide(study.findings, case.rungs, runtime.policy, case.marked, another=another)
    case.attempts.append(
        Attempt(
            number=len(case.attempts), seed=case.seed, resumed_from_step=case.resumed_from, intervention=case.intervention,
            picture=study.picture, pixel_sha256=pixel_digest(study.picture),
            embedding=study.embedding, findings=study.findings, nearest=study.nearest, decision=decision,
            denoiser_evals=trajectory.evals + sum(c.denoiser_evals for c in catches),
            device_seconds=trajectory.device_seconds + sum(c.device_seconds for c in catches),
            skipped_guards=(*runtime.skipped, *([case.unlooked] if case.unlooked else [])),
            rows_from=tuple(trajectory.rows_from), padded_rows=runtime.padded_rows(), caught=catches,
            guidance_norms=tuple(trajectory.guidance_norms), update_norms=tuple(trajectory.update_norms),
        )
    )  # fmt: skip
    case.unlooked = ""
    return decision


def _look(runtime: Runtime, cases: dict[int, OpenRequest]) -> list[tuple[Trajectory, Caught]]:
    """Let the probes look at the samples under way that nothing steers yet; take those they catch out of the engine.

    A probe that fails costs no picture: the guards look at the finished one anyway, and the attempt records the failure.
    """
    early = runtime.early
    if early is None:
        return []
    due = [
        t
        for t in runtime.engine.running
        if t.step in early.steps
        and (cases[t.tag].intervention or RESEEDED).kind == "reseed"
        and cases[t.tag].rungs - cases[t.tag].marked < len(runtime.policy.ladder)
        and not t.group  # its mates need it in their calls
        and affordable(runtime, cases[t.tag], t)
    ]
    found, failures = _together_or_alone(lambda some: early.look(some, [cases[t.tag].request.prompt for t in some]), due)
    for t, error in failures:
        cases[t.tag].unlooked = f"early: {type(error).__name__}: {error}"[:200]
    caught = [(t, hit) for t, hit in found if hit is not None]
    runtime.engine.withdraw([t for t, _ in caught])
    return caught
