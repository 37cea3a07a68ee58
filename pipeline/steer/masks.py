"""The reference tokens that may be matched: masks over latent positions, and over the tokens of a block."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def token_mask(mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """A mask over latent positions, bool (h, w), as one over a block's image tokens: a token counts if any of its cells does.

    Args:
        mask: bool (h, w).
        tokens: image tokens N of the block, a grid of the same proportions.

    Returns:
        bool (N,), row by row.
    """
    import torch.nn.functional as F

    grid = F.adaptive_max_pool2d(mask.float()[None, None], _grid(tokens, *mask.shape))
    return grid.flatten() > 0


def tokens_within(mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """Positions int64 (n,) of the tokens that :func:`token_mask` counts. A mask on the host is read there, without waiting for
    any device."""
    return token_mask(mask, tokens).nonzero().flatten()


@lru_cache(maxsize=256)
def _grid(tokens: int, high: int, wide: int) -> tuple[int, int]:
    """Rows and columns of so many tokens, of the proportions of (high, wide)."""
    ideal = (tokens * high / wide) ** 0.5
    rows = min((n for n in range(1, tokens + 1) if tokens % n == 0), key=lambda n: abs(n - ideal))
    return rows, tokens // rows


def foreground(latent: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Where a reference is itself: latent positions that deviate from the centre more than they do on average.

    Args:
        latent, centre: (C, h, w).

    Returns:
        bool (h, w), never all False.
    """
    deviation = (latent - centre).norm(dim=0)
    mask: torch.Tensor = deviation >= deviation.mean()
    return mask
