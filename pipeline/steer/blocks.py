"""Where the image tokens of a transformer block are read and changed, for every class of block in diffusers' image models.

A *site* is one place in one block. Hooks live only inside the ``with``; afterwards the modules are as they were. Nothing is
copied, neither of the blocks' code nor of their tokens: after attention and its residual every block normalises the stream for
its MLP and adds the MLP's output to the same stream. So the input of that normalisation is the stream, and what is written to
it there, rows of steered samples alone, is what both go on with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from index.errors import ModelError

if TYPE_CHECKING:
    import torch

Placement = Literal["paper", "released"]
SELF = "/self"  # ends the name of a site after self-attention

Edit = Callable[[str, "torch.Tensor"], None]
"""Is shown a site's name and image tokens (R, N, D), and may change them in place."""


class RowIndex:
    """Some rows of a call, at least one. As an index it is made once: a slice, which copies nothing, where they stand side by
    side, else positions on the device of the tokens."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = list(rows)
        self._side_by_side = self.rows == list(range(rows[0], rows[0] + len(rows)))
        self._positions: torch.Tensor | None = None

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """These rows (n, …) of tokens (R, …): a view where they stand side by side."""
        return tokens[self._slice] if self._side_by_side else tokens.index_select(0, self._at(tokens))

    def add(self, tokens: torch.Tensor, by: torch.Tensor) -> None:
        """Add (n, …) to these rows, in place."""
        if self._side_by_side:
            tokens[self._slice].add_(by)
        else:
            tokens.index_copy_(0, self._at(tokens), self.of(tokens).add_(by))

    @property
    def _slice(self) -> slice:
        return slice(self.rows[0], self.rows[0] + len(self.rows))

    def _at(self, tokens: torch.Tensor) -> torch.Tensor:
        if self._positions is None or self._positions.device != tokens.device:
            import torch

            self._positions = torch.tensor(self.rows, device=tokens.device)
        return self._positions


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
        edit: is shown every site's tokens as the network runs.
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
    """SD 1.x, 2.x, SDXL. Cross-attention stands between norm2 and norm3, self-attention between norm1 and norm2."""
    if block.norm_type != "layer_norm" or block.attn2 is None:
        raise ModelError(
            f"its normalisation is {block.norm_type!r}" if block.attn2 is not None else "it has no cross-attention",
            where=name, fix="Only the blocks of Stable Diffusion's UNets are known; steer with nudging instead",
        )  # fmt: skip
    if placement == "released":
        handles = [block.attn2.register_forward_hook(_output(name, edit))]
        return handles + ([block.attn1.register_forward_hook(_output(name + SELF, edit))] if self_attention else [])
    handles = [block.norm3.register_forward_pre_hook(_input(name, edit))]
    return handles + ([block.norm2.register_forward_pre_hook(_input(name + SELF, edit))] if self_attention else [])


def _input(site: str, edit: Edit) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
    return lambda _module, args: edit(site, args[0])


def _output(site: str, edit: Edit) -> Callable[[Any, Any, Any], None]:
    """Of an attention: the image tokens are its output, or the first of them."""
    return lambda _module, _args, output: edit(site, output[0] if isinstance(output, tuple) else output)


def _joint_sites(name: str, block: Any, edit: Edit, placement: Placement, _self_attention: bool) -> list[Any]:
    """SD3's and Flux's two-stream blocks, the image stream only."""
    if placement == "released":
        return [block.attn.register_forward_hook(_output(name, edit))]
    return [block.norm2.register_forward_pre_hook(_input(name, edit))]


def _single_sites(name: str, block: Any, edit: Edit, placement: Placement, _self_attention: bool) -> list[Any]:
    """Flux's one-stream blocks. Attention and MLP run side by side, so that there is no stream between them: the paper's
    placement is after both and their residual; the released one is attention's own output, image tokens only."""
    if placement == "paper":
        return [block.register_forward_hook(lambda _module, _args, output: edit(name, output[1]))]
    words: dict[str, int] = {}

    def count(_module: Any, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
        text = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[1]
        words["count"] = text.shape[1]

    def on_attention(_module: Any, _args: Any, output: torch.Tensor) -> None:
        edit(name, output[:, words["count"] :])

    return [
        block.register_forward_pre_hook(count, with_kwargs=True),
        block.attn.register_forward_hook(on_attention),
    ]
