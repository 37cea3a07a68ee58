"""Negative token merging (arXiv 2412.01339): push a sample's tokens away from its best-matching reference tokens.

For every output token take the reference token with the largest cosine; where it exceeds τ, replace the token h by
(1 + α)·h − α·r (eq. 3). By default after attention *and* its residual, before the MLP, as in the paper's figure 3; the
released code acts before the residual and takes the maximum over the wrong axis. Both are kept, for comparison.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Match = Literal["paper", "released"]
Placement = Literal["paper", "released"]


def push_apart(
    tokens: torch.Tensor,
    reference: torch.Tensor,
    *,
    alpha: float,
    threshold: float,
    mask: torch.Tensor | None = None,
    match: Match = "paper",
    keep_norm: bool = False,
) -> torch.Tensor:
    """Push tokens away from the reference tokens they match.

    Args:
        tokens: (B, N, D).
        reference: (M, D), shared by the batch, or (B, M, D).
        alpha: strength α; 0 is the identity, negative pulls towards the reference.
        threshold: cosine τ above which a token is pushed; 1 or more is the identity.
        mask: bool (M,) or (B, M): which *reference* tokens may be matched; all False is the identity.
        match: ``paper``: the best reference token of each output token; ``released``: for each reference token the
            best output token, then used as an index into the reference (needs N == M).
        keep_norm: rescale every pushed token to its own norm; eq. 3 inflates it (×1.42 at α = .9, cosine .7).

    Returns:
        (B, N, D), bit-identical to ``tokens`` where nothing is pushed.
    """
    import torch
    import torch.nn.functional as F

    if alpha == 0 or threshold >= 1:
        return tokens
    if reference.ndim == 2:
        reference = reference.unsqueeze(0).expand(len(tokens), *reference.shape)
    similarity = F.normalize(tokens.float(), dim=-1) @ F.normalize(reference.float(), dim=-1).transpose(1, 2)
    if mask is not None:
        allowed = mask if mask.ndim == 2 else mask.unsqueeze(0).expand(len(tokens), -1)
        similarity = similarity.masked_fill(~allowed.unsqueeze(1), -2.0)
    if match == "paper":
        best, which = similarity.max(dim=2)
    else:
        if tokens.shape[1] != reference.shape[1]:
            raise ValueError(
                f"match='released' needs as many tokens as reference tokens, not {tokens.shape[1]} and {reference.shape[1]}"
            )
        best, which = similarity.max(dim=1)
    matched = torch.gather(reference, 1, which.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])).to(tokens.dtype)
    pushed = (1 + alpha) * tokens - alpha * matched
    if keep_norm:
        pushed = pushed * (tokens.norm(dim=-1, keepdim=True) / pushed.norm(dim=-1, keepdim=True).clamp(min=1e-6))
    return torch.where((best > threshold).unsqueeze(-1), pushed, tokens)


@dataclass(frozen=True)
class NegToMe:
    """Reference mode for one sample: its own nearest references, carried as extra rows of the same call.

    Attributes:
        latents: clean reference latents, each float32 (C, h, w).
        noises: one fixed noise per reference: the reference row is then in distribution at every timestep, and the same
            whenever it is asked for (the released code feeds the clean latent; pass None for that).
        context: text embedding (T, D) of the reference rows (the empty prompt).
        alpha, threshold: strength α and cosine threshold τ.
        until_step: steering acts in steps below this one.
    """

    latents: tuple[torch.Tensor, ...]
    noises: tuple[torch.Tensor, ...] | None
    context: torch.Tensor
    alpha: float
    threshold: float
    until_step: int
    match: Match = "paper"
    placement: Placement = "paper"
    keep_norm: bool = True

    def references_at(self, step: int) -> int:
        """How many reference rows the sample needs at ``step``: none outside the window or at α = 0."""
        return len(self.latents) if step < self.until_step and self.alpha != 0 and self.threshold < 1 else 0

    def noised(self, alpha_cumprod: float) -> list[torch.Tensor]:
        """The reference latents at the noise level ᾱ."""
        if self.noises is None:
            return list(self.latents)
        keep, add = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
        return [keep * z + add * n for z, n in zip(self.latents, self.noises, strict=True)]


@dataclass(frozen=True)
class RowPush:
    """Which row of a packed batch is pushed away from which reference rows."""

    row: int
    references: tuple[int, ...]
    settings: NegToMe


@contextmanager
def pushing(blocks: Sequence[tuple[str, Any]], pushes: Sequence[RowPush]) -> Iterator[None]:
    """Push rows apart inside diffusers' transformer blocks while the context lasts; afterwards nothing remains.

    Works on ``BasicTransformerBlock``: acts on the hidden state after cross-attention and its residual, before the MLP.
    Rows without a push are not touched; without pushes no hook is set at all.
    """
    handles: list[Any] = []
    if pushes:
        for _, block in blocks:
            handles += _hook(block, pushes)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(block: Any, pushes: Sequence[RowPush]) -> list[Any]:
    residual: dict[str, torch.Tensor] = {}

    def remember(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
        residual["before"] = args[0]

    def push(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        before = residual.pop("before")
        changed = output.clone()
        for item in pushes:
            s = item.settings
            base = output if s.placement == "released" else before + output
            reference = base[list(item.references)].flatten(0, 1)  # the best match over all references' tokens
            token = base[item.row : item.row + 1]
            pushed = push_apart(token, reference, alpha=s.alpha, threshold=s.threshold, match=s.match, keep_norm=s.keep_norm)
            changed[item.row] = (output[item.row : item.row + 1] + (pushed - token))[0]
        return changed

    # norm2's input is the residual stream before cross-attention; attn2's output is what is added to it.
    return [block.norm2.register_forward_pre_hook(remember), block.attn2.register_forward_hook(push)]
