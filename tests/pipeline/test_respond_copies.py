"""The ladder: the keys of a rung, and the answer of each kind to a failed attempt."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from index.errors import ConfigError
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.policy import Policy
from pipeline.respond.copies import Words, next_seed, random_references
from pipeline.rungs import NegativeRung, NegToMeRung, NudgeRung, RenoiseRung, ReseedRung, Rung
from pipeline.settings import from_dict
from pipeline.steer.embedder_space import EmbedderSpace

from ..retries import SEED, STEPS, again, engine_of, first_of, run, rung_of

# Every kind and its forms, as they are written in a policy file.
ARMS = {
    "none": "ladder = []",
    "negative prompt": '[[ladder]]\nkind = "negative"',
    "re-seed": '[[ladder]]\nkind = "reseed"\n[[ladder]]\nkind = "reseed"',
    "re-noise only": '[[ladder]]\nkind = "renoise"\nresume_fraction = 0.4\nrollback = 0.2',
    "NegToMe released": '[[ladder]]\nkind = "negtome"\nmatch = "released"\nplacement = "released"\nkeep_norm = false\n'
    'noise = "none"\nattention = "both"\ntoken_threshold = 0.0',
    "NegToMe paper": '[[ladder]]\nkind = "negtome"\nkeep_norm = false\nattention = "both"\ntoken_threshold = 0.0',
    "NegToMe ours": '[[ladder]]\nkind = "negtome"\nform = "kernel"\nmasked = true\nreferences = 2\ntoken_threshold = 0.0',
    "NegToMe, random reference": '[[ladder]]\nkind = "negtome"\ntarget = "random"\ntoken_threshold = 0.0',
    "nudging literal": '[[ladder]]\nkind = "nudge"\nsolver = "closed_form"\nnormalise = "none"\nweights = "mean"\nkeep = 4.0\n'
    "centred = false",
    "nudging ours": '[[ladder]]\nkind = "nudge"\niterations = 3\nenough = -0.9',
    "nudging of the noisy latent": '[[ladder]]\nkind = "nudge"\nspace = "noisy"\niterations = 2',
    "nudging in the embedder's space": '[[ladder]]\nkind = "nudge"\nspace = "embedder"\npull = 0.5\niterations = 2',
    "random direction": '[[ladder]]\nkind = "nudge"\ndirection = "random"',
    "the full ladder": '[[ladder]]\nkind = "nudge"\nresume_fraction = 0.4\nrollback = 0.2\n'
    '[[ladder]]\nkind = "nudge"\nresume_fraction = 0.4\nrollback = 0.2\n[[ladder]]\nkind = "negtome"\n'
    '[[ladder]]\nkind = "reseed"',
}


def ladder(text: str) -> tuple[Rung, ...]:
    return from_dict(Policy, tomllib.loads(text), where="policy").ladder


REFUSED = [
    ({"kind": "reseed", "alpha": 0.5}, "'alpha' means nothing to kind 'reseed'"),
    ({"kind": "nudge", "token_threshold": 0.5}, "means nothing"),
    ({"kind": "negtome", "enough": 0.5}, "means nothing"),
    ({"kind": "nudge", "resume_fraction": 1.5}, "must be from 0 to 1, not 1.5"),
    ({"kind": "nudge", "references": 0}, "must be from 1 to 64, not 0"),
    ({"kind": "nudge", "step_size": float("nan")}, "must be a number from 0 to 10, not nan"),
    ({"kind": "negtome", "match": "sideways"}, "'sideways' is not allowed"),
    ({"kind": "negtome", "match": "released", "references": 2}, "one reference"),
    ({"kind": "negtome", "match": "released", "masked": True}, "no mask"),
    ({"kind": "nudge", "pull": 1.0}, "only the embedder"),
    ({"kind": "nudge", "space": "embedder", "solver": "closed_form"}, "no closed form"),
    ({"kind": "nudge", "solver": "closed_form"}, "only dot products"),
    ({"kind": "nudge", "solver": "closed_form", "normalise": "none"}, "takes the mean"),
    ({"kind": "nudge", "solver": "closed_form", "normalise": "none", "weights": "mean", "keep": 0}, "divides by it"),
    ({"kind": "nudge", "push": 0.0}, "nothing pushes"),
    ({"kind": "nudge", "renew": True, "resume_fraction": 0.4}, "nothing of the failed attempt is kept"),
    ({"kind": "renoise", "renew": True}, "means nothing"),
    ({"kind": "nudge", "itterations": 5}, "Did you mean 'iterations'"),
    ({"kind": "nugde"}, "is not allowed"),
]


@pytest.mark.parametrize(("rung", "message"), REFUSED, ids=range(len(REFUSED)))
def test_senseless_rungs_are_refused_by_name(rung: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        from_dict(Policy, {"ladder": [rung]}, where="policy")
    assert error.value.fix


def test_a_wrong_kind_in_python_is_no_traceback_either() -> None:
    with pytest.raises(ConfigError, match="'climb' is not allowed"):
        ReseedRung(kind="climb")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def engine(tiny_sd: Path) -> Engine:
    return engine_of(tiny_sd)


@pytest.fixture(scope="module")
def first(engine: Engine) -> Trajectory:
    return first_of(engine)


@pytest.fixture(scope="module")
def space(engine: Engine) -> EmbedderSpace:
    class Embedder:
        def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels[:, :, ::4, ::4].flatten(1)

        def texts(self, captions: list[str]) -> Any:
            return torch.nn.functional.normalize(torch.ones(1, 48), dim=1).numpy()

    return EmbedderSpace.of(engine.model, Embedder())


@pytest.mark.parametrize("kind", ["nudge", "negtome", "negative"])
def test_a_rung_may_start_from_new_noise(engine: Engine, first: Trajectory, kind: str) -> None:
    for attempt in (1, 2):
        t, _, seed = again(engine, first, rung_of(kind, renew=True), attempt=attempt)
        assert seed == next_seed(SEED, attempt) and t.step == 0
        assert torch.equal(t.latent, engine.initial_noise(seed))
    assert torch.equal(first.ring[0], engine.initial_noise(SEED)), "the failed attempt's own memory is not touched"


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "none"])
def test_every_kind_draws_another_picture_and_records_it(
    engine: Engine, first: Trajectory, space: EmbedderSpace, arm: str
) -> None:
    rung = ladder(ARMS[arm])[0]
    t, intervention, seed = again(engine, first, rung, space=space)
    assert intervention.kind == rung.kind and (seed == SEED) == (rung.kind != "reseed")
    begin = t.step
    assert begin == (2 if getattr(rung, "resume_fraction", 0.0) == 0.4 else 0)
    run(engine, t)
    assert torch.isfinite(t.latent).all() and not torch.equal(t.latent, first.latent)
    twice, _, _ = again(engine, first, rung, space=space)
    assert torch.equal(run(engine, twice).latent, t.latent)  # a rung is reproducible
    rows = 1 + rung.references / 2 if isinstance(rung, NegToMeRung) else 1.0
    assert t.evals == (STEPS - begin) * rows


def test_no_ladder_is_no_attempt() -> None:
    assert ladder(ARMS["none"]) == ()


@pytest.mark.parametrize("kind", ["negtome", "nudge", "negative"])
def test_without_references_a_rung_is_a_new_seed_and_recorded_as_one(engine: Engine, first: Trajectory, kind: str) -> None:
    t, intervention, seed = again(engine, first, rung_of(kind), found=0)
    assert intervention.kind == "reseed" and intervention.ref_ids == () and seed == next_seed(SEED, 1)
    assert torch.equal(t.latent, engine.initial_noise(seed)) and t.push is t.nudge is t.guide is None


def test_each_failure_rolls_back_earlier(engine: Engine, first: Trajectory) -> None:
    rung = NudgeRung(resume_fraction=0.8, rollback=0.2)
    assert [again(engine, first, rung, attempt=n)[0].step for n in (1, 2, 3, 4, 5, 6)] == [4, 3, 2, 1, 0, 0]
    t, _, _ = again(engine, first, rung)
    assert sorted(t.ring) == [0, 1, 2, 3] and torch.equal(t.latent, first.ring[4])
    thinned = Trajectory(
        tag=1,
        latent=first.latent,
        step=STEPS,
        context=first.context,
        negative=first.negative,
        ring={s: first.ring[s] for s in (0, 2)},
    )
    assert again(engine, thinned, rung)[0].step == 2  # the latest that is kept, not the earliest


def test_a_second_steered_attempt_can_go_back_behind_the_first(engine: Engine, first: Trajectory) -> None:
    t, _, _ = again(engine, first, NudgeRung(resume_fraction=0.6))
    run(engine, t)
    further, _, _ = again(engine, t, NudgeRung(resume_fraction=0.2), attempt=2)
    assert further.step == 1 and torch.equal(further.latent, first.ring[1])


def test_renoise_changes_the_noise_and_nothing_else(engine: Engine, first: Trajectory) -> None:
    t, _, _ = again(engine, first, RenoiseRung(resume_fraction=0.6))
    noise = (t.latent - engine.sampler.signal[3] * first.latent) / engine.sampler.noise[3]
    assert torch.allclose(noise, engine.initial_noise(next_seed(SEED, 1)), atol=1e-3)
    assert t.push is t.nudge is t.guide is None and t.context.equal(first.context)


def test_negative_titles_stand_behind_the_callers_own(engine: Engine, first: Trajectory) -> None:
    t, _, _ = again(engine, first, NegativeRung(references=2))
    assert t.negative.equal(engine.model.encode_prompts(["a dog, cat, lemon"])[0])
    words = Words(caption="x", negative_prompt="a dog", titles=["", ""], encode=lambda _: torch.zeros(1))
    assert words.negative_of(2) == ""


def test_the_text_of_a_negative_conditioning_is_known_again_and_of_no_other(engine: Engine) -> None:
    words = Words(caption="x", negative_prompt="", titles=[], encode=lambda text: engine.model.encode_prompts([text])[0])
    made = [words.context_of(text) for text in ("a dog", "a cat")]
    assert [words.text_of(one) for one in made] == ["a dog", "a cat"]
    assert words.text_of(engine.model.encode_prompts(["a dog"])[0]) is None and words.text_of(None) is None


def test_random_references_are_others_in_an_order_of_the_seed() -> None:
    everything = [f"{i:08x}" for i in range(20)]
    drawn = random_references(everything, everything[:3], seed=1, attempt=1)
    assert len(drawn) == 17 and not set(drawn) & set(everything[:3])
    assert drawn == random_references(everything[::-1], everything[:3], seed=1, attempt=1)
    assert drawn != random_references(everything, everything[:3], seed=2, attempt=1)


def test_the_embedders_space_needs_an_embedder(engine: Engine, first: Trajectory) -> None:
    with pytest.raises(ConfigError, match="no embedder"):
        again(engine, first, NudgeRung(space="embedder"))
