"""Read and change the image tokens of a denoiser's sites (:mod:`pipeline.model.sites`) while it runs.

What listens lives only inside the ``with``; afterwards the modules are as they were. Nothing is copied, neither of the blocks'
code nor of their tokens: rows of steered samples alone are written to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.model.hook_points import Act, Removable, listen

if TYPE_CHECKING:
    import torch

    from pipeline.model.sites import Site

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


@contextmanager
def hooked(edits: Sequence[tuple[Site, Edit]]) -> Iterator[None]:
    """Inside, each edit is shown its site's tokens as the network runs."""
    handles: list[Removable] = []
    try:
        for site, edit in edits:
            handles.append(listen(site.module, site.shown, _acting(site, edit)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _acting(site: Site, edit: Edit) -> Act:
    return lambda value, _: edit(site.name, site.tokens(value))
