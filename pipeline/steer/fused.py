"""One Triton kernel for the matching of negative token merging: flash attention's walk with (max, argmax) for the softmax.

It runs wherever Triton and a CUDA device of capability 8 are, in both number formats: half-precision tokens are multiplied as
they are and summed in float32, which is exact but for the order of the sum; float32 tokens are multiplied in float32 ("ieee",
no TF32), or, where the policy asks for bfloat16, rounded to it. A product is divided by the reference token's length
afterwards, so that no normalised copy of the reference is made or kept.

Where it was tried: in Triton's interpreter against the plain loop of :mod:`pipeline.steer.matching`, and compiled to machine
code for three generations of cards (``tests/pipeline/test_fused.py``). No card has run it; that test is marked ``gpu``.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


class Tiles(NamedTuple):
    """Edges of a tile, and how many tiles are loaded ahead: what fits into 99 KiB of shared memory, the least of all cards."""

    tokens: int
    references: int
    channels: int
    stages: int


HALF = Tiles(64, 128, 64, 3)
FULL = Tiles(64, 64, 32, 2)


@cache
def available(device: torch.device) -> bool:
    """Whether Triton is installed and that device is a CUDA device of compute capability 8 (bf16 products) or more."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    import torch

    return torch.version.hip is None and torch.cuda.get_device_capability(device)[0] >= 8


def fused_best_match(
    tokens: torch.Tensor, reference: torch.Tensor, inverse: torch.Tensor, *, narrow: bool = False
) -> torch.Tensor:
    """The most similar reference token of every token, matched without ever making the N × M matrix.

    Args:
        tokens: (N, D) on a CUDA device.
        reference: (M, D) on the same device, M ≥ 1.
        inverse: 1/|r| of every reference token, float32 (M,).
        narrow: float32 tokens are rounded to bfloat16 first.

    Returns:
        int64 (N,) indices into ``reference``: the first of equals; a reference token that is not a number is above all others,
        as in ``torch.max``.

    Raises:
        ValueError: there is no reference token.
    """
    import torch

    if len(reference) == 0:
        raise ValueError("there is no reference token to match")
    which = torch.empty(len(tokens), dtype=torch.int32, device=tokens.device)
    if len(tokens) == 0:
        return which.long()
    kind = torch.promote_types(tokens.dtype, reference.dtype)
    kind = torch.bfloat16 if narrow and kind is torch.float32 else kind
    tiles = FULL if kind is torch.float32 else HALF
    query, towards = tokens.to(kind).contiguous(), reference.to(kind).contiguous()
    with torch.cuda.device_of(tokens):  # the launch takes the current device, which need not be the tensors'
        kernel()[(-(-len(query) // tiles.tokens),)](
            query, towards, inverse.contiguous(), which, len(query), len(towards), query.shape[1],
            TOKENS=tiles.tokens, REFERENCES=tiles.references, CHANNELS=tiles.channels, num_stages=tiles.stages,
        )  # fmt: skip
    return which.long()


@cache
def kernel() -> Any:
    """The kernel, for a launch or for the compiler."""
    import triton
    import triton.language as tl

    def match(  # type: ignore[no-untyped-def]
        query, towards, inverse, which, n, m, d,
        TOKENS: tl.constexpr, REFERENCES: tl.constexpr, CHANNELS: tl.constexpr,  # noqa: N803
    ):  # fmt: skip
        rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
        best = tl.full((TOKENS,), float("-inf"), tl.float32)
        index = tl.zeros((TOKENS,), tl.int32)
        for start in range(0, m, REFERENCES):
            columns = start + tl.arange(0, REFERENCES)
            tile = tl.zeros((TOKENS, REFERENCES), tl.float32)
            for channel in range(0, d, CHANNELS):
                depth = channel + tl.arange(0, CHANNELS)
                inside = depth < d
                q = tl.load(query + rows[:, None] * d + depth[None, :], mask=(rows < n)[:, None] & inside[None, :], other=0.0)
                r = tl.load(
                    towards + columns[None, :] * d + depth[:, None],
                    mask=inside[:, None] & (columns < m)[None, :],
                    other=0.0,
                )
                tile = tl.dot(q, r, tile, input_precision="ieee")
            tile = tile * tl.load(inverse + columns, mask=columns < m, other=0.0)[None, :]
            tile = tl.where(tile != tile, float("inf"), tile)  # not a number: above all others
            tile = tl.where((columns < m)[None, :], tile, float("-inf"))
            value, at = tl.max(tile, 1, return_indices=True)
            higher = value > best
            best = tl.where(higher, value, best)
            index = tl.where(higher, start + at.to(tl.int32), index)
        tl.store(which + rows, index, mask=rows < n)

    # Triton resolves names of a kernel in its function's globals; tl was imported here to keep imports lazy.
    match.__globals__["tl"] = tl
    return triton.jit(match)
