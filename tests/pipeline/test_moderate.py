"""The loop on a tiny random model: every request ends as one sample, whatever its neighbours do."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from guards.base import Finding
from guards.copies import Examination
from index.reference import Match, Reference
from pipeline.config import CopiesPolicy, GenerationConfig, GuardPolicy, ModelConfig, Policy, RunConfig, Rung
from pipeline.model.families import DiffusionModel, load_model
from pipeline.outcome import Outcome, Request, Sample, Verdict
from pipeline.steer import ladder
from pipeline.studio import Studio

LADDER = (Rung("negtome", token_threshold=0.0), Rung("nudge", step_size=0.1, resume_fraction=0.4))
POLICY = Policy(copies=CopiesPolicy(), ladder=LADDER)
REF = hashlib.sha256(b"reference").hexdigest()[:16]


class Index:
    """Stands in for the reference index: one reference with a picture."""

    embedder_id, index_id = "embedder", "index"

    def references(self) -> list[Reference]:
        return [Reference(REF, "grey", "", "")]

    def picture(self, ref_id: str) -> np.ndarray:
        return np.full((16, 16, 3), 128, np.uint8)


class Copies:
    """A copies guard that flags the pictures a test names by digest."""

    def __init__(self, flags: Callable[[np.ndarray], bool], confirmed: bool = True, category: str = "copy.protected") -> None:
        self.flags, self.confirmed, self.category = flags, confirmed, category
        self.asked: list[tuple[str, list[str]]] = []  # picture, its own references

    def examine(self, pictures: np.ndarray, own: Sequence[Sequence[str]] = ()) -> list[Examination]:
        self.asked += [(sha(picture), list(ids)) for picture, ids in zip(pictures, own, strict=True)]
        out = []
        for picture in pictures:
            score = 0.95 if self.flags(picture) else 0.1
            finding = Finding("copies", "1", self.category, score, 0.8, self.confirmed, None, REF)
            out.append(Examination(np.ones(4, np.float32) / 2, (Match(REF, "grey", score),), (finding,)))
        return out


class Failing:
    name, version, categories = "marks", "1", ("mark.qr",)

    def __init__(self, bad: set[str]) -> None:
        self.bad = bad

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        if any(sha(p) in self.bad for p in pictures):
            raise ValueError("cannot look at this one")
        return [[Finding("marks", "1", "mark.qr", 0.0, 0.5)] for _ in pictures]


def sha(picture: np.ndarray) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> DiffusionModel:
    return load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))


def studio(model: DiffusionModel, copies: Copies, guards: Sequence[object] = (), policy: Policy = POLICY) -> Studio:
    config = RunConfig(prompts="-", index="-", generation=GenerationConfig(steps=5, rows=8))
    return Studio(config, policy, model, copies, guards, [], Index(), "calibration", 0.8)  # type: ignore[arg-type]


def requests(count: int = 5) -> list[Request]:
    return [Request(i, f"key-{i}", f"a red apple {i}", seed=i) for i in range(count)]


def by_key(samples: Sequence[Sample]) -> dict[str, Sample]:
    assert len({s.request.key for s in samples}) == len(samples)
    return {s.request.key: s for s in samples}


@pytest.fixture(scope="module")
def unsteered(model: DiffusionModel) -> dict[str, str]:
    done = by_key(list(studio(model, Copies(lambda _: False)).moderate(requests())))
    assert all(s.outcome is Outcome.ACCEPTED and len(s.attempts) == 1 for s in done.values())
    return {key: s.attempts[0].pixel_sha256 for key, s in done.items()}


def test_flagged_samples_are_steered_and_their_neighbours_do_not_change(
    model: DiffusionModel, unsteered: dict[str, str]
) -> None:
    flagged = {unsteered["key-1"], unsteered["key-3"]}
    copies = Copies(lambda p: sha(p) in flagged)
    done = by_key(list(studio(model, copies).moderate(requests())))
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
        assert (s.attempts[1].pixel_sha256, [REF]) in copies.asked, (
            "a steered picture is compared with what it was steered from"
        )
    assert sum(bool(ids) for _, ids in copies.asked) == 2
    # Both are pushed from one reference; its five rows were run once, for the one that came first.
    assert sorted(done[key].denoiser_evals for key in ("key-1", "key-3")) == [5 + 5, 5 + 5 + 2.5]


def test_a_copy_in_other_colours_is_steered_away_from_all_of_them(
    model: DiffusionModel, unsteered: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    monkeypatch.setattr(Index, "picture", lambda *_: red)
    policy = dataclasses.replace(POLICY, copies=CopiesPolicy(hues=4), ladder=(Rung("nudge", step_size=0.1),))
    drawn: dict[str, list[str]] = {}
    for category in ("copy.protected", "copy.recoloured"):
        there = studio(model, Copies(lambda p: sha(p) == unsteered["key-1"], category=category), policy=policy)
        seen: list[int] = []
        submit = there.engine.submit
        monkeypatch.setattr(
            there.engine, "submit", lambda t, s=submit, n=seen: (n.append(len(t.nudge.references) if t.nudge else 0), s(t))[1]
        )
        done = by_key(list(there.moderate(requests(2))))
        assert done["key-1"].outcome is Outcome.ACCEPTED_AFTER_STEERING and done["key-0"].outcome is Outcome.ACCEPTED
        assert done["key-1"].attempts[1].intervention.ref_ids == (REF,)  # type: ignore[union-attr]
        assert seen == [0, 0, 1 if category == "copy.protected" else 4]
        drawn[category] = [a.pixel_sha256 for a in done["key-1"].attempts]
    first, second = drawn.values()
    assert first[0] == second[0] and first[1] != second[1]


def test_the_ladder_ends_in_rejection_or_review(model: DiffusionModel) -> None:
    always = list(studio(model, Copies(lambda _: True)).moderate(requests(2)))
    assert [s.outcome for s in always] == [Outcome.REJECTED] * 2
    assert all(s.reason == "copy.protected" and len(s.attempts) == 3 and s.accepted_attempt is None for s in always)
    assert [a.intervention and a.intervention.kind for a in always[0].attempts] == [None, "negtome", "nudge"]
    assert always[0].attempts[2].resumed_from_step == 2 and always[0].attempts[2].denoiser_evals == 3
    doubtful = list(studio(model, Copies(lambda _: True, confirmed=False)).moderate(requests(2)))
    assert [s.outcome for s in doubtful] == [Outcome.REVIEW] * 2


def test_the_budget_ends_a_ladder_early(model: DiffusionModel) -> None:
    """5 for the picture and 7.5 for the first rung and its reference; the last resumes, yet must have room for 5."""
    for budget, attempts in ((9.9, 1), (10, 2), (17.4, 2), (17.5, 3), (0, 3)):
        policy = dataclasses.replace(POLICY, max_evals=budget)
        (sample,) = studio(model, Copies(lambda _: True), policy=policy).moderate(requests(1))
        assert sample.outcome is Outcome.REJECTED and len(sample.attempts) == attempts


def test_observing_accepts_and_records(model: DiffusionModel) -> None:
    policy = Policy(copies=CopiesPolicy(action="observe"), ladder=LADDER)
    done = list(studio(model, Copies(lambda _: True), policy=policy).moderate(requests(2)))
    assert all(s.outcome is Outcome.ACCEPTED and s.attempts[0].findings[0].triggered for s in done)


def test_one_bad_request_is_one_error_row(model: DiffusionModel, unsteered: dict[str, str]) -> None:
    bad = Request(9, "key-9", "", problem=("input.empty_prompt", "row 9 has no prompt"))
    done = by_key(list(studio(model, Copies(lambda _: False)).moderate([bad, *requests()])))
    assert (
        done["key-9"].outcome is Outcome.ERROR and done["key-9"].reason == "input.empty_prompt" and not done["key-9"].attempts
    )
    assert {key: s.attempts[0].pixel_sha256 for key, s in done.items() if key != "key-9"} == unsteered


def test_a_guard_that_fails_on_one_picture_costs_one_sample(model: DiffusionModel, unsteered: dict[str, str]) -> None:
    guard = Failing({unsteered["key-2"]})
    done = by_key(list(studio(model, Copies(lambda _: False), [guard]).moderate(requests())))
    assert done["key-2"].outcome is Outcome.ERROR and done["key-2"].reason == "error.guard"
    assert "cannot look" in done["key-2"].error_message
    assert sum(s.outcome is Outcome.ACCEPTED for s in done.values()) == 4


def test_an_engine_failure_loses_nobody(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    s = studio(model, Copies(lambda _: False))
    real, calls = s.model.denoise, []

    def failing(*args: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("cuDNN error: execution failed")
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(s.model, "denoise", failing)
    done = by_key(list(s.moderate(requests(6))))
    assert len(done) == 6
    assert sum(x.outcome is Outcome.ERROR and x.reason == "error.engine" for x in done.values()) == 4  # the four in that call
    assert sum(x.outcome is Outcome.ACCEPTED for x in done.values()) == 2


def test_memory_that_runs_out_costs_rows_not_samples(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    s, real = studio(model, Copies(lambda _: False)), model.denoise

    def small(latents: torch.Tensor, *args: object) -> object:
        if len(latents) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(latents, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(s.model, "denoise", small)
    done = list(s.moderate(requests(6)))
    assert all(x.outcome is Outcome.ACCEPTED and x.attempts[0].rows_from == ((0, 4),) for x in done) and len(done) == 6


def test_a_decoder_short_of_memory_is_on_record(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    s = studio(model, Copies(lambda _: False))
    real, shapes = s.model._vae.decode, s.model._decode_calls.shapes  # type: ignore[attr-defined]

    def small(latents: torch.Tensor) -> object:
        if len(latents) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(latents)

    monkeypatch.setattr(s.model._vae, "decode", small)  # type: ignore[attr-defined]
    done = list(s.moderate(requests(6)))
    s.model._decode_calls.shapes = shapes  # type: ignore[attr-defined]  # the model is shared
    assert all(x.outcome is Outcome.ACCEPTED and x.attempts[0].padded_rows.decode == (8, 4) for x in done) and len(done) == 6


def test_memory_for_not_even_one_sample_is_an_error_row_each(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    s = studio(model, Copies(lambda _: False))
    monkeypatch.setattr(s.model, "denoise", never)
    done = list(s.moderate(requests(6)))
    assert all(x.outcome is Outcome.ERROR and x.reason == "oom" for x in done) and len(done) == 6


class Short:
    """A denoiser that from some call on holds so many rows."""

    def __init__(self, model: DiffusionModel, monkeypatch: pytest.MonkeyPatch, *, after: int, rows: int) -> None:
        self.real, self.after, self.rows, self.seen = model.denoise, after, rows, list[int]()
        monkeypatch.setattr(model, "denoise", self)

    def __call__(self, latents: torch.Tensor, *args: object) -> object:
        self.seen.append(len(latents))
        if len(self.seen) > self.after and len(latents) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return self.real(latents, *args)  # type: ignore[arg-type]


def test_references_short_of_memory_halve_the_rows_of_everybody(
    model: DiffusionModel, unsteered: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that works out the references' tokens is the first one too many: all go on, from the same noise."""
    small = studio(model, Copies(lambda _: True), policy=dataclasses.replace(POLICY, ladder=LADDER[:1]))
    small.engine.rows = 4
    (expected,) = small.moderate(requests(1))
    flagged = {unsteered["key-0"]}
    s = studio(model, Copies(lambda p: sha(p) in flagged))
    seen = Short(model, monkeypatch, after=5, rows=4).seen
    done = by_key(list(s.moderate(requests())))
    assert seen[:7] == [8, 8, 8, 8, 8, 8, 4] and set(seen[7:]) == {4}
    assert all(x.outcome is not Outcome.ERROR for x in done.values()) and s.engine.rows == 4
    steered = done["key-0"]
    assert steered.outcome is Outcome.ACCEPTED_AFTER_STEERING
    assert [a.rows_from for a in steered.attempts] == [((0, 8),), ((0, 4),)]
    assert steered.attempts[1].seed == steered.attempts[0].seed == 0
    assert steered.attempts[1].pixel_sha256 == expected.attempts[1].pixel_sha256  # as if it had been four rows throughout
    mates = {done[key].attempts[0].rows_from for key in ("key-1", "key-2", "key-3", "key-4")}
    assert mates == {
        ((0, 8), (4, 4)),
        ((0, 8), (3, 4)),
    }  # in mid-flight when it happened: they took the next step from where they were


def test_references_that_never_fit_end_one_sample(
    model: DiffusionModel, unsteered: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flagged = {unsteered["key-0"]}
    s = studio(model, Copies(lambda p: sha(p) in flagged))
    real = ladder._reference_call

    def never(*args: object) -> object:
        with monkeypatch.context() as m:
            m.setattr(model, "denoise", Short(model, m, after=0, rows=0))
            return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(ladder, "_reference_call", never)
    done = by_key(list(s.moderate(requests())))
    lost = done.pop("key-0")
    assert lost.outcome is Outcome.ERROR and lost.reason == "oom" and lost.error_class == "OutOfMemory"
    assert "denoiser: a call of" in lost.error_message and "model.size" in lost.error_message and len(lost.attempts) == 1
    assert all(x.outcome is Outcome.ACCEPTED for x in done.values()) and len(done) == 4


@pytest.mark.parametrize("part", ["decode", "encode"])
def test_not_even_one_picture_fits(
    model: DiffusionModel, unsteered: dict[str, str], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Of the picture (decoder), or of its reference (encoder): the sample ends, and its row says what did not fit."""

    def never(*args: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    s = studio(model, Copies(lambda p: sha(p) == unsteered["key-0"]))
    calls = s.model._encode_calls if part == "encode" else s.model._decode_calls  # type: ignore[attr-defined]
    shapes = calls.shapes
    with monkeypatch.context() as m:
        m.setattr(s.model._vae, part, never)  # type: ignore[attr-defined]
        done = by_key(list(s.moderate(requests())))
    assert calls.shapes[-1] == 1
    calls.shapes = shapes  # the model is shared
    ended = done.values() if part == "decode" else [done["key-0"]]
    assert all(x.outcome is Outcome.ERROR and x.reason == "oom" for x in ended) and len(done) == 5
    assert all(f"{part}r: not even one row" in x.error_message and "model.dtype" in x.error_message for x in ended)


def test_a_mark_is_reseeded_not_pushed_from_a_reference(model: DiffusionModel, unsteered: dict[str, str]) -> None:
    class Marks:
        name, version, categories = "marks", "1", ("mark.qr",)

        def check(self, pictures: np.ndarray) -> list[list[Finding]]:
            return [[Finding("marks", "1", "mark.qr", float(sha(p) == unsteered["key-0"]), 0.5)] for p in pictures]

    policy = Policy(marks=GuardPolicy(action="steer"), ladder=LADDER)
    done = by_key(list(studio(model, Copies(lambda _: False), [Marks()], policy).moderate(requests())))
    again = done["key-0"].attempts[1]
    assert again.intervention and again.intervention.kind == "reseed" and again.seed != done["key-0"].attempts[0].seed
    assert done["key-0"].outcome is Outcome.ACCEPTED_AFTER_STEERING


def test_truncated_prompts_are_recorded(model: DiffusionModel) -> None:
    long = Request(0, "long", "a red apple " * 30, seed=1)
    sample = next(iter(studio(model, Copies(lambda _: False)).moderate([long])))
    assert sample.prompt_truncated and sample.outcome is Outcome.ACCEPTED
