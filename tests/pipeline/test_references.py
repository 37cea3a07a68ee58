"""References in the model's latent space: encoded ahead in full calls or one by one, the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.model.interface import DiffusionModel
from pipeline.model.load import load_model
from pipeline.references import References

IDS = [f"ref-{i}" for i in range(5)]


class Pictures:
    """An index of coloured squares; one of them may not be kept."""

    def picture(self, ref_id: str) -> np.ndarray | None:
        number = IDS.index(ref_id)
        return None if number == 3 else np.full((16, 16, 3), (40 * number, 90, 200 - 30 * number), np.uint8)


@pytest.fixture(scope="module")
def model(tiny_sd: Path) -> DiffusionModel:
    return load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))


@pytest.mark.parametrize("hues", [1, 4])
def test_references_encoded_ahead_have_the_bytes_that_each_has_alone(model: DiffusionModel, hues: int) -> None:
    ahead, alone = (References(Pictures(), model, hues=hues) for _ in range(2))  # type: ignore[arg-type]
    ahead.encode_ahead(IDS)
    for ref_id in IDS:
        mine, other = ahead.latent(ref_id), alone.latent(ref_id)
        assert (mine is None and other is None) if ref_id == "ref-3" else torch.equal(mine, other)  # type: ignore[arg-type]
        turned, expected = ahead.recoloured(ref_id), alone.recoloured(ref_id)
        assert len(turned) == len(expected) == (0 if ref_id == "ref-3" else hues - 1)
        assert all(torch.equal(a, b) for a, b in zip(turned, expected, strict=True))


def test_what_was_encoded_ahead_is_not_encoded_again(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    references, rows = References(Pictures(), model, hues=4), list[int]()  # type: ignore[arg-type]
    real = model.encode
    monkeypatch.setattr(model, "encode", lambda pictures: (rows.append(len(pictures)), real(pictures))[1])
    references.encode_ahead(IDS)
    for ref_id in IDS:
        references.latent(ref_id), references.recoloured(ref_id)
    assert rows == [8, 8]
