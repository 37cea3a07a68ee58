"""Request → outcome: the loop a reader opens first.

Every request is drawn, checked by every guard and decided about. While the policy's ladder has rungs left, a flagged one is
steered away from its own nearest references and drawn again, in the same calls as all others. Every request ends as exactly
one sample.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from guards.base import Finding
from index.errors import SteeringFailed
from index.fingerprint import pixel_digest
from pipeline.decide import decide
from pipeline.engine.trajectory import Trajectory
from pipeline.looking.looks import Looks
from pipeline.looking.study import Failed, Study, together_or_alone
from pipeline.model.decoder import PICTURE_ROWS
from pipeline.next_attempt import affordable, first, steer, steer_caught
from pipeline.open_request import OpenRequest
from pipeline.outcome import Attempt, Caught, Decision, Request, Sample, Verdict
from pipeline.runtime import Runtime


class Broken(NamedTuple):
    """Why the members of a group that lost one end: reason code, message and class of the error."""

    reason: str
    message: str
    error_class: str


def moderate(runtime: Runtime, requests: Iterable[Request]) -> Iterator[Sample]:
    """Draw and clear every request; yields each sample when it ends, in the order of ending.

    Requests are taken as rows become free for them: the source may be longer than memory.
    One bad request becomes one error sample and does not affect the others. Raises nothing on purpose.
    """
    loop, source = Moderation(runtime), iter(requests)
    while True:
        while loop.room and (request := next(source, None)) is not None:
            yield from loop.submit(request)
        if not loop.busy:
            return
        yield from loop.step()


class Moderation:
    """The requests under way on a runtime. While there is room, submit; step until it is not busy any more.

    The denoiser draws on while guards look at finished pictures elsewhere (:mod:`pipeline.looking`): a step may end no sample.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime: Runtime = runtime
        self._open: dict[int, OpenRequest] = {}
        self._unseen: list[Trajectory] = []  # finished; checked together, once there are enough or a call has empty rows
        self._shown: dict[int, Trajectory] = {}  # at the guards
        self._looks = Looks(lambda *those: runtime.study(*those), runtime.spent, runtime.pool)
        self._submitted = 0
        self._broken: dict[str, Broken] = {}  # groups that lost a member before it was drawn

    @property
    def room(self) -> bool:
        """Whether one more request would help to fill the calls."""
        return self.runtime.engine.room

    @property
    def busy(self) -> bool:
        return bool(self._open)

    def expect(self, prompts: Iterable[str]) -> None:
        """Prompts that will be submitted: they share the text encoder's calls."""
        self.runtime.contexts.expect(self.runtime.drawn(prompts))

    def submit(self, request: Request) -> list[Sample]:
        """Queue a request; returns its sample where it has ended already."""
        open_request = OpenRequest(request=request, started_at=time.time(), truncated=False, seed=request.seed)
        self.runtime.spent.touch(rested=not self._open)
        if request.problem is not None:
            return [open_request.failed(*request.problem, "InputError")]
        if (broken := self._broken.get(request.group)) is not None:
            return [open_request.failed(*broken)]
        tag, self._submitted = self._submitted, self._submitted + 1
        try:
            if (look := self.runtime.look_at_prompt(request.prompt)) is not None:
                open_request.prompt_findings = look.findings
                open_request.drawn_prompt = look.drawn if look.drawn != request.prompt else None
                if look.rejected:
                    return [open_request.refused(look.rejected)]
            open_request.asked = self.runtime.asked(open_request.prompt, request.negative_prompt)
            open_request.erasure = self.runtime.standing_for(open_request.asked)
            open_request.truncated = self.runtime.truncated(open_request.prompt)
            drawn = replace(request, prompt=open_request.prompt)
            self.runtime.engine.submit(first(self.runtime, tag, drawn, open_request.asked))
        except Exception as error:
            return [open_request.broken("error.prompt", error), *self._break(request, "error.prompt", str(error))]
        if self.runtime.early is not None and request.group:
            open_request.unlooked = "early: members of a group are not probed, their mates need them in their calls"
        self._open[tag] = open_request
        return []

    def _break(self, lost: Request, reason: str, message: str) -> list[Sample]:
        """End the mates of a member that will not be drawn: they cannot be drawn without it. Those to come end when they do."""
        if not lost.group:
            return []
        message = f"member {lost.member} of group {lost.group} will not be drawn, and its mates cannot be without it: {message}"
        self._broken[lost.group] = Broken(reason, message, "GroupBroken")
        mates = self.runtime.engine.take_out_group(lost.group)
        return [self._open.pop(t.tag).failed(*self._broken[lost.group], t) for t in mates if t.tag in self._open]

    def close(self) -> None:
        """End the processes beside this one; what is under way is lost."""
        self.runtime.close()

    def give_up(self, row_no: int, reason: str, message: str) -> list[Sample]:
        """End an open request at once, as an error; returns its sample, or nothing where it is not open.

        What is still to come of it (a picture that guards look at) is dropped; the other requests keep their bytes.
        """
        tags = [tag for tag, one in self._open.items() if one.request.row_no == row_no]
        ended = []
        for tag in tags:
            seen = [t for t in (*self._unseen, *self._shown.values()) if t.tag == tag]
            taken = self.runtime.engine.take_out(tag)
            under_way = [*taken, *seen]
            self._unseen = [t for t in self._unseen if t.tag != tag]
            self._shown.pop(tag, None)
            open_request = self._open.pop(tag)
            ended.append(open_request.failed(reason, message, "DeadlineExceeded", under_way[0] if under_way else None))
            if any(t.group for t in taken):
                ended += self._break(open_request.request, reason, message)
        return ended

    def step(self) -> list[Sample]:
        """Make one call of the denoiser, hand over what it finished, take the guards' answers; returns the samples that ended.

        Waits for an answer only where the denoiser has nothing to do, or the guards are far behind.
        """
        engine, open_requests = self.runtime.engine, self._open
        if not (engine.busy or self._unseen or self._shown):
            message = "the engine stopped before this request was drawn"
            return [open_requests.pop(tag).failed("error.lost", message, "RuntimeError") for tag in [*open_requests]]
        behind = self._looks.full and len(self._unseen) >= PICTURE_ROWS
        ended = self._draw() if engine.busy and not behind else []
        while self._unseen and not self._looks.full and (len(self._unseen) >= PICTURE_ROWS or not engine.full):
            finished = [t for t in self._unseen if t.size == self._unseen[0].size][:PICTURE_ROWS]  # a look is of one size
            self._unseen = [t for t in self._unseen if not any(t is one for one in finished)]
            self._shown |= {t.tag: t for t in finished}
            own = [open_requests[t.tag].own_references() for t in finished]
            self._looks.show([t.tag for t in finished], [t.latent for t in finished], own)
        for tag, study in self._looks.answers(wait=behind or not engine.busy):
            if (trajectory := self._shown.pop(tag, None)) is not None:  # else it was given up meanwhile
                ended += self._settle(trajectory, study)
        self.runtime.spent.touch()
        return ended

    def _draw(self) -> list[Sample]:
        """Make one call and let the probes look; returns the samples that failed in it."""
        runtime, open_requests, ended = self.runtime, self._open, list[Sample]()
        try:
            with runtime.spent.spending("computed"):
                runtime.spent.calls += 1
                finished, lost = runtime.engine.make_call()
        except Exception as error:  # no sample of the call has an answer: all of them end as error rows
            finished, lost = [], [(trajectory, error) for trajectory in runtime.engine.abandon()]
        for trajectory, failure in lost:
            reason = "error.steering" if isinstance(failure, SteeringFailed) else "error.engine"
            ended.append(open_requests.pop(trajectory.tag).broken(reason, failure, trajectory))
        for trajectory, found in _probe(runtime, open_requests):
            open_request = open_requests[trajectory.tag]
            try:
                steer_caught(runtime, trajectory, open_request, found)
            except Exception as error:
                ended.append(open_requests.pop(trajectory.tag).broken("error.steering", error))
        self._unseen += finished
        return ended

    def _settle(self, trajectory: Trajectory, study: Study | Failed) -> list[Sample]:
        """Decide about a finished picture that the guards looked at: steer the sample, or end it."""
        runtime, open_request, reason = self.runtime, self._open[trajectory.tag], "error.guard"
        if isinstance(study, Failed):
            reason = "oom" if study.memory else reason
            sample = open_request.failed(reason, study.message, study.error_class, trajectory)
            return self._end(trajectory, sample)
        unfinished: Trajectory | None = trajectory
        try:
            decision, unfinished = _decided(runtime, trajectory, open_request, study), None
            if decision.verdict is not Verdict.STEER:
                return self._end(trajectory, open_request.ended(decision))
            reason = "error.steering"
            steer(runtime, trajectory, open_request, decision)
        except Exception as error:
            return self._end(trajectory, open_request.broken(reason, error, unfinished))
        return []

    def _end(self, trajectory: Trajectory, sample: Sample) -> list[Sample]:
        del self._open[trajectory.tag]
        return [sample]


def _decided(runtime: Runtime, trajectory: Trajectory, open_request: OpenRequest, study: Study) -> Decision:
    """Decide about a checked picture and record its attempt."""
    another, catches = affordable(runtime, open_request, trajectory), tuple(open_request.catches)
    findings = (*open_request.prompt_findings, *study.findings, *_faithfulness(runtime, open_request, study, trajectory))
    asked = open_request.asked
    decision = decide(findings, open_request.rungs, runtime.policy, open_request.marked, another=another, asked=asked)
    open_request.attempts.append(
        Attempt(
            number=len(open_request.attempts), seed=open_request.seed,
            resumed_from_step=open_request.resumed_from, intervention=open_request.intervention,
            picture=study.picture, pixel_sha256=pixel_digest(study.picture),
            embedding=study.embedding, findings=findings, nearest=study.nearest, decision=decision,
            denoiser_evals=trajectory.evals + sum(c.denoiser_evals for c in catches),
            device_seconds=trajectory.device_seconds + sum(c.device_seconds for c in catches),
            skipped_guards=(*runtime.skipped, *([open_request.unlooked] if open_request.unlooked else [])),
            rows_from=tuple(trajectory.rows_from), padded_rows=runtime.padded_rows(study.shapes, trajectory.latent),
            caught=catches, guard_seconds=study.guard_seconds,
            guidance_norms=tuple(trajectory.guidance_norms), update_norms=tuple(trajectory.update_norms),
            group=trajectory.group.id if trajectory.group else "", asked=tuple(sorted(asked)),
        )
    )  # fmt: skip
    open_request.unlooked = ""
    return decision


def _faithfulness(runtime: Runtime, open_request: OpenRequest, study: Study, drawn: Trajectory) -> list[Finding]:
    """Whether the picture still shows what was asked, where the policy wants to know. Mates of a group push it as well."""
    guard, pushed = runtime.faithfulness, open_request.steered or drawn.group is not None
    if guard is None or not (pushed or runtime.policy.faithfulness.of == "all"):
        return []
    first = open_request.attempts[0] if open_request.attempts else None
    untouched = first is not None and first.intervention is None and not first.group and not _lost(first)
    unsteered = first.embedding if first is not None and untouched else None
    return [guard.check(runtime.adapters.plain(open_request.prompt), study.embedding, unsteered)]


def _lost(attempt: Attempt) -> bool:
    """Whether a picture that nothing steered had lost its caption: what is drawn for that reason is not measured by it."""
    return any(finding.triggered and finding.guard == "faithfulness" for finding in attempt.findings)


def _probe(runtime: Runtime, open_requests: dict[int, OpenRequest]) -> list[tuple[Trajectory, Caught]]:
    """Probe the running samples, steered or not; take those that are caught out of the engine.

    A probe that fails costs no picture: the guards check the finished one anyway, and the attempt records the failure.
    """
    if runtime.early is None:
        return []
    plain, steered = _due(runtime, open_requests)
    early, again = runtime.early_at(plain[0].size) if plain else None, runtime.steered_probe
    found: list[tuple[Trajectory, Caught | None]] = []
    failures: list[tuple[Trajectory, Exception]] = []
    if early is not None:
        prompts = {t.tag: runtime.adapters.plain(open_requests[t.tag].prompt) for t in plain}
        found, failures = together_or_alone(lambda some: early.look(some, [prompts[t.tag] for t in some]), plain)
    if again is not None and steered:
        own = {t.tag: open_requests[t.tag].own_references() for t in steered}
        more, failed = together_or_alone(lambda some: again.look(some, [own[t.tag] for t in some]), steered)
        found, failures = [*found, *more], [*failures, *failed]
    for t, error in failures:
        open_requests[t.tag].unlooked = f"early: {type(error).__name__}: {error}"[:200]
    caught = [(t, hit) for t, hit in found if hit is not None]
    runtime.engine.withdraw([t for t, _ in caught])
    return caught


def _due(runtime: Runtime, open_requests: dict[int, OpenRequest]) -> tuple[list[Trajectory], list[Trajectory]]:
    """The running samples that a probe looks at now and that can be steered: those not steered yet, and those that are."""
    early, again = runtime.early, runtime.steered_probe
    due: tuple[list[Trajectory], list[Trajectory]] = [], []
    for t in runtime.engine.running:  # all of one size
        if t.group:  # its mates need it in their calls
            continue
        open_request = open_requests[t.tag]
        probe = again if open_request.steered else early
        if (
            probe is not None
            and probe.due(t)
            and open_request.copy_rungs < len(runtime.policy.ladder)
            and affordable(runtime, open_request, t)
        ):
            due[open_request.steered].append(t)
    return due
