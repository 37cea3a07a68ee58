"""Choose the FAISS index for a number of vectors, and search it for candidates.

FAISS proposes, exact cosines decide (:mod:`index.store` re-ranks). Up to :data:`FLAT_LIMIT` vectors a flat index is
exact and fast enough; beyond, an inverted file with 8-bit codes. The inverted file carries its ids itself:
``IndexIDMap2`` over an inverted file returns wrong ids after a removal (measured with faiss 1.15).
"""

from __future__ import annotations

from typing import Any

import numpy as np

FLAT_LIMIT = 20_000
SPARE = 32  # candidates beyond the k wanted, for the exact re-ranking


def build(vectors: np.ndarray, ids: np.ndarray, *, flat_limit: int = FLAT_LIMIT) -> Any:
    """A FAISS index over unit vectors float32 (N, D) under int64 ids (N,); the same input gives the same index."""
    faiss = _faiss()
    n, dim = vectors.shape
    if n <= flat_limit:
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
    else:
        index = faiss.index_factory(dim, f"IVF{max(1, int(2 * n**0.5))},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.cp.spherical = 1234, True
        index.cp.min_points_per_centroid = 1  # no complaint about small training sets
        index.train(np.ascontiguousarray(vectors, np.float32))
    if n:
        index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(ids, np.int64))
    return index


def candidates(index: Any, queries: np.ndarray, k: int, active: np.ndarray | None = None) -> np.ndarray:
    """Ids int64 (N, ≥ k) of likely neighbours, -1 where there are fewer.

    Args:
        index: from :func:`build`, or read from its file.
        queries: float32 (N, D).
        k: how many neighbours are wanted in the end.
        active: the ids that may match; None means all.
    """
    faiss = _faiss()
    if not index.ntotal or not k or (active is not None and not len(active)):
        return np.full((len(queries), 0), -1, np.int64)
    wanted = min(index.ntotal, 2 * k + SPARE)
    selector = None if active is None else faiss.IDSelectorBatch(np.ascontiguousarray(active, np.int64))
    if isinstance(index, faiss.IndexIVF):
        probes = min(index.nlist, max(32, index.nlist // 8))
        settings = faiss.SearchParametersIVF(nprobe=probes, sel=selector)
    else:
        settings = faiss.SearchParameters(sel=selector)
    _, found = index.search(np.ascontiguousarray(queries, np.float32), wanted, params=settings)
    return np.asarray(found, np.int64)


def to_bytes(index: Any) -> bytes:
    """The index as one file's content."""
    faiss = _faiss()
    return bytes(faiss.serialize_index(index).tobytes())


def from_bytes(content: bytes) -> Any:
    """The index out of :func:`to_bytes`."""
    faiss = _faiss()
    return faiss.deserialize_index(np.frombuffer(content, np.uint8))


def _faiss() -> Any:
    """FAISS, untyped: its own type hints lack half of its keyword arguments."""
    import importlib

    return importlib.import_module("faiss")
