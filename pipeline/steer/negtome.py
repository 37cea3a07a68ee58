"""Negative token merging (arXiv 2412.01339): push a sample's tokens away from its best-matching reference tokens.

For every output token take the reference token with the largest cosine; where it exceeds τ, replace the token h by
(1 + α)·h − α·r (eq. 3). By default after attention *and* its residual, before the MLP, as in the paper's figure 3; the
released code acts before the residual and takes the maximum over the wrong axis. Both are kept, for comparison.

On copies eq. 3 acts weakly: the push α·(h − r) is zero for an exact match and largest just above τ. Two other pushes are
options. ``unit`` has the length α·‖h‖ whatever the distance; ``kernel`` grows with the similarity and goes along the reference
token's deviation from its picture's mean token, α·k·(r − r̄) with k = (cos − τ)/(1 − τ): full strength for an exact match.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from pipeline.model.sites import SELF, Placement, Site
from pipeline.steer.blocks import Edit, RowIndex, hooked
from pipeline.steer.masks import token_mask
from pipeline.steer.matching import CHUNK, FLOOR, Pairs, Precision, best_match, best_pairs, soft_match

if TYPE_CHECKING:
    import torch

    from pipeline.model.conditioning import Conditioning

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
        chunk: size of the similarity tiles, see :func:`pipeline.steer.matching.best_match`.
        precision: in which tiles are multiplied; the threshold and the push are always worked out from float32 cosines.

    Returns:
        (B, N, D), equal to ``tokens`` where nothing is pushed. A row's bytes do not depend on the others.

    Raises:
        ValueError: shapes that do not go together.
    """
    import torch

    if tokens.ndim != 3 or reference.ndim not in (2, 3) or tokens.shape[-1] != reference.shape[-1]:
        raise ValueError(f"tokens (B, N, D) and reference (M, D) or (B, M, D) needed, not {tokens.shape} and {reference.shape}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    rows = []
    for i, own in enumerate(tokens):
        against = reference[i] if reference.ndim == 3 else reference
        allowed = None if mask is None else mask[i] if mask.ndim == 2 else mask
        if allowed is not None and match != "released":
            allowed = allowed.nonzero().flatten()
        moved = displacement(
            own, against, allowed, alpha=alpha, threshold=threshold, match=match, form=form, keep_norm=keep_norm,
            temperature=temperature, chunk=chunk, precision=precision,
        )  # fmt: skip
        rows.append(own if moved is None else moved.add_(own))
    return torch.stack(rows) if rows else tokens


def displacement(
    own: torch.Tensor,
    against: torch.Tensor,
    allowed: torch.Tensor | None = None,
    known: torch.Tensor | None = None,
    *,
    alpha: float,
    threshold: float,
    match: Match,
    form: Form,
    keep_norm: bool,
    temperature: float,
    chunk: int,
    precision: Precision,
) -> torch.Tensor | None:
    """By how much :func:`push_apart` moves the tokens of one row.

    Args:
        own: (N, D).
        against: (M, D).
        allowed: which of them may be matched: their positions, int64 (m,); for the released match bool (M,), which needs all.
        known: of ``against``, worked out before; see :func:`pipeline.steer.matching.known_of`.
        alpha, threshold, match, form, keep_norm, temperature, chunk, precision: see :func:`push_apart`.

    Returns:
        (N, D), zero where nothing is pushed; None where nothing can be.

    Raises:
        ValueError: the released match of tokens with another number of reference tokens.
    """
    import torch

    if match == "released" and len(own) != len(against):
        raise ValueError(f"match='released' needs as many tokens as reference tokens, not {len(own)} and {len(against)}")
    if alpha == 0 or threshold >= 1:
        return None
    if allowed is not None and match != "released":
        against, allowed, known = against.index_select(0, allowed), None, None
    if len(against) == 0:
        return None
    centre = against.float().mean(0) if form == "kernel" else None
    by: list[torch.Tensor] = []
    for pair in _pairs(own, against, allowed, known, match, temperature, chunk, precision):
        moved = _moved(pair, centre, alpha, threshold, form)
        over = (pair.cosine > threshold).float()
        scale = over
        if keep_norm:
            scale = pair.lengths / torch.linalg.vector_norm(moved, dim=1, keepdim=True).clamp_(min=1e-6) * over
        by.append(moved.mul_(scale).addcmul_(pair.tokens, over, value=-1).to(own.dtype))
    return torch.cat(by) if len(by) > 1 else by[0]


class Features(NamedTuple):
    """A reference's tokens at one site that may be matched, (M, D), and what the matching keeps beside them."""

    tokens: torch.Tensor
    known: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class NegToMe:
    """Reference mode for one sample: its own nearest references, carried as extra rows of the same call.

    Attributes:
        latents: clean reference latents, each float32 (C, h, w). Empty where ``features`` stand for them, or mates do.
        noises: one fixed noise per reference: the reference row is then in distribution at every timestep, and the same
            every time (the released code feeds the clean latent; pass None for that).
        context: conditioning of the reference rows (the empty prompt).
        alpha, threshold: strength α and cosine threshold τ.
        until_step: steering acts in steps below this one.
        from_step: and not in steps below this one.
        match, form, keep_norm, temperature, chunk, precision: see :func:`push_apart`.
        placement: ``paper``: on the residual stream after attention; ``released``: on attention's output before it.
        attention: ``last``: after the last attention before the MLP; ``both``: after self-attention as well (UNet blocks).
        where: only blocks whose name starts so, e.g. ``up_blocks``; empty: all.
        min_tokens: only blocks with at least so many image tokens (the paper's SDXL setting: 1024).
        rows: of a guided sample's rows ``both`` are pushed, as published, or the ``conditional`` one alone: guidance then
            carries the push w times as far.
        masks: per reference bool (h, w): where its latent may be matched; None: everywhere. On the host: which tokens they
            leave is worked out there, once for every number of tokens.
        features: step → site → reference tokens worked out before; see :mod:`pipeline.steer.features`.
    """

    latents: tuple[torch.Tensor, ...]
    noises: tuple[torch.Tensor, ...] | None
    context: Conditioning
    alpha: float
    threshold: float
    until_step: int
    from_step: int = 0
    match: Match = "paper"
    placement: Placement = "paper"
    keep_norm: bool = True
    form: Form = "paper"
    temperature: float = 0.05
    attention: Literal["last", "both"] = "last"
    where: str = ""
    min_tokens: int = 0
    rows: Literal["both", "conditional"] = "both"
    masks: tuple[torch.Tensor, ...] | None = None
    chunk: int = CHUNK
    precision: Precision = "float32"
    features: Mapping[int, Mapping[str, Features]] | None = None
    _within: dict[tuple[int, torch.device], torch.Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # worked out from the masks

    def to(self, device: torch.device) -> NegToMe:
        """The same with reference latents and noises on a device; masks stay on the host."""
        if all(z.device == device for z in (*self.latents, *(self.noises or ()))):
            return self
        noises = None if self.noises is None else tuple(noise.to(device) for noise in self.noises)
        return replace(self, latents=tuple(z.to(device) for z in self.latents), noises=noises)

    def acts_at(self, step: int) -> bool:
        """Whether anything is pushed at ``step``: not outside the window, at α = 0, or at τ ≥ 1."""
        return self.from_step <= step < self.until_step and self.alpha != 0 and self.threshold < 1

    def references_at(self, step: int) -> int:
        """How many reference rows the sample needs at ``step``: none where nothing is pushed, or features are at hand."""
        return len(self.latents) if self.acts_at(step) else 0

    def pushed(self, first: int, end: int) -> range:
        """Which of a sample's own rows ``first`` … ``end`` − 1 (the conditional one is the last) are pushed."""
        return range(end - 1 if self.rows == "conditional" else first, end)

    def wants(self, site: Site) -> bool:
        """Whether this site takes part, if it has image tokens enough."""
        return site.placement == self.placement and self.selects(site.name, self.min_tokens)

    def selects(self, site: str, tokens: int) -> bool:
        """Whether the site of this name, with so many image tokens, takes part."""
        wanted = self.attention == "both" or not site.endswith(SELF)
        return wanted and site.startswith(self.where) and tokens >= self.min_tokens

    def moves(self, own: torch.Tensor, reference: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor | None:
        """By how much a sample's tokens (n·N, D) of n rows are pushed from reference tokens (M, D), M = k·N, or from those of
        them that its features have kept; None: by nothing."""
        return displacement(
            own, reference, self._allowed(reference), known, alpha=self.alpha, threshold=self.threshold, match=self.match,
            form=self.form, keep_norm=self.keep_norm, temperature=self.temperature, chunk=self.chunk, precision=self.precision,
        )  # fmt: skip

    def _allowed(self, reference: torch.Tensor) -> torch.Tensor | None:
        """Which of the reference tokens (M, D) may be matched, as :func:`displacement` takes it, on their device."""
        if self.masks is None:
            return None
        key = len(reference), reference.device
        if key not in self._within:
            import torch

            each = len(reference) // len(self.masks)
            allowed = torch.cat([token_mask(m, each) for m in self.masks])
            within = allowed if self.match == "released" else allowed.nonzero().flatten()
            self._within[key] = within.to(reference.device)
        return self._within[key]


@dataclass(frozen=True, kw_only=True)
class RowPush:
    """Which row of a packed batch is pushed away from what.

    Attributes:
        row: the row pushed.
        references: rows whose tokens, concatenated, are the reference: of references, or of mates in a declared group
            (:mod:`pipeline.steer.diversity`); none where the settings hold features.
        settings: how.
        step: the denoising step the row stands at; selects among the settings' features.
        owner: first row of the sample it belongs to; rows of one sample are matched together. −1: alone.
    """

    row: int
    references: tuple[int, ...]
    settings: NegToMe
    step: int = -1
    owner: int = -1


@contextmanager
def pushing(sites: Sequence[Site], pushes: Sequence[RowPush]) -> Iterator[None]:
    """Push rows apart at the model's sites while the context lasts; afterwards nothing remains.

    Rows without a push are not touched; without pushes no hook is set at all.
    """
    edits: list[tuple[Site, Edit]] = []
    for placement in sorted({push.settings.placement for push in pushes}):
        of_this = [push for push in pushes if push.settings.placement == placement]
        edit = _edit(of_this)
        edits += [(site, edit) for site in sites if any(push.settings.wants(site) for push in of_this)]
    with hooked(edits):
        yield


def _edit(pushes: Sequence[RowPush]) -> Edit:
    # A sample's own rows are pushed from the same reference: matched together, at half the calls. They are never apart, so
    # that its bytes still depend on nothing else. The released axis looks for tokens of one row.
    together: dict[object, list[RowPush]] = {}
    for item in pushes:
        alone = item.owner < 0 or item.settings.match == "released"
        together.setdefault(("row", item.row) if alone else ("sample", item.owner), []).append(item)
    samples = [
        (items[0], RowIndex([item.row for item in items]), RowIndex(items[0].references) if items[0].references else None)
        for items in together.values()
    ]

    def edit(site: str, tokens: torch.Tensor) -> None:
        moves: list[tuple[RowIndex, torch.Tensor]] = []
        for first, rows, references in samples:
            s = first.settings
            if not s.selects(site, tokens.shape[1]):
                continue
            if s.features is not None:
                reference, known = s.features[first.step][site]
            else:  # the best match is over all references' tokens
                assert references is not None
                reference, known = references.of(tokens).flatten(0, 1), None
            own = rows.of(tokens)
            by = s.moves(own.flatten(0, 1), reference, known)
            if by is not None:
                moves.append((rows, by.view(own.shape)))
        for rows, by in moves:  # only now: mates are pushed from each other's tokens as they were
            rows.add(tokens, by)

    return edit


def _pairs(
    own: torch.Tensor,
    against: torch.Tensor,
    allowed: torch.Tensor | None,
    known: torch.Tensor | None,
    match: Match,
    temperature: float,
    chunk: int,
    precision: Precision,
) -> Iterator[Pairs]:
    """What each token (N, D) is pushed from, out of ``against`` (M, D); ``allowed`` (M,): only for the released axis."""
    import torch

    if match == "paper":
        yield from best_pairs(own, against, known, chunk=chunk, precision=precision)
        return
    if match == "released":
        cosine, which = best_match(against, own, chunk=chunk, precision=precision)  # the wrong axis, used as if it were right
        if allowed is not None:
            cosine = cosine.masked_fill(~allowed, -2.0)
        matched = against[which].float()
    else:
        cosine, matched = soft_match(own, against, temperature=temperature, chunk=chunk, precision=precision)
    tokens = own.float()
    lengths = torch.linalg.vector_norm(tokens, dim=1, keepdim=True).clamp_(min=FLOOR)
    yield Pairs(slice(0, len(own)), tokens, matched, lengths, cosine.unsqueeze(1))


def _moved(pair: Pairs, centre: torch.Tensor | None, alpha: float, threshold: float, form: Form) -> torch.Tensor:
    """All tokens of a piece pushed, float32 (n, D), whatever their cosine; ``centre`` (D,): the mean reference token."""
    if form == "paper":
        return (pair.tokens * (1 + alpha)).sub_(pair.matched, alpha=alpha)
    if form == "unit":
        away = pair.tokens - pair.matched
        length = away.norm(dim=-1, keepdim=True)
        # An exact match has no direction of its own; it stays, as it does under eq. 3.
        other = length > 1e-6 * pair.lengths
        return away.mul_(pair.lengths / length.clamp(min=1e-6) * other).mul_(alpha).add_(pair.tokens)
    assert centre is not None
    strength = ((pair.cosine - threshold) / (1 - threshold)).clamp_(0, 1)
    return (pair.matched - centre).mul_(strength).mul_(-alpha).add_(pair.tokens)
