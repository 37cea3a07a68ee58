from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.steer.masks import foreground, token_mask
from pipeline.steer.negtome import push_apart


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))


def shifted(tokens: torch.Tensor, by: int = 3) -> torch.Tensor:
    """A near copy of the first row, shifted: token i of the sample stands at i + by in the reference."""
    noise = torch.randn(tokens[0].shape, generator=torch.Generator().manual_seed(1))
    return torch.roll(tokens[0], by, 0) + 0.2 * noise


def test_identities_are_bit_exact(tokens: torch.Tensor) -> None:
    reference = shifted(tokens)
    for settings in ({"alpha": 0.0, "threshold": 0.5}, {"alpha": 0.9, "threshold": 1.0}):
        assert torch.equal(push_apart(tokens, reference, **settings), tokens)
    nothing = torch.zeros(64, dtype=torch.bool)
    assert torch.equal(push_apart(tokens, reference, alpha=0.9, threshold=-1.5, mask=nothing), tokens)


def test_paper_axis_follows_a_shifted_copy_and_the_released_axis_does_not(tokens: torch.Tensor) -> None:
    """What is subtracted from a token should be its own counterpart: cosine ≈ .98 by the paper, ≈ 0 by the released code."""
    reference = shifted(tokens)

    def subtracted(match: str) -> torch.Tensor:
        pushed = push_apart(tokens[:1], reference, alpha=1.0, threshold=-1.5, match=match)  # type: ignore[arg-type]
        return F.cosine_similarity(2 * tokens[:1] - pushed, tokens[:1], dim=-1).mean()

    assert subtracted("paper") > 0.95
    assert abs(subtracted("released")) < 0.2


def test_equation_three_by_hand() -> None:
    token, reference = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    pushed = push_apart(token, reference, alpha=0.5, threshold=0.7)
    assert torch.allclose(pushed, torch.tensor([[[1.5 - 0.4, -0.3]]]))
    assert torch.equal(push_apart(token, reference, alpha=0.5, threshold=0.81), token)


def test_released_arithmetic_is_reproduced(tokens: torch.Tensor) -> None:
    reference = shifted(tokens)
    similarity = F.normalize(tokens, dim=-1) @ F.normalize(reference, dim=-1).T
    best, which = similarity.max(dim=1)  # the released code's axis
    expected = torch.where((best > 0.3)[..., None], 1.9 * tokens - 0.9 * reference[which], tokens)
    assert torch.allclose(push_apart(tokens, reference, alpha=0.9, threshold=0.3, match="released"), expected, atol=1e-6)


def test_only_matched_tokens_move_and_away_from_the_reference(tokens: torch.Tensor) -> None:
    reference = torch.cat([tokens[0, :8] + 0.3, torch.randn(8, 32)])
    pushed = push_apart(tokens[:1], reference, alpha=0.9, threshold=0.8)
    moved = (pushed != tokens[:1]).any(-1)[0]
    assert moved[:8].all() and not moved[8:].any()
    before = F.cosine_similarity(tokens[0, :8], reference[:8], dim=-1)
    after = F.cosine_similarity(pushed[0, :8], reference[:8], dim=-1)
    assert (after < before).all()


def test_mask_chooses_reference_tokens(tokens: torch.Tensor) -> None:
    reference = tokens[0, :2] + 0.2
    only_second = torch.tensor([False, True])
    moved = (push_apart(tokens[:1], reference, alpha=0.9, threshold=0.8, mask=only_second) != tokens[:1]).any(-1)[0]
    assert not moved[0] and moved[1]


def test_keep_norm(tokens: torch.Tensor) -> None:
    pushed = push_apart(tokens, shifted(tokens), alpha=0.9, threshold=-1.0, keep_norm=True)
    assert torch.allclose(pushed.norm(dim=-1), tokens.norm(dim=-1), rtol=1e-5)


def test_released_match_needs_equal_token_counts(tokens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="as many tokens"):
        push_apart(tokens, tokens[0, :5], alpha=0.9, threshold=0.5, match="released")


def test_an_exact_match_is_left_by_the_papers_push_and_moved_by_the_kernel(tokens: torch.Tensor) -> None:
    """α·(h − r) vanishes for a verbatim copy; the kernel's push is largest there."""
    own = tokens[:1]
    for form in ("paper", "unit"):
        assert torch.allclose(push_apart(own, own[0], alpha=0.9, threshold=0.5, form=form), own, atol=1e-5)  # type: ignore[arg-type]
    noisy = own[0] + 0.8 * torch.randn(64, 32, generator=torch.Generator().manual_seed(4))
    near = noisy * own[0].norm(dim=-1, keepdim=True) / noisy.norm(dim=-1, keepdim=True)

    def moved(reference: torch.Tensor) -> torch.Tensor:
        return (push_apart(own, reference, alpha=0.9, threshold=0.5, form="kernel") - own).norm(dim=-1).mean()

    assert moved(own[0]) > moved(near) > 0
    kept = push_apart(own, own[0], alpha=0.9, threshold=0.5, form="kernel", keep_norm=True)
    assert torch.allclose(kept.norm(dim=-1), own.norm(dim=-1), rtol=1e-4)
    assert F.cosine_similarity(kept, own, dim=-1).mean() < 0.9


def test_the_unit_push_has_the_same_length_however_near(tokens: torch.Tensor) -> None:
    for distance in (0.01, 0.3):
        pushed = push_apart(tokens[:1], tokens[0] + distance, alpha=0.5, threshold=0.5, form="unit")
        moved = (pushed - tokens[:1]).norm(dim=-1) / tokens[:1].norm(dim=-1)
        assert torch.allclose(moved, torch.full_like(moved, 0.5), atol=1e-3)


@pytest.mark.parametrize("form", ["paper", "unit", "kernel"])
@pytest.mark.parametrize("match", ["paper", "soft"])
def test_negative_alpha_pulls_and_positive_pushes(tokens: torch.Tensor, form: str, match: str) -> None:
    reference = tokens[0] + 0.4 * torch.randn(64, 32, generator=torch.Generator().manual_seed(3))

    def likeness(alpha: float) -> float:
        pushed = push_apart(tokens[:1], reference, alpha=alpha, threshold=0.5, form=form, match=match)  # type: ignore[arg-type]
        return float(F.cosine_similarity(pushed[0], reference, dim=-1).mean())

    assert likeness(0.4) < likeness(0.0) - 0.01 < likeness(-0.4)


def test_several_references_are_matched_as_one(tokens: torch.Tensor) -> None:
    """The nearest of two references is the one a token is pushed from, wherever it stands in the list."""
    near, far = tokens[0] + 0.2, torch.randn(64, 32)
    alone = push_apart(tokens[:1], near, alpha=0.9, threshold=0.8)
    for both in (torch.cat([near, far]), torch.cat([far, near])):
        assert torch.allclose(push_apart(tokens[:1], both, alpha=0.9, threshold=0.8), alone, atol=1e-6)


def test_masks_follow_the_token_grid() -> None:
    mask = torch.zeros(8, 4, dtype=torch.bool)
    mask[0, 3] = mask[7, 0] = True
    assert torch.equal(token_mask(mask, 32), mask.flatten())
    assert token_mask(mask, 8).view(4, 2).tolist() == [[False, True], [False, False], [False, False], [True, False]]
    latent, centre = torch.zeros(4, 6, 6), torch.zeros(4, 6, 6)
    latent[:, 2:4, 2:4] = 1
    assert foreground(latent, centre).sum() == 4 and foreground(centre, centre).all()
