"""Where a transformer block's image tokens can be read and changed, for every class of block that diffusers' image models use.

A *site* is one place in one block. Hooks live only inside the ``with``; afterwards the modules are as they were. Nothing is
copied from the blocks' code: a change δ of the residual stream before the MLP is put in where the stream passes through a
module, and, where the block holds another reference to the stream (MMDiT), added to the block's output as well.

Whatever is not steered costs nothing: tokens are worked out for the rows that are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from index.errors import ModelError

if TYPE_CHECKING:
    import torch

Placement = Literal["paper", "released"]
SELF = "/self"  # ends the name of a site after self-attention

Rows = slice | list[int]


@dataclass(frozen=True)
class Stream:
    """The image tokens of a call's R rows at one site.

    Attributes:
        parts: what they are the sum of, each (R, N, D).
    """

    parts: tuple[torch.Tensor, ...]

    @property
    def count(self) -> int:
        """Image tokens N of a row."""
        return self.parts[0].shape[1]

    def __getitem__(self, rows: Rows) -> torch.Tensor:
        """The tokens (n, N, D) of these rows; to be read, not written."""
        first, *others = (part[rows] for part in self.parts)
        for other in others:
            first = first + other
        return first


Edit = Callable[[str, Stream], Sequence[tuple[Rows, "torch.Tensor"]]]
"""Site name and image tokens → which rows change, and by how much (n, N, D)."""


def these(rows: Sequence[int]) -> Rows:
    """Rows as an index: a slice, which copies nothing, where they stand side by side."""
    side_by_side = list(rows) == list(range(rows[0], rows[0] + len(rows)))
    return slice(rows[0], rows[0] + len(rows)) if side_by_side else list(rows)


def steerable_blocks(network: Any) -> list[tuple[str, Any]]:
    """Name and module of every block of a known class in a denoiser, in the order of the network.

    Raises:
        ModelError: there is none.
    """
    kinds = _kinds()
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, tuple(kinds))]
    if not found:
        raise ModelError(
            "has no transformer block of a known class", where=type(network).__name__,
            fix=f"Known are {', '.join(kind.__name__ for kind in kinds)}",
        )  # fmt: skip
    return found


def attach(name: str, block: Any, edit: Edit, placement: Placement, *, self_attention: bool = False) -> list[Any]:
    """Hook one block's sites; returns the handles to remove.

    Args:
        name: the block's name; a site is called so, with ``/self`` behind it after a UNet block's self-attention.
        block: a module of a class of :func:`steerable_blocks`.
        edit: is shown every site's tokens as the network runs, and says how which rows change.
        placement: ``paper``: the residual stream after attention; ``released``: what attention is about to add to it.
        self_attention: the site after a UNet block's self-attention as well; MMDiT blocks have one attention only.

    Raises:
        ModelError: a block of an unknown class, or of a form of a known class that images do not use.
    """
    for kind, sites in _kinds().items():
        if isinstance(block, kind):
            return sites(name, block, edit, placement, self_attention)
    raise ModelError(f"blocks of class {type(block).__name__} cannot be steered", where=name, fix="Steer with nudging instead")


@cache
def _kinds() -> dict[type[Any], Callable[[str, Any, Edit, Placement, bool], list[Any]]]:
    from diffusers.models.attention import BasicTransformerBlock, JointTransformerBlock
    from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock

    return {
        BasicTransformerBlock: _unet_sites,
        JointTransformerBlock: _joint_sites,
        FluxTransformerBlock: _joint_sites,
        FluxSingleTransformerBlock: _single_sites,
    }


def _unet_sites(name: str, block: Any, edit: Edit, placement: Placement, self_attention: bool) -> list[Any]:
    """SD 1.x, 2.x, SDXL. The input of norm1/norm2 is the residual stream, the output of attn1/attn2 what is added to it."""
    if block.norm_type != "layer_norm" or block.attn2 is None:
        raise ModelError(
            f"its normalisation is {block.norm_type!r}" if block.attn2 is not None else "it has no cross-attention",
            where=name, fix="Only the blocks of Stable Diffusion's UNets are known; steer with nudging instead",
        )  # fmt: skip
    handles = _beside_residual(name, block.norm2, block.attn2, edit, placement)
    return handles + (_beside_residual(name + SELF, block.norm1, block.attn1, edit, placement) if self_attention else [])


def _beside_residual(site: str, norm: Any, attention: Any, edit: Edit, placement: Placement) -> list[Any]:
    residual: dict[str, torch.Tensor] = {}

    def remember(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
        residual["before"] = args[0]

    def change(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        before = residual.pop("before")
        return _moved(output, edit(site, Stream((output,) if placement == "released" else (before, output))))

    return [norm.register_forward_pre_hook(remember), attention.register_forward_hook(change)]


def _joint_sites(name: str, block: Any, edit: Edit, placement: Placement, _self_attention: bool) -> list[Any]:
    """SD3's and Flux's two-stream blocks, the image stream only: norm2 sees it after attention and its gated residual."""
    if placement == "released":

        def on_attention(_module: Any, _args: Any, output: Any) -> Any:
            image, *rest = output if isinstance(output, tuple) else (output,)
            changed = _moved(image, edit(name, Stream((image,))))
            return (changed, *rest) if isinstance(output, tuple) else changed

        return [block.attn.register_forward_hook(on_attention)]
    changes: list[tuple[Rows, torch.Tensor]] = []

    def before_mlp(_module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        changes[:] = edit(name, Stream(args[:1]))
        return (_moved(args[0], changes), *args[1:]) if changes else None

    def after_block(_module: Any, _args: Any, output: tuple[Any, torch.Tensor]) -> tuple[Any, torch.Tensor] | None:
        if not changes:
            return None
        text, image = output
        return text, _moved(image, changes)

    return [block.norm2.register_forward_pre_hook(before_mlp), block.register_forward_hook(after_block)]


def _single_sites(name: str, block: Any, edit: Edit, placement: Placement, _self_attention: bool) -> list[Any]:
    """Flux's one-stream blocks. Attention and MLP run side by side, so that there is no stream between them: the paper's
    placement is after both and their residual; the released one is attention's own output, image tokens only."""
    if placement == "paper":

        def after_block(_module: Any, _args: Any, output: tuple[Any, torch.Tensor]) -> tuple[Any, torch.Tensor]:
            text, image = output
            return text, _moved(image, edit(name, Stream((image,))))

        return [block.register_forward_hook(after_block)]
    words: dict[str, int] = {}

    def count(_module: Any, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
        text = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[1]
        words["count"] = text.shape[1]

    def on_attention(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        import torch

        text, image = output[:, : words["count"]], output[:, words["count"] :]
        changes = edit(name, Stream((image,)))
        return torch.cat([text, _moved(image, changes)], 1) if changes else output

    return [
        block.register_forward_pre_hook(count, with_kwargs=True),
        block.attn.register_forward_hook(on_attention),
    ]


def _moved(tokens: torch.Tensor, changes: Sequence[tuple[Rows, torch.Tensor]]) -> torch.Tensor:
    if not changes:
        return tokens
    moved = tokens.clone()  # the network may still hold the other one
    for rows, change in changes:
        moved[rows].add_(change)
    return moved
