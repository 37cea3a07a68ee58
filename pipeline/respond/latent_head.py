"""The latent head: it maps a predicted clean latent (x̂0) to the embedder's space, without decoding and embedding.

It is a small convolutional network, trained on early x̂0 of the model and the pictures they became
(:mod:`jobs.lab.world.train_head`). It belongs to one diffusion model and one embedder; with any other, probes decode and embed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from index.errors import ModelError

if TYPE_CHECKING:
    import torch

ROWS = 8  # every call has this many rows, padded: so a vector never depends on its neighbours


def make_network(channels: int, side: int, dim: int, widths: tuple[int, int, int] = (32, 64, 128)) -> Any:
    """The untrained network: float32 (N, channels + 1, side, side) → (N, dim), not normalised.

    The last input channel is the noise level's signal a = √ᾱ, the same everywhere.

    Args:
        channels: of the latent.
        side: of the latent; a multiple of 4.
        dim: of the embedder.
        widths: channels at full, half and quarter resolution.
    """
    from torch import nn

    class Block(nn.Module):
        """Two 3×3 convolutions beside an identity."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
                nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            )  # fmt: skip

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = x + self.body(x)
            return out

    one, two, four = widths
    return nn.Sequential(
        nn.Conv2d(channels + 1, one, 3, padding=1), Block(one),
        nn.Conv2d(one, two, 3, stride=2, padding=1), Block(two),
        nn.Conv2d(two, four, 3, stride=2, padding=1), Block(four),
        nn.GroupNorm(8, four), nn.SiLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(four * (side // 4) ** 2, dim),
    )  # fmt: skip


def network_input(clean: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
    """x̂0 (N, C, h, w) and a (N,) → (N, C + 1, h, w)."""
    import torch

    return torch.cat([clean, signal.view(-1, 1, 1, 1).expand(-1, 1, *clean.shape[2:]).to(clean.dtype)], 1)


@dataclass(frozen=True)
class LatentHead:
    """A trained head. Open it with :meth:`open`.

    Attributes:
        network: see :func:`make_network`, in evaluation mode, float32.
        dim: length of the vectors.
        digest: sha256 of the weights file.
    """

    network: Any
    dim: int
    digest: str

    @classmethod
    def open(cls, folder: Path, model_digest: str, embedder_id: str) -> LatentHead | None:
        """Load the head in ``folder`` (``head.json``, ``head.safetensors``).

        Returns:
            None when there is none, or when it belongs to another model or embedder.

        Raises:
            ModelError: the weights are not those that ``head.json`` names.
        """
        path = folder / "head.json"
        if not path.exists():
            return None
        card = json.loads(path.read_text(encoding="utf-8"))
        if (card["model_digest"], card["embedder_id"]) != (model_digest, embedder_id):
            return None
        from safetensors.torch import load

        weights = folder / "head.safetensors"
        data = weights.read_bytes() if weights.exists() else b""
        if (found := hashlib.sha256(data).hexdigest()) != card["sha256"]:
            raise ModelError(
                f"digest is {found[:12]}, head.json says {card['sha256'][:12]}", where=str(weights),
                fix="Restore the file from the repository, or train it again: clearance lab world head",
            )  # fmt: skip
        network = make_network(card["channels"], card["side"], card["dim"], tuple(card["widths"]))
        network.load_state_dict({name: value.float() for name, value in load(data).items()})
        return cls(network.eval().requires_grad_(False), int(card["dim"]), found)

    def __call__(self, cleans: Sequence[torch.Tensor], signals: Sequence[float]) -> np.ndarray:
        """N predicted clean latents float32 (C, h, w) and their signals a → float32 (N, dim), unit length.

        A row does not depend on its neighbours.
        """
        import torch

        out = np.empty((len(cleans), self.dim), np.float32)
        for at in range(0, len(cleans), ROWS):
            part, levels = list(cleans[at : at + ROWS]), list(signals[at : at + ROWS])
            missing = ROWS - len(part)
            rows = torch.stack([*part, *[torch.zeros_like(part[0])] * missing]).float()
            with torch.inference_mode():
                vectors = self.network(network_input(rows, torch.tensor([*levels, *[1.0] * missing])))
            wide = vectors.numpy().astype(np.float64)
            out[at : at + ROWS] = (wide / np.linalg.norm(wide, axis=1, keepdims=True))[: len(part)]
        return out
