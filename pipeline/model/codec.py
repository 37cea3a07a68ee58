"""Between latents and pictures: what each kind of autoencoder makes of the denoiser's latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from index.errors import ModelError

if TYPE_CHECKING:
    import torch


class Codec:
    """An autoencoder with one scale and shift for all channels (AutoencoderKL, AutoencoderTiny, AutoencoderDC).

    It travels to other processes with its network.

    Args:
        network: diffusers' autoencoder, in float32 and ready for inference.
        where: for messages.

    Attributes:
        packing: positions of the autoencoder's latent along a side of one of the denoiser's.
    """

    packing: ClassVar[int] = 1

    def __init__(self, network: Any, where: str = "") -> None:
        self.network = network
        self._prepare(where)

    def _prepare(self, where: str) -> None:
        config = self.network.config
        if getattr(config, "latents_mean", None) is not None:
            raise ModelError("its autoencoder normalises per channel", where=where, fix="That is not supported: use another")
        self.scaling, self.shift = float(config.scaling_factor), float(getattr(config, "shift_factor", None) or 0)

    @property
    def channels(self) -> int:
        """Of the denoiser's latents."""
        return int(self.network.config.latent_channels)

    def to_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents float32 (N, C, h, w) → pictures float32 (N, 3, H, W) around [−1, 1], on the same device, differentiable."""
        x = latents / self.scaling
        return self._decoded(x + self.shift if self.shift else x)

    def from_pixels(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures float32 (N, 3, H, W) in [−1, 1] → latents float32 (N, C, h, w): the mode, where there is a distribution."""
        latents = self._encoded(pictures)
        return (latents - self.shift if self.shift else latents) * self.scaling

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype  # type: ignore[no-any-return]

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """By the network, in its number format."""
        return self.network.decode(latents.to(self._dtype)).sample.float()  # type: ignore[no-any-return]

    def _encoded(self, pictures: torch.Tensor) -> torch.Tensor:
        out = self.network.encode(pictures.to(self._dtype))
        if hasattr(out, "latent_dist"):
            return out.latent_dist.mode().float()  # type: ignore[no-any-return]
        return (out.latents if hasattr(out, "latents") else out.latent).float()  # type: ignore[no-any-return]


class VideoCodec(Codec):
    """An autoencoder of films, with a mean and a deviation a channel (AutoencoderKLQwenImage): a picture is one frame."""

    def _prepare(self, where: str) -> None:
        import torch

        config = self.network.config
        self.mean, self.deviation = (torch.tensor(x).view(-1, 1, 1) for x in (config.latents_mean, config.latents_std))

    @property
    def channels(self) -> int:
        return int(self.network.config.z_dim)

    def to_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        # Divided by the reciprocal, as diffusers does, which is not the product to the last bit.
        x = latents / (1 / self.deviation.to(latents.device)) + self.mean.to(latents.device)
        return self._decoded(x[:, :, None])[:, :, 0]

    def from_pixels(self, pictures: torch.Tensor) -> torch.Tensor:
        latents = self._encoded(pictures[:, :, None])[:, :, 0]
        return (latents - self.mean.to(latents.device)) / self.deviation.to(latents.device)


class PatchCodec(Codec):
    """An autoencoder whose 2×2 patches are the denoiser's positions, by the running mean and variance of a batch norm
    (AutoencoderKLFlux2)."""

    packing = 2

    def _prepare(self, where: str) -> None:
        norm = self.network.bn
        self.mean = norm.running_mean.view(-1, 1, 1)
        self.deviation = (norm.running_var.view(-1, 1, 1) + self.network.config.batch_norm_eps).sqrt()

    @property
    def channels(self) -> int:
        return 4 * int(self.network.config.latent_channels)

    def to_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        x = functional.pixel_shuffle(latents * self.deviation.to(latents.device) + self.mean.to(latents.device), 2)
        return self._decoded(x)

    def from_pixels(self, pictures: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        latents = functional.pixel_unshuffle(self._encoded(pictures), 2)
        return (latents - self.mean.to(latents.device)) / self.deviation.to(latents.device)  # type: ignore[no-any-return]
