"""Choose the FAISS index for a number of vectors, search it for candidates, and rank them exactly.

FAISS proposes, exact cosines decide. Up to :data:`FLAT_LIMIT` vectors a flat index is exact and fast enough; beyond, it is an
inverted file (:mod:`index.inverted`), which is asked for more candidates where works resemble one another. Ids are the numbers
of the rows. Either file is mapped into memory, not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

FLAT_LIMIT = 20_000
SPARE = 32  # candidates of a flat index beyond the k wanted, for the exact ranking
SPARE_CODED = 96  # the same of an inverted file, whose codes rank roughly
WIDER = (1, 8, 64)  # times as many, one after the other, while a vector beyond them might be nearer
EVERY = 4096  # times so many vectors or fewer are all compared instead: codes would not be faster, and might miss one
FLOOR = 0.57  # cosine below which nobody asks who is near: the shipped guard takes its second look from .5709 on
BLOCK = 16_384  # vectors added at a time
AT_ONCE = 256  # queries searched at a time
COMPARED = 4096  # vectors compared with all of them at a time
PAIRS = 16_384  # of a query and a vector, compared in float64 at a time
ROUNDING = 1e-4  # more than float32 can be off in a product of two unit vectors


def write(vectors: np.ndarray, path: Path, *, flat_limit: int = FLAT_LIMIT) -> None:
    """Write the index over unit vectors float32 (N, D), under the numbers of their rows; the same input gives the same file.

    ``vectors`` may be a mapped file: no more than a block of it and the training sample are in memory.
    """
    from index import inverted

    faiss = _faiss()
    if len(vectors) > flat_limit:
        inverted.write(vectors, path)
        return
    index = faiss.IndexFlatIP(vectors.shape[1])
    for start in range(0, len(vectors), BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + BLOCK], np.float32))
    faiss.write_index(index, str(path))


def mapped(path: Path) -> Any:
    """The index out of a file of :func:`write`, mapped: pages are read when a search needs them.

    Raises:
        Exception: whatever FAISS raises about a file that is none.
    """
    from index import inverted

    if inverted.table_of(path) is not None:
        return inverted.Inverted(path)
    faiss = _faiss()
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


def has_lists(path: Path) -> bool:
    """Whether a file is an inverted file of today's form."""
    from index import inverted

    return inverted.table_of(path) is not None


def candidates(index: Any, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> np.ndarray:
    """Row numbers int64 (N, ≥ k) of likely neighbours, -1 where there are fewer; a row may stand there twice.

    Args:
        index: from :func:`mapped`.
        queries: float32 (N, D).
        k: how many neighbours are wanted in the end.
        allowed: the rows that may match, as :func:`bits`; None: all.
    """
    from index import device, inverted

    faiss = _faiss()
    if not k or not index.ntotal or not len(queries):
        return np.full((len(queries), 0), -1, np.int64)
    if isinstance(index, device.OnDevice):
        return index.search(queries, k, allowed)
    selector = None if allowed is None else faiss.IDSelectorBitmap(index.ntotal, faiss.swig_ptr(allowed))
    if isinstance(index, inverted.Inverted):
        return index.search(index.turned(queries), 2 * k + SPARE_CODED, selector)[0]
    wanted = min(index.ntotal, 2 * k + SPARE)
    settings = faiss.SearchParameters(sel=selector)
    if isinstance(index, faiss.IndexIVF):  # of segments that were written before there was index.inverted
        wanted = min(index.ntotal, 2 * k + SPARE_CODED)
        settings = faiss.SearchParametersIVF(nprobe=max(32, index.nlist // 8), sel=selector)
    _, found = index.search(np.ascontiguousarray(queries, np.float32), wanted, params=settings)
    return np.asarray(found, np.int64)


def nearest(
    index: Any, vectors: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The k nearest rows of every query and all that tie with the last, best first.

    Args:
        index: over the vectors.
        vectors: float32 (V, D), mapped or in memory.
        queries, k, allowed: as :func:`candidates` has them.

    Returns:
        For every query its rows int64 (M,) and their exact cosines float64 (M,): float64 products of the float32 vectors.
    """
    from index import inverted

    queries, found = np.ascontiguousarray(queries, np.float32), []
    if isinstance(index, inverted.Inverted) and k and index.ntotal:
        return _nearest_by_codes(index, vectors, queries, k, allowed)
    for start in range(0, len(queries), AT_ONCE):
        block = queries[start : start + AT_ONCE]
        found += _ranked(vectors, block, candidates(index, block, k, allowed), k)
    return found


def _nearest_by_codes(
    index: Any, vectors: np.ndarray, queries: np.ndarray, k: int, allowed: np.ndarray | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same from an inverted file, whose codes tell works that resemble one another badly apart.

    More candidates are ranked as long as the weakest of them has a better code than a vector at the k-th exact cosine (or at
    :data:`FLOOR`) is expected to have: beyond it there may be nearer ones. Most queries need no more than the first ones.

    Where few rows may match, the lists that a query looks into hold fewer of them than are wanted at first, and lists farther
    away may hold nearer ones: then all rows that may match are compared.
    """
    faiss = _faiss()
    selector = None if allowed is None else faiss.IDSelectorBitmap(index.ntotal, faiss.swig_ptr(allowed))
    found = [(np.zeros(0, np.int64), np.zeros(0))] * len(queries)
    left, last, beyond = np.arange(len(queries)), np.full(len(queries), -1.0), np.full(len(queries), -np.inf, np.float32)
    short = np.zeros(len(queries), bool)
    first = 2 * (2 * k + SPARE_CODED)  # a row may stand there twice
    for times in WIDER:
        every = times > 1 and len(vectors) <= EVERY * times
        step, unsure = max(1, AT_ONCE // (4 if every else times)), np.zeros(len(queries), bool)
        for start in range(0, len(left), step):
            at = left[start : start + step]
            if every:
                proposed = _reaching(vectors, queries[at], last[at] - ROUNDING, allowed)
            else:
                turned = index.turned(queries[at])
                proposed, scores = index.search(turned, times * (2 * k + SPARE_CODED), selector)
                full, weakest = proposed[:, -1] >= 0, scores[:, -1]
                proposed[:, first:][scores[:, first:] <= beyond[at, None]] = -1  # hardly nearer than what was found before
            ranked = _ranked(vectors, queries[at], proposed, k)
            for n, each in zip(at.tolist(), ranked, strict=True):
                found[n] = each
            if not every:
                last[at] = [cosines[k - 1] if len(cosines) >= k else -1 for _, cosines in ranked]
                beyond[at] = index.expected(turned, np.clip(last[at], FLOOR, 1), vectors)
                unsure[at] = full & (weakest > beyond[at])
                if times == WIDER[0]:
                    short[at] = ~full
        left = np.flatnonzero(unsure)
    few = np.flatnonzero(short)
    for start in range(0, len(few), AT_ONCE // 4):
        at = few[start : start + AT_ONCE // 4]
        proposed = _reaching(vectors, queries[at], last[at] - ROUNDING, allowed)
        for n, each in zip(at.tolist(), _ranked(vectors, queries[at], proposed, k), strict=True):
            found[n] = each
    return found


def _reaching(vectors: np.ndarray, queries: np.ndarray, least: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    """The rows int64 (N, M) whose products with their query reach its ``least``, by brute force; -1 where there are fewer."""
    may = None if allowed is None else np.flatnonzero(np.unpackbits(allowed, count=len(vectors), bitorder="little"))
    at, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, len(vectors) if may is None else len(may), COMPARED):
        part = slice(start, start + COMPARED)
        one, other = np.nonzero(queries @ vectors[part if may is None else may[part]].T >= least.astype(np.float32)[:, None])
        at.append(one)
        rows.append(other + start if may is None else may[part][other])
    of, row = np.concatenate(at), np.concatenate(rows)
    order = np.argsort(of, kind="stable")
    counts = np.bincount(of, minlength=len(queries))
    found = np.full((len(queries), int(counts.max(initial=0))), -1, np.int64)
    found[np.arange(found.shape[1]) < counts[:, None]] = row[order]
    return found


def _ranked(vectors: np.ndarray, queries: np.ndarray, proposed: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rank candidates in float32 first, then those that can be among the k nearest in float64."""
    count, number = proposed.shape
    nothing = np.zeros(0, np.int64), np.zeros(0)
    if not number:
        return [nothing] * count
    proposed = np.sort(proposed, axis=1)
    proposed[:, 1:][proposed[:, 1:] == proposed[:, :-1]] = -1  # a row that stands there twice
    rough = _products(vectors, queries, proposed)
    rough[proposed < 0] = -np.inf
    least = np.full(count, -np.inf, np.float32)
    if number > k:
        least = np.partition(rough, number - k, axis=1)[:, number - k] - np.float32(ROUNDING)
    at, column = np.nonzero((rough >= least[:, None]) & (proposed >= 0))
    rows = proposed[at, column]
    cosines = np.empty(len(rows))
    for start in range(0, len(rows), PAIRS):  # works that nearly tie may be very many
        of, row = at[start : start + PAIRS], rows[start : start + PAIRS]
        cosines[start : start + PAIRS] = np.sum(vectors[row].astype(np.float64) * queries[of].astype(np.float64), axis=1)
    order = np.lexsort((-cosines, at))
    at, rows, cosines = at[order], rows[order], cosines[order]
    ends = np.searchsorted(at, np.arange(count + 1))
    found = []
    for start, stop in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        if stop - start > k:  # ties go by id, so all of them are returned
            stop = start + int(np.searchsorted(-cosines[start:stop], -cosines[start + k - 1], side="right"))
        found.append((rows[start:stop], cosines[start:stop]))
    return found


def _products(vectors: np.ndarray, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Products float32 (N, M) of queries with their rows; vectors are read where they lie. Rows below 0 have any value."""
    faiss = _faiss()
    out = np.zeros(rows.shape, np.float32)
    pointers = [faiss.swig_ptr(each) for each in (out, queries, vectors, np.ascontiguousarray(rows))]
    faiss.fvec_inner_products_by_idx(*pointers, vectors.shape[1], *rows.shape)
    return out


def bits(allowed: np.ndarray) -> np.ndarray:
    """bool (N,) as the bitmap uint8 (⌈N/8⌉,) that FAISS reads."""
    return np.packbits(allowed, bitorder="little")


def from_bytes(content: bytes) -> Any:
    """An index out of a file's content."""
    return _faiss().deserialize_index(np.frombuffer(content, np.uint8))


def _faiss() -> Any:
    """FAISS, untyped: its own type hints lack half of its keyword arguments."""
    import importlib

    return importlib.import_module("faiss")
