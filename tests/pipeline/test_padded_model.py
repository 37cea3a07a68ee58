"""Calls of text encoder and autoencoder that do not fit into memory: halved, begun again, remembered, and on record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.model.interface import DiffusionModel
from pipeline.model.load import load_model
from pipeline.outcome import PaddedRows

ERRORS = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory: you tried …")]


@pytest.fixture
def model(tiny_sd: Path) -> DiffusionModel:
    return load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))


class Small:
    """Stands in for a network that holds so many rows."""

    def __init__(self, real: Any, rows: int, error: Exception) -> None:
        self.real, self.rows, self.error, self.seen = real, rows, error, []

    def __call__(self, rows: Any, *args: Any, **more: Any) -> Any:
        self.seen.append(len(rows))
        if len(rows) > self.rows:
            raise self.error
        return self.real(rows, *args, **more)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("part", ["text", "encode", "decode"])
def test_a_call_too_large_is_halved_and_stays_so(
    model: DiffusionModel, part: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs: dict[str, Any] = {
        "text": [f"a cat {i}" for i in range(11)],
        "encode": np.random.default_rng(0).integers(0, 255, (11, 16, 16, 3), dtype=np.uint8),
        "decode": torch.randn(11, *model.latent_shape, generator=torch.Generator().manual_seed(0)),
    }
    run: dict[str, Any] = {
        "text": lambda prompts: model.encode_prompts(prompts).tokens,
        "encode": model.encode,
        "decode": model.decode,
    }
    owner, name = {
        "text": (model, "_encode"),
        "encode": (model.autoencoder, "encode"),
        "decode": (model.autoencoder, "decode"),
    }[part]
    whole = np.asarray(run[part](inputs[part]))
    assert getattr(model.padded_rows(), part) == (8,)
    small = Small(getattr(owner, name), 3, error)
    monkeypatch.setattr(owner, name, small)
    halved = np.asarray(run[part](inputs[part]))
    assert small.seen == [8, 4, 2, 2, 2, 2, 2, 2]
    assert getattr(model.padded_rows(), part) == (8, 4, 2)
    assert sum(len(shapes) for shapes in model.padded_rows()) == 5  # the other two stay as they were
    assert np.allclose(halved, whole, atol=1 if part == "decode" else 1e-4)
    # What is promised then: the same bytes for the same shape, whoever else is in it.
    assert np.array_equal(np.asarray(run[part](inputs[part][4:5]))[0], halved[4])


def test_a_large_picture_begins_with_few_rows(tiny_sd: Path) -> None:
    assert load_model(ModelConfig(path=str(tiny_sd), dtype="float32", size=512)).padded_rows() == PaddedRows((8,), (4,), (4,))
