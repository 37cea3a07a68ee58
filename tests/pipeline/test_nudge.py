from __future__ import annotations

import torch

from pipeline.steer.nudge import Nudge, nudge


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def latents() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    near, far, noise = (torch.randn(4, 8, 8, generator=generator) for _ in range(3))
    return near + 0.3 * noise, near, far


def test_moves_away_from_the_nearest_reference_and_leaves_the_far_one() -> None:
    x, near, far = latents()
    moved = nudge(x, (near, far), step_size=0.05, iterations=5, temperature=0.1, keep=0.0)
    assert cosine(moved, near) < cosine(x, near) - 0.05
    assert abs(cosine(moved, far) - cosine(x, far)) < 0.05
    # k steps of the stated length: no further than k × step_size × ‖x̂0‖
    assert (moved - x).norm() <= 5 * 0.05 * x.norm() * 1.001


def test_the_pull_back_limits_the_move() -> None:
    x, near, _ = latents()
    free = nudge(x, (near,), step_size=0.05, iterations=20, temperature=0.1, keep=0.0)
    held = nudge(x, (near,), step_size=0.05, iterations=20, temperature=0.1, keep=2.0)
    assert (held - x).norm() < (free - x).norm()


def test_identities() -> None:
    x, near, _ = latents()
    assert Nudge(references=(near,), centre=torch.zeros_like(x), step_size=0.0, iterations=5, until_step=9)(x, 0) is x
    assert Nudge(references=(near,), centre=torch.zeros_like(x), step_size=0.1, iterations=5, until_step=3)(x, 3) is x
    assert Nudge(references=(), centre=torch.zeros_like(x), step_size=0.1, iterations=5, until_step=3)(x, 0) is x


def test_a_noisy_latent_that_is_noise_alone_is_not_nudged() -> None:
    """The first step of a flow, or of a schedule with zero terminal SNR: references scaled by √ᾱ = 0 are no direction."""
    x, near, noise = latents()
    levels = ((0.0, 1.0), (0.25, 0.75))
    hook = Nudge(references=(near,), centre=torch.zeros_like(x), step_size=0.1, iterations=2, until_step=2, levels=levels)
    assert hook(x, 0, noise) is x
    assert hook(x, 1, noise).isfinite().all() and not torch.equal(hook(x, 1, noise), x)


def test_what_all_pictures_share_is_no_likeness() -> None:
    """With a strong common ground the plain push goes into the ground; the centred one leaves it alone."""
    x, near, _ = latents()
    ground = torch.full_like(x, 10.0)
    centred = Nudge(references=(near + ground,), centre=ground, step_size=0.05, iterations=5, until_step=3, keep=0.0)(
        x + ground, 0
    )
    plain = Nudge(
        references=(near + ground,), centre=torch.zeros_like(x), step_size=0.05, iterations=5, until_step=3, keep=0.0
    )(x + ground, 0)
    assert cosine(centred - ground, near) < cosine(x, near) - 0.05
    assert abs(float((centred - ground - x).mean())) < 0.2 * abs(float((plain - ground - x).mean()))


def test_the_gate_stops_pushing_once_it_is_enough() -> None:
    x, near, _ = latents()
    gated = nudge(x, (near,), step_size=0.02, iterations=200, temperature=0.1, keep=0.0, enough=0.6)
    assert 0.55 < cosine(gated, near) <= 0.6
    assert torch.equal(nudge(gated, (near,), step_size=0.02, iterations=200, temperature=0.1, keep=0.0, enough=0.6), gated)
