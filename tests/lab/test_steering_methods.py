"""The laboratory's steering methods: their pure functions, and the answer of each to a failed attempt."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import ConfigError
from jobs.lab.steering.amg import AmgRung, Despecification, despecified_scale
from jobs.lab.steering.delayed import DelayedCfgRung, DelayedGuidance, delay_is_over
from jobs.lab.steering.prompt import PromptRung, differentiable_denoiser, optimise_prompt
from jobs.lab.steering.safe_guidance import SafeGuidance, safe_guidance
from jobs.lab.steering.spell import Repellency, SpellRung, repel
from pipeline.config import ModelConfig
from pipeline.engine.engine import Engine
from pipeline.engine.trajectory import Trajectory
from pipeline.fields import Key, keys
from pipeline.model.load import load_model
from pipeline.policy import Policy
from pipeline.respond.copies import next_seed
from pipeline.settings import from_dict

from ..retries import SEED, STEPS, again, engine_of, first_of, run, rung_of

KINDS = ("amg", "delayed_cfg", "prompt", "spell")
RUNGS = {
    "delayed_cfg": 'kind = "delayed_cfg"\nwindow = 0.5',
    "prompt": 'kind = "prompt"\niterations = 2\nnorm_target = 0.0',
    "amg": 'kind = "amg"\nstrength = 5.0\nenough = 0.5\niterations = 1',
    "spell": 'kind = "spell"\nradius = 1.5\nreferences = 2',
}
NEGATIVE = torch.zeros(4, 2, 2)


def outputs(norm: float) -> torch.Tensor:
    return torch.full((4, 2, 2), norm / 4)  # sixteen equal entries: its distance from zeros is ``norm``


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_guidance_waits_for_the_first_local_minimum() -> None:
    assert not delay_is_over([]) and not delay_is_over([3.0, 2.0, 2.0]) and delay_is_over([3.0, 2.0, 2.5, 1.0])
    guide = DelayedGuidance(3.0, until_step=10)
    guided = [not torch.equal(guide(NEGATIVE, NEGATIVE, outputs(n), i), NEGATIVE) for i, n in enumerate([9, 7, 4, 5, 3, 2])]
    assert guided == [False, False, False, True, True, True]  # also after the norm falls again
    falling = DelayedGuidance(3.0, until_step=2)
    assert [torch.equal(falling(NEGATIVE, NEGATIVE, outputs(9 - i), i), NEGATIVE) for i in range(4)] == [
        True,
        True,
        False,
        False,
    ]
    assert torch.allclose(falling(NEGATIVE, NEGATIVE, outputs(1), 4), 3 * outputs(1))


@given(scale=st.floats(1, 20), strength=st.floats(0, 50), low=st.floats(-1, 1), high=st.floats(-1, 1), gate=st.floats(-1, 1))
def test_despecification_is_gated_bounded_and_grows(
    scale: float, strength: float, low: float, high: float, gate: float
) -> None:
    low, high = sorted((low, high))
    one, two = (despecified_scale(scale, s, strength=strength, gate=gate) for s in (low, high))
    assert 1 - 1e-9 <= two <= one <= scale
    assert low > gate or one == scale


def test_despecification_as_a_hook() -> None:
    near, far = draw(0, 4, 2, 2), draw(1, 4, 2, 2)
    guide = Despecification(
        scale=3.0,
        strength=5.0,
        gate=0.8,
        references=(near,),
        centre=torch.zeros(4, 2, 2),
        until_step=2,
        clean_of=lambda z, _output, _step: z,
    )
    plain = 3 * outputs(1)
    assert torch.allclose(guide(near, NEGATIVE, outputs(1), 0), outputs(1))  # a copy: no guidance beyond 1
    assert torch.equal(guide(far, NEGATIVE, outputs(1), 0), plain)
    assert torch.equal(guide(near, NEGATIVE, outputs(1), 2), plain)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), radius=st.floats(0.1, 10), strength=st.floats(0, 2))
def test_repellency_is_sparse_and_reaches_the_edge(seed: int, radius: float, strength: float) -> None:
    x, z, other = draw(seed, 3, 2, 2), draw(seed + 1, 3, 2, 2), 100 + draw(seed + 2, 3, 2, 2)
    moved = repel(x, (z, other), radius=radius, strength=strength)
    distance = float((x - z).norm())
    if distance >= radius:
        assert moved is x
    else:
        assert torch.isclose((moved - z).norm(), torch.tensor(distance + strength * (radius - distance)), rtol=1e-4)
    assert repel(z, (z,), radius=radius, strength=strength) is z
    hook = Repellency((z,), radius, strength, until_step=1)
    assert hook(x, 1) is x and torch.equal(hook(x, 0), repel(x, (z,), radius=radius, strength=strength))


def test_safe_guidance_by_hand() -> None:
    empty, text = torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.tensor([0.5, 0.1, 0.11, 0.1])
    unsafe = torch.tensor([0.4, 0.3, 0.1, 0.1001])
    # ε_p − ε_S = .1 ≥ λ: nothing; −.2: |10·−.2| = 2, cut at 1; .01 < λ: .1; −.0001: .001
    found = safe_guidance(empty, text, unsafe, strength=10.0, threshold=0.025)
    assert torch.allclose(found, torch.tensor([0.0, 1.0 * 0.3, 0.1 * 0.1, 0.001 * 0.1001]), atol=1e-7)


def test_safe_guidance_waits_remembers_and_follows_the_prediction_type() -> None:
    z, empty, text, unsafe = (draw(i, 4, 2, 2) for i in range(4))
    how = {"strength": 10.0, "threshold": 0.025, "momentum": 0.5, "memory": 0.7}
    guide = SafeGuidance(
        scale=3.0, unsafe_of=lambda latent, step: unsafe, noise_of=lambda latent, raw, step: raw, warmup=1, **how
    )
    gamma = safe_guidance(empty, text, unsafe, strength=10.0, threshold=0.025)
    plain = empty + 3.0 * (text - empty)
    assert torch.equal(guide(z, empty, text, 0), plain) and gamma.any()  # warming up, but remembering
    second = gamma + 0.5 * 0.3 * gamma
    assert torch.allclose(guide(z, empty, text, 1), plain - 3.0 * second, atol=1e-5)
    third = gamma + 0.5 * (0.7 * 0.3 * gamma + 0.3 * second)
    assert torch.allclose(guide(z, empty, text, 2), plain - 3.0 * third, atol=1e-5)
    # A network that predicts v = a·ε − s·x0 is guided to the same ε̂.
    a, s = 0.8, 0.6

    def noise_of(latent: torch.Tensor, raw: torch.Tensor, step: int) -> torch.Tensor:
        return a * raw + s * latent

    def raw_of(noise: torch.Tensor) -> torch.Tensor:
        return (noise - s * z) / a

    v = SafeGuidance(scale=3.0, unsafe_of=lambda latent, step: raw_of(unsafe), noise_of=noise_of, warmup=0, **how)
    e = SafeGuidance(scale=3.0, unsafe_of=lambda latent, step: unsafe, noise_of=lambda latent, raw, step: raw, warmup=0, **how)
    assert torch.allclose(noise_of(z, v(z, raw_of(empty), raw_of(text), 0), 0), e(z, empty, text, 0), atol=1e-4)


def test_prompt_optimisation_lowers_the_difference_that_text_makes(tiny_sd: Path) -> None:
    model = load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))
    text, empty = model.encode_prompts(["a red apple", ""])
    noise = draw(0, *model.latent_shape)
    denoise = differentiable_denoiser(model, 999)
    found, norms = optimise_prompt(denoise, noise, text, empty, learning_rate=0.05, iterations=4, target=0.0)
    assert len(norms) == 5 and min(norms) < norms[0] and found.tokens.shape == text.tokens.shape
    with torch.no_grad():
        left = (denoise(noise[None], found.expand(1)) - denoise(noise[None], empty.expand(1))).norm()
    assert torch.isclose(left, torch.tensor(min(norms)), rtol=1e-3)
    same, norms = optimise_prompt(denoise, noise, text, empty, target=1e9)
    assert same.equal(text) and len(norms) == 1
    again, _ = optimise_prompt(denoise, noise, text, empty, learning_rate=0.05, iterations=4, target=0.0)
    assert again.equal(found)
    with pytest.raises(ConfigError, match="no gradients"):
        differentiable_denoiser(object(), 999)


# --- as rungs of a ladder --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tiny_sd: Path) -> Engine:
    return engine_of(tiny_sd)


@pytest.fixture(scope="module")
def first(engine: Engine) -> Trajectory:
    return first_of(engine)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rung_draws_another_picture_and_records_it(engine: Engine, first: Trajectory, kind: str) -> None:
    (rung,) = from_dict(Policy, {"ladder": [tomllib.loads(RUNGS[kind])]}, where="policy").ladder
    t, intervention, seed = again(engine, first, rung)
    assert (intervention.kind, seed, t.step) == (kind, SEED, 0)
    run(engine, t)
    assert torch.isfinite(t.latent).all() and not torch.equal(t.latent, first.latent)
    twice, _, _ = again(engine, first, rung)
    assert torch.equal(run(engine, twice).latent, t.latent)
    assert t.evals == STEPS + (4.0 if kind == "prompt" else 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rung_may_start_from_new_noise(engine: Engine, first: Trajectory, kind: str) -> None:
    few = {"iterations": 1} if kind == "prompt" else {}
    t, _, seed = again(engine, first, rung_of(kind, renew=True, **few))
    assert seed == next_seed(SEED, 1) and t.step == 0
    assert torch.equal(t.latent, engine.initial_noise(seed))


@pytest.mark.parametrize("kind", ["amg", "spell"])
def test_without_references_a_rung_is_a_new_seed(engine: Engine, first: Trajectory, kind: str) -> None:
    t, intervention, seed = again(engine, first, rung_of(kind), found=0)
    assert intervention.kind == "reseed" and seed == next_seed(SEED, 1)
    assert t.push is t.nudge is t.guide is None


# --- where they are known --------------------------------------------------------------------------------------------------


def test_the_policy_reference_of_the_product_does_not_name_them() -> None:
    assert not {key.loc[2] for key in keys(Policy) if key.shape == "kind"} & set(KINDS)


NUMBERS = [
    (rung, key) for rung in (AmgRung, DelayedCfgRung, PromptRung, SpellRung) for key in keys(rung) if key.type in (int, float)
]
every_number = pytest.mark.parametrize(("rung", "key"), NUMBERS, ids=[f"{rung().kind}.{key.loc[0]}" for rung, key in NUMBERS])


def test_there_are_numbers_to_walk_over() -> None:
    assert len(NUMBERS) > 15


@every_number
def test_a_default_is_in_its_finite_range(rung: type[Any], key: Key) -> None:
    assert key.range is not None
    assert math.isfinite(key.range.low) and math.isfinite(key.range.high)
    assert key.default in key.range


@every_number
def test_what_is_outside_the_range_is_refused_with_the_key(rung: type[Any], key: Key) -> None:
    assert key.range is not None
    just = int if key.type is int else float
    for value in (just(key.range.low - 1), just(key.range.high + 1), math.nan, math.inf, 10**400, "1", True, []):
        with pytest.raises(ConfigError) as caught:
            policy = {"ladder": [{"kind": rung().kind, str(key.loc[0]): value}]}
            from_dict(Policy, policy, where="policy.toml")
        assert str(key.loc[0]) in caught.value.where
        assert str(key.range) in caught.value.what


def test_the_likely_slip_is_named() -> None:
    with pytest.raises(ConfigError, match=r"learning_rate: must be from 1e-06 to 10, not 90\.0\. Did you mean 0\.9\?"):
        PromptRung(learning_rate=90.0)


def test_a_policy_of_the_product_does_not_know_them() -> None:
    """In a process of its own: here they are registered."""
    code = (
        "from index.errors import ConfigError\nfrom pipeline.policy import Policy\nfrom pipeline.settings import from_dict\n"
        "try:\n    from_dict(Policy, {'ladder': [{'kind': 'amg'}]}, where='policy.toml')\n"
        "except ConfigError as error:\n    print(error)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("policy.toml: ladder no. 1: kind: 'amg' is not allowed.")


def test_a_worker_that_unpickles_a_rung_knows_its_method(tmp_path: Path) -> None:
    (tmp_path / "policy").write_bytes(pickle.dumps(Policy(ladder=(AmgRung(strength=5.0),))))
    code = (
        f"import pickle\npolicy = pickle.load(open({str(tmp_path / 'policy')!r}, 'rb'))\n"
        "from pipeline.methods import answer_of\nprint(policy.ladder[0].strength, answer_of(policy.ladder[0]).__module__)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["5.0", "jobs.lab.steering.amg"]
