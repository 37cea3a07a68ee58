"""An open request: what it is steered away from."""

from __future__ import annotations

import time

import numpy as np

from guards.base import Finding
from index.reference import Match
from pipeline.open_request import OpenRequest
from pipeline.outcome import Attempt, Decision, Request, Verdict


def flagged(ref_id: str, detail: str) -> Attempt:
    finding = Finding(
        guard="copies", version="1", category="copy.protected", score=0.9, threshold=0.8, ref_id=ref_id, detail=detail
    )
    picture = np.zeros((64, 64, 3), np.uint8)
    return Attempt(
        number=0,
        seed=1,
        resumed_from_step=0,
        intervention=None,
        picture=picture,
        pixel_sha256="",
        embedding=np.zeros(0),
        findings=(finding,),
        nearest=(Match(ref_id="other", title="another", similarity=0.3),),
        decision=Decision(Verdict.STEER, "copy.protected"),
        denoiser_evals=1.0,
        device_seconds=0.0,
    )


def test_steering_reads_the_reference_and_not_the_text_for_people() -> None:
    open_request = OpenRequest(request=Request(row_no=0, key="a", prompt="an apple"), started_at=0.0, truncated=False, seed=1)
    open_request.attempts.append(flagged("3f9a0c", "A red apple"))
    assert open_request.own_references() == ["3f9a0c"]
    assert open_request.nearest_references() == ["3f9a0c", "other"]


def test_a_clock_that_was_set_back_gives_no_negative_seconds() -> None:
    open_request = OpenRequest(
        request=Request(row_no=0, key="a", prompt="an apple"), started_at=time.time() + 3600, truncated=False, seed=1
    )
    open_request.attempts.append(flagged("3f9a0c", "A red apple"))
    ended = open_request.ended(Decision(Verdict.REJECT, "copy.protected"))
    assert 0 <= ended.finished_at - ended.started_at < 60
    failed = open_request.failed("oom", "no room", "MemoryError")
    assert 0 <= failed.finished_at - failed.started_at < 60
