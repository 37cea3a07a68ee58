"""Turn pictures and captions into unit vectors: the embedder protocol and its OpenCLIP implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Embedder(Protocol):
    """Maps pictures and captions into one space where near means alike.

    Attributes:
        embedder_id: digest of architecture, weights, preprocessing and dtype; an index is bound to it.
        dim: length of the vectors.
    """

    embedder_id: str
    dim: int

    def images(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 RGB (N, H, W, 3) → float32 (N, dim), unit length. A row does not depend on its neighbours."""
        ...

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """Captions → float32 (N, dim), unit length."""
        ...
