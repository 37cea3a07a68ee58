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
from pipeline.model.compiled import refuse_compiled
from pipeline.model.hook_points import Act, Removable, listen

if TYPE_CHECKING:
    import torch

Product = Callable[["torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class LowRank:
    """The low-rank weights of one adapter.

    Attributes:
        name: for messages.
        pairs: module name → (A, B): (r, in) and (out, r) for linear layers, (r, in, k, k) and (out, r, 1, 1) for convolutions.
        scales: module name → factor on top of the strength (α/r of a LoRA file); 1 where there is none.
    """

    name: str
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    scales: Mapping[str, float] = field(default_factory=dict)
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
            return lambda x: functional.conv2d(functional.conv2d(x, down.to(x.device), **settings), up.to(x.device))
        # Text encoders may be on the host when they are adapted, and on the device when they run.
        return lambda x: functional.linear(functional.linear(x, down.to(x.device)), up.to(x.device))


@dataclass(frozen=True)
class RowAdapter:
    """An adapter and the rows of the call it acts on, each with its strength; ``rows`` None: on all of them."""

    weights: LowRank
    strength: float
    rows: tuple[int, ...] | None


@contextmanager
def adapted(network: Any, wanted: Sequence[RowAdapter]) -> Iterator[None]:
    """Inside, calls of ``network`` (rows first in every tensor) add each adapter to its own rows; outside nothing changes."""
    hooks: list[Removable] = []
    if wanted:
        layers = (module for adapter in wanted for module, _ in adapter.weights.products(network).values())
        refuse_compiled(network, "low-rank weights", layers)
    try:
        for adapter in wanted:
            mask = None if adapter.rows is None else _Mask(adapter.rows)
            for name, (module, product) in adapter.weights.products(network).items():
                strength = adapter.strength * adapter.weights.scales.get(name, 1.0)
                hooks.append(listen(module, "output", _adding(product, strength, mask)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Mask:
    """Which rows of a call an adapter acts on, as a tensor (R, 1, …) on the call's device.

    It is made at the first module of the call and used at all others: SDXL has 722 of them, and each mask is a copy to the
    device.
    """

    def __init__(self, rows: tuple[int, ...]) -> None:
        self._rows = rows
        self._made: dict[tuple[int, Any], torch.Tensor] = {}

    def __call__(self, out: torch.Tensor) -> torch.Tensor:
        key = len(out), out.device
        if key not in self._made:
            import torch

            chosen = torch.tensor([row in self._rows for row in range(len(out))])
            self._made[key] = chosen.to(out.device, non_blocking=True)
        return self._made[key].view(-1, *[1] * (out.ndim - 1))


def _adding(product: Product, strength: float, mask: _Mask | None) -> Act:
    import torch

    def add(out: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        more = out + strength * product(given)
        return more if mask is None else torch.where(mask(out), more, out)

    return add
