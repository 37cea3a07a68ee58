"""The nudging objective: its gradient, its closed form, its gate; and the hooks that carry it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from index.errors import ConfigError
from pipeline.steer.embedder_space import EmbedderNudge, EmbedderSpace, nudge_through
from pipeline.steer.nudge import Nudge, same_noise
from pipeline.steer.objective import LITERAL, Objective, closed_form, descend, gradient, value, weigh

seeds = st.integers(0, 10_000)
objectives = st.builds(
    Objective,
    push=st.floats(0.1, 3),
    pull=st.sampled_from([0.0, 0.5]),
    keep=st.sampled_from([0.0, 0.1, 1.0]),
    weights=st.sampled_from(["softmax", "mean", "nearest"]),
    normalise=st.sampled_from(["cosine", "none"]),
    penalty=st.sampled_from(["l2_squared", "l2"]),
    temperature=st.floats(0.05, 1),
)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(F.cosine_similarity(a.flatten(), b.flatten(), dim=0))


@settings(max_examples=20, deadline=None)
@given(seed=seeds, objective=objectives)
def test_the_gradient_is_that_of_the_objective(seed: int, objective: Objective) -> None:
    x, start, undesired, desired = (draw(seed + i, *shape).double() for i, shape in enumerate([(12,), (12,), (3, 12), (2, 12)]))
    point = x.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(value(point, start, undesired, desired, objective), point)
    sizes = undesired.norm(dim=1)
    directions = undesired / sizes[:, None]
    found = gradient(
        x, start, directions, directions @ (x / x.norm()), objective, sizes=sizes if objective.normalise == "none" else None,
        desired=desired if objective.pull else None,
    )  # fmt: skip
    assert torch.allclose(found, expected, atol=1e-9)


@settings(max_examples=12, deadline=None)
@given(seed=seeds, objective=objectives, iterations=st.integers(0, 6), step_size=st.floats(0, 0.3))
def test_a_nudge_is_bounded_and_lowers_what_it_minimises(
    seed: int, objective: Objective, iterations: int, step_size: float
) -> None:
    start, near, far, wanted = (draw(seed + i, 4, 3, 3) for i in range(4))
    undesired = (start + 0.5 * near, far)
    moved = descend(start, undesired, (wanted,), objective=objective, step_size=step_size, iterations=iterations)
    assert moved.shape == start.shape and torch.isfinite(moved).all()
    assert (moved - start).norm() <= iterations * step_size * start.norm() * (1 + 1e-4) + 1e-5
    if step_size == 0 or iterations == 0:
        assert torch.equal(moved, start)
    small = descend(start, undesired, (wanted,), objective=objective, step_size=1e-3, iterations=1)
    flat = [t.flatten() for t in (small, start)]
    stacked, goal = torch.stack([u.flatten() for u in undesired]), wanted.flatten()[None]
    if not torch.equal(small, start) and objective.penalty == "l2_squared" and objective.weights != "softmax":
        assert value(flat[0], flat[1], stacked, goal, objective) <= value(flat[1], flat[1], stacked, goal, objective) + 1e-6


@settings(max_examples=20, deadline=None)
@given(seed=seeds, enough=st.floats(-0.5, 0.9))
def test_nothing_moves_behind_the_gate_and_nothing_passes_it_far(seed: int, enough: float) -> None:
    start, noise = draw(seed, 4, 3, 3), draw(seed + 1, 4, 3, 3)
    reference = start + 0.5 * noise
    objective = Objective(keep=0.0, enough=enough)
    moved = descend(start, (reference,), objective=objective, step_size=0.02, iterations=400)
    if cosine(start, reference) <= enough:
        assert torch.equal(moved, start)
    else:
        assert cosine(moved, reference) <= max(enough, -0.9) + 1e-4
        assert cosine(moved, reference) > enough - 0.05 or enough < -0.4
    assert torch.equal(descend(moved, (reference,), objective=objective, step_size=0.02, iterations=3), moved) or enough < -0.4


@settings(max_examples=20, deadline=None)
@given(seed=seeds, keep=st.floats(0.2, 5), push=st.floats(0, 2), pull=st.floats(0, 2))
def test_the_closed_form_is_the_minimum(seed: int, keep: float, push: float, pull: float) -> None:
    """The literal objective, −α·mean(D·L) + β·mean(U·L) + λ|L − L0|², has no lower neighbour."""
    start, u, d = draw(seed, 9), (draw(seed + 1, 9), draw(seed + 2, 9)), (draw(seed + 3, 9),)
    objective = replace(LITERAL, push=push, pull=pull, keep=keep)
    best = closed_form(start, u, d, objective=objective)

    def printed(x: torch.Tensor) -> torch.Tensor:
        pushed, pulled = torch.stack(u) @ x, torch.stack(d) @ x
        return push * pushed.mean() - pull * pulled.mean() + keep * ((x - start) ** 2).sum()

    for i in range(8):
        assert printed(best) <= printed(best + 0.1 * draw(seed + 10 + i, 9)) + 1e-4
    expected = start + (pull * d[0] - push * torch.stack(u).mean(0)) / (2 * keep)
    assert torch.allclose(best, expected, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, scale=st.floats(0.01, 10))
def test_the_printed_norm_does_not_move_or_has_no_minimum(seed: int, scale: float) -> None:
    start, u = draw(seed, 9), scale * F.normalize(draw(seed + 1, 9), dim=0)
    objective = replace(LITERAL, penalty="l2", keep=1.0)
    assume(abs(scale - 1) > 1e-3)
    if scale < 1:
        assert torch.equal(closed_form(start, (u,), objective=objective), start)
    else:
        with pytest.raises(ConfigError, match="no minimum"):
            closed_form(start, (u,), objective=objective)


def test_the_weights_choose_the_leading_reference() -> None:
    cosines = torch.tensor([0.9, 0.1, 0.2])
    assert weigh(cosines, Objective(weights="nearest")).tolist() == [1, 0, 0]
    assert torch.allclose(weigh(cosines, Objective(weights="mean")), torch.full((3,), 1 / 3))
    assert weigh(cosines, Objective(temperature=0.1))[0] > 0.99
    near, far = draw(0, 4, 4), draw(1, 4, 4)
    start = near + 0.2 * draw(2, 4, 4)
    by_nearest, by_mean = (
        descend(start, (near, far), objective=Objective(keep=0.0, weights=w), step_size=0.05, iterations=5)  # type: ignore[arg-type]
        for w in ("nearest", "mean")
    )
    assert cosine(by_nearest, near) < cosine(by_mean, near)


def test_pull_draws_towards_the_desired() -> None:
    start, u, d = draw(0, 4, 4), draw(1, 4, 4), draw(2, 4, 4)
    for normalise in ("cosine", "none"):
        objective = Objective(push=0.0, pull=1.0, keep=0.0, normalise=normalise)  # type: ignore[arg-type]
        moved = descend(start, (u,), (d,), objective=objective, step_size=0.05, iterations=5)
        assert cosine(moved, d) > cosine(start, d) + 0.05


NUDGES: dict[str, dict[str, Any]] = {
    "usable": {},
    "gated": {"enough": 0.5},
    "literal": {"objective": LITERAL, "solver": "closed_form", "keep": 4.0},
    "noisy": {"levels": ((0.3, 0.95), (0.6, 0.8))},
    "random": {"random": 7},
}


@pytest.mark.parametrize("options", NUDGES.values(), ids=NUDGES)
def test_a_row_alone_has_the_bytes_it_has_in_a_batch(options: dict[str, Any]) -> None:
    batch, noise = draw(0, 5, 4, 6, 6), draw(1, 5, 4, 6, 6)
    nudge = Nudge(
        references=(batch[2] + 0.3 * draw(2, 4, 6, 6), draw(3, 4, 6, 6)),
        centre=0.1 * draw(4, 4, 6, 6),
        step_size=0.05,
        iterations=4,
        until_step=2,
        **options,
    )
    together = [nudge(clean, 1, noise[i]) for i, clean in enumerate(batch)]
    assert any(not torch.equal(a, b) for a, b in zip(together, batch, strict=True))
    for i in reversed(range(5)):
        assert torch.equal(nudge(batch[i].clone(), 1, noise[i].clone()), together[i])


def test_the_noisy_latent_is_nudged_with_the_same_noise() -> None:
    clean, noise, reference = draw(0, 4, 4, 4), draw(1, 4, 4, 4), draw(2, 4, 4, 4)
    level = (0.6, 0.8)
    nudge = Nudge(
        references=(clean + 0.2 * reference,),
        centre=torch.zeros_like(clean),
        step_size=0.05,
        iterations=3,
        until_step=2,
        keep=0.0,
        levels=(level, level),
    )
    z, nudged = same_noise(clean, noise, *level), same_noise(nudge(clean, 0, noise), noise, *level)
    directly = descend(
        z, (0.6 * (clean + 0.2 * reference),), objective=Objective(keep=0.0), step_size=0.05, iterations=3
    )  # fmt: skip
    assert torch.allclose(nudged, directly, atol=1e-5) and not torch.allclose(nudged, z, atol=1e-2)
    with pytest.raises(ConfigError, match="without its noise"):
        nudge(clean, 0)


def test_the_random_control_goes_as_far_but_elsewhere() -> None:
    clean, reference = draw(0, 4, 8, 8), draw(0, 4, 8, 8) + 0.3 * draw(1, 4, 8, 8)
    real = Nudge(references=(reference,), centre=torch.zeros_like(clean), step_size=0.05, iterations=5, until_step=3)
    control = replace(real, random=3)
    assert torch.allclose((control(clean, 0) - clean).norm(), (real(clean, 0) - clean).norm(), rtol=1e-4)
    assert abs(cosine(control(clean, 0) - clean, real(clean, 0) - clean)) < 0.3
    assert torch.equal(control(clean, 0), control(clean, 0)) and not torch.equal(control(clean, 0), control(clean, 1))
    gated = replace(control, enough=0.99)
    assert torch.equal(gated(clean, 0), clean)  # where the nudge would stay, so does the control


def embed(seed: int = 9) -> Any:
    weight = draw(seed, 6, 4 * 4 * 4) / 8
    return lambda latent: torch.tanh(weight @ latent.flatten())


@settings(max_examples=15, deadline=None)
@given(seed=seeds, pull=st.sampled_from([0.0, 1.0]))
def test_in_the_embedders_space(seed: int, pull: float) -> None:
    features, clean, reference = embed(), draw(seed, 4, 4, 4), draw(seed + 1, 4, 4, 4)
    u = F.normalize(features(clean + 0.3 * reference), dim=0)[None]
    d = F.normalize(draw(seed + 2, 1, 6), dim=1)
    objective = Objective(pull=pull, keep=0.0)
    moved = nudge_through(clean, features, u, d, objective=objective, step_size=0.03, iterations=6)

    def score(x: torch.Tensor) -> float:
        e = F.normalize(features(x), dim=0)
        return float((u @ e).max() - pull * (d @ e).mean())

    assert score(moved) < score(clean) and not moved.requires_grad
    assert (moved - clean).norm() <= 6 * 0.03 * clean.norm() * 1.001
    shut = replace(objective, enough=1.0)
    assert torch.equal(nudge_through(clean, features, u, d, objective=shut, step_size=0.03, iterations=6), clean)


def test_the_embedders_space_of_a_model_and_what_is_missing() -> None:
    class Decoder:
        def decode_tensor(self, latents: torch.Tensor) -> torch.Tensor:
            return latents[:, :3].tanh()

    class Embedder:
        def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
            assert pixels.min() >= 0 and pixels.max() <= 1
            return pixels.flatten(1) @ draw(5, 48, 6)

        def texts(self, captions: list[str]) -> Any:
            return F.normalize(draw(6, 1, 6), dim=1).numpy()

    space = EmbedderSpace.of(Decoder(), Embedder())
    clean = draw(0, 4, 4, 4)
    undesired = space.of_latents((clean + 0.1, draw(1, 4, 4, 4)))
    assert torch.allclose(undesired.norm(dim=1), torch.ones(2))
    hook = EmbedderNudge(
        features=space.features,
        undesired=undesired,
        desired=space.text("a cat")[None],
        objective=Objective(),
        step_size=0.05,
        iterations=3,
        until_step=2,
    )
    with torch.inference_mode():  # as inside a run
        assert not torch.equal(hook(clean, 1), clean) and hook(clean, 2) is clean
    with pytest.raises(ConfigError, match="decode_tensor"):
        EmbedderSpace.of(object(), Embedder())
