"""How commands open what is heavy: the identity of a plan, the loop of a worker, an index's embedder.

A test, or a program with a loop of its own, puts others in their place with :func:`using`, as :func:`index.storage.using` does
for the disk. Workers of Ray are other processes: they get their ``open_loop`` with the plan instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.loading import loading

if TYPE_CHECKING:
    from index.embed import OpenCLIPEmbedder
    from index.store import ReferenceIndex
    from pipeline.config import RunConfig
    from pipeline.policy import Policy


class Openers:
    """The real ones."""

    def identity(self, config: RunConfig, policy: Policy, base: Path) -> dict[str, str]:
        """The identity of a plan on this machine: see :func:`pipeline.identity.identity_of`."""
        from pipeline.identity import identity_of

        return identity_of(config, policy, base=base)

    @loading()
    def loop(self, config: RunConfig, policy: Policy, base: Path) -> Any:
        """A runtime and the loop over it: a :class:`jobs.run.worker.LoopLike`."""
        from pipeline.moderate import Moderation
        from pipeline.runtime import Runtime

        return Moderation(Runtime.open(config, policy, base=base))

    def embedder(self, index: ReferenceIndex | None, model: str, pretrained: str, *, allow_download: bool) -> OpenCLIPEmbedder:
        """The embedder that an index is bound to; for a new index (None), the one named."""
        from index.bound_embedder import embedder_of
        from index.embed import OpenCLIPEmbedder

        if index is None:
            return OpenCLIPEmbedder.open(model, pretrained, allow_download=allow_download)
        return embedder_of(index, model, pretrained, allow_download=allow_download)


_openers: ContextVar[Openers] = ContextVar("openers", default=Openers())  # noqa: B039 (they keep no state)


def openers() -> Openers:
    """Those in use."""
    return _openers.get()


@contextlib.contextmanager
def using(others: Openers) -> Iterator[None]:
    """Use others for the time of the block."""
    token = _openers.set(others)
    try:
        yield
    finally:
        _openers.reset(token)
