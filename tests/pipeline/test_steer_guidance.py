"""Delayed guidance, AMG's guidance, SPELL and prompt optimisation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import ConfigError
from pipeline.config import ModelConfig
from pipeline.model.families import load_model
from pipeline.steer.guidance import DelayedGuidance, Despecification, Repellency, delay_is_over, despecified_scale, repel
from pipeline.steer.prompt import differentiable_denoiser, optimise_prompt

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
    guide = Despecification(3.0, 5.0, 0.8, (near,), torch.zeros(4, 2, 2), 2, lambda z, _output, _step: z)
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


def test_prompt_optimisation_lowers_the_difference_that_text_makes(tiny_sd: Path) -> None:
    model = load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))
    text, empty = model.encode_prompts(["a red apple", ""])
    noise = draw(0, *model.latent_shape)
    denoise = differentiable_denoiser(model, 999)
    found, norms = optimise_prompt(denoise, noise, text, empty, learning_rate=0.05, iterations=4, target=0.0)
    assert len(norms) == 5 and min(norms) < norms[0] and found.shape == text.shape
    with torch.no_grad():
        left = (denoise(noise[None], found[None]) - denoise(noise[None], empty[None])).norm()
    assert torch.isclose(left, torch.tensor(min(norms)), rtol=1e-3)
    same, norms = optimise_prompt(denoise, noise, text, empty, target=1e9)
    assert torch.equal(same, text) and len(norms) == 1
    again, _ = optimise_prompt(denoise, noise, text, empty, learning_rate=0.05, iterations=4, target=0.0)
    assert torch.equal(again, found)
    with pytest.raises(ConfigError, match="no gradients"):
        differentiable_denoiser(object(), 999)
