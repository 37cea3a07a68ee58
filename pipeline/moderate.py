"""Request → outcome: the loop a reader opens first.

Every request is drawn, looked at by every guard, decided about and, while the policy's ladder has rungs left, steered
away from its own nearest references and drawn again, in the same batches as everybody else. Whatever happens, it
ends as exactly one sample.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from guards.copies import RECOLOURED
from index.errors import SteeringFailed
from pipeline.case import Case
from pipeline.decide import decide, is_mark
from pipeline.model.latent import PICTURE_ROWS
from pipeline.outcome import Attempt, Caught, Decision, Intervention, Request, Sample, Verdict
from pipeline.policy import action_of
from pipeline.rungs import EraseRung, FromReferences, Rung
from pipeline.steer.early import TURNED
from pipeline.steer.erase import marks_found
from pipeline.steer.erasers import Erasure, erase
from pipeline.steer.ladder import RESEED, Failed, Tools, Words, random_references, retry
from pipeline.studio import Studio, Study
from pipeline.trajectory import Trajectory

if TYPE_CHECKING:
    import torch

RESEEDED = Intervention("reseed")
T = TypeVar("T")


def moderate(studio: Studio, requests: Iterable[Request]) -> Iterator[Sample]:
    """Draw and clear every request; yields each sample when it ends, in the order of ending.

    Requests are taken as rows become free for them: the source may be longer than memory.
    One bad request becomes one error sample and does not disturb the others. Raises nothing on purpose.
    """
    loop, source = Moderation(studio), iter(requests)
    while True:
        while loop.room and (request := next(source, None)) is not None:
            yield from loop.submit(request)
        if not loop.busy:
            return
        yield from loop.step()


class Moderation:
    """The requests under way on a studio. While there is room, submit; step until it is not busy any more."""

    def __init__(self, studio: Studio) -> None:
        self.studio: Studio = studio
        self._cases: dict[int, Case] = {}
        self._unseen: list[Trajectory] = []  # finished; they wait for company as long as the calls are full without them
        self._submitted = 0

    @property
    def room(self) -> bool:
        """Whether one more request would help to fill the calls."""
        return self.studio.engine.room

    @property
    def busy(self) -> bool:
        return bool(self._cases)

    def submit(self, request: Request) -> list[Sample]:
        """Queue a request; returns its sample where it has ended already."""
        case = Case(request=request, started_at=time.time(), truncated=False, seed=request.seed, erasure=self.studio.standing)
        if request.problem is not None:
            return [case.failed(*request.problem, "InputError")]
        tag, self._submitted = self._submitted, self._submitted + 1
        try:
            case.truncated = self.studio.model.truncated(request.prompt)
            self.studio.engine.submit(_first(self.studio, tag, request))
        except Exception as error:
            return [case.broken("error.prompt", error)]
        self._cases[tag] = case
        return []

    def step(self) -> list[Sample]:
        """One call of the denoiser, and a look at what it finished; returns the samples that ended."""
        studio, cases = self.studio, self._cases
        if not studio.engine.busy and not self._unseen:
            message = "the engine stopped before this request was drawn"
            return [cases.pop(tag).failed("error.lost", message, "RuntimeError") for tag in [*cases]]
        ended: list[Sample] = []
        try:
            finished, lost = studio.engine.make_call()
        except Exception as error:  # it fails for everybody: all in it end as error rows, nobody is lost
            finished, lost = [], [(trajectory, error) for trajectory in studio.engine.abandon()]
        for trajectory, failure in lost:
            reason = "error.steering" if isinstance(failure, SteeringFailed) else "error.engine"
            ended.append(cases.pop(trajectory.tag).broken(reason, failure, trajectory))
        for trajectory, found in _look(studio, cases):
            case = cases[trajectory.tag]
            try:
                _turn(studio, trajectory, case, found)
            except Exception as error:
                ended.append(cases.pop(trajectory.tag).broken("error.steering", error))
        self._unseen += finished
        if len(self._unseen) >= PICTURE_ROWS or not studio.engine.full:
            finished, self._unseen = self._unseen, []
            ended += self._examine(finished)
        return ended

    def _examine(self, finished: list[Trajectory]) -> list[Sample]:
        """Look at finished pictures; steer on or end each."""
        studio, cases, ended = self.studio, self._cases, list[Sample]()
        studied, failures = _together_or_alone(
            lambda some: studio.study([t.latent for t in some], [cases[t.tag].own_references() for t in some]), finished
        )
        for trajectory, failure in failures:
            ended.append(cases.pop(trajectory.tag).broken("error.guard", failure, trajectory))
        for trajectory, study in studied:
            case, reason = cases[trajectory.tag], "error.guard"
            flight: Trajectory | None = trajectory
            try:
                decision, flight = _decided(studio, trajectory, case, study), None
                if decision.verdict is Verdict.STEER:
                    reason = "error.steering"
                    _steer(studio, trajectory, case, decision)
            except Exception as error:
                ended.append(cases.pop(trajectory.tag).broken(reason, error, flight))
            else:
                if decision.verdict is not Verdict.STEER:
                    ended.append(cases.pop(trajectory.tag).ended(decision))
        return ended


def _together_or_alone(
    look: Callable[[list[Trajectory]], Sequence[T]], those: list[Trajectory]
) -> tuple[list[tuple[Trajectory, T]], list[tuple[Trajectory, Exception]]]:
    """Look at trajectories together; if that fails, at one by one, so that one fails alone: what was seen, and who failed."""
    if not those:
        return [], []
    try:
        return list(zip(those, look(those), strict=True)), []
    except Exception as error:
        if len(those) == 1:
            return [], [(those[0], error)]
    alone = [_together_or_alone(look, [trajectory]) for trajectory in those]
    return [pair for seen, _ in alone for pair in seen], [pair for _, failed in alone for pair in failed]


def _decided(studio: Studio, trajectory: Trajectory, case: Case, study: Study) -> Decision:
    """Decide about a picture that was looked at, and put its attempt on record."""
    another, catches = _affordable(studio, case, trajectory), tuple(case.catches)
    decision = decide(study.findings, case.rungs, studio.policy, case.marked, another=another)
    case.attempts.append(
        Attempt(
            number=len(case.attempts), seed=case.seed, resumed_from_step=case.resumed_from, intervention=case.intervention,
            picture=study.picture, pixel_sha256=hashlib.sha256(study.picture.tobytes()).hexdigest(),
            embedding=study.embedding, findings=study.findings, nearest=study.nearest, decision=decision,
            denoiser_evals=trajectory.evals + sum(c.denoiser_evals for c in catches),
            device_seconds=trajectory.device_seconds + sum(c.device_seconds for c in catches),
            skipped_guards=(*studio.skipped, *([case.unlooked] if case.unlooked else [])),
            rows_from=tuple(trajectory.rows_from), padded_rows=studio.padded_rows(), caught=catches,
            guidance_norms=tuple(trajectory.guidance_norms), update_norms=tuple(trajectory.update_norms),
        )
    )  # fmt: skip
    case.unlooked = ""
    return decision


def _affordable(studio: Studio, case: Case, last: Trajectory) -> bool:
    """Whether the policy's budget has room for a full picture's steps once more."""
    flights = [last.evals, *(c.denoiser_evals for c in case.catches), *(a.denoiser_evals for a in case.attempts)]
    most = studio.policy.max_evals
    return most is None or sum(flights) + len(studio.engine.sampler) <= most


def _look(studio: Studio, cases: dict[int, Case]) -> list[tuple[Trajectory, Caught]]:
    """Let the probes look at the samples under way that nothing steers yet; take those they catch out of the engine.

    A probe that fails costs nobody a picture: the finished one is looked at anyway, and the attempt says why it was not probed.
    """
    early = studio.early
    if early is None:
        return []
    due = [
        t
        for t in studio.engine.running
        if t.step in early.steps
        and (cases[t.tag].intervention or RESEEDED).kind == "reseed"
        and cases[t.tag].rungs - cases[t.tag].marked < len(studio.policy.ladder)
        and not t.group  # its mates need it in their calls
        and _affordable(studio, cases[t.tag], t)
    ]
    found, failures = _together_or_alone(lambda some: early.look(some, [cases[t.tag].request.prompt for t in some]), due)
    for t, error in failures:
        cases[t.tag].unlooked = f"early: {type(error).__name__}: {error}"[:200]
    caught = [(t, hit) for t, hit in found if hit is not None]
    studio.engine.withdraw([t for t, _ in caught])
    return caught


def _turn(studio: Studio, last: Trajectory, case: Case, caught: Caught) -> None:
    """Steer a caught sample from where it was, with the ladder's next rung, away from the references it was caught by."""
    case.caught.append(replace(caught, denoiser_evals=last.evals, device_seconds=last.device_seconds))
    _again(
        studio, last, case, studio.policy.ladder[case.rungs - 1 - case.marked], case.nearest_references(), caught_at=caught.step
    )


def _first(studio: Studio, tag: int, request: Request) -> Trajectory:
    negative = studio.negative_of(request.negative_prompt, studio.standing) if studio.engine.guided else None
    context, noise = studio.context_of(request.prompt), studio.engine.initial_noise(request.seed)
    return Trajectory(tag, noise, 0, context, negative, seed=request.seed, lowrank=studio.erasers.always_lowrank)


def _steer(studio: Studio, last: Trajectory, case: Case, decision: Decision) -> None:
    """Submit the next attempt: the ladder's rung for a copy, the mark ladder's for a mark, a re-seed for anything else."""
    if decision.reason.startswith("copy."):
        return _again(studio, last, case, studio.policy.ladder[case.rungs - 1 - case.marked], case.nearest_references())
    rung: Rung = RESEED
    if studio.policy.mark_ladder and is_mark(decision.reason):
        answer, case.marked = studio.policy.mark_ladder[case.marked], case.marked + 1
        if isinstance(answer, EraseRung):
            erasure = _erasure(studio, case, answer)
            if erasure is not None and (last.negative is not None or not erasure.tokens):
                return _erase(studio, last, case, answer, erasure)
        else:
            rung = answer
    _again(studio, last, case, rung, [])


def _again(
    studio: Studio, last: Trajectory, case: Case, rung: Rung, ref_ids: list[str], *, caught_at: int | None = None
) -> None:
    attempt = case.rungs
    if isinstance(rung, FromReferences) and rung.target == "random" and ref_ids and studio.index is not None:
        # A control: what has nothing to do with the sample.
        everything = [reference.ref_id for reference in studio.index.references()]
        ref_ids = random_references(everything, ref_ids, seed=case.request.seed, attempt=attempt)[: rung.references]
    latents = {ref_id: z for ref_id in ref_ids if (z := studio.reference_latent(ref_id)) is not None}
    failed = Failed(
        last=last, seed=case.seed, attempt=attempt, ref_ids=list(latents), latents=list(latents.values()),
        colours=_colours(studio, case), words=_words(studio, case), caught_at=caught_at,
    )  # fmt: skip
    tools = Tools(
        engine=studio.engine, reference_context=studio.context_of(""), centre=studio.reference_centre,
        embedder_space=studio.embedder_space, rollback=studio.policy.early.rollback,
    )  # fmt: skip
    again = retry(failed, rung, tools)
    trajectory, case.intervention, case.seed = again.trajectory, again.intervention, again.seed
    if case.erasure is not None:
        case.intervention = replace(case.intervention, tokens=case.erasure.tokens, adapters=case.erasure.adapters)
    case.resumed_from = trajectory.step
    studio.engine.submit(trajectory.resumed(last, case.seed))


def _erasure(studio: Studio, case: Case, rung: EraseRung) -> Erasure | None:
    """What to leave out: every mark found so far, the last attempt's first; None where that was tried or cannot be said."""
    found = [finding for attempt in reversed(case.attempts) for finding in attempt.findings]
    findings = [finding for finding in found if action_of(studio.policy, finding.guard) == "steer"]
    room, usual = studio.model.word_room(), rung.places == "usual"
    erasure = studio.erasers.asked(marks_found(findings), room, rung.strength, usual=usual)
    before = case.erasure
    tried = erasure is not None and before is not None and before.says_as(erasure)
    return None if tried and not rung.resume_fraction else erasure


def _erase(studio: Studio, last: Trajectory, case: Case, rung: EraseRung, erasure: Erasure) -> None:
    """Submit the next attempt from the same noise, the marks' names and places in its negative conditioning."""
    negative = studio.negative_of(case.request.negative_prompt, erasure) if last.negative is not None else None
    before = case.intervention
    trajectory, case.intervention = erase(studio.engine, last, rung, erasure, negative, seed=case.seed)
    if before is not None and (trajectory.push is not None or trajectory.nudge is not None):
        case.intervention = replace(case.intervention, ref_ids=before.ref_ids)
    case.erasure, case.resumed_from = erasure, trajectory.step
    studio.engine.submit(trajectory.resumed(last, case.seed))


def _words(studio: Studio, case: Case) -> Words:
    titles = {match.ref_id: match.title for attempt in reversed(case.attempts) for match in attempt.nearest}
    titles |= {match.ref_id: match.title for caught in case.caught for match in caught.nearest}
    nearest = [titles.get(ref_id, "") for ref_id in case.nearest_references()]  # flagged ones need not be among the nearest
    return Words(
        case.request.prompt, case.request.negative_prompt, nearest, lambda text: studio.negative_of(text, case.erasure)
    )  # fmt: skip


def _colours(studio: Studio, case: Case) -> dict[str, list[torch.Tensor]]:
    """Of the references that the sample copied in other colours: latents of them all, for the next attempt may choose again."""
    caught = [caught.nearest[0].ref_id for caught in case.caught if caught.signal.endswith(TURNED)]
    found = [f.ref_id for attempt in case.attempts for f in attempt.findings if f.triggered and f.category == RECOLOURED]
    return {ref_id: studio.recoloured_latents(ref_id) for ref_id in dict.fromkeys([*caught, *found])}
