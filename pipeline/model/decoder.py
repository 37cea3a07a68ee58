"""Latents to pictures, by the autoencoder alone: what a process beside the denoiser needs of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from index.errors import ModelError
from index.padding import PaddedCalls
from pipeline.model.interface import LESS

if TYPE_CHECKING:
    import torch


class Decoder:
    """A model's decoder. It can be sent to another process, and decodes to the same bytes there.

    Args:
        autoencoder: diffusers' autoencoder, in float32 and ready for inference.
        scaling, shift: of its latents.
        device: where it is.
        rows: of every call.

    Attributes:
        calls: of the network; ``calls.shapes`` counts their rows.
    """

    def __init__(self, autoencoder: Any, *, scaling: float, shift: float, device: torch.device, rows: int) -> None:
        self.autoencoder, self.scaling, self.shift, self.device = autoencoder, scaling, shift, device
        self.calls = PaddedCalls(rows, "decoder", LESS)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which has memory of its own: its calls begin with all rows."""
        first = self.calls.shapes[0]
        return self.__dict__ | {"calls": PaddedCalls(first, self.calls.network, self.calls.fix)}

    def tensor(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents float32 (N, C, h, w) → pictures float32 (N, 3, H, W) around [−1, 1], differentiable and unpadded."""
        x = latents.to(self.device) / self.scaling
        return self.autoencoder.decode(x + self.shift if self.shift else x).sample.float().cpu()  # type: ignore[no-any-return]

    def __call__(self, latents: torch.Tensor, tensor: Callable[[torch.Tensor], torch.Tensor] | None = None) -> np.ndarray:
        """Latents float32 (N, C, h, w) → pictures uint8 RGB (N, H, W, 3), in padded calls (of ``tensor``, if given).

        Raises:
            ModelError: the output is not finite.
            OutOfMemory: not even one picture fits into memory.
        """
        import torch

        decode = tensor or self.tensor
        with torch.inference_mode():
            out = self.calls.run(lambda rows: decode(latents[rows]), len(latents))
        if not out.isfinite().all():  # as bytes it would look like a picture
            fix = "Draw it with another seed; if others end so too, the autoencoder does not belong to the denoiser"
            raise ModelError("a decoded picture is not finite", where="decoder", fix=fix)
        pixels = ((out.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().numpy()
