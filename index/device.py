"""Where an index is searched: on a CUDA device where FAISS was built for one, otherwise on the CPU.

On a device a segment is searched by brute force (float16 there, exact ranking here), which reads every vector and misses none.
Vectors that do not fit beside what else is there stay with the CPU. ``CLEARANCE_INDEX_DEVICE`` is ``auto`` (the default) or
``cpu``.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import numpy as np

from index.errors import InputError

VARIABLE = "CLEARANCE_INDEX_DEVICE"
SHARE = 0.25  # of the device's free memory that one segment may take: models and pictures need the rest
SPARE = 32  # candidates beyond the k wanted: float16 ranks roughly
BLOCK = 65_536  # vectors copied at a time


def devices() -> int:
    """How many CUDA devices FAISS can use here; 0 where it was built for the CPU, or the CPU is asked for.

    Raises:
        InputError: the variable has another value.
    """
    asked = os.environ.get(VARIABLE, "auto")
    if asked not in ("auto", "cpu"):
        raise InputError(f"is {asked!r}", where=VARIABLE, fix="Write auto or cpu, or remove it")
    return 0 if asked == "cpu" else _present()


@lru_cache(maxsize=1)
def _present() -> int:
    import faiss

    has = hasattr(faiss, "StandardGpuResources")
    return int(faiss.get_num_gpus()) if has else 0


def named() -> str:
    """Where searches run, for people."""
    if devices():
        return "the CUDA device, by brute force, as far as its memory reaches"
    return "the CPU" if _present() else "the CPU (this FAISS has no CUDA; faiss-gpu in place of faiss-cpu would use a device)"


class OnDevice:
    """Vectors on the first CUDA device, searched by brute force.

    Args:
        vectors: float32 (N, D), mapped.

    Attributes:
        ntotal, d: their number and length.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        faiss = _faiss()
        self.ntotal, self.d = vectors.shape
        self._vectors = vectors
        self._resources = faiss.StandardGpuResources()
        settings = faiss.GpuIndexFlatConfig()
        settings.useFloat16, settings.device = True, 0
        self._index = faiss.GpuIndexFlatIP(self._resources, self.d, settings)
        for start in range(0, self.ntotal, BLOCK):
            self._index.add(np.ascontiguousarray(vectors[start : start + BLOCK], np.float32))

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> np.ndarray:
        """Row numbers int64 (N, ≥ k), -1 where there are fewer.

        The device takes no selection. Where too few of the rows that it finds may match, those that may are searched here.
        """
        faiss = _faiss()
        wanted = min(self.ntotal, 2 * k + SPARE)
        _, found = self._index.search(queries, wanted)
        found = np.asarray(found, np.int64)
        if allowed is None:
            return found
        may = np.unpackbits(allowed, count=self.ntotal, bitorder="little").astype(bool)
        found[(found < 0) | ~may[found]] = -1
        few = np.flatnonzero((found >= 0).sum(1) < min(k + SPARE // 2, int(may.sum())))
        if len(few) and may.any():
            rows = np.flatnonzero(may)
            _, near = faiss.knn(queries[few], self._vectors[rows], min(len(rows), wanted), metric=faiss.METRIC_INNER_PRODUCT)
            found[few] = -1
            found[few, : near.shape[1]] = rows[near]
        return found


def place(vectors: np.ndarray) -> OnDevice | None:
    """The vectors on a device; None where there is none, or where they take too much of its memory."""
    if not devices() or not len(vectors):
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info(0)
    return OnDevice(vectors) if 2 * vectors.size <= SHARE * free else None


def _faiss() -> Any:
    """FAISS, untyped: its own type hints lack half of its keyword arguments."""
    import importlib

    return importlib.import_module("faiss")
