"""Where the image tokens of a denoiser are read and changed: places that each class of models declares.

After attention and its residual every block normalises the stream for its MLP and adds the MLP's output to the same stream. So
the input of that normalisation is the stream, and what is written to it there is what both go on with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from index.errors import ModelError

if TYPE_CHECKING:
    import torch

Placement = Literal["paper", "released"]
SELF = "/self"  # ends the name of a site after self-attention
KNOWN = "Steer with nudging instead, which looks at latents alone"


@dataclass
class Layout:
    """Which tokens of a stream that holds text and image are the image's; a model sets it before it runs its network."""

    image: slice = field(default_factory=lambda: slice(None))


@dataclass(frozen=True, kw_only=True)
class Site:
    """One place in a denoiser.

    Attributes:
        name: the block's name in the network; behind it ``/self`` for the place after a UNet block's self-attention.
        module: what is hooked.
        shown: the module's ``input`` (its first argument) or its ``output``.
        placement: ``paper``: the residual stream after attention; ``released``: what attention is about to add to it.
        part: which one, of several outputs.
        layout: where the image's tokens are in a stream that holds the text's as well; None: it holds no others.
    """

    name: str
    module: Any
    shown: Literal["input", "output"]
    placement: Placement
    part: int = 0
    layout: Layout | None = None

    @property
    def block(self) -> str:
        """The name of its block."""
        return self.name.removesuffix(SELF)

    def tokens(self, value: Any) -> torch.Tensor:
        """What a hook is handed → the image tokens (R, N, D), which may be changed in place."""
        stream = value[self.part] if isinstance(value, tuple) else value
        return stream if self.layout is None else stream[:, self.layout.image]  # type: ignore[no-any-return]


def blocks_of(network: Any, *kinds: type) -> list[tuple[str, Any]]:
    """Name and module of every block of these classes, in the network's order.

    Raises:
        ModelError: there is none.
    """
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, kinds)]
    if not found:
        what = f"has no transformer block of class {' or '.join(kind.__name__ for kind in kinds)}"
        raise ModelError(what, where=type(network).__name__, fix=KNOWN)
    return found


def unet_sites(network: Any) -> list[Site]:
    """SD 1.x, 2.x, SDXL. Cross-attention stands between norm2 and norm3, self-attention between norm1 and norm2.

    Raises:
        ModelError: its blocks are of another form.
    """
    from diffusers.models.attention import BasicTransformerBlock

    sites = []
    for name, block in blocks_of(network, BasicTransformerBlock):
        if block.norm_type != "layer_norm" or block.attn2 is None:
            normalised = block.attn2 is not None
            what = f"its normalisation is {block.norm_type!r}" if normalised else "it has no cross-attention"
            raise ModelError(what, where=name, fix=KNOWN)
        sites += [
            Site(name=name, module=block.norm3, shown="input", placement="paper"),
            Site(name=name + SELF, module=block.norm2, shown="input", placement="paper"),
            Site(name=name, module=block.attn2, shown="output", placement="released"),
            Site(name=name + SELF, module=block.attn1, shown="output", placement="released"),
        ]
    return sites


def stream_sites(
    network: Any, kind: type, norm: str = "norm2", attention: str = "attn", *, part: int = 0, layout: Layout | None = None
) -> list[Site]:
    """Blocks that normalise the stream by ``norm`` between attention and MLP.

    Args:
        network: where the blocks are.
        kind: their class.
        norm, attention: names of the two modules in a block.
        part: of attention's outputs, the image's.
        layout: for blocks whose one stream holds text and image.
    """
    return [
        site
        for name, block in blocks_of(network, kind)
        for site in (
            Site(name=name, module=getattr(block, norm), shown="input", placement="paper", layout=layout),
            Site(name=name, module=getattr(block, attention), shown="output", placement="released", part=part, layout=layout),
        )
    ]


def parallel_sites(network: Any, kind: type, *, part: int = 0, whole: bool = False, layout: Layout) -> list[Site]:
    """Blocks of one stream in which attention and MLP run side by side, so that there is no stream between them.

    The paper's placement is after both and their residual; the released one is attention's own output.

    Args:
        network: where the blocks are.
        kind: their class.
        part: of the block's outputs, the image's.
        whole: the block puts out one stream of text and image, not each alone.
        layout: of the stream.
    """
    own = layout if whole else None
    return [
        site
        for name, block in blocks_of(network, kind)
        for site in (
            Site(name=name, module=block, shown="output", placement="paper", part=part, layout=own),
            Site(name=name, module=block.attn, shown="output", placement="released", layout=layout),
        )
    ]


def flux_sites(network: Any, layout: Layout) -> list[Site]:
    """Flux's blocks: of two streams first, then of one, which put out (text, image)."""
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock

    return stream_sites(network, FluxTransformerBlock) + parallel_sites(
        network, FluxSingleTransformerBlock, part=1, layout=layout
    )


def cross_attention_sites(network: Any, kind: type) -> list[Site]:
    """PixArt's and Sana's blocks: self-attention, cross-attention on the stream as it is, norm2, MLP.

    Between the two attentions stands no norm: what cross-attention is shown *is* the stream after self-attention.

    Raises:
        ModelError: its blocks are of another form.
    """
    sites = []
    for name, block in blocks_of(network, kind):
        if block.attn2 is None or getattr(block, "norm_type", "ada_norm_single") != "ada_norm_single":
            raise ModelError("its blocks are not those of PixArt or Sana", where=name, fix=KNOWN)
        sites += [
            Site(name=name, module=block.norm2, shown="input", placement="paper"),
            Site(name=name + SELF, module=block.attn2, shown="input", placement="paper"),
            Site(name=name, module=block.attn2, shown="output", placement="released"),
            Site(name=name + SELF, module=block.attn1, shown="output", placement="released"),
        ]
    return sites
