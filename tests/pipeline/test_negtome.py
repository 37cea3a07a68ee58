from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

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
