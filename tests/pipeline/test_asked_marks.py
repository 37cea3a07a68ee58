"""Marks that a prompt asks for, in the loop: kept where the policy states so, erased as any other where it does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.base import Finding
from pipeline.audit.numbers import Counts
from pipeline.audit.records import attempt_table, sample_table
from pipeline.audit.summary import sentences
from pipeline.config import AdapterConfig, GenerationConfig, RunConfig
from pipeline.decide import decide
from pipeline.guard_settings import AskedPolicy
from pipeline.identity import GuardInForce
from pipeline.model.interface import DiffusionModel
from pipeline.moderate import moderate
from pipeline.outcome import Outcome, Request, Sample
from pipeline.policy import (
    ASKED,
    MarksPolicy,
    Policy,
    action_of,
    asked_and_kept,
    asked_sets,
    kept_if_asked,
    policy_digest,
    remarks,
)
from pipeline.respond.marks import Erasers, open_erasers
from pipeline.rungs import EraseRung, ReseedRung
from pipeline.runtime import Runtime
from pipeline.steer.erase_tokens import Vocabulary

from .adapters import write_adapter

ACT = Policy(mark_ladder=(EraseRung(), ReseedRung()))
KEEP = dataclasses.replace(ACT, asked=AskedPolicy(qr="keep"))
PROMPTS = ("a red apple", "a red apple with a QR code", "a red apple, no QR code")


class Marks:
    """Finds marks of these categories in the upper left of every picture."""

    name, version = "marks", "1"

    def __init__(self, *categories: str) -> None:
        self.categories = categories

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        found = [
            Finding(guard="marks", version="1", category=category, score=1.0, threshold=0.5, box=(0, 0, 0.4, 0.4))
            for category in self.categories
        ]
        return [found for _ in pictures]


def opened(model: DiffusionModel, policy: Policy, erasers: Erasers, guards: Sequence[Any] = ()) -> Runtime:
    config = RunConfig(prompts="-", generation=GenerationConfig(steps=3, rows=8))
    in_force = [GuardInForce(name=guard.name, version="1", weights={}, action="steer") for guard in guards]
    return Runtime(config, policy, model, guards=guards, erasers=erasers, in_force=in_force)


def draw(runtime: Runtime, prompts: Sequence[str] = PROMPTS) -> list[Sample]:
    requests = [Request(row_no=i, key=f"key-{i}", prompt=prompt, seed=i) for i, prompt in enumerate(prompts)]
    return sorted(moderate(runtime, requests), key=lambda sample: sample.request.row_no)


def erasers_of(model: DiffusionModel, folder: Path, vocabulary: Vocabulary | None, how: Any = None, **more: Any) -> Erasers:
    return open_erasers(
        [AdapterConfig(path=str(write_adapter(folder, model, vocabulary, **more)), **(how or {}))], model, base=folder
    )


def first(samples: Sequence[Sample]) -> list[str]:
    return [sample.attempts[0].pixel_sha256 for sample in samples]


def test_a_mark_that_the_prompt_asks_for_stays_where_the_policy_keeps_it(exact: DiffusionModel, tmp_path: Path) -> None:
    erasers = erasers_of(exact, tmp_path / "one", Vocabulary(("qr",), "corners", 2))
    acted, kept = (draw(opened(exact, policy, erasers, [Marks("mark.qr")])) for policy in (ACT, KEEP))
    assert first(acted) == first(kept)
    assert [len(sample.attempts) for sample in acted] == [3, 3, 3]  # a prompt alone turns nothing off
    assert [len(sample.attempts) for sample in kept] == [3, 1, 3]
    assert kept[1].outcome is Outcome.ACCEPTED and kept[1].attempts[0].asked == ("mark.qr",)
    for i in (0, 2):  # who does not ask keeps every byte
        assert [a.pixel_sha256 for a in kept[i].attempts] == [a.pixel_sha256 for a in acted[i].attempts]
        assert kept[i].outcome is Outcome.REVIEW and not kept[i].attempts[0].asked


def test_another_mark_beside_it_is_acted_on(exact: DiffusionModel, tmp_path: Path) -> None:
    both = [Marks("mark.qr", "mark.watermark")]
    words = erasers_of(exact, tmp_path / "words", Vocabulary(("qr", "watermark"), "corners", 2))
    sample = draw(opened(exact, KEEP, words, both))[1]
    assert sample.outcome is Outcome.REVIEW and sample.reason == "mark.watermark"
    erased = sample.attempts[1].intervention
    assert erased is not None and erased.tokens == ("<watermark>", "<tl-0-0>", "<br-0-0>")  # and not <qr>
    hidden = erasers_of(exact, tmp_path / "hidden", None, weights=True, removal="model", concepts=("qr", "watermark"))
    asked, other = (draw(opened(exact, KEEP, hidden, both))[i] for i in (1, 0))
    assert [a.intervention and a.intervention.kind for a in other.attempts] == [None, "erase", "reseed"]
    # Weights that hide every mark would take the code too: the rung is a new seed, and the guard still has the last word.
    assert [a.intervention and a.intervention.kind for a in asked.attempts] == [None, "reseed", "reseed"]
    assert asked.outcome is Outcome.REVIEW and asked.reason == "mark.watermark"


def test_words_of_every_sample_leave_out_what_is_asked_for(exact: DiffusionModel, tmp_path: Path) -> None:
    always = {"tokens": "always"}
    erasers = erasers_of(exact, tmp_path / "always", Vocabulary(("qr",), "corners", 2), always)
    plain, acted, kept = (
        first(draw(opened(exact, policy, some))) for policy, some in ((ACT, Erasers()), (ACT, erasers), (KEEP, erasers))
    )
    assert all(with_words != without for with_words, without in zip(acted, plain, strict=True))
    assert kept == [acted[0], plain[1], acted[2]]


@pytest.mark.parametrize(("removal", "stay"), [("model", False), ("data", True)])
def test_weights_of_every_sample_stay_only_where_they_draw_the_set(
    exact: DiffusionModel, tmp_path: Path, removal: str, stay: bool
) -> None:
    erasers = erasers_of(
        exact, tmp_path / removal, None, {"lowrank": "always"}, weights=True, removal=removal, concepts=("qr", "text")
    )
    plain, acted, kept = (
        first(draw(opened(exact, policy, some))) for policy, some in ((ACT, Erasers()), (ACT, erasers), (KEEP, erasers))
    )
    assert plain[1] != acted[1] and kept == [acted[0], acted[1] if stay else plain[1], acted[2]]
    assert bool(erasers.sparing({"qr"}).recorded(None)) is stay
    assert erasers.sparing({"watermark"}).recorded(None) == erasers.recorded(None) != ()


def test_a_logo_that_the_prompt_asks_for_stays_and_another_is_drawn_again(exact: DiffusionModel, tmp_path: Path) -> None:
    """No eraser knows logos: one that nobody asked for is answered with a new seed."""
    policy = dataclasses.replace(ACT, asked=AskedPolicy(logo="keep"), marks=MarksPolicy(logos=True))
    erasers = erasers_of(exact, tmp_path / "eraser", Vocabulary(("qr",), "corners", 2), {})
    runtime = opened(exact, policy, erasers, [Marks("mark.logo")])
    prompts = ("a red apple", "a red apple with a logo")
    found = {sample.request.prompt: sample for sample in draw(runtime, prompts)}
    assert found[prompts[1]].outcome is Outcome.ACCEPTED and len(found[prompts[1]].attempts) == 1
    assert found[prompts[0]].outcome is Outcome.REVIEW and found[prompts[0]].reason == "mark.logo"
    assert len(found[prompts[0]].attempts) == 3


def test_rows_name_what_was_asked_for(exact: DiffusionModel, tmp_path: Path) -> None:
    always = erasers_of(exact, tmp_path / "always", Vocabulary(("qr",), "corners", 2), {"tokens": "always"})
    runtime = opened(exact, KEEP, always, [Marks("mark.qr")])
    samples, context = draw(runtime), runtime.context("run", "0" * 64, "worker")
    rows, attempts = (table(samples, context, "s0").to_pylist() for table in (sample_table, attempt_table))
    assert [row["findings"][0]["action"] for row in rows] == ["steer", ASKED, "steer"]
    assert {(a["request_key"], a["findings"][0]["action"]) for a in attempts} == {
        ("key-0", "steer"), ("key-1", ASKED), ("key-2", "steer")
    }  # fmt: skip
    assert [bool(row["adapters"][0]["tokens"]) for row in rows] == [True, False, True]
    counts = Counts()
    for row in rows:
        counts.add(row, [a for a in attempts if a["request_key"] == row["request_key"]])
    assert (counts.asked, counts.would_be_flagged, counts.measures()["asked"]["value"]) == (1, 0, 1)
    said = sentences(counts, None)
    assert said["asked"].startswith("1 of 1 accepted pictures shows a mark that its prompt asks for") and "observed" not in said


def test_a_rewritten_prompt_asks_for_what_is_drawn(exact: DiffusionModel) -> None:
    class Rewritten:
        findings, rejected, drawn = (), "", "a red apple"

        def _replace(self, **_: Any) -> Rewritten:
            return self

        def check(self, _: str) -> Rewritten:
            return self

    runtime = opened(exact, KEEP, Erasers(), [Marks("mark.qr")])
    assert [len(sample.attempts) for sample in draw(runtime, PROMPTS[1:2])] == [1]
    runtime.prompts = Rewritten()  # type: ignore[assignment]
    assert [len(sample.attempts) for sample in draw(runtime, PROMPTS[1:2])] == [3]


findings = st.lists(
    st.builds(
        lambda guard_category, score: Finding(
            guard=guard_category[0], version="1", category=guard_category[1], score=score, threshold=0.5
        ),
        st.sampled_from([("copies", "copy.protected"), ("marks", "mark.qr"), ("codes", "mark.qr"), ("text", "text.ocr")]),
        st.floats(0, 1),
    ),
    max_size=5,
)


@given(findings, st.sets(st.sampled_from(["mark.qr", "text.ocr", "mark.text"])), st.integers(0, 3))
def test_what_is_asked_for_decides_nothing_and_all_else_decides_as_before(
    found: list[Finding], asked: set[str], attempt: int
) -> None:
    left = [finding for finding in found if finding.category not in asked]
    assert decide(found, attempt, ACT, asked=asked) == decide(left, attempt, ACT)
    assert decide(found, attempt, KEEP) == decide(found, attempt, ACT)  # the policy alone keeps nothing either


def test_the_policy_says_which_marks_and_its_digest_says_so() -> None:
    assert not kept_if_asked(Policy()) and not asked_sets(Policy())
    assert not asked_and_kept(ACT, "a watermark over a QR code and text")
    everything = dataclasses.replace(ACT, asked=AskedPolicy(watermark="keep", qr="keep", text="keep"))
    assert kept_if_asked(everything) == {"mark.watermark", "mark.qr", "mark.text", "text.ocr"}
    assert asked_and_kept(everything, "a watermark over a QR code") == {"mark.watermark", "mark.qr"}
    assert asked_and_kept(everything, "a watermark over a QR code", "watermark") == {"mark.qr"}
    assert asked_and_kept(KEEP, "a watermark over a QR code") == {"mark.qr"}
    assert len(asked_sets(everything)) == 7 and asked_sets(KEEP) == [("mark.qr",)]
    assert action_of(KEEP, "codes", "mark.qr") == "steer" and action_of(KEEP, "codes", "mark.qr", {"mark.qr"}) == ASKED
    assert policy_digest(dataclasses.replace(ACT, asked=AskedPolicy())) == policy_digest(ACT) != policy_digest(KEEP)
    assert any("asked.watermark" in remark for remark in remarks(everything))
    assert not any("asked" in remark for remark in remarks(KEEP))
