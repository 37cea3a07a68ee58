"""What a denoiser is shown of a prompt: token embeddings, which of them count, and a pooled embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Conditioning:
    """One prompt's conditioning, or several with rows first: they have a length, rows and slices.

    All of a model's have the same shapes, the denoiser's number format and its device, so that a call stacks what is there.

    Attributes:
        tokens: (T, D), or (N, T, D).
        mask: bool (T,) or (N, T), True where a token counts; None where the class shows its denoiser all T.
        pooled: (P,) or (N, P); None where the class has none.
    """

    tokens: torch.Tensor
    mask: torch.Tensor | None = None
    pooled: torch.Tensor | None = None

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """The tensors that are there."""
        return tuple(part for part in (self.tokens, self.mask, self.pooled) if part is not None)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor], *, floats: bool = False) -> Conditioning:
        """With every part changed; ``floats``: the embeddings alone, not the mask."""
        mask = self.mask if self.mask is None or floats else change(self.mask)
        return Conditioning(change(self.tokens), mask, None if self.pooled is None else change(self.pooled))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Any) -> Conditioning:
        return self.map(lambda part: part[rows])

    def __iter__(self) -> Iterator[Conditioning]:
        return (self[i] for i in range(len(self)))

    def to(self, device: Any, dtype: Any) -> Conditioning:
        """On a device, embeddings in a number format; nothing is copied where it is there already."""
        return self.map(lambda part: part.to(device)).map(lambda part: part.to(dtype), floats=True)

    def expand(self, rows: int) -> Conditioning:
        """One prompt's conditioning as so many equal rows, which take no memory."""
        return self.map(lambda part: part.expand(rows, *part.shape))

    def zeros(self) -> Conditioning:
        """Of the same shapes, all zeros: that of rows without an owner."""
        return self.map(lambda part: part.new_zeros(part.shape))

    def towards(self, other: Conditioning, strength: float) -> Conditioning:
        """The embeddings between these (strength 0) and another's (1), worked out in float32, with the other's mask."""

        def between(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
            start = mine.float()
            return (start + strength * (theirs.float() - start)).to(mine.dtype)

        pooled = None if self.pooled is None or other.pooled is None else between(self.pooled, other.pooled)
        return Conditioning(between(self.tokens, other.tokens), other.mask, pooled)

    def equal(self, other: Conditioning) -> bool:
        """Whether both are of the same bytes."""
        pairs = zip(self.parts, other.parts, strict=False)
        return len(self.parts) == len(other.parts) and all(a.dtype == b.dtype and a.equal(b) for a, b in pairs)

    def isfinite(self) -> bool:
        """Whether no embedding is infinite or not a number. Waits for the device."""
        return all(bool(part.isfinite().all()) for part in self.parts)


def scales_of(guidance: float | torch.Tensor, rows: int, device: torch.device) -> torch.Tensor:
    """Every row's guidance scale, float32 (rows,). A number is written there by the device: to copy it would wait for it."""
    import torch

    if isinstance(guidance, torch.Tensor):
        return guidance.to(device, torch.float32).expand(rows)
    return torch.full((rows,), guidance, dtype=torch.float32, device=device)


def stack(prompts: Sequence[Conditioning]) -> Conditioning:
    """Conditionings of single prompts → one with rows."""
    import torch

    return _joined(prompts, torch.stack)


def concatenate(blocks: Sequence[Conditioning]) -> Conditioning:
    """Conditionings with rows → one with all their rows."""
    import torch

    return _joined(blocks, torch.cat)


def _joined(some: Sequence[Conditioning], join: Callable[[list[torch.Tensor]], torch.Tensor]) -> Conditioning:
    mask = [one.mask for one in some if one.mask is not None]
    pooled = [one.pooled for one in some if one.pooled is not None]
    return Conditioning(join([one.tokens for one in some]), join(mask) if mask else None, join(pooled) if pooled else None)
