"""A reference's token features, computed once, because they do not depend on the samples pushed away from it.

A reference row is (reference latent, its one fixed noise, the empty prompt) at some step: with rows of a fixed number, its
tokens are the same bytes whatever stands beside it. So all steps of a window can be run ahead, as rows of common calls, and
every later sample, attempt and shard is pushed away from the stored tokens: no reference row, a matrix product instead.
Running them ahead costs what *one* sample that carries the reference would have paid. What the matching wants to know of them
(directions in bfloat16; inverse lengths where the fused kernel runs) is kept beside them, so that it is not worked out again at
every step.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pipeline.model.sites import Placement, Site
from pipeline.steer.blocks import hooked
from pipeline.steer.masks import tokens_within
from pipeline.steer.matching import Precision, keeps_known, known_of
from pipeline.steer.negtome import Features, NegToMe

if TYPE_CHECKING:
    import torch

    from pipeline.model.conditioning import Conditioning
    from pipeline.steer.feature_memory import SiteShape


@dataclass(frozen=True, kw_only=True)
class FeatureKey:
    """What a reference's tokens at one site depend on.

    Attributes:
        asset: digest of the reference latent, its noise and the context; see :func:`asset_digest`.
        model: digest of the model.
        rows: rows of the call; another number of rows may differ in the last bits.
        step: denoising step, and of how many.
        site: block, and which site in it.
        placement: where at that site.
        known: not the tokens, but what the matching keeps beside them; see :func:`pipeline.steer.matching.known_of`.
    """

    asset: str
    model: str
    rows: int
    step: tuple[int, int]
    site: str
    placement: Placement = "paper"
    known: bool = False


class FeatureCache:
    """Least recently used features under a byte budget.

    Trajectories hold what they use: the budget bounds what is kept beyond them, and eviction never changes a picture.

    Attributes:
        budget: bytes.
        most: bytes that one attempt's features may take; what would take more carries its references as rows. None: no limit.
        shapes: (h, w) of the latents → the tokens at every site, where they were worked out.
        bytes: bytes held now.
        hits, misses, evictions: counted per key.
        rows_run: denoiser rows spent on filling it; two make one evaluation.
    """

    def __init__(self, budget: int, most: int | None = None) -> None:
        self.budget, self.most = budget, most
        self.shapes: dict[tuple[int, int], tuple[SiteShape, ...]] = {}
        self.bytes = self.hits = self.misses = self.evictions = self.rows_run = 0
        self._kept: OrderedDict[FeatureKey, torch.Tensor] = OrderedDict()
        self._sites: dict[tuple[str, object], tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: FeatureKey) -> torch.Tensor | None:
        """The tokens (N, D) of that key, or None; counts a hit or a miss."""
        found = self._kept.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return found

    def put(self, key: FeatureKey, tokens: torch.Tensor) -> None:
        """Keep tokens, dropping the least recently used until the budget holds; what is larger than the budget is not kept."""
        if (old := self._kept.pop(key, None)) is not None:
            self.bytes -= old.nbytes
        if tokens.nbytes > self.budget:
            return
        self._kept[key] = tokens
        self.bytes += tokens.nbytes
        while self.bytes > self.budget:
            _, dropped = self._kept.popitem(last=False)
            self.bytes -= dropped.nbytes
            self.evictions += 1

    def sites(self, model: str, settings: NegToMe) -> tuple[str, ...] | None:
        """The sites such settings use in that model, once known."""
        return self._sites.get((model, _placing(settings)))

    def learn_sites(self, model: str, settings: NegToMe, sites: Iterable[str]) -> None:
        """Remember them."""
        self._sites[model, _placing(settings)] = tuple(sites)


def asset_digest(latent: torch.Tensor, noise: torch.Tensor | None, context: Conditioning) -> str:
    """What a reference row is made of, as a digest: its latent (C, h, w), its noise or None, its context."""
    return hashlib.sha256((_digest(latent, noise) + _context_digest(context)).encode()).hexdigest()


@lru_cache(maxsize=8)
def _context_digest(context: Conditioning) -> str:
    """Read from the device once: it is the same for all references."""
    return _digest(*context.parts)


def _digest(*parts: torch.Tensor | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"-" if part is None else f"{tuple(part.shape)} {part.dtype} ".encode())
        if part is not None:
            digest.update(part.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def capturing(sites: Sequence[Site], settings: NegToMe, rows: int | None = None) -> Iterator[dict[str, torch.Tensor]]:
    """Record the image tokens at every site the settings would use: site → (R, N, D), filled when the network runs.

    Args:
        sites: the model's.
        settings: select among them.
        rows: only the first so many.
    """
    captured: dict[str, Any] = {}

    def record(site: str, tokens: torch.Tensor) -> None:
        if settings.selects(site, tokens.shape[1]):
            captured[site] = tokens[:rows].clone()

    with hooked([(site, record) for site in sites if settings.wants(site)]):
        yield captured


def with_features(
    settings: NegToMe,
    steps: Sequence[int],
    *,
    cache: FeatureCache,
    model: str,
    of_steps: int,
    rows: int,
    places: Sequence[Site],
    noised: Callable[[NegToMe, int], Sequence[torch.Tensor]],
    denoise: Callable[[list[torch.Tensor], list[int], list[Conditioning]], object],
) -> NegToMe:
    """The same settings with their references' features in place of the references: the sample then owns no reference rows.

    Args:
        settings: reference mode with latents.
        steps: denoising steps at which it will act.
        cache: where features are looked up and kept.
        model: digest of the model.
        of_steps: number of denoising steps of the sampler.
        rows: rows of a denoiser call.
        places: the model's sites.
        noised: the settings' reference latents at a step's noise level.
        denoise: runs at most ``rows`` latents (C, h, w) at their steps with their contexts in one call padded to ``rows``.

    Returns:
        Settings without latents, with ``features``.
    """
    noises = settings.noises or (None,) * len(settings.latents)
    assets = [asset_digest(z, n, settings.context) for z, n in zip(settings.latents, noises, strict=True)]

    def key(step: int, which: int, site: str, *, known: bool = False) -> FeatureKey:
        return FeatureKey(
            asset=assets[which],
            model=model,
            rows=rows,
            step=(step, of_steps),
            site=site,
            placement=settings.placement,
            known=known,
        )

    found: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    sites = cache.sites(model, settings)
    missing: list[tuple[int, int]] = []
    for step in steps:
        for which in range(len(assets)):
            kept = {site: cache.get(key(step, which, site)) for site in sites or ("",)}
            if sites is None or any(tokens is None for tokens in kept.values()):
                missing.append((step, which))
            else:
                found[step, which] = {site: tokens for site, tokens in kept.items() if tokens is not None}
    for at in range(0, len(missing), rows):
        part = missing[at : at + rows]
        latents = [noised(settings, step)[which] for step, which in part]
        with capturing(places, settings, len(part)) as captured:
            denoise(latents, [step for step, _ in part], [settings.context] * len(part))
        cache.rows_run += len(part)
        cache.learn_sites(model, settings, captured)
        for site in list(captured):
            tokens = captured.pop(site)  # not all of them twice in memory
            for row, (step, which) in enumerate(part):
                own = found.setdefault((step, which), {})[site] = tokens[row].clone()
                cache.put(key(step, which, site), own)

    masks = settings.masks if settings.match != "released" else None  # which needs all tokens, and looks at the mask itself

    def of(step: int, site: str) -> Features:
        each = [found[step, which][site] for which in range(len(assets))]
        tokens = _joined(each, masks)
        if settings.match != "paper":
            return Features(tokens, None)
        known = [_known(cache, key(step, i, site, known=True), own, settings.precision) for i, own in enumerate(each)]
        return Features(tokens, None if known[0] is None else _joined([k for k in known if k is not None], masks))

    features = {step: {site: of(step, site) for site in found[step, 0]} for step in steps}
    return replace(settings, latents=(), noises=None, masks=None if masks else settings.masks, features=features)


def _known(cache: FeatureCache, key: FeatureKey, tokens: torch.Tensor, precision: Precision) -> torch.Tensor | None:
    if not keeps_known(tokens.device, precision):
        return None
    if (kept := cache.get(key)) is None and (kept := known_of(tokens, precision)) is not None:
        cache.put(key, kept)
    return kept


def _joined(each: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None) -> torch.Tensor:
    """The tokens (N, D) of all references that may be matched, as one (M, D); not copied where there is nothing to join."""
    import torch

    if masks is not None:
        within = [tokens_within(mask, len(tokens)).to(tokens.device) for tokens, mask in zip(each, masks, strict=True)]
        each = [tokens.index_select(0, own) for tokens, own in zip(each, within, strict=True)]
    return each[0] if len(each) == 1 else torch.cat(list(each))


def _placing(settings: NegToMe) -> object:
    """What decides which sites settings use; how many tokens a site has depends on the latents' size."""
    sizes = {tuple(z.shape[-2:]) for z in settings.latents}
    return settings.placement, settings.attention, settings.where, settings.min_tokens, frozenset(sizes)
