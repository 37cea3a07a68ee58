"""Latents to pictures, by the autoencoder alone: what a process beside the denoiser needs of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from index.errors import ModelError
from index.padding import PaddedCalls
from pipeline.model.device import LESS

if TYPE_CHECKING:
    import torch

    from pipeline.model.codec import Codec

PICTURE_ROWS = 8  # rows of every decoder and encoder call, fewer for large pictures: see picture_rows()


def picture_rows(pixels: int) -> int:
    """Rows of a decoder or encoder call for pictures of that many pixels: at most a megapixel a call, at least one row."""
    return max(1, min(PICTURE_ROWS, 2**20 // pixels))


class PictureCalls(PaddedCalls):
    """The calls of a network of pictures. Each size has calls of its own, with a number of rows that suits it.

    Args:
        positions: (h, w) of the latents of the model's own size, whose calls these are.
        rows: of such a call.
        network: see :class:`index.padding.PaddedCalls`.
    """

    def __init__(self, positions: tuple[int, int], rows: int, network: str) -> None:
        super().__init__(rows, network, LESS)
        self._positions, self._others = positions, dict[tuple[int, int], PaddedCalls]()

    def at(self, positions: tuple[int, int], pixels: int) -> PaddedCalls:
        """The calls of another size: (h, w) of its latents, and pixels of its pictures."""
        if positions == self._positions:
            return self
        return self._others.setdefault(positions, PaddedCalls(picture_rows(pixels), self.network, self.fix))

    def known(self, positions: tuple[int, int]) -> PaddedCalls:
        """The calls of a size that was decoded before; else the model's own."""
        return self._others.get(positions, self)

    def anew(self) -> PictureCalls:
        """The same for another process, where memory has not run out."""
        return PictureCalls(self._positions, self.shapes[0], self.network)


class Decoder:
    """A model's decoder. It can be sent to another process, and decodes to the same bytes there.

    Args:
        codec: the autoencoder, as the model's class uses it.
        device: where it is.
        calls: the decoder's, by size of picture.
        pixels: of a picture's side, for one position of the latent.
    """

    def __init__(self, codec: Codec, *, device: torch.device, calls: PictureCalls, pixels: int) -> None:
        self.codec, self.device, self.calls, self.pixels = codec, device, calls, pixels

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which has memory of its own: its calls begin with all rows."""
        return self.__dict__ | {"calls": self.calls.anew()}

    def calls_of(self, latents: torch.Tensor) -> PaddedCalls:
        """The calls that decode latents (…, h, w) of that size."""
        height, width = latents.shape[-2:]
        return self.calls.at((height, width), height * width * self.pixels**2)

    def tensor(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents float32 (N, C, h, w) → pictures float32 (N, 3, H, W) around [−1, 1], differentiable and unpadded."""
        return self.codec.to_pixels(latents.to(self.device)).float().cpu()

    def __call__(self, latents: torch.Tensor, tensor: Callable[[torch.Tensor], torch.Tensor] | None = None) -> np.ndarray:
        """Latents float32 (N, C, h, w) → pictures uint8 RGB (N, H, W, 3), in padded calls (of ``tensor``, if given).

        Raises:
            ModelError: the output is not finite.
            OutOfMemory: not even one picture fits into memory.
        """
        decode = tensor or self.tensor
        return self._pictures(latents, self.calls_of(latents), decode)

    def alone(self, latent: torch.Tensor) -> np.ndarray:
        """A latent float32 (C, h, w) → its picture uint8 RGB (H, W, 3), in a call of one row; raises as a call of many does.

        It is cheaper than a padded call, does not depend on the rows of those, and may differ in last bits from what they give.
        """
        picture: np.ndarray = self._pictures(latent[None], PaddedCalls(1, self.calls.network, LESS), self.tensor)[0]
        return picture

    def _pictures(
        self, latents: torch.Tensor, calls: PaddedCalls, decode: Callable[[torch.Tensor], torch.Tensor]
    ) -> np.ndarray:
        import torch

        with torch.inference_mode():
            out: torch.Tensor = calls.run(lambda rows: decode(latents[rows]), len(latents))
        if not out.isfinite().all():  # as bytes it would look like a picture
            fix = "Draw it with another seed; if others end so too, the autoencoder does not belong to the denoiser"
            raise ModelError("a decoded picture is not finite", where="decoder", fix=fix)
        pixels = ((out.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().numpy()
