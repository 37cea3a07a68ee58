"""Choose the FAISS index for a number of vectors, and search it for candidates.

FAISS proposes, exact cosines decide (:mod:`index.segment` ranks). Up to :data:`FLAT_LIMIT` vectors a flat index is exact and
fast enough; beyond, an inverted file with product codes of 4 bits (Jégou, Douze and Schmid, 2011, in the "fast scan" layout of
André, Kermarrec and Le Scouarnec, 2017). Its ids are the numbers of the rows. Its file is mapped into memory, not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

FLAT_LIMIT = 20_000
SPARE = 32  # candidates beyond the k wanted, for the exact ranking
PROBES = 48  # lists that a query looks into, of about 4·√N
BLOCK = 16_384  # vectors added at a time
TRAIN_PER_LIST = 48  # vectors that the lists are trained on, each
SEED = 1234


def build(vectors: np.ndarray, *, flat_limit: int = FLAT_LIMIT) -> Any:
    """A FAISS index over unit vectors float32 (N, D), under the numbers of their rows; the same input gives the same index.

    ``vectors`` may be a mapped file: no more than a block of it and the training sample are in memory.
    """
    faiss = _faiss()
    n, dim = vectors.shape
    if n <= flat_limit:
        index = faiss.IndexFlatIP(dim)
    else:
        index = faiss.IndexIVFPQFastScan(
            faiss.IndexFlatIP(dim), dim, max(1, int(4 * n**0.5)), _parts(dim), 4, faiss.METRIC_INNER_PRODUCT
        )
        index.cp.seed, index.cp.spherical, index.cp.niter = SEED, True, 10
        index.cp.min_points_per_centroid = 1  # no complaint about small training sets
        index.cp.max_points_per_centroid = TRAIN_PER_LIST
        chosen = np.random.default_rng(SEED).permutation(n)[: TRAIN_PER_LIST * index.nlist]
        index.train(np.ascontiguousarray(vectors[np.sort(chosen)], np.float32))
    for start in range(0, n, BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + BLOCK], np.float32))
    return index


def candidates(index: Any, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
    """Row numbers int64 (N, ≥ k) of likely neighbours, -1 where there are fewer.

    Args:
        index: from :func:`build` or :func:`mapped`.
        queries: float32 (N, D).
        k: how many neighbours are wanted in the end.
        allowed: the rows that may match, as :func:`bits`; None: all.
    """
    faiss = _faiss()
    if not k or not index.ntotal:
        return np.full((len(queries), 0), -1, np.int64)
    wanted = min(index.ntotal, 2 * k + SPARE)
    selector = None if allowed is None else faiss.IDSelectorBitmap(index.ntotal, faiss.swig_ptr(allowed))
    if isinstance(index, faiss.IndexIVF):
        settings = faiss.SearchParametersIVF(nprobe=min(index.nlist, PROBES), sel=selector)
    else:
        settings = faiss.SearchParameters(sel=selector)
    _, found = index.search(np.ascontiguousarray(queries, np.float32), wanted, params=settings)
    return np.asarray(found, np.int64)


def bits(allowed: np.ndarray) -> np.ndarray:
    """bool (N,) as the bitmap uint8 (⌈N/8⌉,) that FAISS reads."""
    return np.packbits(allowed, bitorder="little")


def write(index: Any, path: Path) -> None:
    """Write the index as a file."""
    _faiss().write_index(index, str(path))


def mapped(path: Path) -> Any:
    """The index out of a file of :func:`write`, mapped: pages are read when a search needs them.

    Raises:
        Exception: whatever FAISS raises about a file that is none.
    """
    faiss = _faiss()
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


def from_bytes(content: bytes) -> Any:
    """An index out of a file's content."""
    return _faiss().deserialize_index(np.frombuffer(content, np.uint8))


def _parts(dim: int) -> int:
    """Parts that a vector is cut into: four dimensions each where that divides it."""
    return next(parts for parts in (dim // 4, dim // 2, dim) if parts and dim % parts == 0)


def _faiss() -> Any:
    """FAISS, untyped: its own type hints lack half of its keyword arguments."""
    import importlib

    return importlib.import_module("faiss")
