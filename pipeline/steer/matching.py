"""Best matches by cosine in bounded memory: the inner loop of negative token merging (arXiv 2412.01339).

The similarity of N tokens to M reference tokens is walked in tiles; a running maximum (or a running softmax, as flash attention
keeps one) stands for the matrix that is never made. Tokens of one picture only: rows of a batch are matched
one after the other, so that a row's bytes do not depend on how many others there are.

On a small network it is the number of operations that costs, not the product: whatever is worked out here is worked out once.
On an accelerator nothing here waits for the device: what is decided by a number is decided there (:func:`torch.where`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from pipeline.steer.fused import available, fused_best_match

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "bfloat16"]

CHUNK = 1024
GROUP = 32  # neighbours in a tile whose maximum is taken first: a maximum alone is vectorised, one with its position is not
FEW = 64  # rows of a tile of which the position is looked for at once
PIECE = 2**17  # elements in float32 at a time: what fits into a core's cache
FLOOR = 1e-12  # as torch.nn.functional.normalize: a token of zeros has no direction and matches nothing


class Pairs(NamedTuple):
    """Tokens with what each is matched with, in float32: what thresholds see and pushes are worked out from.

    Attributes:
        at: where these n tokens stand among all.
        tokens: (n, D).
        matched: (n, D), the reference token of each.
        lengths: |h| (n, 1), at least FLOOR.
        cosine: (n, 1).
    """

    at: slice
    tokens: torch.Tensor
    matched: torch.Tensor
    lengths: torch.Tensor
    cosine: torch.Tensor


def best_match(
    tokens: torch.Tensor, reference: torch.Tensor, *, chunk: int = CHUNK, precision: Precision = "float32"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most similar reference token of every token.

    Args:
        tokens: (N, D), any floating dtype.
        reference: (M, D), M ≥ 1.
        chunk: size of the tiles: 2·chunk reference tokens by chunk/4 tokens, since it is per column and tile that a position
            is looked for. No larger part of the N × M products is ever in memory.
        precision: number format in which tiles are multiplied. The product only proposes: the cosine that is returned, and
            that thresholds see, is worked out again in float32 for the proposed pair.

    Returns:
        cosine float32 (N,) and index int64 (N,) into ``reference``; the first of equals.
    """
    import torch

    which = _proposed(tokens, reference, None, chunk, precision)
    cosine = tokens.new_empty(len(tokens), dtype=torch.float32)
    for pair in _pairs(tokens, reference, which):
        cosine[pair.at] = pair.cosine[:, 0]
    return cosine, which


def best_pairs(
    tokens: torch.Tensor,
    reference: torch.Tensor,
    known: torch.Tensor | None = None,
    *,
    chunk: int = CHUNK,
    precision: Precision = "float32",
) -> Iterator[Pairs]:
    """As :func:`best_match`, piece by piece and with the tokens: a piece is what fits into a core's cache.

    Args:
        tokens, reference, chunk, precision: see there.
        known: of the reference, worked out before; see :func:`known_of`.
    """
    return _pairs(tokens, reference, _proposed(tokens, reference, known, chunk, precision))


def known_of(reference: torch.Tensor, precision: Precision) -> torch.Tensor | None:
    """What the matching needs of reference tokens (M, D), whatever the sample's, to be kept beside them.

    Returns:
        Where the fused kernel runs: their inverse lengths, float32 (M,). Else, for bfloat16: their directions (M, D). None:
        what the matching would need is as large as the tokens in float32, and cheap.
    """
    if not keeps_known(reference.device, precision):
        return None
    return inverse_lengths(reference) if available(reference.device) else directions_of(reference, precision)


def keeps_known(device: torch.device, precision: Precision) -> bool:
    """Whether :func:`known_of` is worth keeping on that device."""
    return precision == "bfloat16" or available(device)


def directions_of(reference: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Reference tokens (M, D) at unit length, in the number format of the matching: independent of the sample's tokens."""
    import torch

    low = torch.bfloat16 if precision == "bfloat16" else torch.float32
    return _directions(reference, torch.empty_like(reference, dtype=low))


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

    directions = directions_of(reference, precision)
    cosines, means = [], []
    for start in range(0, len(tokens), chunk):
        query = directions_of(tokens[start : start + chunk], precision)
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


def _proposed(
    tokens: torch.Tensor, reference: torch.Tensor, known: torch.Tensor | None, chunk: int, precision: Precision
) -> torch.Tensor:
    """Index (N,) of the reference token with the largest cosine, as far as ``precision`` can tell; the first of equals, and of
    tokens that are not numbers."""
    import torch

    if available(tokens.device):
        inverse = inverse_lengths(reference) if known is None else known
        return fused_best_match(tokens, reference, inverse, narrow=precision == "bfloat16")
    low, bits = (torch.bfloat16, torch.int16) if precision == "bfloat16" else (torch.float32, torch.int32)
    # Floats above zero are ordered as their bits are, read as an integer, and the maximum of integers is several times as fast.
    # Below zero the order is the other way round: where some best product is not positive, they are compared as floats.
    # Elsewhere both are as fast, and to look whether it is positive would wait for the device.
    if tokens.device.type == "cpu":
        best, which = _running_maximum(tokens, reference, known, chunk, low, bits)
        if best.min().item() > 0:
            return which
    return _running_maximum(tokens, reference, known, chunk, low, low)[1]


def _pairs(tokens: torch.Tensor, reference: torch.Tensor, which: torch.Tensor) -> Iterator[Pairs]:
    import torch

    for at in _pieces(tokens):
        own, matched = tokens[at].float(), reference.index_select(0, which[at]).float()
        lengths = torch.linalg.vector_norm(own, dim=1, keepdim=True).clamp_(min=FLOOR)
        others = torch.linalg.vector_norm(matched, dim=1, keepdim=True).clamp_(min=FLOOR)
        # One after the other: the product of the lengths may leave float32's range.
        yield Pairs(at, own, matched, lengths, (own * matched).sum(1, keepdim=True).div_(lengths).div_(others))


def _running_maximum(
    tokens: torch.Tensor,
    reference: torch.Tensor,
    known: torch.Tensor | None,
    chunk: int,
    low: torch.dtype,
    compared_as: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest product with a reference's direction, in ``low``, and its index: both (N,)."""
    import torch

    m, n = min(2 * chunk, len(reference)), min(max(1, chunk // 4), len(tokens))
    if len(tokens) * len(reference) <= chunk * chunk // 2:
        directions = _directions(reference, torch.empty_like(reference, dtype=low)) if known is None else known
        return _first_maximum((directions @ tokens.to(low).T).view(compared_as))
    # One tile's room, for all of them: fresh memory costs more than what is written to it.
    tiles = tokens.new_empty(n * m, dtype=low)
    directions = tokens.new_empty(m if known is None else 0, tokens.shape[1], dtype=low)
    queries = None if tokens.dtype is low else tokens.new_empty(n, tokens.shape[1], dtype=low)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for at in range(0, len(reference), m):
        part = slice(at, at + m)
        towards = _directions(reference[part], directions) if known is None else known[part]
        for i, start in enumerate(range(0, len(tokens), n)):
            query = tokens[start : start + n]  # |h| does not move the maximum: no need to divide by it
            query = query if queries is None else queries[: len(query)].copy_(query)
            tile = tiles[: len(towards) * len(query)].view(len(towards), len(query))
            value, index = _first_maximum(torch.mm(towards, query.T, out=tile).view(compared_as))
            if at == 0:
                found.append((value, index))
                continue
            best, which = found[i]
            higher = _above(value, best)
            found[i] = torch.where(higher, value, best), torch.where(higher, index + at, which)
    if len(found) == 1:
        return found[0]
    values, indices = zip(*found, strict=True)
    return torch.cat(values), torch.cat(indices)


def _first_maximum(tile: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maximum and the first position of it in every column of a tile (M, N): of groups of rows, then within the best group.

    A reduction over rows runs along contiguous memory; three times as fast as ``tile.T.max(1)``.
    """
    import torch

    if len(tile) <= FEW:
        return tile.max(0)
    whole = len(tile) - len(tile) % GROUP
    groups = tile[:whole].view(-1, GROUP, tile.shape[1])
    best, of = groups.amax(1).max(0)
    within = groups[of, :, torch.arange(tile.shape[1], device=tile.device)].max(1).indices
    which = of * GROUP + within
    if whole < len(tile):
        value, index = tile[whole:].max(0)
        higher = _above(value, best)
        best, which = torch.where(higher, value, best), torch.where(higher, index + whole, which)
    return best, which


def _above(value: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """Where a later maximum replaces an earlier one: strictly, so that the first of equals stays. NaN is above every number, as
    it is in the maximum of one tile."""
    higher: torch.Tensor = value > best
    if value.is_floating_point():
        higher = higher | (value.isnan() & ~best.isnan())
    return higher


def inverse_lengths(tokens: torch.Tensor) -> torch.Tensor:
    """1/|r| of tokens (M, D): float32 (M,)."""
    import torch

    lengths: torch.Tensor = torch.linalg.vector_norm(tokens, dim=1, dtype=torch.float32)
    return lengths.clamp_(min=FLOOR).reciprocal_()


def _directions(tokens: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """Tokens (M, D) at unit length, put into ``room`` (≥ M, D); piece by piece, so that they are never whole in float32."""
    import torch

    for at in _pieces(tokens):
        part = tokens[at].float()
        room[at] = part / torch.linalg.vector_norm(part, dim=1, keepdim=True).clamp_(min=FLOOR)
    return room[: len(tokens)]


def _pieces(tokens: torch.Tensor) -> Iterator[slice]:
    """Which tokens (N, D) to look at in float32 at a time."""
    rows = max(1, PIECE // tokens.shape[1]) if tokens.device.type == "cpu" else len(tokens)
    return (slice(at, min(at + rows, len(tokens))) for at in range(0, len(tokens), rows))
