"""Focused guidance: stronger where a mark is to be left out."""

from __future__ import annotations

import torch

from pipeline.steer.guidance import FocusedGuidance, focus_mask


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_focused_guidance_is_stronger_in_its_place_and_nowhere_else() -> None:
    mask = focus_mask([(0.0, 0.0, 0.25, 0.125)], (8, 8))
    assert mask.dtype == torch.float32 and mask.sum() == 2 * 3 and mask[:2, :3].all()  # an eighth wider on every side
    assert focus_mask([(0.0, 0.0, 1.0, 0.5), (0.9, 0.9, 1.0, 1.0)], (4, 4)).tolist() == [[1.0] * 4] * 3 + [[0, 0, 0, 1.0]]
    z, negative, text = (draw(i, 4, 8, 8) for i in range(3))
    guided = FocusedGuidance(scale=3.0, focus=4.0, mask=mask, until_step=2)(z, negative, text, 1)
    plain = negative + 3.0 * (text - negative)
    inside = mask.bool()
    assert torch.equal(guided[:, ~inside], plain[:, ~inside])
    assert torch.allclose(guided[:, inside], (negative + 12.0 * (text - negative))[:, inside], rtol=1e-5)
    assert torch.equal(FocusedGuidance(scale=3.0, focus=1.0, mask=mask, until_step=2)(z, negative, text, 0), plain)
    assert torch.equal(
        FocusedGuidance(scale=3.0, focus=4.0, mask=mask, until_step=2)(z, negative, text, 2), plain
    )  # later on as everywhere
