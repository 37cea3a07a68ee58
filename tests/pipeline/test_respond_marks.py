"""Erasers in the loop, on a tiny random model: the erasure for a finding, the rows that change, and the record."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segno
import torch

from guards.base import Finding
from guards.codes import CodesGuard
from guards.registry import open_guards
from index.errors import ConfigError
from pipeline.config import AdapterConfig, GenerationConfig, ModelConfig, RunConfig
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.identity import identity_of
from pipeline.model.interface import DiffusionModel
from pipeline.moderate import moderate
from pipeline.outcome import Outcome, Request, Sample, Stated
from pipeline.policy import CopiesPolicy, MarksPolicy, Policy, YoloPolicy
from pipeline.respond.marks import Erasers, adapters_digest, erase, open_erasers
from pipeline.rungs import EraseRung, NegativeRung, ReseedRung
from pipeline.runtime import Runtime
from pipeline.settings import from_dict
from pipeline.steer.erase_tokens import Vocabulary
from pipeline.steer.nudge import Nudge

from .adapters import write_adapter
from .loop import REF, Copies, Index

STEPS = 4
MARKS = Policy(marks=MarksPolicy(), mark_ladder=(EraseRung(), EraseRung(strength=2.0), ReseedRung()))


def test_what_a_finding_asks_for(exact: DiffusionModel, tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one", exact, Vocabulary(("qr",), "corners", 2))
    two = write_adapter(tmp_path / "two", exact, Vocabulary(("text",), None), weights=True, seed=5)
    erasers = open_erasers([AdapterConfig(path=str(one)), AdapterConfig(str(two), lowrank="flagged")], exact, base=tmp_path)
    assert erasers.erasure_for({"watermark": []}, 30) is None and erasers.standing(30) is None and not erasers.always_lowrank
    erasure = erasers.erasure_for({"text": [(0, 0, 1, 1)], "qr": [(0, 0, 0.4, 0.4)]}, 30, 1.5)
    assert (
        erasure is not None
        and erasure.tokens == ("<qr>", "<tl-0-0>", "<br-0-0>", "<text>")
        and erasure.vectors.shape == (4, 32)
    )
    assert len(erasure.lowrank) == 1 and erasure.strength == 1.5 and len(erasure.adapters) == 2
    assert set(erasure.places) == {(0, 0, 1, 1), (0, 0, 0.4, 0.4)}
    only = erasers.erasure_for({"qr": [(0, 0, 0.4, 0.4), (0.6, 0.6, 1, 1)]}, 3)  # no room for the second box
    assert only is not None and only.tokens == ("<qr>", "<tl-0-0>", "<br-0-0>") and only.lowrank == ()
    wide = erasers.erasure_for({"qr": [(0, 0, 0.4, 0.4)]}, 30, usual=True)  # and where such marks stood in the training set
    assert wide is not None and wide.tokens == ("<qr>", "<tl-0-0>", "<br-0-0>", "<tl-1-1>", "<br-1-1>")
    assert wide.places == ((0, 0, 0.4, 0.4), (0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1))
    nowhere = erasers.erasure_for({"qr": []}, 30, usual=True)
    assert nowhere is not None and nowhere.places == ((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1))
    always = open_erasers([AdapterConfig(path=str(one), tokens="always")], exact, base=tmp_path)
    standing = always.standing(30)
    assert standing is not None and standing.tokens == ("<qr>", "<tl-0-0>", "<br-0-0>", "<tl-1-1>", "<br-1-1>")
    assert [a.tokens for a in always.recorded(standing)] == [standing.tokens]


def test_adapters_are_part_of_the_identity(exact: DiffusionModel, tiny_sd: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "one", exact, Vocabulary(("qr",)))
    plain = RunConfig(prompts="-", model=ModelConfig(path=str(tiny_sd), dtype="float32"))
    with_one = dataclasses.replace(plain, adapters=(AdapterConfig(path="one"),))
    assert identity_of(plain, MARKS, base=tmp_path)["adapters_sha256"] == ""
    said = identity_of(with_one, MARKS, base=tmp_path)["adapters_sha256"]
    assert said and said == adapters_digest(with_one.adapters, exact.digest, base=tmp_path)
    opened = runtime(exact, [], open_erasers(with_one.adapters, exact, base=tmp_path), MARKS)
    assert opened.identity()["adapters_sha256"] == said
    with pytest.raises(ConfigError, match="low-rank"):
        open_erasers([AdapterConfig(path="one", lowrank="flagged")], exact, base=tmp_path)
    write_adapter(tmp_path / "without", exact, None, weights=True, concepts=("qr",))
    with pytest.raises(ConfigError, match=r'without: tokens: has no tokens\. .*lowrank = "always"'):
        open_erasers([AdapterConfig(path="without", tokens="always")], exact, base=tmp_path)


# --- the loop ---------------------------------------------------------------------------------------------------------------


class Marks:
    """Finds a QR code in the upper left of the pictures a test names by digest."""

    name, version, categories = "marks", "1", ("mark.qr",)

    def __init__(self, bad: set[str], box: tuple[float, float, float, float] | None = (0, 0, 0.4, 0.4)) -> None:
        self.bad, self.box = bad, box

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        return [
            [
                Finding(
                    guard="marks", version="1", category="mark.qr", score=float(sha(p) in self.bad), threshold=0.5, box=self.box
                )
            ]
            for p in pictures
        ]


class Everywhere(Marks):
    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        return [
            [Finding(guard="marks", version="1", category="mark.qr", score=1.0, threshold=0.5, box=self.box)] for _ in pictures
        ]


def sha(picture: np.ndarray) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()


def runtime(model: DiffusionModel, guards: Sequence[Any], erasers: Erasers, policy: Policy, **generation: Any) -> Runtime:
    config = RunConfig(prompts="-", generation=GenerationConfig(**{"steps": STEPS, "rows": 8, **generation}))
    return Runtime(config, policy, model, guards=guards, erasers=erasers)


def draw(s: Runtime, count: int = 4) -> dict[str, Sample]:
    requests = [Request(row_no=i, key=f"key-{i}", prompt=f"a red apple {i}", seed=i) for i in range(count)]
    return {sample.request.key: sample for sample in moderate(s, requests)}


@pytest.fixture
def erasers(exact: DiffusionModel, tmp_path: Path) -> Erasers:
    folder = write_adapter(tmp_path / "both", exact, Vocabulary(("qr",), "corners", 2), weights=True)
    return open_erasers([AdapterConfig(path=str(folder), lowrank="flagged")], exact, base=tmp_path)


def test_a_mark_is_erased_in_place_and_no_other_sample_changes(exact: DiffusionModel, erasers: Erasers) -> None:
    plain = draw(runtime(exact, [], Erasers(), MARKS))
    first = {key: s.attempts[0].pixel_sha256 for key, s in plain.items()}
    assert len(set(first.values())) == 4
    done = draw(runtime(exact, [Marks({first["key-2"]})], erasers, MARKS))
    for key in ("key-0", "key-1", "key-3"):
        assert done[key].outcome is Outcome.ACCEPTED and [a.pixel_sha256 for a in done[key].attempts] == [first[key]]
    erased = done["key-2"]
    assert erased.outcome is Outcome.ACCEPTED_AFTER_STEERING and len(erased.attempts) == 2
    again = erased.attempts[1]
    assert again.seed == erased.attempts[0].seed == 2 and again.resumed_from_step == 0
    assert again.intervention is not None and again.intervention.kind == "erase" and again.intervention.strength == 1.0
    assert again.intervention.tokens == ("<qr>", "<tl-0-0>", "<br-0-0>")
    assert again.intervention.adapters == (erasers.loaded[0][0].digest,)
    assert again.pixel_sha256 != first["key-2"] and again.denoiser_evals == STEPS  # no dearer than a new seed
    alone = draw(runtime(exact, [Marks({first["key-2"]})], erasers, MARKS), count=3)["key-2"]
    assert alone.attempts[1].pixel_sha256 == again.pixel_sha256  # can be made again in other company


def test_focus_acts_where_the_mark_was_found_and_on_no_other_sample(exact: DiffusionModel, erasers: Erasers) -> None:
    first = {key: s.attempts[0].pixel_sha256 for key, s in draw(runtime(exact, [], Erasers(), MARKS)).items()}

    def again(focus: float, box: Any = (0, 0, 0.4, 0.4)) -> dict[str, Sample]:
        policy = dataclasses.replace(MARKS, mark_ladder=(EraseRung(focus=focus), ReseedRung()))
        return draw(runtime(exact, [Marks({first["key-2"]}, box)], erasers, policy))

    plain, focused = again(1.0), again(4.0)
    assert plain["key-2"].attempts[1].pixel_sha256 != focused["key-2"].attempts[1].pixel_sha256
    assert focused["key-2"].attempts[1].denoiser_evals == STEPS  # no dearer
    assert focused["key-2"].attempts[1].intervention == plain["key-2"].attempts[1].intervention
    for key in ("key-0", "key-1", "key-3"):
        assert [a.pixel_sha256 for a in focused[key].attempts] == [first[key]]
    wide = EraseRung(places="usual")
    policy = dataclasses.replace(MARKS, mark_ladder=(wide, ReseedRung()))
    everywhere = draw(runtime(exact, [Marks({first["key-2"]})], erasers, policy))["key-2"].attempts[1].intervention
    assert everywhere is not None and everywhere.tokens == ("<qr>", "<tl-0-0>", "<br-0-0>", "<tl-1-1>", "<br-1-1>")
    nowhere = [again(focus, None)["key-2"].attempts[1].pixel_sha256 for focus in (1.0, 4.0)]
    assert nowhere[0] == nowhere[1]  # a guard without boxes gives nothing to focus on


def test_the_mark_ladder_climbs_and_ends_in_review(exact: DiffusionModel, erasers: Erasers) -> None:
    sample = draw(runtime(exact, [Everywhere(set())], erasers, MARKS), count=1)["key-0"]
    assert sample.outcome is Outcome.REVIEW and sample.reason == "mark.qr"
    interventions = [a.intervention for a in sample.attempts]
    assert [i and i.kind for i in interventions] == [None, "erase", "erase", "reseed"]
    assert [i and i.strength for i in interventions[1:3]] == [1.0, 2.0]
    assert interventions[3] is not None and interventions[3].tokens == ("<qr>", "<tl-0-0>", "<br-0-0>")  # still in force
    assert sample.attempts[3].seed != 0 and len({a.pixel_sha256 for a in sample.attempts}) == 4


def test_the_same_erasure_again_is_a_new_seed(exact: DiffusionModel, erasers: Erasers) -> None:
    twice = dataclasses.replace(MARKS, mark_ladder=(EraseRung(), EraseRung()))
    sample = draw(runtime(exact, [Everywhere(set())], erasers, twice), count=1)["key-0"]
    assert [a.intervention and a.intervention.kind for a in sample.attempts] == [None, "erase", "reseed"]
    assert sample.attempts[2].intervention and sample.attempts[2].intervention.tokens


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_weights_from_which_marks_were_hidden_need_no_tokens(exact: DiffusionModel, tmp_path: Path, guidance: float) -> None:
    folder = write_adapter(tmp_path / "hidden", exact, None, weights=True, removal="model", concepts=("qr",))
    hidden = open_erasers([AdapterConfig(path=str(folder))], exact, base=tmp_path)
    first = draw(runtime(exact, [], hidden, MARKS, guidance_scale=guidance))
    plain = draw(runtime(exact, [], Erasers(), MARKS, guidance_scale=guidance))
    digests = {key: s.attempts[0].pixel_sha256 for key, s in plain.items()}
    assert {key: s.attempts[0].pixel_sha256 for key, s in first.items()} == digests  # nobody is flagged: nothing is in force
    done = draw(runtime(exact, [Marks({digests["key-2"]})], hidden, MARKS, guidance_scale=guidance))
    assert [done[key].attempts[-1].pixel_sha256 for key in ("key-0", "key-1", "key-3")] == [
        digests[key] for key in ("key-0", "key-1", "key-3")
    ]
    again = done["key-2"].attempts[1]
    assert again.intervention is not None and (again.intervention.kind, again.intervention.tokens) == ("erase", ())
    assert again.intervention.adapters == (hidden.loaded[0][0].digest,)
    assert again.seed == 2 and again.pixel_sha256 != digests["key-2"]
    erasure = hidden.erasure_for({"qr": [(0, 0, 0.4, 0.4)]}, 30, usual=True)
    assert erasure is not None and erasure.places == ()  # where nothing is said there is nothing to focus on
    climbed = draw(runtime(exact, [Everywhere(set())], hidden, MARKS, guidance_scale=guidance), count=1)["key-0"]
    assert [a.intervention and a.intervention.kind for a in climbed.attempts] == [None, "erase", "reseed", "reseed"]
    assert all(a.intervention and a.intervention.adapters for a in climbed.attempts[1:])  # in force to the end
    learned = write_adapter(tmp_path / "learned", exact, None, weights=True, concepts=("qr",))  # data removal: every sample's
    always = open_erasers([AdapterConfig(path=str(learned))], exact, base=tmp_path)
    assert len(always.always_lowrank) == 1 and always.erasure_for({"qr": []}, 30) is None


def test_without_a_box_only_the_name_is_used(exact: DiffusionModel, erasers: Erasers) -> None:
    sample = draw(runtime(exact, [Everywhere(set(), None)], erasers, MARKS), count=1)["key-0"]
    assert sample.attempts[1].intervention and sample.attempts[1].intervention.tokens == ("<qr>",)


def test_without_an_eraser_a_mark_is_a_new_seed(exact: DiffusionModel) -> None:
    sample = draw(runtime(exact, [Everywhere(set())], Erasers(), MARKS), count=1)["key-0"]
    assert [a.intervention and a.intervention.kind for a in sample.attempts] == [None, *["reseed"] * 3]
    assert len({a.seed for a in sample.attempts}) == 4


def test_unguided_models_have_no_negative_conditioning(exact: DiffusionModel, tmp_path: Path, erasers: Erasers) -> None:
    unguided = runtime(exact, [Everywhere(set())], erasers, MARKS, guidance_scale=1.0)
    sample = draw(unguided, count=1)["key-0"]
    assert [a.intervention and a.intervention.kind for a in sample.attempts] == [None, *["reseed"] * 3]
    t = Trajectory(tag=0, latent=unguided.engine.initial_noise(0), step=0, context=exact.encode_prompts([""])[0], negative=None)
    erasure = erasers.erasure_for({"qr": []}, 30)
    assert erasure is not None
    with pytest.raises(ConfigError, match="negative row"):
        erase(unguided.engine, t, EraseRung(), erasure, t.context, seed=0)
    folder = write_adapter(tmp_path / "always", exact, Vocabulary(("qr",)))
    always = open_erasers([AdapterConfig(path=str(folder), tokens="always")], exact, base=tmp_path)
    with pytest.raises(ConfigError, match="without guidance"):
        runtime(exact, [], always, MARKS, guidance_scale=1.0)


def test_a_share_of_guidance_that_rounds_to_no_step_is_refused_beside_tokens(exact: DiffusionModel, tmp_path: Path) -> None:
    """Tokens, negative prompts and rungs that need them did nothing, and the rows said that they were in force."""
    folder = write_adapter(tmp_path / "always", exact, Vocabulary(("qr",)))
    always = open_erasers([AdapterConfig(path=str(folder), tokens="always")], exact, base=tmp_path)
    with pytest.raises(
        ConfigError, match=r"without guidance .*Set generation\.guidance_until above 0\.125, which is half a step"
    ):
        runtime(exact, [], always, MARKS, guidance_until=0.1)
    opened = runtime(exact, [], always, MARKS, steps=20, guidance_until=0.1)
    requests = [
        Request(row_no=i, key=str(i), prompt="a", seed=i, stated=Stated(steps=steps)) for i, steps in enumerate((None, 3))
    ]
    done = {sample.request.key: sample for sample in moderate(opened, requests)}
    assert done["0"].outcome is Outcome.ACCEPTED and done["1"].outcome is Outcome.ERROR
    assert "steps: without guidance" in done["1"].error_message and "guidance_until above 0.166667" in done["1"].error_message


def test_without_guided_steps_words_are_a_new_seed_and_a_negative_rung_an_error(
    exact: DiffusionModel, erasers: Erasers
) -> None:
    sample = draw(runtime(exact, [Everywhere(set())], erasers, MARKS, guidance_until=0.1), count=1)["key-0"]
    assert [a.intervention and a.intervention.kind for a in sample.attempts] == [None, *["reseed"] * 3]
    policy, config = (
        Policy(copies=CopiesPolicy(), ladder=(NegativeRung(),)),
        GenerationConfig(steps=4, rows=8, guidance_until=0.1),
    )
    copies: Any = Copies(lambda _: True)
    flagged = Runtime(RunConfig(prompts="-", generation=config), policy, exact, copies=copies, index=Index(), threshold=0.8)  # type: ignore[arg-type]
    (ended,) = moderate(flagged, [Request(row_no=0, key="a", prompt="a red apple", seed=1)])
    assert ended.outcome is Outcome.ERROR and "drawn without a negative row" in ended.error_message
    assert "generation.guidance_until above 0.125" in ended.error_message


def test_what_is_only_observed_is_not_erased(exact: DiffusionModel, erasers: Erasers) -> None:
    class Observed(Everywhere):
        name = "yolo"

        def check(self, pictures: np.ndarray) -> list[list[Finding]]:
            return [
                [Finding(guard="yolo", version="1", category="mark.qr", score=1.0, threshold=0.5, box=(0.6, 0.6, 1, 1))]
                for _ in pictures
            ]

    policy = dataclasses.replace(MARKS, yolo=YoloPolicy(action="observe"))
    sample = draw(runtime(exact, [Everywhere(set()), Observed(set())], erasers, policy), count=1)["key-0"]
    assert sample.attempts[1].intervention and sample.attempts[1].intervention.tokens == ("<qr>", "<tl-0-0>", "<br-0-0>")


def test_low_rank_weights_and_tokens_may_always_be_in_force(exact: DiffusionModel, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "set", exact, Vocabulary(("qr",), "corners", 2), weights=True)

    def first(**how: Any) -> str:
        opened = open_erasers([AdapterConfig(path=str(folder), **how)], exact, base=tmp_path)
        return draw(runtime(exact, [Marks(set())], opened, MARKS), count=1)["key-0"].attempts[0].pixel_sha256

    plain = draw(runtime(exact, [Marks(set())], Erasers(), MARKS), count=1)["key-0"].attempts[0].pixel_sha256
    drawn = [plain, first(lowrank="flagged"), first(), first(tokens="always"), first(lowrank="flagged", tokens="always")]
    assert drawn[0] == drawn[1] and len(set(drawn)) == 4
    assert first(weight=0.5) not in drawn


def test_low_rank_weights_act_on_the_samples_they_were_trained_for(exact: DiffusionModel, tmp_path: Path) -> None:
    words = Vocabulary(("qr",), "corners", 2)
    one = write_adapter(tmp_path / "one", exact, words, weights=True, removal="model")
    own, all_of_them = (
        open_erasers([AdapterConfig(path=str(one), **how)], exact, base=tmp_path) for how in ({}, {"lowrank": "always"})
    )
    erasure = own.erasure_for({"qr": [(0, 0, 0.4, 0.4)]}, 30)
    assert not own.always_lowrank and erasure is not None and [strength for _, strength in erasure.lowrank] == [1.0]
    assert len(all_of_them.always_lowrank) == 1
    a_set = write_adapter(tmp_path / "set", exact, words, weights=True, removal="data")
    assert len(open_erasers([AdapterConfig(path=str(a_set))], exact, base=tmp_path).always_lowrank) == 1


def test_a_resumed_erasure_keeps_the_beginning(exact: DiffusionModel, erasers: Erasers) -> None:
    late = dataclasses.replace(MARKS, mark_ladder=(EraseRung(resume_fraction=0.5), ReseedRung()))
    sample = draw(runtime(exact, [Everywhere(set())], erasers, late), count=1)["key-0"]
    assert sample.attempts[1].resumed_from_step == 2 and sample.attempts[1].denoiser_evals == STEPS - 2


def test_erasing_a_mark_keeps_what_keeps_a_copy_away(exact: DiffusionModel, erasers: Erasers) -> None:
    e = Engine(exact, rows=8, steps=STEPS, guidance_scale=3.0)
    texts = exact.encode_prompts(["a red apple", ""])
    reference = torch.randn(exact.latent_shape, generator=torch.Generator().manual_seed(9))

    def finished(nudge: Nudge | None) -> Trajectory:
        plain = Trajectory(tag=0, latent=e.initial_noise(1), step=0, context=texts[0], negative=texts[1], seed=1)
        e.submit(plain)
        while e.busy:
            e.step()
        late = Trajectory(
            tag=0,
            latent=plain.ring[2],
            step=2,
            context=texts[0],
            negative=texts[1],
            nudge=nudge,
            ring={s: plain.ring[s] for s in (0, 1)},
        )
        e.submit(late.resumed(plain, 1))
        while e.busy:
            e.step()
        return late

    erasure = erasers.erasure_for({"qr": [(0, 0, 0.4, 0.4)]}, 30)
    assert erasure is not None
    nudge = Nudge(references=(reference,), centre=torch.zeros_like(reference), step_size=0.2, iterations=3, until_step=STEPS)
    steered, _ = erase(e, finished(nudge), EraseRung(), erasure, texts[1], seed=1)
    assert steered.nudge is nudge and steered.step == 2 and sorted(steered.ring) == [0, 1]
    free, _ = erase(e, finished(None), EraseRung(), erasure, texts[1], seed=1)
    assert free.nudge is None and free.step == 0 and torch.equal(free.latent, e.initial_noise(1))


@pytest.mark.parametrize("own", ["", "blurry"])
def test_erasing_a_mark_keeps_the_titles_that_a_copy_was_steered_away_by(
    exact: DiffusionModel, erasers: Erasers, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Second(Marks):
        """Finds a mark in every picture but the first, which is the copy."""

        def __init__(self) -> None:
            super().__init__(set())
            self.looks = 0

        def check(self, pictures: np.ndarray) -> list[list[Finding]]:
            self.looks += 1
            self.bad = set() if self.looks == 1 else {sha(picture) for picture in pictures}
            return super().check(pictures)

    copied: list[np.ndarray] = []

    def flags(picture: np.ndarray) -> bool:
        copied.append(picture)
        return len(copied) == 1

    policy = Policy(
        copies=CopiesPolicy(), marks=MarksPolicy(), ladder=(NegativeRung(),),
        mark_ladder=(EraseRung(), EraseRung(strength=2.0), ReseedRung()),
    )  # fmt: skip
    config = RunConfig(prompts="-", generation=GenerationConfig(steps=STEPS, rows=8))
    steered: Any = Runtime(
        config, policy, exact, copies=Copies(flags), index=Index(), guards=[Second()], erasers=erasers, threshold=0.8
    )  # type: ignore[arg-type]
    asked: list[str] = []
    negative_of = steered.negative_of

    def noted(text: str, *more: Any) -> Any:
        asked.append(text)
        return negative_of(text, *more)

    monkeypatch.setattr(steered, "negative_of", noted)
    (sample,) = moderate(steered, [Request(row_no=0, key="a", prompt="a red apple", negative_prompt=own, seed=1)])
    done = [a.intervention for a in sample.attempts[1:]]
    assert [one and (one.kind, one.ref_ids) for one in done] == [
        ("negative", (REF,)), ("erase", (REF,)), ("erase", (REF,)), ("reseed", ()),
    ]  # fmt: skip
    titles = f"{own}, grey" if own else "grey"
    assert asked == [own, titles, titles, titles]  # of the first attempt, the rung, and each erasure


def test_our_own_marks_are_never_erased() -> None:
    """A code that marks a picture as made by a model is on the allow-list: never flagged, so never erased."""
    tile = np.array([list(row) for row in segno.make("urn:clearance:7f3a", micro=False).matrix], np.uint8)
    picture = np.pad(np.where(tile == 1, 0, 255).astype(np.uint8).repeat(4, 0).repeat(4, 1), 16, constant_values=255)
    pictures = np.repeat(picture[None, ..., None], 3, 3)
    assert CodesGuard().check(pictures)[0][0].triggered
    policy = from_dict(Policy, {"codes": {"allow": "urn:clearance:"}}, where="policy")
    guard = open_guards({"codes": policy.codes})[0][0]
    found = guard.check(pictures)[0]
    assert not any(finding.triggered for finding in found)
    assert Erasers().erasure_for({}, 30) is None
