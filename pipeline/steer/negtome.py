"""Negative token merging (arXiv 2412.01339): push a sample's tokens away from its best-matching reference tokens.

For every output token take the reference token with the largest cosine; where it exceeds τ, replace the token h by
(1 + α)·h − α·r (eq. 3). By default after attention *and* its residual, before the MLP, as in the paper's figure 3; the
released code acts before the residual and takes the maximum over the wrong axis. Both are kept, for comparison.

What eq. 3 says about copies: the push α·(h − r) is zero for an exact match and largest just above τ. Two other pushes are
options. ``unit`` has the length α·‖h‖ whatever the distance; ``kernel`` grows with the similarity and goes along the reference
token's deviation from its picture's mean token, α·k·(r − r̄) with k = (cos − τ)/(1 − τ): full strength for an exact match.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pipeline.steer.blocks import SELF, Edit, Placement, attach
from pipeline.steer.masks import token_mask
from pipeline.steer.matching import CHUNK, Precision, best_match, soft_match

if TYPE_CHECKING:
    import torch

Match = Literal["paper", "released", "soft"]
Form = Literal["paper", "unit", "kernel"]


def push_apart(
    tokens: torch.Tensor,
    reference: torch.Tensor,
    *,
    alpha: float,
    threshold: float,
    mask: torch.Tensor | None = None,
    match: Match = "paper",
    form: Form = "paper",
    keep_norm: bool = False,
    temperature: float = 0.05,
    chunk: int = CHUNK,
    precision: Precision = "float32",
) -> torch.Tensor:
    """Push tokens away from the reference tokens they match.

    Args:
        tokens: (B, N, D).
        reference: (M, D), shared by the batch, or (B, M, D). Several references: their tokens, concatenated along M.
        alpha: strength α; 0 is the identity, negative pulls towards the reference.
        threshold: cosine τ above which a token is pushed; 1 or more is the identity.
        mask: bool (M,) or (B, M): which *reference* tokens may be matched; all False is the identity.
        match: ``paper``: the best reference token of each output token; ``soft``: the kernel-weighted mean of all reference
            tokens, weights softmax(cos/temperature); ``released``: for each reference token the best output token, then used
            as an index into the reference (needs N == M).
        form: ``paper`` (eq. 3), ``unit`` or ``kernel``, see above.
        keep_norm: rescale every pushed token to its own norm; eq. 3 inflates it (×1.42 at α = .9, cosine .7).
        temperature: of the soft match.
        chunk: edge of the similarity tiles; no larger part of the N × M similarities is ever in memory.
        precision: in which tiles are multiplied; the threshold and the push are always worked out from float32 cosines.

    Returns:
        (B, N, D), bit-identical to ``tokens`` where nothing is pushed. A row's bytes do not depend on the others.

    Raises:
        ValueError: shapes that do not go together.
    """
    import torch

    if tokens.ndim != 3 or reference.ndim not in (2, 3) or tokens.shape[-1] != reference.shape[-1]:
        raise ValueError(f"tokens (B, N, D) and reference (M, D) or (B, M, D) needed, not {tokens.shape} and {reference.shape}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    if match == "released" and tokens.shape[1] != reference.shape[-2]:
        raise ValueError(
            f"match='released' needs as many tokens as reference tokens, not {tokens.shape[1]} and {reference.shape[-2]}"
        )
    if alpha == 0 or threshold >= 1 or len(tokens) == 0:
        return tokens
    rows = []
    for i, own in enumerate(tokens):
        against = reference[i] if reference.ndim == 3 else reference
        allowed = None if mask is None else mask[i] if mask.ndim == 2 else mask
        best, matched, centre = _matched(own, against, allowed, match, temperature, chunk, precision)
        if best is None or matched is None:
            rows.append(own)
            continue
        pushed = _pushed(own, matched, best, centre, alpha, threshold, form)
        if keep_norm:
            pushed = pushed * (own.norm(dim=-1, keepdim=True) / pushed.norm(dim=-1, keepdim=True).clamp(min=1e-6))
        rows.append(torch.where((best > threshold).unsqueeze(-1), pushed, own))
    return torch.stack(rows)


@dataclass(frozen=True)
class NegToMe:
    """Reference mode for one sample: its own nearest references, carried as extra rows of the same call.

    Attributes:
        latents: clean reference latents, each float32 (C, h, w). Empty where ``features`` stand for them, or mates do.
        noises: one fixed noise per reference: the reference row is then in distribution at every timestep, and the same
            whenever it is asked for (the released code feeds the clean latent; pass None for that).
        context: text embedding (T, D) of the reference rows (the empty prompt).
        alpha, threshold: strength α and cosine threshold τ.
        until_step: steering acts in steps below this one.
        match, form, keep_norm, temperature, chunk, precision: see :func:`push_apart`.
        placement: ``paper``: on the residual stream after attention; ``released``: on attention's output before it.
        attention: ``last``: after the last attention before the MLP; ``both``: after self-attention as well (UNet blocks).
        where: only blocks whose name starts so, e.g. ``up_blocks``; empty: all.
        min_tokens: only blocks with at least so many image tokens (the paper's SDXL setting: 1024).
        masks: per reference bool (h, w): where its latent may be matched; None: everywhere.
        features: step → site → reference tokens (M, D) worked out before; see :mod:`pipeline.steer.features`.
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
    form: Form = "paper"
    temperature: float = 0.05
    attention: Literal["last", "both"] = "last"
    where: str = ""
    min_tokens: int = 0
    masks: tuple[torch.Tensor, ...] | None = None
    chunk: int = CHUNK
    precision: Precision = "float32"
    features: Mapping[int, Mapping[str, torch.Tensor]] | None = None

    def acts_at(self, step: int) -> bool:
        """Whether anything is pushed at ``step``: not outside the window, at α = 0, or at τ ≥ 1."""
        return step < self.until_step and self.alpha != 0 and self.threshold < 1

    def references_at(self, step: int) -> int:
        """How many reference rows the sample needs at ``step``: none where nothing is pushed, or features are at hand."""
        return len(self.latents) if self.acts_at(step) else 0

    def selects(self, site: str, tokens: int) -> bool:
        """Whether this block, with so many image tokens, takes part."""
        wanted = self.attention == "both" or not site.endswith(SELF)
        return wanted and site.startswith(self.where) and tokens >= self.min_tokens

    def apply(self, tokens: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Tokens (1, n·N, D) of a sample's n rows and reference tokens (M, D), M = k·N → pushed (1, n·N, D)."""
        mask = None
        if self.masks is not None:
            import torch

            each = len(reference) // len(self.masks)
            mask = torch.cat([token_mask(m, each) for m in self.masks]).to(reference.device)
        return push_apart(
            tokens, reference, alpha=self.alpha, threshold=self.threshold, mask=mask, match=self.match, form=self.form,
            keep_norm=self.keep_norm, temperature=self.temperature, chunk=self.chunk, precision=self.precision,
        )  # fmt: skip


@dataclass(frozen=True)
class RowPush:
    """Which row of a packed batch is pushed away from what.

    Attributes:
        row: the row pushed.
        references: rows whose tokens, concatenated, are the reference: of references, or of mates in a declared group
            (:mod:`pipeline.steer.diversity`); none where the settings hold features.
        settings: how.
        step: the denoising step the row stands at; says which of the settings' features are meant.
        owner: first row of the sample it belongs to; rows of one sample are matched together. −1: alone.
    """

    row: int
    references: tuple[int, ...]
    settings: NegToMe
    step: int = -1
    owner: int = -1


@contextmanager
def pushing(blocks: Sequence[tuple[str, Any]], pushes: Sequence[RowPush]) -> Iterator[None]:
    """Push rows apart inside the blocks while the context lasts; afterwards nothing remains.

    Rows without a push are not touched; without pushes no hook is set at all.
    """
    handles: list[Any] = []
    try:
        for placement in sorted({push.settings.placement for push in pushes}):
            of_this = [push for push in pushes if push.settings.placement == placement]
            both = any(push.settings.attention == "both" for push in of_this)
            for name, block in blocks:
                if any(name.startswith(push.settings.where) for push in of_this):
                    handles += attach(name, block, _edit(of_this), placement, self_attention=both)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _edit(pushes: Sequence[RowPush]) -> Edit:
    # A sample's own rows are pushed from the same reference: matched together, at half the calls. They are never apart, so
    # that its bytes still depend on nothing else. The released axis looks for tokens of one row.
    together: dict[object, list[RowPush]] = {}
    for item in pushes:
        alone = item.owner < 0 or item.settings.match == "released"
        together.setdefault(("row", item.row) if alone else ("sample", item.owner), []).append(item)

    def edit(site: str, tokens: torch.Tensor) -> Mapping[int, torch.Tensor]:
        changed: dict[int, torch.Tensor] = {}
        for items in together.values():
            s, rows = items[0].settings, [item.row for item in items]
            if not s.selects(site, tokens.shape[1]):
                continue
            # The best match is over all references' tokens.
            kept = s.features[items[0].step][site] if s.features is not None else None
            reference = tokens[list(items[0].references)].flatten(0, 1) if kept is None else kept
            pushed = s.apply(tokens[rows].flatten(0, 1)[None], reference)[0]
            changed |= zip(rows, pushed.unflatten(0, (len(rows), -1)), strict=True)
        return changed

    return edit


def _matched(
    own: torch.Tensor,
    against: torch.Tensor,
    allowed: torch.Tensor | None,
    match: Match,
    temperature: float,
    chunk: int,
    precision: Precision,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
    """Cosine (N,), what each token is pushed from (N, D), and the mean reference token; None where nothing may be matched."""
    if match == "released":
        best, which = best_match(against, own, chunk=chunk, precision=precision)  # the wrong axis, used as if it were right
        if allowed is not None:
            best = best.masked_fill(~allowed, -2.0)
        return best, against[which].to(own.dtype), against.mean(0)
    if allowed is not None:
        against = against[allowed]
    if len(against) == 0:
        return None, None, own.mean(0)
    if match == "soft":
        best, mean = soft_match(own, against, temperature=temperature, chunk=chunk, precision=precision)
        return best, mean.to(own.dtype), against.mean(0)
    best, which = best_match(own, against, chunk=chunk, precision=precision)
    return best, against[which].to(own.dtype), against.mean(0)


def _pushed(
    own: torch.Tensor,
    matched: torch.Tensor,
    best: torch.Tensor,
    centre: torch.Tensor,
    alpha: float,
    threshold: float,
    form: Form,
) -> torch.Tensor:
    pushed: torch.Tensor
    if form == "paper":
        pushed = (1 + alpha) * own - alpha * matched
        return pushed
    if form == "unit":
        away = own - matched
        length = away.norm(dim=-1, keepdim=True)
        size = own.norm(dim=-1, keepdim=True)
        # An exact match has no direction of its own; it stays, as it does under eq. 3.
        pushed = own + alpha * away * (size / length.clamp(min=1e-6)) * (length > 1e-6 * size)
        return pushed
    strength = ((best - threshold) / (1 - threshold)).clamp(0, 1).unsqueeze(-1).to(own.dtype)
    pushed = own - alpha * strength * (matched - centre.to(own.dtype))
    return pushed
