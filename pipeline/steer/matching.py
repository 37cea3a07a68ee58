"""Best matches by cosine in bounded memory: the inner loop of negative token merging (arXiv 2412.01339).

The similarity of N tokens to M reference tokens is walked in tiles of chunk × chunk; a running maximum (or a running softmax,
as flash attention keeps one) stands for the matrix that is never made. Tokens of one picture only: rows of a batch are matched
one after the other, so that a row's bytes do not depend on how many others there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "bfloat16"]

CHUNK = 1024
GROUP = 32  # neighbours in a tile whose maximum is taken first: a maximum alone is vectorised, one with its position is not
BLOCK = 256  # tokens in float32 at a time: what fits into a core's cache
FLOOR = 1e-12  # as torch.nn.functional.normalize: a token of zeros has no direction and matches nothing


def best_match(
    tokens: torch.Tensor, reference: torch.Tensor, *, chunk: int = CHUNK, precision: Precision = "float32"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most similar reference token of every token.

    Args:
        tokens: (N, D), any floating dtype.
        reference: (M, D), M ≥ 1.
        chunk: tile edge; the largest intermediate has chunk² elements (and chunk × D for the tile's operands).
        precision: number format in which tiles are multiplied. bfloat16 only proposes: the cosine that is returned, and that
            thresholds see, is worked out again in float32 for the proposed pair.

    Returns:
        cosine float32 (N,) and index int64 (N,) into ``reference``; the first of equals.
    """
    import torch

    if tokens.is_cuda and precision == "bfloat16":
        from pipeline.steer.fused import available, fused_best_match

        if available():
            which = fused_best_match(tokens, reference)
            return _cosine(tokens, reference, which), which
    low = torch.bfloat16 if precision == "bfloat16" else torch.float32
    directions = torch.empty(reference.shape, dtype=low, device=reference.device)
    for at in range(0, len(reference), BLOCK):  # piece by piece, so that no float32 copy of them all is made
        directions[at : at + BLOCK] = _directions(reference[at : at + BLOCK], low)
    cosines, indices = [], []
    for start in range(0, len(tokens), chunk):
        part = tokens[start : start + chunk]
        # |h| does not move the maximum, so that bf16 tiles need no division; in fp32 it makes the tile the cosine itself.
        query = part.to(low) if low is torch.bfloat16 else _directions(part, low)
        best, which = _running_maximum(query, directions, chunk)
        if low is torch.bfloat16:
            best = _cosine(part, reference, which)
        cosines.append(best)
        indices.append(which)
    return torch.cat(cosines), torch.cat(indices)


def soft_match(
    tokens: torch.Tensor, reference: torch.Tensor, *, temperature: float, chunk: int = CHUNK, precision: Precision = "float32"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel-weighted mean of reference tokens, weights exp(cos/T), and the best cosine.

    Args:
        tokens, reference, chunk, precision: see :func:`best_match`.
        temperature: T > 0 of the kernel; towards 0 it is the best match.

    Returns:
        cosine float32 (N,) of the best reference token, and float32 (N, D) Σ_j softmax_j(cos_ij/T)·r_j.
    """
    import torch

    low = torch.bfloat16 if precision == "bfloat16" else torch.float32
    directions = _directions(reference, low)
    cosines, means = [], []
    for start in range(0, len(tokens), chunk):
        query = _directions(tokens[start : start + chunk], low)
        best = query.new_full((len(query),), -torch.inf, dtype=torch.float32)
        total = torch.zeros_like(best)
        mean = torch.zeros(len(query), reference.shape[1], dtype=torch.float32, device=tokens.device)
        for at in range(0, len(reference), chunk):
            tile = (query @ directions[at : at + chunk].T).float()
            higher = torch.maximum(best, tile.amax(1))
            shrink = torch.exp((best - higher) / temperature)  # exp(−∞) = 0 the first time
            weight = torch.exp((tile - higher[:, None]) / temperature)
            mean = mean * shrink[:, None] + weight @ reference[at : at + chunk].float()
            total = total * shrink + weight.sum(1)
            best = higher
        cosines.append(best)
        means.append(mean / total[:, None])
    return torch.cat(cosines), torch.cat(means)


def _running_maximum(query: torch.Tensor, directions: torch.Tensor, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    best, which = _first_maximum(directions[:chunk] @ query.T)
    for at in range(chunk, len(directions), chunk):
        value, index = _first_maximum(directions[at : at + chunk] @ query.T)
        higher = value > best  # strictly: the first of equals stays
        best, which = torch.where(higher, value, best), torch.where(higher, index + at, which)
    return best.float(), which


def _first_maximum(tile: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maximum and the first position of it in every column of a tile (M, N): of groups of rows, then within the best group.

    A reduction over rows runs along contiguous memory; three times as fast as ``tile.T.max(1)``.
    """
    import torch

    whole = len(tile) - len(tile) % GROUP
    if not whole:
        return tile.max(0)  # type: ignore[no-any-return]
    groups = tile[:whole].view(-1, GROUP, tile.shape[1])
    best, of = groups.amax(1).max(0)
    within = groups[of, :, torch.arange(tile.shape[1], device=tile.device)].max(1).indices
    which = of * GROUP + within
    if whole < len(tile):
        value, index = tile[whole:].max(0)
        higher = value > best
        best, which = torch.where(higher, value, best), torch.where(higher, index + whole, which)
    return best, which


def _directions(tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    import torch.nn.functional as F

    return F.normalize(tokens.float(), dim=-1, eps=FLOOR).to(dtype)


def _cosine(tokens: torch.Tensor, reference: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    import torch

    cosines, block = [], BLOCK if tokens.device.type == "cpu" else len(tokens)
    for at in range(0, len(tokens), block):
        own, other = tokens[at : at + block].float(), reference.index_select(0, which[at : at + block]).float()
        lengths = [torch.linalg.vector_norm(x, dim=1).clamp(min=FLOOR) for x in (own, other)]
        cosines.append((own * other).sum(1) / lengths[0] / lengths[1])  # one by one: their product may leave float32's range
    return torch.cat(cosines)
