"""The nouns of the loop: a request becomes attempts and ends as exactly one sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from guards.base import Finding
from index.reference import Match


class Outcome(StrEnum):
    """How a request ended."""

    ACCEPTED = "accepted"
    ACCEPTED_AFTER_STEERING = "accepted_after_steering"
    REVIEW = "review"
    REJECTED = "rejected"
    QUARANTINED = "quarantined"
    ERROR = "error"


ACCEPTED = (Outcome.ACCEPTED, Outcome.ACCEPTED_AFTER_STEERING)


class Verdict(StrEnum):
    """What is decided about one attempt."""

    ACCEPT = "accept"
    STEER = "steer"
    REVIEW = "review"
    REJECT = "reject"


class Stated(NamedTuple):
    """What a request states of its picture, in place of what the run file states; None: as the run file.

    Attributes:
        width, height: in pixels.
        steps: denoising steps.
        guidance_scale: as ``generation.guidance_scale``.
    """

    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None

    def __bool__(self) -> bool:
        return self != (None, None, None, None)


AS_THE_RUN = Stated()


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One picture that was ordered.

    Attributes:
        row_no: position in the input, from 0.
        key: the caller's key, unique in the input.
        prompt: the caption to draw.
        negative_prompt: what the picture shall not show.
        seed: seed of the first attempt's noise.
        adapter: the LoRAs of this row alone, as ``NAME`` or ``NAME:STRENGTH``, with commas; empty: none.
        columns: the caller's own columns of the input row, as one JSON object; empty: there are none.
        stated: size, steps and guidance scale where the input row states them.
        problem: reason code and message when the input row is unusable; such a request ends as an error row.
        group: id of the group whose members push one another apart (:mod:`pipeline.steer.diversity`); empty: it stands alone.
        member: its number in the group, from 0.
        group_size: number of members.
    """

    row_no: int
    key: str
    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    adapter: str = ""
    columns: str = ""
    stated: Stated = AS_THE_RUN
    problem: tuple[str, str] | None = None
    group: str = ""
    member: int = 0
    group_size: int = 0


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA, textual inversion or eraser that was loaded: what it is, its digest, its weight, the tokens it brought, and the
    licence that its file states."""

    name: str
    kind: str
    digest: str
    weight: float = 1.0
    tokens: tuple[str, ...] = ()
    licence: str = ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What pictures were drawn on, as far as their bytes depend on it; see :mod:`pipeline.model.machine`.

    Attributes:
        card: name of the accelerator, or of the processor.
        capability: its compute capability, or the widest instructions that torch uses of the processor.
        driver: version of the accelerator's driver; empty on a CPU.
        libraries: library → version.
        attention: the attention backend, by its name in the run file; "auto": torch chooses.
        autoencoder: its number format, and whether it decodes in tiles.
        tf32: whether float32 products may be rounded to TF32.
        fills_memory: whether memory is filled before a kernel writes it.
        deterministic: whether algorithms that are not deterministic are refused.
    """

    card: str = ""
    capability: str = ""
    driver: str = ""
    libraries: Mapping[str, str] = field(default_factory=dict)
    attention: str = ""
    autoencoder: str = ""
    tf32: bool = False
    fills_memory: bool = False
    deterministic: bool = False


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """The change made for one attempt: kind (negtome, nudge, reseed …), strength, references used.

    ``tokens`` are an eraser's in this attempt's negative prompt, ``adapters`` the digests of the erasers in force.
    """

    kind: str
    strength: float = 0.0
    ref_ids: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Caught:
    """An interrupted try: a probe stopped it because its predicted picture came too near to references.

    Attributes:
        step: denoising steps it had taken.
        signal: how its x̂0 was compared: ``latent``, ``head`` or ``decode``; ``picture`` if the second look was at what
            steering made of it; ``+text`` if ‖ε_text − ε_empty‖ counted,
            ``+hues`` if it was near to a reference in other colours.
        score: cosine to the nearest of those references, and what ‖ε_text − ε_empty‖ added to it; or the second look's.
        threshold: from which it is caught at that step.
        nearest: the references it was caught by, best first; it is steered away from them.
        armed: the prompt had armed the first of them.
        denoiser_evals, device_seconds: the cost of the try; part of the next attempt's.
    """

    step: int
    signal: str
    score: float
    threshold: float
    nearest: tuple[Match, ...]
    armed: bool = False
    denoiser_evals: float = 0.0
    device_seconds: float = 0.0


@dataclass(frozen=True)
class Decision:
    """The verdict about one attempt and the reason code behind it (empty for accept)."""

    verdict: Verdict
    reason: str = ""


class PaddedRows(NamedTuple):
    """Rows that a process's calls of every network but the denoiser have had so far (:mod:`index.padding`): the configured
    number, and what it was after every halving. Empty where there is no such network.

    Attributes:
        text: of the text encoders.
        encode, decode: of the autoencoder.
        embed: of the embedder's picture tower.
        marks, yolo: of the guards of that name.
    """

    text: tuple[int, ...] = ()
    encode: tuple[int, ...] = ()
    decode: tuple[int, ...] = ()
    embed: tuple[int, ...] = ()
    marks: tuple[int, ...] = ()
    yolo: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One generated picture with all findings of the guards.

    Attributes:
        number: 0 for the first picture of a request.
        seed: seed of its initial noise.
        resumed_from_step: the denoising step it was resumed from (0: from noise).
        intervention: what was changed against the previous attempt; None for attempt 0, unless that was caught in mid-flight.
        picture: uint8 RGB (H, W, 3).
        pixel_sha256: digest of the picture's bytes, before any marking.
        embedding: unit-length float32 (D,) by the index's embedder; empty when no copies guard ran.
        findings: everything every guard reported, triggered or not.
        nearest: the nearest references, best first.
        decision: what was decided.
        denoiser_evals: denoiser evaluations spent on this attempt, in units of one guided step
            (a step with classifier-free guidance is 1; each reference row beside it adds a half). Where references' tokens were
            computed once for several samples, the number is that of the sample alone.
        device_seconds: device time, shared out evenly over the rows of each batch.
        skipped_guards: optional guards that could not run.
        rows_from: (step, R): from that step on its denoiser calls had R rows; more than one entry when memory ran out.
        padded_rows: rows that its process's calls of the other networks have had so far; more than one when memory ran out. The
            decoder's last drew this picture, the embedder's and detectors' last looked at it.
        caught: interrupted tries of this attempt: the step, and the references that caused it. Their cost is in this row; the
            picture is that of the try that followed.
        guard_seconds: (guard, seconds of the clock that it took), shared out over the pictures that it looked at together.
        guidance_norms: ‖ε_text − ε_empty‖ of each step from ``resumed_from_step`` on; empty without classifier-free guidance.
        update_norms: ‖z_{i+1} − z_i‖ of the same steps.
        group: the group that it was drawn in; empty: it stood alone, as every attempt after the first does.
        asked: categories of marks that the prompt asks for and the policy keeps: nothing follows from their findings.
    """

    number: int
    seed: int
    resumed_from_step: int
    intervention: Intervention | None
    picture: np.ndarray
    pixel_sha256: str
    embedding: np.ndarray
    findings: tuple[Finding, ...]
    nearest: tuple[Match, ...]
    decision: Decision
    denoiser_evals: float
    device_seconds: float
    skipped_guards: tuple[str, ...] = ()
    rows_from: tuple[tuple[int, int], ...] = ()
    padded_rows: PaddedRows = field(default_factory=PaddedRows)
    caught: tuple[Caught, ...] = ()
    guard_seconds: tuple[tuple[str, float], ...] = ()
    guidance_norms: tuple[float, ...] = ()
    update_norms: tuple[float, ...] = ()
    group: str = ""
    asked: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The one end of a request.

    Attributes:
        request: the request.
        outcome: how it ended.
        reason: stable reason code (empty when accepted): that of the last attempt, or of the error.
        attempts: every picture made for it, in order; empty for most errors.
        accepted_attempt: number of the accepted attempt, None when nothing was accepted.
        prompt_truncated: the prompt had more tokens than the text encoder takes; the rest was dropped.
        error_class: exception class name for outcome ERROR.
        error_message: its message.
        prompt_findings: of the guard of prompts, where nothing was drawn; else every attempt has them.
        drawn_prompt: what was drawn in the prompt's place, where the policy rewrites it; None where it does not.
        lost_evals, lost_seconds: the cost of the try that the error ended; it has no picture.
        started_at: Unix seconds.
        finished_at: Unix seconds.
    """

    request: Request
    outcome: Outcome
    reason: str = ""
    attempts: tuple[Attempt, ...] = field(default=())
    accepted_attempt: int | None = None
    prompt_truncated: bool = False
    error_class: str = ""
    error_message: str = ""
    started_at: float = 0.0
    finished_at: float = 0.0
    lost_evals: float = 0.0
    lost_seconds: float = 0.0
    prompt_findings: tuple[Finding, ...] = ()
    drawn_prompt: str | None = None

    @property
    def denoiser_evals(self) -> float:
        return sum(attempt.denoiser_evals for attempt in self.attempts) + self.lost_evals

    @property
    def device_seconds(self) -> float:
        return sum(attempt.device_seconds for attempt in self.attempts) + self.lost_seconds

    @property
    def final(self) -> Attempt | None:
        """The accepted attempt, or the last one made."""
        if self.accepted_attempt is not None:
            return next(a for a in self.attempts if a.number == self.accepted_attempt)
        return self.attempts[-1] if self.attempts else None
