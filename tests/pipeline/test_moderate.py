"""The loop on a tiny random model: every request ends as one sample, whatever its neighbours do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from guards.base import Finding
from pipeline.config import ModelConfig
from pipeline.model.decoder import PICTURE_ROWS
from pipeline.model.interface import DiffusionModel
from pipeline.model.load import load_model
from pipeline.moderate import moderate
from pipeline.outcome import Outcome, Request, Verdict
from pipeline.policy import CopiesPolicy, MarksPolicy, Policy
from pipeline.rungs import NudgeRung
from pipeline.runtime import Study

from .loop import LADDER, POLICY, REF, Copies, Index, by_key, requests, runtime, sha, undisturbed


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> DiffusionModel:
    return load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))


@pytest.fixture(scope="module")
def unsteered(model: DiffusionModel) -> dict[str, str]:
    return undisturbed(model)


def test_flagged_samples_are_steered_and_their_neighbours_do_not_change(
    model: DiffusionModel, unsteered: dict[str, str]
) -> None:
    flagged = {unsteered["key-1"], unsteered["key-3"]}
    copies = Copies(lambda p: sha(p) in flagged)
    done = by_key(list(moderate(runtime(model, copies), requests())))
    assert len(done) == 5
    for key in ("key-0", "key-2", "key-4"):
        assert done[key].outcome is Outcome.ACCEPTED
        assert done[key].attempts[0].pixel_sha256 == unsteered[key]
    for key in ("key-1", "key-3"):
        s = done[key]
        assert s.outcome is Outcome.ACCEPTED_AFTER_STEERING and s.accepted_attempt == 1
        assert s.attempts[0].decision.verdict is Verdict.STEER and s.attempts[0].pixel_sha256 == unsteered[key]
        assert s.attempts[1].intervention and s.attempts[1].intervention.kind == "negtome"
        assert s.attempts[1].intervention.ref_ids == (REF,)
        assert s.attempts[1].pixel_sha256 != unsteered[key]
        assert (s.attempts[1].pixel_sha256, [REF]) in copies.examined, (
            "a steered picture is compared with what it was steered from"
        )
    assert sum(bool(ids) for _, ids in copies.examined) == 2
    # Both are pushed from one reference; its five rows were run once, and are charged to both: which came first is chance.
    assert [done[key].denoiser_evals for key in ("key-1", "key-3")] == [5 + 5 + 2.5] * 2


def test_finished_pictures_wait_for_others_while_calls_are_full(
    model: DiffusionModel, unsteered: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, sizes = runtime(model, Copies(lambda _: False)), []
    real = opened.study

    def study(latents: Sequence[torch.Tensor], own: Sequence[Sequence[str]] = ()) -> list[Study]:
        assert len(latents) >= PICTURE_ROWS or not opened.engine.full
        sizes.append(len(latents))
        return real(latents, own)

    monkeypatch.setattr(opened, "study", study)
    done = by_key(list(moderate(opened, requests(13))))
    assert sum(sizes) == len(done) == 13 and len(sizes) <= 3
    assert all(done[key].attempts[0].pixel_sha256 == digest for key, digest in unsteered.items())


def test_a_copy_in_other_colours_is_steered_away_from_all_of_them(
    model: DiffusionModel, unsteered: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    monkeypatch.setattr(Index, "picture", lambda *_: red)
    policy = dataclasses.replace(POLICY, copies=CopiesPolicy(hues=4), ladder=(NudgeRung(step_size=0.1),))
    drawn: dict[str, list[str]] = {}
    for category in ("copy.protected", "copy.recoloured"):
        there = runtime(model, Copies(lambda p: sha(p) == unsteered["key-1"], category=category), policy=policy)
        seen: list[int] = []
        submit = there.engine.submit
        monkeypatch.setattr(
            there.engine, "submit", lambda t, s=submit, n=seen: (n.append(len(t.nudge.references) if t.nudge else 0), s(t))[1]
        )
        done = by_key(list(moderate(there, requests(2))))
        assert done["key-1"].outcome is Outcome.ACCEPTED_AFTER_STEERING and done["key-0"].outcome is Outcome.ACCEPTED
        assert done["key-1"].attempts[1].intervention.ref_ids == (REF,)  # type: ignore[union-attr]
        assert seen == [0, 0, 1 if category == "copy.protected" else 4]
        drawn[category] = [a.pixel_sha256 for a in done["key-1"].attempts]
    first, second = drawn.values()
    assert first[0] == second[0] and first[1] != second[1]


def test_the_ladder_ends_in_rejection_or_review(model: DiffusionModel) -> None:
    always = list(moderate(runtime(model, Copies(lambda _: True)), requests(2)))
    assert [s.outcome for s in always] == [Outcome.REJECTED] * 2
    assert all(s.reason == "copy.protected" and len(s.attempts) == 3 and s.accepted_attempt is None for s in always)
    assert [a.intervention and a.intervention.kind for a in always[0].attempts] == [None, "negtome", "nudge"]
    assert always[0].attempts[2].resumed_from_step == 2 and always[0].attempts[2].denoiser_evals == 3
    doubtful = list(moderate(runtime(model, Copies(lambda _: True, confirmed=False)), requests(2)))
    assert [s.outcome for s in doubtful] == [Outcome.REVIEW] * 2


def test_the_budget_ends_a_ladder_early(model: DiffusionModel) -> None:
    """5 for the picture and 7.5 for the first rung and its reference; the last resumes, yet must have room for 5."""
    for budget, attempts in ((9.9, 1), (10, 2), (17.4, 2), (17.5, 3), (None, 3)):
        policy = dataclasses.replace(POLICY, max_evals=budget)
        (sample,) = moderate(runtime(model, Copies(lambda _: True), policy=policy), requests(1))
        assert sample.outcome is Outcome.REJECTED and len(sample.attempts) == attempts


def test_observing_accepts_and_records(model: DiffusionModel) -> None:
    policy = Policy(copies=CopiesPolicy(action="observe"), ladder=LADDER)
    done = list(moderate(runtime(model, Copies(lambda _: True), policy=policy), requests(2)))
    assert [(s.outcome, s.attempts[0].findings[0].triggered) for s in done] == [(Outcome.ACCEPTED, True)] * 2


def test_a_mark_is_reseeded_not_pushed_from_a_reference(model: DiffusionModel, unsteered: dict[str, str]) -> None:
    class Marks:
        name, version, categories = "marks", "1", ("mark.qr",)

        def check(self, pictures: np.ndarray) -> list[list[Finding]]:
            return [
                [
                    Finding(
                        guard="marks", version="1", category="mark.qr", score=float(sha(p) == unsteered["key-0"]), threshold=0.5
                    )
                ]
                for p in pictures
            ]

    policy = Policy(marks=MarksPolicy(action="steer"), ladder=LADDER)
    done = by_key(list(moderate(runtime(model, Copies(lambda _: False), [Marks()], policy), requests())))
    again = done["key-0"].attempts[1]
    assert again.intervention and again.intervention.kind == "reseed" and again.seed != done["key-0"].attempts[0].seed
    assert done["key-0"].outcome is Outcome.ACCEPTED_AFTER_STEERING


def test_truncated_prompts_are_recorded(model: DiffusionModel) -> None:
    long = Request(row_no=0, key="long", prompt="a red apple " * 30, seed=1)
    sample = next(iter(moderate(runtime(model, Copies(lambda _: False)), [long])))
    assert sample.prompt_truncated and sample.outcome is Outcome.ACCEPTED
