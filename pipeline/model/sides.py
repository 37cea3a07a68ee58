"""Which sides a picture may have: multiples of so many pixels, because a latent has whole positions and tokens."""

from __future__ import annotations

from dataclasses import dataclass

from index.errors import ConfigError


@dataclass(frozen=True)
class Sides:
    """The rule for the sides of a model's pictures.

    Attributes:
        multiple: pixels that a side is a multiple of.
        snap: whether another side becomes the nearest one that fits; else it is refused.
    """

    multiple: int
    snap: bool = False

    def fit(self, pixels: int, where: str = "") -> int:
        """A side that can be drawn.

        Args:
            pixels: the side that is wanted.
            where: the key or column that states it.

        Raises:
            ConfigError: it is no multiple, and may not be changed; the message names the two nearest that are.
        """
        if pixels % self.multiple == 0:
            return pixels
        below = pixels // self.multiple * self.multiple
        above = below + self.multiple
        if self.snap:
            return below if below and pixels - below < above - pixels else above
        what = f"{pixels} is not a multiple of {self.multiple}, as this model needs"
        nearest = f"{below} or {above}" if below else str(above)
        raise ConfigError(what, where=where, fix=f"Write {nearest}, or set model.snap = true to have the nearest drawn")
