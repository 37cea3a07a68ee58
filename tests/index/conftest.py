"""An embedder without a network, and small drawings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from index.reference import NewReference


class GridEmbedder:
    """Mean colours of a 4×4 grid, centred, as a unit vector: 48 dimensions."""

    dim = 48

    def __init__(self, embedder_id: str = "grid-1") -> None:
        self.embedder_id = embedder_id

    def images(self, pictures: np.ndarray) -> np.ndarray:
        n, high, wide, _ = pictures.shape
        cells = pictures[:, : high // 4 * 4, : wide // 4 * 4].reshape(n, 4, high // 4, 4, wide // 4, 3).mean((2, 4))
        rows = cells.reshape(n, -1) - 127.3
        vectors: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        return vectors

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        raise NotImplementedError


def drawing(seed: int, side: int = 64) -> np.ndarray:
    """A few random blocks and a disc on white: uint8 (side, side, 3)."""
    rng = np.random.default_rng(seed)
    out = np.full((side, side, 3), 255, np.uint8)
    for _ in range(4):
        x, y = rng.integers(side // 8, side // 2, 2)
        w, h = rng.integers(side // 8, side // 2, 2)
        out[y : y + h, x : x + w] = rng.integers(0, 230, 3)
    yy, xx = np.mgrid[:side, :side]
    cx, cy = rng.integers(side // 3, 2 * side // 3, 2)
    out[(xx - cx) ** 2 + (yy - cy) ** 2 < (side // 8) ** 2] = rng.integers(0, 230, 3)
    return out


def work(seed: int, **columns: object) -> NewReference:
    return NewReference(title=f"work {seed}", picture=drawing(seed), **{"keep_picture": True, **columns})  # type: ignore[arg-type]


@pytest.fixture
def embedder() -> GridEmbedder:
    return GridEmbedder()
