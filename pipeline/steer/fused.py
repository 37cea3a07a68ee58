"""One Triton kernel for the matching of negative token merging: flash attention's walk with (max, argmax) for the softmax.

Not run yet: it was written without an accelerator at hand. Its test (marker ``gpu``) compares it with the plain loop of
:mod:`pipeline.steer.matching`, which is what runs wherever Triton or CUDA are absent.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TOKENS, REFERENCES, CHANNELS = 64, 128, 64  # tile edges


def available() -> bool:
    """Whether Triton is installed and there is a CUDA device of compute capability 8 (bf16 products) or more."""
    import torch

    if importlib.util.find_spec("triton") is None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability()[0] >= 8


def fused_best_match(tokens: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The most similar reference token of every token, matched in bf16 with float32 sums.

    Args:
        tokens: (N, D) on a CUDA device.
        reference: (M, D) on the same device.

    Returns:
        int64 (N,) indices into ``reference``, the first of equals. No N × M matrix is made.
    """
    import torch
    import torch.nn.functional as F

    query = tokens.to(torch.bfloat16).contiguous()
    directions = F.normalize(reference.float(), dim=-1).to(torch.bfloat16).contiguous()
    which = torch.empty(len(query), dtype=torch.int32, device=query.device)
    grid = (-(-len(query) // TOKENS),)
    _kernel()[grid](
        query, directions, which, len(query), len(directions), query.shape[1],
        TOKENS=TOKENS, REFERENCES=REFERENCES, CHANNELS=CHANNELS,
    )  # fmt: skip
    return which.long()


@cache
def _kernel() -> Any:
    import triton
    import triton.language as tl

    def match(  # type: ignore[no-untyped-def]
        query, directions, which, n, m, d, TOKENS: tl.constexpr, REFERENCES: tl.constexpr, CHANNELS: tl.constexpr  # noqa: N803
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
                    directions + columns[None, :] * d + depth[:, None],
                    mask=inside[:, None] & (columns < m)[None, :],
                    other=0.0,
                )
                tile = tl.dot(q, r, tile)
            tile = tl.where((columns < m)[None, :], tile, float("-inf"))
            value, at = tl.max(tile, 1, return_indices=True)
            higher = value > best
            best = tl.where(higher, value, best)
            index = tl.where(higher, start + at.to(tl.int32), index)
        tl.store(which + rows, index, mask=rows < n)

    # Triton resolves names of a kernel in its function's globals; tl was imported here to keep imports lazy.
    match.__globals__["tl"] = tl
    return triton.jit(match)
