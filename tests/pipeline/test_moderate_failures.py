"""The loop when something breaks: one sample's failure ends one sample, memory costs rows, every request ends in one row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from guards.base import Finding
from guards.copies import CopiesGuard
from index.calibrate import OperatingPoint
from index.embed import OpenCLIPEmbedder
from index.reference import NewReference
from index.store import ReferenceIndex
from pipeline.audit.context import RunContext
from pipeline.audit.records import attempt_table, sample_table
from pipeline.config import ModelConfig
from pipeline.model.interface import DiffusionModel
from pipeline.model.load import load_model
from pipeline.moderate import Moderation, moderate
from pipeline.next_attempt import first
from pipeline.outcome import Outcome, Request, Sample
from pipeline.respond import negtome
from pipeline.rungs import NudgeRung
from pipeline.steer.negtome import NegToMe
from pipeline.steer.nudge import Nudge

from .loop import LADDER, POLICY, Copies, Failing, by_key, requests, runtime, sha, undisturbed


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> DiffusionModel:
    return load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))


@pytest.fixture(scope="module")
def unsteered(model: DiffusionModel) -> dict[str, str]:
    return undisturbed(model)


def test_one_bad_request_is_one_error_row(model: DiffusionModel, unsteered: dict[str, str]) -> None:
    bad = Request(row_no=9, key="key-9", prompt="", problem=("input.empty_prompt", "row 9 has no prompt"))
    done = by_key(list(moderate(runtime(model, Copies(lambda _: False)), [bad, *requests()])))
    assert (
        done["key-9"].outcome is Outcome.ERROR and done["key-9"].reason == "input.empty_prompt" and not done["key-9"].attempts
    )
    assert {key: s.attempts[0].pixel_sha256 for key, s in done.items() if key != "key-9"} == unsteered


def test_a_guard_that_fails_on_one_picture_costs_one_sample(model: DiffusionModel, unsteered: dict[str, str]) -> None:
    guard = Failing({unsteered["key-2"]})
    done = by_key(list(moderate(runtime(model, Copies(lambda _: False), [guard]), requests())))
    assert done["key-2"].outcome is Outcome.ERROR and done["key-2"].reason == "error.guard"
    assert done["key-2"].error_message == "guard marks: cannot look at this one"
    assert done["key-2"].denoiser_evals == 5 and done["key-2"].device_seconds > 0  # no attempt came of it, and yet it has cost
    assert sum(s.outcome is Outcome.ACCEPTED for s in done.values()) == 4


class Forgetful(Failing):
    """Answers for one picture fewer than it was given."""

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        return super().check(pictures)[:-1]


def test_no_picture_passes_that_a_guard_did_not_answer_for(model: DiffusionModel) -> None:
    done = by_key(list(moderate(runtime(model, Copies(lambda _: False), [Forgetful(set())]), requests())))
    assert {sample.reason for sample in done.values()} == {"error.guard"}


@pytest.mark.parametrize("failures", [1, 1000])
def test_an_engine_failure_loses_no_sample(
    model: DiffusionModel, unsteered: dict[str, str], failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure that does not come again ends no sample; one that stays ends all, each in a row of its own."""
    s = runtime(model, Copies(lambda _: False))
    real, calls = s.model.denoise, []

    def failing(*args: object) -> object:
        calls.append(1)
        if 2 <= len(calls) < 2 + failures:
            raise RuntimeError("cuDNN error: execution failed")
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(s.model, "denoise", failing)
    done = by_key(list(moderate(s, requests())))
    assert len(done) == 5
    if failures == 1:
        assert {key: x.attempts[0].pixel_sha256 for key, x in done.items()} == unsteered
    else:
        assert all(x.outcome is Outcome.ERROR and x.reason == "error.engine" for x in done.values())
        assert all("RuntimeError: cuDNN error: execution failed. Draw it" in x.error_message for x in done.values())


def one_ended(
    done: dict[str, Sample], unsteered: dict[str, str], context: Callable[..., RunContext], reason: str, attempts: int
) -> Sample:
    """Of five only key-1 ended, for that reason, which every row of it repeats; the others have the bytes they always had."""
    assert sorted(done) == sorted(unsteered)
    lost = done["key-1"]
    assert (lost.outcome, lost.reason, len(lost.attempts)) == (Outcome.ERROR, reason, attempts)
    others = {key: s.attempts[0].pixel_sha256 for key, s in done.items() if key != "key-1"}
    assert others == {key: digest for key, digest in unsteered.items() if key != "key-1"}
    assert all(s.outcome is Outcome.ACCEPTED for key, s in done.items() if key != "key-1")
    rows = sample_table(list(done.values()), context(), "0").to_pylist()
    assert len(rows) == 5 and [r["error_message"] for r in rows if r["outcome"] == "error"] == [lost.error_message]
    said = [r for r in attempt_table(list(done.values()), context(), "0").to_pylist() if r["request_key"] == "key-1"]
    assert [r["error_message"] for r in said] == [lost.error_message] * attempts
    return lost


def test_a_nudge_that_raises_in_mid_flight_ends_one_sample(
    model: DiffusionModel, unsteered: dict[str, str], context: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nudge(self: Nudge, clean: torch.Tensor, step: int, noise: torch.Tensor) -> torch.Tensor:
        if step == 3:
            raise ValueError("on purpose")
        return clean

    monkeypatch.setattr(Nudge, "__call__", nudge)
    policy = dataclasses.replace(POLICY, ladder=(NudgeRung(step_size=0.1),))
    s = runtime(model, Copies(lambda p: sha(p) == unsteered["key-1"]), policy=policy)
    lost = one_ended(by_key(list(moderate(s, requests()))), unsteered, context, "error.steering", 1)
    assert lost.error_class == "SteeringFailed" and lost.error_message.startswith("nudge, step 3: ValueError: on purpose. ")
    again = runtime(model, Copies(lambda _: False))
    assert not s.engine.busy and len(list(moderate(again, requests(2)))) == 2


def test_a_push_that_raises_inside_the_forward_ends_one_sample(
    model: DiffusionModel, unsteered: dict[str, str], context: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    def moves(*_: object) -> None:
        raise IndexError("no such token")

    monkeypatch.setattr(NegToMe, "moves", moves)
    s = runtime(model, Copies(lambda p: sha(p) == unsteered["key-1"]))
    lost = one_ended(by_key(list(moderate(s, requests()))), unsteered, context, "error.steering", 1)
    assert lost.error_message.startswith("denoiser, step 0, while it is steered: IndexError: no such token. ")


def test_references_whose_features_fail_end_one_sample(
    model: DiffusionModel, unsteered: dict[str, str], context: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise KeyError("a block of another name")

    monkeypatch.setattr(negtome, "reference_call", fails)
    s = runtime(model, Copies(lambda p: sha(p) == unsteered["key-1"]))
    lost = one_ended(by_key(list(moderate(s, requests()))), unsteered, context, "error.steering", 1)
    assert lost.error_message.startswith("references' features, step 0: KeyError: 'a block of another name'. ")


def test_a_latent_that_is_not_finite_is_no_picture(
    model: DiffusionModel, unsteered: dict[str, str], context: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    s = runtime(model, Copies(lambda _: False))
    real, nothing = s.context_of, float("nan")
    monkeypatch.setattr(
        s, "context_of", lambda text: real(text).map(lambda part: part * (nothing if text == "a red apple 1" else 1))
    )
    lost = one_ended(by_key(list(moderate(s, requests()))), unsteered, context, "error.engine", 0)
    assert lost.error_class == "ModelError" and "denoiser, step 0: its output is not finite. " in lost.error_message


def test_a_decoded_picture_that_is_not_finite_is_none(
    model: DiffusionModel, unsteered: dict[str, str], context: Callable[..., RunContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    s = runtime(model, Copies(lambda _: False))
    last = s.engine.finish([first(s, 1, requests()[1])])[1]
    real = model.decode_tensor  # type: ignore[attr-defined]

    def decode(latents: torch.Tensor) -> torch.Tensor:
        out = real(latents)
        for i, latent in enumerate(latents):
            if torch.equal(latent, last):
                out[i, 0, 3, 3] = float("inf")
        return out

    monkeypatch.setattr(model, "decode_tensor", decode)
    lost = one_ended(by_key(list(moderate(s, requests()))), unsteered, context, "error.guard", 0)
    assert lost.error_class == "ModelError" and lost.error_message.startswith("decoder: a decoded picture is not finite. ")


def test_findings_that_nothing_can_be_decided_about_end_their_sample(
    model: DiffusionModel, unsteered: dict[str, str], context: Callable[..., RunContext]
) -> None:
    class Foreign:
        """A guard the policy does not know."""

        name, version, categories = "foreign", "1", ("mark.qr",)

        def check(self, pictures: np.ndarray) -> list[list[Finding]]:
            return [
                [
                    Finding(
                        guard="foreign",
                        version="1",
                        category="mark.qr",
                        score=float(sha(p) == unsteered["key-1"]),
                        threshold=0.5,
                    )
                ]
                for p in pictures
            ]

    s = runtime(model, Copies(lambda _: False), [Foreign()])
    lost = one_ended(by_key(list(moderate(s, requests()))), unsteered, context, "error.guard", 0)
    assert "foreign" in lost.error_message


@pytest.mark.parametrize("fits", [4, 0])
def test_an_embedder_short_of_memory_halves_and_records_it(
    model: DiffusionModel, unsteered: dict[str, str], tmp_path: Path, fits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real embedder, index and guard: no picture changes, the rows say in which shape they were looked at."""
    embedder = OpenCLIPEmbedder.open("stickers")
    works = [NewReference(title="grey", picture=np.full((16, 16, 3), 128, np.uint8), keep_picture=True)]
    index = ReferenceIndex.build(tmp_path / "index", works, embedder)
    guards = CopiesGuard(index, embedder, point=OperatingPoint(threshold=0.999, confirm_threshold=0.9))
    plain = by_key(list(moderate(runtime(model, guards), requests())))
    assert plain["key-0"].attempts[0].padded_rows.embed == (8,)
    real = embedder.network.encode_image

    def encode(x: torch.Tensor) -> torch.Tensor:
        if len(x) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(x)  # type: ignore[no-any-return]

    monkeypatch.setattr(embedder.network, "encode_image", encode)
    done = by_key(list(moderate(runtime(model, guards), requests())))
    assert len(done) == 5
    if not fits:
        assert all(s.outcome is Outcome.ERROR and s.reason == "oom" for s in done.values())
        assert all(s.error_message.startswith("guard copies: embedder: not even one row") for s in done.values())
        assert all("Use an embedder with smaller weights" in s.error_message for s in done.values())
        return
    for key, s in done.items():
        (attempt,), (before,) = s.attempts, plain[key].attempts
        assert s.outcome is plain[key].outcome is Outcome.ACCEPTED and attempt.pixel_sha256 == unsteered[key]
        assert attempt.padded_rows.embed == (8, 4) and np.allclose(attempt.embedding, before.embedding, atol=1e-5)
        assert (attempt.padded_rows.decode, attempt.padded_rows.marks, attempt.padded_rows.yolo) == ((8,), (), ())


def test_memory_that_runs_out_costs_rows_not_samples(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    s, real = runtime(model, Copies(lambda _: False)), model.denoise

    def small(latents: torch.Tensor, *args: object) -> object:
        if len(latents) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(latents, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(s.model, "denoise", small)
    done = list(moderate(s, requests(6)))
    assert all(x.outcome is Outcome.ACCEPTED and x.attempts[0].rows_from == ((0, 4),) for x in done) and len(done) == 6


def test_a_decoder_short_of_memory_is_on_record(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    s = runtime(model, Copies(lambda _: False))
    real, shapes = s.model.autoencoder.decode, s.model.decode_calls.shapes  # type: ignore[attr-defined]

    def small(latents: torch.Tensor) -> object:
        if len(latents) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(latents)

    monkeypatch.setattr(s.model.autoencoder, "decode", small)  # type: ignore[attr-defined]
    done = list(moderate(s, requests(6)))
    s.model.decode_calls.shapes = shapes  # type: ignore[attr-defined]  # the model is shared
    assert all(x.outcome is Outcome.ACCEPTED and x.attempts[0].padded_rows.decode == (8, 4) for x in done) and len(done) == 6


def test_memory_for_not_even_one_sample_is_an_error_row_each(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    s = runtime(model, Copies(lambda _: False))
    monkeypatch.setattr(s.model, "denoise", never)
    done = list(moderate(s, requests(6)))
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


def test_references_short_of_memory_halve_the_rows_of_all_samples(
    model: DiffusionModel, unsteered: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that works out the references' tokens is the first one too many: all go on, from the same noise."""
    small = runtime(model, Copies(lambda _: True), policy=dataclasses.replace(POLICY, ladder=LADDER[:1]))
    small.engine.rows = 4
    (expected,) = moderate(small, requests(1))
    flagged = {unsteered["key-0"]}
    s = runtime(model, Copies(lambda p: sha(p) in flagged))
    seen = Short(model, monkeypatch, after=5, rows=4).seen
    done = by_key(list(moderate(s, requests())))
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
    s = runtime(model, Copies(lambda p: sha(p) in flagged))
    real = negtome.reference_call

    def never(*args: object) -> object:
        with monkeypatch.context() as m:
            m.setattr(model, "denoise", Short(model, m, after=0, rows=0))
            return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(negtome, "reference_call", never)
    done = by_key(list(moderate(s, requests())))
    lost = done.pop("key-0")
    assert lost.outcome is Outcome.ERROR and lost.reason == "oom" and lost.error_class == "OutOfMemory"
    assert "denoiser: a call of" in lost.error_message and "model.size" in lost.error_message and len(lost.attempts) == 1
    assert all(x.outcome is Outcome.ACCEPTED for x in done.values()) and len(done) == 4


@pytest.mark.parametrize("part", ["decode", "encode"])
def test_not_even_one_picture_fits(
    model: DiffusionModel, unsteered: dict[str, str], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Of the picture (decoder), or of its reference (encoder): the sample ends, and its row names what did not fit."""

    def never(*args: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    s = runtime(model, Copies(lambda p: sha(p) == unsteered["key-0"]))
    calls = s.model.encode_calls if part == "encode" else s.model.decode_calls  # type: ignore[attr-defined]
    shapes = calls.shapes
    with monkeypatch.context() as m:
        m.setattr(s.model.autoencoder, part, never)  # type: ignore[attr-defined]
        done = by_key(list(moderate(s, requests())))
    assert calls.shapes[-1] == 1
    calls.shapes = shapes  # the model is shared
    ended = done.values() if part == "decode" else [done["key-0"]]
    assert all(x.outcome is Outcome.ERROR and x.reason == "oom" for x in ended) and len(done) == 5
    assert all(f"{part}r: not even one row" in x.error_message and "model.dtype" in x.error_message for x in ended)


@pytest.mark.parametrize("calls", [0, 2, 5])
def test_a_request_that_is_given_up_ends_at_once_and_its_neighbours_keep_their_bytes(
    model: DiffusionModel, unsteered: dict[str, str], calls: int
) -> None:
    """Waiting, in the middle of its steps, or drawn and not looked at yet."""
    loop, ended = Moderation(runtime(model, Copies(lambda p: False))), list[Sample]()
    for request in requests(9):
        loop.submit(request)
    for _ in range(calls):
        ended += loop.step()
    ((lost, *more), again) = loop.give_up(0, "error.deadline", "late"), loop.give_up(0, "error.deadline", "late")
    assert (lost.request.row_no, lost.outcome, lost.reason, lost.error_message) == (0, Outcome.ERROR, "error.deadline", "late")
    assert (more, again) == ([], []) and lost.lost_evals == calls  # the oldest is in every call
    while loop.busy:
        ended += loop.step()
    assert len(ended) == 8
    drawn = {s.request.key: s.attempts[0].pixel_sha256 for s in ended}
    assert {key: drawn.get(key, "") for key in unsteered} == unsteered | {"key-0": ""}
