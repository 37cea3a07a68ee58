"""An inverted file over many vectors: built block after block, written as one file, and mapped from it.

Vectors are turned at random (then no part of a product code has most of their variance), assigned to lists, and coded in 4 bits
for every 8 dimensions (Jégou, Douze and Schmid, 2011; "fast scan": André, Kermarrec and Le Scouarnec, 2017). Each vector stands
in two lists: the nearest, and one that is near in another direction (SOAR: Sun et al., 2023, equation 5), because a copy that
misses one list seldom misses both. A query looks into few lists where one of them stands out, and into more where none does.

The file is FAISS's own, with the lists behind it: FAISS reads its own lists into memory, these are mapped. :mod:`index.ann`
chooses between this and a flat index.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"CLRLISTS"  # the file's last 16 bytes: this, and where the table of the lists begins
LISTS = 4  # times the root of the number of vectors: how many lists
PART = 8  # dimensions in a code of 4 bits
SEED = 1234
TRAIN_PER_LIST, TRAIN_MOST = 32, 2**18  # vectors that the lists are trained on: each, and together
TRAIN_CODES = 2**14
ROUNDS = 10
BLOCK = 2048  # vectors assigned at a time
GRAM_MOST = 5000  # lists up to which the products of all pairs of centroids are kept: 100 MB
PACK = 32  # codes that the fast scan takes at once
ALIGNED = 64
LEAST, SHARE, REACH = 32, 0.15, 0.3  # lists looked into: so many, up to a share of all, those within reach of the nearest
SAMPLE = 1024  # vectors whose codes are held against themselves
KEEPS = 0.01  # share of them whose codes keep less than :meth:`Inverted.expected` reckons with
SIGMAS = 1.5  # of the part of a score that is chance
STEPS = 0.005  # the fast scan's tables are of 8 bits: scores are off by .003 where this was measured


class Inverted:
    """The inverted file of a path that :func:`write` wrote, mapped.

    Attributes:
        ntotal, d: number of vectors, and their length.

    Raises:
        Exception: whatever FAISS raises about a file that is none.
    """

    def __init__(self, path: Path) -> None:
        faiss = _faiss()
        at = table_of(path)
        if at is None:
            raise ValueError("no lists")
        whole = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        self._whole, self._turn = whole, faiss.downcast_VectorTransform(whole.chain.at(0))
        self._index = faiss.downcast_index(whole.index)
        self.ntotal, self.d = int(whole.ntotal), int(whole.d)
        count = int(self._index.nlist)
        table = np.fromfile(path, "<u8", 3 * count, offset=at).reshape(count, 3)
        size = path.stat().st_size
        code_size = int(self._index.pq.code_size)
        if (table[:, 0] > table[:, 1]).any() or (table[:, 2] + table[:, 1] * np.uint64(code_size + 8) > size).any():
            raise ValueError("a list lies beyond the file")
        self._mapped_lists(path, table, size, code_size)
        self._fidelity: tuple[float, float] | None = None
        quantizer = faiss.downcast_index(self._index.quantizer)
        # A copy, because a product with numbers that lie askew in the file takes ten times as long.
        self._centroids = np.array(faiss.rev_swig_ptr(quantizer.get_xb(), count * self.d).reshape(count, self.d))

    def _mapped_lists(self, path: Path, table: np.ndarray, size: int, code_size: int) -> None:
        faiss = _faiss()
        lists = faiss.OnDiskInvertedLists()
        lists.nlist, lists.code_size, lists.read_only, lists.prefetch_nthread = len(table), code_size, True, 0
        lists.lists.resize(len(table))
        ctypes.memmove(int(lists.lists.data().this), np.ascontiguousarray(table).ctypes.data, table.nbytes)
        lists.filename, lists.totsize = str(path), size
        lists.do_mmap()
        self._index.replace_invlists(lists, True)
        lists.this.disown()

    def turned(self, queries: np.ndarray) -> np.ndarray:
        """Queries float32 (N, D) as the lists and codes have them: turned as the vectors were."""
        return np.asarray(self._turn.apply(np.ascontiguousarray(queries, np.float32)))

    def search(self, turned: np.ndarray, wanted: int, selector: Any) -> tuple[np.ndarray, np.ndarray]:
        """Likely neighbours of turned queries float32 (N, D), best first; a row may stand there twice.

        Returns:
            Row numbers int64 (N, 2 × wanted), -1 where there are fewer, and the products float32 of the query with their codes.
        """
        faiss, index = _faiss(), self._index
        near, lists = self._looked_into(turned)
        number = min(2 * wanted, 2 * self.ntotal)
        scores, found = np.empty((len(turned), number), np.float32), np.empty((len(turned), number), np.int64)
        settings = faiss.SearchParametersIVF(nprobe=lists.shape[1], sel=selector)
        pointers = [faiss.swig_ptr(each) for each in (lists, near, scores, found)]
        # FAISS's Python wrapper of this call takes no settings.
        index.search_preassigned_c(len(turned), faiss.swig_ptr(turned), number, *pointers, False, settings)
        return found, scores

    def _looked_into(self, turned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The products float32 (N, M) of turned queries float32 (N, D) with the lists int64 (N, M) that they look into.

        A list is -1 where a query looks into fewer.
        """
        near = turned @ self._centroids.T
        rows, count = near.shape
        bound = near.max(axis=1) - np.float32(REACH)
        number = np.count_nonzero(near >= bound[:, None], axis=1)
        most, least = min(count, max(LEAST, int(SHARE * count))), min(LEAST, count)
        for wanted, out in ((most, number > most), (least, number < least)):
            if out.any():
                bound[out] = np.partition(near[out], count - wanted, axis=1)[:, count - wanted]
        place = np.flatnonzero(near >= bound[:, None])
        row, chosen = np.divmod(place, count)
        there = np.bincount(row, minlength=rows)
        lists = np.full((rows, there.max()), -1, np.int64)
        products = np.zeros(lists.shape, np.float32)
        at = np.arange(lists.shape[1]) < there[:, None]
        lists[at], products[at] = chosen, near.reshape(-1)[place]
        return products, lists

    def expected(self, turned: np.ndarray, cosines: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """The product float32 (N,) with a query that the code of a vector at this cosine hardly falls below.

        The code y of a vector x has ⟨q, y⟩ = c ⟨x, y⟩ + √(1 − c²) ⟨u, y⟩, where c = ⟨q, x⟩ and u is the direction in which q
        departs from x. ⟨x, y⟩ is what the code keeps of x: hardly less than of a sample of the vectors, and for a copy that is
        not edited as much as of the query itself. ⟨u, y⟩ is chance, of spread ‖x − y‖ / √D.

        Args:
            turned: float32 (N, D), from :meth:`turned`. cosines: float (N,), c. vectors: float32 (V, D), those of the index.
        """
        if self._fidelity is None:
            rows = np.unique(np.linspace(0, len(vectors) - 1, SAMPLE).astype(np.int64))
            kept, lost = self._coded(self.turned(vectors[rows]))
            self._fidelity = float(np.quantile(kept, KEEPS)), float(lost.mean()) / self.d**0.5
        least, spread = self._fidelity
        own, _ = self._coded(turned)
        chance = SIGMAS * spread * np.sqrt(np.clip(1 - cosines**2, 0, 1))
        return np.asarray(cosines * np.minimum(own, least) - chance - STEPS, np.float32)

    def _coded(self, turned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of turned vectors float32 (N, D): the products float32 (N,) with their own codes, and their distances from them."""
        codes = self._index.pq.decode(self._index.pq.compute_codes(turned))
        return np.sum(turned * codes, axis=1), np.linalg.norm(turned - codes, axis=1)


def table_of(path: Path) -> int | None:
    """Where the table of the lists begins in a file of :func:`write`; None for another file."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(0, size - 16))
        tail = stream.read(16)
    return struct.unpack("<Q", tail[8:])[0] if tail[:8] == MAGIC else None


def write(vectors: np.ndarray, path: Path) -> None:
    """Write the inverted file over unit vectors float32 (N, D); the same input gives the same bytes.

    ``vectors`` may be a mapped file: a block of it and the training sample are in memory, and some 40 bytes a vector.
    """
    faiss = _faiss()
    rows, dim = vectors.shape
    turn = faiss.RandomRotationMatrix(dim, dim)
    turn.init(SEED)
    centroids, quantizer, codes = _trained(vectors, turn)
    index = faiss.IndexIVFPQFastScan(quantizer, dim, len(centroids), codes.M, 4, faiss.METRIC_INNER_PRODUCT)
    index.by_residual, index.pq, index.is_trained = False, codes, True
    whole = faiss.IndexPreTransform(turn, index)
    whole.ntotal = index.ntotal = rows
    whole.is_trained = True
    faiss.write_index(whole, str(path))
    scratch = path.with_name(path.name + ".codes")
    try:
        coded = np.memmap(scratch, "u1", "w+", shape=(rows, codes.code_size))
        lists = np.empty((2, rows), np.int32)
        gram = centroids @ centroids.T if len(centroids) <= GRAM_MOST else None
        for start in range(0, rows, BLOCK):
            block = turn.apply(np.ascontiguousarray(vectors[start : start + BLOCK], np.float32))
            lists[:, start : start + len(block)] = assigned(block, centroids, gram)
            coded[start : start + len(block)] = codes.compute_codes(block)
        packer = faiss.downcast_InvertedLists(index.invlists).packer
        _append_lists(path, lists, len(centroids), coded, packer)
    finally:
        scratch.unlink(missing_ok=True)


def _trained(vectors: np.ndarray, turn: Any) -> tuple[np.ndarray, Any, Any]:
    """The centroids float32 (L, D) of the lists, the same as a FAISS index, and the product quantizer."""
    faiss = _faiss()
    rows, dim = vectors.shape
    count = max(1, int(LISTS * rows**0.5))
    chosen = np.random.default_rng(SEED).permutation(rows)[: min(TRAIN_PER_LIST * count, TRAIN_MOST)]
    sample, chosen = np.empty((len(chosen), dim), np.float32), np.sort(chosen)
    for start in range(0, len(chosen), BLOCK):
        block = np.ascontiguousarray(vectors[chosen[start : start + BLOCK]], np.float32)
        sample[start : start + len(block)] = turn.apply(block)
    plan = faiss.ClusteringParameters()
    plan.seed, plan.spherical, plan.niter, plan.min_points_per_centroid = SEED, True, ROUNDS, 1
    plan.max_points_per_centroid = TRAIN_PER_LIST
    quantizer = faiss.IndexFlatIP(dim)
    faiss.Clustering(dim, count, plan).train(sample, quantizer)
    part = next(part for part in (PART, 4, 2, 1) if dim % part == 0)
    codes = faiss.ProductQuantizer(dim, dim // part, 4)
    codes.cp.seed, codes.cp.min_points_per_centroid = SEED, 1
    codes.train(np.ascontiguousarray(sample[:: max(1, len(sample) // TRAIN_CODES)]))
    return quantizer.reconstruct_n(0, count), quantizer, codes


def assigned(block: np.ndarray, centroids: np.ndarray, gram: np.ndarray | None = None) -> np.ndarray:
    """The two lists int32 (2, N) of unit vectors float32 (N, D): the nearest, and the best in case that one is missed.

    The second one minimises ‖x − c‖² + ⟨r, x − c⟩² over the other centroids c, where r is the direction in which x departs from
    its first centroid: a query that departs from it in the same direction is to be near to the second.

    Args:
        gram: the products of all pairs of centroids, so that they are not computed again.
    """
    each = np.arange(len(block))
    near = block @ centroids.T
    first = near.argmax(1)
    if len(centroids) == 1:
        return np.zeros((2, len(block)), np.int32)
    own = near[each, first]
    away = near - (gram[first] if gram is not None else centroids[first] @ centroids.T)  # times the length of r
    away -= (1 - own)[:, None]
    np.square(away, out=away)
    away /= np.maximum(2 - 2 * own, 1e-6)[:, None]
    away -= 2 * near
    away[each, first] = np.inf
    return np.stack([first, away.argmin(1)]).astype(np.int32)


def _append_lists(path: Path, lists: np.ndarray, count: int, codes: np.ndarray, packer: Any) -> None:
    """Write the lists behind FAISS's part of the file: of each the packed codes and the ids, then a table of them all."""
    table = np.zeros((count, 3), "<u8")  # number, room, place
    with path.open("ab") as stream:
        for number, rows in _members(lists, count):
            stream.write(bytes(-stream.tell() % ALIGNED))
            room = -(-len(rows) // PACK) * PACK
            table[number] = len(rows), room, stream.tell()
            stream.write(_packed(np.ascontiguousarray(codes[rows]), packer))
            stream.write(np.pad(rows, (0, room - len(rows))).astype("<i8").tobytes())
        stream.write(bytes(-stream.tell() % ALIGNED))
        at = stream.tell()
        stream.write(table.tobytes() + MAGIC + struct.pack("<Q", at))


def _members(lists: np.ndarray, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Every list's number, and the rows int64 that stand in it."""
    flat = lists.reshape(-1)
    order = np.argsort(flat, kind="stable")
    ends = np.cumsum(np.bincount(flat, minlength=count))
    for number in range(count):
        start = int(ends[number - 1]) if number else 0
        yield number, np.unique(order[start : int(ends[number])] % lists.shape[1])


def _packed(codes: np.ndarray, packer: Any) -> bytes:
    """Codes uint8 (N, C) as the fast scan reads them: 32 at a time, the last ones filled up."""
    faiss = _faiss()
    blocks = -(-len(codes) // PACK)
    full = np.zeros((blocks * PACK, codes.shape[1]), np.uint8)
    full[: len(codes)] = codes
    packed = np.zeros((blocks, packer.block_size), np.uint8)
    for block in range(blocks):
        mine = full[block * PACK : (block + 1) * PACK]
        packer.pack_all(faiss.swig_ptr(mine), faiss.swig_ptr(packed[block]))
    return packed.tobytes()


def _faiss() -> Any:
    """FAISS, untyped: its own type hints lack half of its keyword arguments."""
    import importlib

    return importlib.import_module("faiss")
