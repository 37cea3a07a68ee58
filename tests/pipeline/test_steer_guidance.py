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
from pipeline.steer.guidance import (
    DelayedGuidance,
    Despecification,
    FocusedGuidance,
    Repellency,
    SafeGuidance,
    delay_is_over,
    despecified_scale,
    focus_mask,
    repel,
    safe_guidance,
)
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


def test_focused_guidance_is_stronger_in_its_place_and_nowhere_else() -> None:
    mask = focus_mask([(0.0, 0.0, 0.25, 0.125)], (8, 8))
    assert mask.dtype == torch.float32 and mask.sum() == 2 * 3 and mask[:2, :3].all()  # an eighth wider on every side
    assert focus_mask([(0.0, 0.0, 1.0, 0.5), (0.9, 0.9, 1.0, 1.0)], (4, 4)).tolist() == [[1.0] * 4] * 3 + [[0, 0, 0, 1.0]]
    z, negative, text = (draw(i, 4, 8, 8) for i in range(3))
    guided = FocusedGuidance(3.0, 4.0, mask, 2)(z, negative, text, 1)
    plain = negative + 3.0 * (text - negative)
    inside = mask.bool()
    assert torch.equal(guided[:, ~inside], plain[:, ~inside])
    assert torch.allclose(guided[:, inside], (negative + 12.0 * (text - negative))[:, inside], rtol=1e-5)
    assert torch.equal(FocusedGuidance(3.0, 1.0, mask, 2)(z, negative, text, 0), plain)
    assert torch.equal(FocusedGuidance(3.0, 4.0, mask, 2)(z, negative, text, 2), plain)  # later on as everywhere


def test_safe_guidance_by_hand() -> None:
    empty, text = torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.tensor([0.5, 0.1, 0.11, 0.1])
    unsafe = torch.tensor([0.4, 0.3, 0.1, 0.1001])
    # ε_p − ε_S = .1 ≥ λ: nothing; −.2: |10·−.2| = 2, cut at 1; .01 < λ: .1; −.0001: .001
    found = safe_guidance(empty, text, unsafe, strength=10.0, threshold=0.025)
    assert torch.allclose(found, torch.tensor([0.0, 1.0 * 0.3, 0.1 * 0.1, 0.001 * 0.1001]), atol=1e-7)


def test_safe_guidance_waits_remembers_and_speaks_the_networks_language() -> None:
    z, empty, text, unsafe = (draw(i, 4, 2, 2) for i in range(4))
    how = {"strength": 10.0, "threshold": 0.025, "momentum": 0.5, "memory": 0.7}
    guide = SafeGuidance(3.0, lambda latent, step: unsafe, lambda latent, raw, step: raw, 1, **how)
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

    v = SafeGuidance(3.0, lambda latent, step: raw_of(unsafe), noise_of, 0, **how)
    e = SafeGuidance(3.0, lambda latent, step: unsafe, lambda latent, raw, step: raw, 0, **how)
    assert torch.allclose(noise_of(z, v(z, raw_of(empty), raw_of(text), 0), 0), e(z, empty, text, 0), atol=1e-4)


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
