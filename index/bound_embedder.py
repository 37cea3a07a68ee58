"""Open the embedder that an index is bound to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from index.embed import OpenCLIPEmbedder
from index.embedder_source import SHIPPED, EmbedderSource
from index.errors import IndexMismatch, ModelError

if TYPE_CHECKING:
    from index.store import ReferenceIndex


def embedder_of(
    index: ReferenceIndex, model: str = "", pretrained: str = "", *, allow_download: bool = False, device: str = "cpu",
    base: Path | None = None,
) -> OpenCLIPEmbedder:  # fmt: skip
    """Open the embedder that an index is bound to.

    Args:
        index: the index.
        model, pretrained: what to open it from; empty: what the index remembers, or the shipped one where it remembers nothing.
        allow_download: whether weights may be fetched. An index does not remember that: the permission is this machine's.
        device: torch device where it runs.
        base: folder that relative paths in ``model`` and ``pretrained`` start from; None: the working folder.

    Raises:
        ModelError: it cannot be opened.
        IndexMismatch: the index was built with another one.
    """
    remembered = index.embedder_source.starting_from(index.folder)
    if model:
        source = EmbedderSource(model, pretrained)
    else:
        source = EmbedderSource(remembered.model or SHIPPED, pretrained or remembered.pretrained)
    try:
        embedder = OpenCLIPEmbedder.open(
            source.model, source.pretrained, allow_download=allow_download, device=device, base=base
        )
    except ModelError as error:
        if model:
            raise
        fix = f"{error.fix}. The index was built with {index.embedder_source}; if that lies elsewhere now, name it: "
        raise ModelError(
            error.what, where=error.where, fix=fix + "--embedder, or model under [embedder] in the run file"
        ) from None
    try:
        index.require_embedder(embedder.embedder_id)
    except IndexMismatch as error:
        if model or not remembered.model:
            raise
        fix = "Restore them; or name where they lie now: --embedder, or model under [embedder] in the run file"
        what = f"the weights of {remembered} are no longer those that the index was built with ({error.what})"
        raise IndexMismatch(what, where=error.where, fix=fix) from None
    return embedder
