"""How much memory a reference's token features take, worked out before any is computed: from the shapes at the sites.

Shapes are found by running the denoiser's structure on the ``meta`` device, where nothing has content: a copy of its modules
whose parameters are shapes alone. It takes a second or so for the largest, no weights and no accelerator.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.model.conditioning import stack
from pipeline.steer.blocks import hooked
from pipeline.steer.fused import available

if TYPE_CHECKING:
    import torch

    from pipeline.model.conditioning import Conditioning
    from pipeline.model.interface import DiffusionModel
    from pipeline.model.sites import Site
    from pipeline.steer.negtome import NegToMe


class SiteShape(NamedTuple):
    """The image tokens of one row at a site: how many, of what width, in how many bytes."""

    site: Site
    tokens: int
    width: int
    nbytes: int


def site_shapes(model: DiffusionModel, context: Conditioning, positions: tuple[int, int]) -> tuple[SiteShape, ...]:
    """The shapes at all sites of a model.

    Args:
        model: whose denoiser.
        context: any conditioning of it; only its shapes count.
        positions: (h, w) of the latents.
    """
    import torch

    meta = torch.device("meta")
    shadow: Any = copy.copy(model)
    shadow.network, shadow._device, shadow._sites = _without_content(model.network), meta, None
    found: dict[tuple[str, str], SiteShape] = {}

    def note(site: Site) -> Any:
        def measure(_: str, tokens: torch.Tensor) -> None:
            n, d = int(tokens.shape[1]), int(tokens.shape[2])
            found[site.name, site.placement] = SiteShape(site, n, d, n * d * tokens.element_size())

        return measure

    latents = torch.empty(1, model.latent_shape[0], *positions, device=meta)
    with hooked([(site, note(site)) for site in shadow.sites()]):
        # The class's own: what a bench that counts calls puts on the model in its place is bound to the model.
        type(shadow).denoise(shadow, latents, torch.empty(1, device=meta), stack([context]).map(lambda part: part.to(meta)))
    return tuple(found.values())


def bytes_a_step(shapes: Sequence[SiteShape], settings: NegToMe, device: torch.device) -> int:
    """Bytes of one reference's features at one step, as these settings use them, and of what the matching keeps beside them."""
    used = [s for s in shapes if settings.wants(s.site) and settings.selects(s.site.name, s.tokens)]
    beside = settings.match == "paper" and settings.precision == "bfloat16" and not available(device)
    return sum(s.nbytes + (2 * s.tokens * s.width if beside else 0) for s in used)


def _without_content(network: Any) -> Any:
    """A copy of a module of which every parameter and buffer is a shape alone."""
    import torch

    known: dict[int, Any] = {}
    for p in network.parameters():
        known[id(p)] = torch.nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
    for b in network.buffers():
        known[id(b)] = torch.empty_like(b, device="meta")
    return copy.deepcopy(network, known)
