"""New words for a text encoder, for as long as a ``with``: vectors that stand behind the last id of its table.

A token that an adapter learned has no row in the encoder's table and needs none: ids from the table's length on are looked up
among the given vectors. Lower ids read the same rows as before, so no other prompt changes by a bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def new_words(table: Any, vectors: torch.Tensor) -> Iterator[None]:
    """Inside, ``table`` (an ``nn.Embedding`` of V rows) also has ids V, V+1, …: the rows of ``vectors`` (N, D).

    Gradients flow into ``vectors``. Outside, the table is as it was.
    """
    import torch
    from torch.nn import functional

    if not len(vectors):
        yield
        return
    ids: list[torch.Tensor] = []

    def before(_: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        ids.append(args[0])
        return (args[0].clamp(max=table.num_embeddings - 1),)

    def after(_: Any, __: Any, found: torch.Tensor) -> torch.Tensor:
        new = ids.pop() - table.num_embeddings
        learned = functional.embedding(new.clamp(min=0), vectors.to(found.device, found.dtype))
        return torch.where((new >= 0)[..., None], learned, found)

    hooks = [table.register_forward_pre_hook(before), table.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
