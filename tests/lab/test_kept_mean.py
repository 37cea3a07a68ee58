"""The mean of a training under way, small and back again."""

from __future__ import annotations

from pathlib import Path

import torch

from jobs.lab.world.kept_mean import keep_mean, read_mean


def test_a_kept_mean_comes_back_within_half_a_step_of_its_scale(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, bias = torch.randn(6, 5, 3, 3, generator=generator), torch.randn(6, generator=generator)
    average = {"average_unet": {"a.weight": matrix, "a.bias": bias}, "average_text": {"b.weight": matrix[:, :, 0, 0]}}
    (tmp_path / "denoiser").mkdir()
    torch.save({**average, "curve": [{"seen": 64}]}, tmp_path / "denoiser" / "state.pt")
    assert keep_mean(tmp_path, tmp_path / "mean.safetensors") == 64
    unet, text = read_mean(tmp_path / "mean.safetensors")
    step = matrix.abs().flatten(1).amax(1) / 127
    assert ((unet["a.weight"] - matrix).abs().flatten(1).amax(1) <= 0.501 * step).all()
    assert torch.equal(unet["a.bias"], bias.half().float())
    assert set(text) == {"b.weight"}


def test_a_channel_of_zeros_stays_zero(tmp_path: Path) -> None:
    (tmp_path / "denoiser").mkdir()
    zeros = {"average_unet": {"a": torch.zeros(2, 3)}, "average_text": {}, "curve": []}
    torch.save(zeros, tmp_path / "denoiser" / "state.pt")
    keep_mean(tmp_path, tmp_path / "mean.safetensors")
    assert torch.equal(read_mean(tmp_path / "mean.safetensors")[0]["a"], torch.zeros(2, 3))
