"""Low-rank adapters for some rows of a denoiser call: y = Wx + s·B(Ax) on those rows, Wx on all others.

The low-rank product is worked out for every row of the call and then chosen row by row. Its shape is therefore as fixed as the
call's: a row that wants the adapter gets the same bytes whatever stands beside it, and one that does not gets the bytes it had
without. (Gathering rows would be cheaper by a few per cent and would break the first promise.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from index.errors import ModelError

if TYPE_CHECKING:
    import torch

Product = Callable[["torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class LowRank:
    """The low-rank weights of one adapter.

    Attributes:
        name: for messages.
        pairs: module name → (A, B): (r, in) and (out, r) for linear layers, (r, in, k, k) and (out, r, 1, 1) for convolutions.
    """

    name: str
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    _products: WeakKeyDictionary[Any, dict[str, tuple[Any, Product]]] = field(
        default_factory=WeakKeyDictionary, repr=False, compare=False
    )

    def products(self, network: Any) -> dict[str, tuple[Any, Product]]:
        """Module name → the network's module and x ↦ B(Ax) in its number format; worked out once a network.

        Raises:
            ModelError: the network has no such module, or one of another shape.
        """
        if network not in self._products:
            modules = dict(network.named_modules())
            self._products[network] = {name: (modules.get(name), self._product(modules, name)) for name in self.pairs}
        return self._products[network]

    def _product(self, modules: Mapping[str, Any], name: str) -> Product:
        from torch import nn
        from torch.nn import functional

        module, (down, up) = modules.get(name), self.pairs[name]
        fix = "Use the adapter with the model it was trained for"
        if module is None or not isinstance(module, (nn.Linear, nn.Conv2d)):
            raise ModelError(f"adapts {name}, which this model does not have", where=f"adapter {self.name}", fix=fix)
        weight = module.weight
        shape = (up.shape[0], *down.shape[1:])
        if shape != tuple(weight.shape) or down.shape[0] != up.shape[1]:
            what = f"adapts {name} of shape {shape}, this model's has {tuple(weight.shape)}"
            raise ModelError(what, where=f"adapter {self.name}", fix=fix)
        down, up = (part.to(weight.device, weight.dtype) for part in (down, up))
        if isinstance(module, nn.Conv2d):
            settings: dict[str, Any] = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
            return lambda x: functional.conv2d(functional.conv2d(x, down, **settings), up)
        return lambda x: functional.linear(functional.linear(x, down), up)


@dataclass(frozen=True)
class RowAdapter:
    """An adapter and the rows of the call it acts on, each with its strength."""

    weights: LowRank
    strength: float
    rows: tuple[int, ...]


@contextmanager
def adapted(network: Any, wanted: Sequence[RowAdapter]) -> Iterator[None]:
    """Inside, calls of ``network`` (rows first in every tensor) add each adapter to its own rows; outside nothing changes."""
    hooks = []
    try:
        for adapter in wanted:
            for module, product in adapter.weights.products(network).values():
                hooks.append(module.register_forward_hook(_adding(product, adapter)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _adding(product: Product, adapter: RowAdapter) -> Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
    import torch

    def add(_: Any, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        chosen = torch.zeros(len(out), dtype=torch.bool, device=out.device)
        chosen[list(adapter.rows)] = True
        chosen = chosen.view(-1, *[1] * (out.ndim - 1))
        return torch.where(chosen, out + adapter.strength * product(args[0]), out)

    return add
