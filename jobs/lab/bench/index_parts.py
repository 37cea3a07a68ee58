"""The parts of ``bench index``, each for a process of its own; :mod:`jobs.lab.bench.index` has the measures."""

from __future__ import annotations

import json
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.lab.bench.index import QUERIES
from jobs.lab.bench.index_data import (
    DIM,
    Asked,
    copies_of,
    drawings,
    further,
    queries,
    threshold,
    write_alike,
    write_references,
)  # fmt: skip

if TYPE_CHECKING:
    from index.reference import Match
    from index.store import ReferenceIndex

K = 3  # neighbours, as the copies guard asks for
KNOWN = 16  # nearest by brute force
BATCH = 256
ROUNDS = 5
CHANGED = 1_000
OLD_MOST = 200_000  # references up to which the old search structure is built for comparison
QUICK_FLAT = 1_000  # of a quick run, so that the inverted file is tried


class Given:
    """Stands for the embedder of the vectors; nothing is embedded."""

    embedder_id, dim = "openclip-made-up", DIM

    def images(self, pictures: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        raise NotImplementedError


def main(part: str, folder: str, rows: int, quick: bool) -> None:
    """Run a part and print its result as JSON."""
    import faiss

    faiss.omp_set_num_threads(1)
    parts: dict[str, Callable[[Path, int, bool], dict[str, Any]]] = {
        "data": data, "build": build, "truth": truth, "search": search, "open": opening, "change": change, "alike": alike,
        "pictures": pictures,
    }  # fmt: skip
    print(json.dumps(parts[part](Path(folder), rows, quick)))


def vectors_of(folder: Path) -> np.ndarray:
    """The references' vectors float32 (N, DIM), mapped."""
    return np.asarray(np.load(folder / "vectors.npy", mmap_mode="r"))


def asked_of(folder: Path) -> Asked:
    """The queries."""
    with np.load(folder / "asked.npz") as kept:
        return Asked(vectors=kept["vectors"], real=kept["real"])


def data(folder: Path, rows: int, quick: bool) -> dict[str, Any]:
    """Make the references' vectors, and the queries."""
    import torch

    torch.set_num_threads(1)
    kept = folder.parent / "drawings.npz"
    if not kept.exists():
        first, second = drawings()
        np.savez(kept, first=first, second=second)
    with np.load(kept) as real:
        write_references(folder / "vectors.npy", rows, real["first"])
        asked = queries(vectors_of(folder), 400 if quick else QUERIES, real["second"])
    np.savez(folder / "asked.npz", vectors=asked.vectors, real=asked.real)
    return {"queries": len(asked.vectors)}


# --- building -----------------------------------------------------------------------------------------------------------


def build(folder: Path, rows: int, quick: bool) -> dict[str, Any]:
    """Build the index from the vectors, as ``clearance index build`` does."""
    from index import ann
    from index.store import ReferenceIndex
    from index.vectors import StoredVectors

    shutil.rmtree(folder / "index", ignore_errors=True)
    source = StoredVectors(folder / "vectors.npy", DIM)
    began, wall = time.process_time(), time.monotonic()
    with peak_anonymous() as peak:
        index = ReferenceIndex.build_of_vectors(folder / "index", source, Given(), flat_limit=QUICK_FLAT if quick else None)
    found: dict[str, Any] = {
        "cpu_seconds": time.process_time() - began,
        "seconds": time.monotonic() - wall,
        "peak_anonymous_bytes": peak[0],
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "bytes_on_disk": sum(path.stat().st_size for path in (folder / "index").rglob("*") if path.is_file()),
        "references": len(index),
    }
    if ann.FLAT_LIMIT < rows <= OLD_MOST:
        found["ann_seconds"] = _seconds(lambda: ann.write(vectors_of(folder), folder / "alone.faiss"))
        (folder / "alone.faiss").unlink()
        found["old_seconds"] = _seconds(lambda: _old(vectors_of(folder)))
    return found


def _old(vectors: np.ndarray) -> None:
    """The search structure of commit b9e622e: 8-bit codes, lists trained on everything."""
    import faiss

    index: Any = faiss.index_factory(DIM, f"IVF{int(2 * len(vectors) ** 0.5)},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.spherical = 1234, True
    everything = np.ascontiguousarray(vectors)
    index.train(everything)
    index.add_with_ids(everything, np.arange(len(vectors)))


def pictures(folder: Path, count: int, quick: bool) -> dict[str, Any]:
    """Embedding references: a padded call each, as commit b9e622e did, and full calls, in turns."""
    from PIL import Image

    from index.edits import edit, foregrounds
    from index.embed import OpenCLIPEmbedder, embed_each
    from index.intake import BLOCK
    from index.shipped import STICKERS

    originals = np.stack([np.asarray(Image.open(f).convert("RGB")) for f in sorted((STICKERS / "references").glob("*.png"))])
    inside, rng = foregrounds(originals), np.random.default_rng(0)
    works = [edit(originals[n % len(originals)], inside[n % len(originals)], rng) for n in range(count)]
    embedder = OpenCLIPEmbedder.open("stickers")
    embed_each(embedder, works[:8])
    ratios = []
    for start in range(0, count, BLOCK):
        block = works[start : start + BLOCK]
        one = _seconds(lambda block=block: [embedder.images(work[None]) for work in block])  # type: ignore[misc]
        ratios.append(one / _seconds(lambda block=block: embed_each(embedder, block)))  # type: ignore[misc]
    return {"ratios": ratios}


# --- searching ----------------------------------------------------------------------------------------------------------


def truth(folder: Path, rows: int, quick: bool) -> dict[str, Any]:
    """The nearest of every query by brute force, ranked by exact cosines."""
    import faiss

    vectors, asked = vectors_of(folder), asked_of(folder)
    _, near = faiss.knn(asked.vectors, vectors, KNOWN, metric=faiss.METRIC_INNER_PRODUCT)
    cosines = np.stack([exact(vectors, mine, query) for mine, query in zip(near, asked.vectors, strict=True)])
    order = np.argsort(-cosines, axis=1, kind="stable")
    np.savez(folder / "truth.npz", rows=np.take_along_axis(near, order, 1), cosines=np.take_along_axis(cosines, order, 1))
    return {"queries": len(asked.vectors), "at_risk": int((np.abs(cosines.max(1) - threshold()) < 0.02).sum())}


def exact(vectors: np.ndarray, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Cosines as the index computes them: float64 products of the float32 numbers."""
    return np.asarray(np.sum(vectors[rows].astype(np.float64) * query.astype(np.float64), axis=1))


def search(folder: Path, rows: int, quick: bool) -> dict[str, Any]:
    """Search in a fresh process: its memory, then decisions and speed against brute force."""
    import faiss

    from index.store import ReferenceIndex

    queried = asked_of(folder)
    asked, real = queried.vectors, queried.real
    _warm(folder)
    before = anonymous()
    index = ReferenceIndex.open(folder / "index", Given.embedder_id)
    for start in range(0, min(2048, len(asked)), 64):
        index.search(asked[start : start + 64], K)
    grown = anonymous() - before
    compared = against(index, asked, real, folder)
    vectors = vectors_of(folder)
    flat: dict[int, Callable[[np.ndarray], Any]] = {
        size: lambda block: faiss.knn(block, vectors, K, metric=faiss.METRIC_INNER_PRODUCT) for size in (1, BATCH)
    }
    found: dict[str, Any] = {"anonymous_bytes": max(0, grown), **compared}
    for name, size, ours, theirs in (("batch", BATCH, 8 * BATCH, BATCH), ("single", 1, 256, 8)):
        pace = [
            (
                _pace(lambda block: index.search(block, K), asked, size, ours, turn),
                _pace(flat[size], asked, size, theirs, turn),
            )
            for turn in range(1 if quick else ROUNDS)
        ]
        found[f"{name}_rates"] = [1 / mine for mine, _ in pace]
        found[f"{name}_flat_rates"] = [1 / other for _, other in pace]
        found[f"{name}_ratios"] = [other / mine for mine, other in pace]
        found[f"{name}_seconds"] = float(np.median([mine for mine, _ in pace]))
    return found


def alike(folder: Path, rows: int, quick: bool) -> dict[str, Any]:
    """Works that resemble one another by hundreds: the search held against brute force, and its cost beside that elsewhere."""
    import faiss

    from index import ann

    templated = write_alike(folder / "alike.npy", vectors_of(folder))
    vectors: np.ndarray = np.load(folder / "alike.npy", mmap_mode="r")
    ann.write(vectors, folder / "alike.faiss", flat_limit=QUICK_FLAT if quick else ann.FLAT_LIMIT)
    index = ann.mapped(folder / "alike.faiss")
    asked, others = copies_of(vectors, templated, 200 if quick else 1_000), asked_of(folder).vectors
    _, near = faiss.knn(asked, vectors, KNOWN, metric=faiss.METRIC_INNER_PRODUCT)
    best = pairs = 0
    for query, known, (_, cosines) in zip(asked, near, ann.nearest(index, vectors, asked, K), strict=True):
        wanted = np.sort(exact(vectors, known, query))[::-1][:K]
        best += bool(cosines[0] == wanted[0])
        pairs += int((cosines[:K] == wanted).sum())
    times = []
    for turn in range(1 if quick else ROUNDS):
        mine, usual = (
            _pace(lambda block: ann.nearest(index, vectors, block, K), some, BATCH if len(some) > 2 * BATCH else 64, 512, turn)
            for some in (asked, others)
        )
        times.append(mine / usual)
    for name in ("alike.faiss", "alike.npy"):
        (folder / name).unlink()
    return {"templated": len(templated), "queries": len(asked), "best": best, "pairs": K * len(asked), "pairs_found": pairs,
            "ratios": times}  # fmt: skip


def _warm(folder: Path) -> None:
    """Load what a search loads, on a small index."""
    from index.store import ReferenceIndex
    from index.vectors import StoredVectors

    small = folder / "small"
    if not (small / "index" / "CURRENT").exists():
        shutil.rmtree(small, ignore_errors=True)
        small.mkdir()
        np.save(small / "vectors.npy", np.array(vectors_of(folder)[:400]))
        ReferenceIndex.build_of_vectors(small / "index", StoredVectors(small / "vectors.npy", DIM), Given(), flat_limit=100)
    index = ReferenceIndex.open(small / "index")
    index.search(np.array(vectors_of(folder)[:64]), K)


def against(index: ReferenceIndex, asked: np.ndarray, real: np.ndarray, folder: Path) -> dict[str, int]:
    """Count the decisions that are Flat's, and the pairs over the threshold that the search finds."""
    known = np.load(folder / "truth.npz")
    ids = ids_of(index, known["rows"])
    matches = [match for start in range(0, len(asked), BATCH) for match in index.search(asked[start : start + BATCH], K)]
    return compare(matches, ids, known["cosines"], real)


def compare(matches: Sequence[Sequence[Match]], ids: np.ndarray, cosines: np.ndarray, real: np.ndarray) -> dict[str, int]:
    """Count equal decisions and found pairs.

    A decision is whether the nearest is over the threshold, and if it is, which one that is, and its cosine to the last bit.

    Args:
        matches: what the index answered. ids, cosines: (Q, M) of brute force, best first. real: bool (Q,).
    """
    bar = threshold()
    equal = np.zeros(len(matches), bool)
    found = pairs = 0
    for n, mine in enumerate(matches):
        over = cosines[n] >= bar
        if over[0]:
            equal[n] = bool(mine) and mine[0].similarity == cosines[n, 0] and _named(mine[0].ref_id, ids[n], cosines[n])
        else:
            equal[n] = not mine or mine[0].similarity < bar
        wanted = {ids[n, m] for m in range(K) if over[m]}
        pairs += len(wanted)
        found += len(wanted & {match.ref_id for match in mine})
    return {
        "queries": len(matches), "decisions": int(equal.sum()), "real": int(real.sum()),
        "real_decisions": int(equal[real].sum()), "pairs": pairs, "pairs_found": found,
    }  # fmt: skip


def _named(ref_id: str, ids: np.ndarray, cosines: np.ndarray) -> bool:
    """Whether an id is the nearest one, or ties with it."""
    return ref_id in ids[cosines == cosines[0]]


def ids_of(index: ReferenceIndex, rows: np.ndarray) -> np.ndarray:
    """The ids (Q, M) of the vectors of the source, by their numbers."""
    from index.vectors import _digest

    vectors = vectors_of(index.folder.parent)
    different = np.unique(rows)
    named = np.array([_digest(vectors[row])[:16] for row in different])
    return np.asarray(named[np.searchsorted(different, rows)])


def _pace(search: Callable[[np.ndarray], Any], asked: np.ndarray, size: int, count: int, turn: int) -> float:
    """Processor seconds a query."""
    starts = [(turn * count + at) % max(1, len(asked) - size) for at in range(0, count, size)]
    blocks = [np.ascontiguousarray(asked[start : start + size]) for start in starts]
    return _seconds(lambda: [search(block) for block in blocks]) / sum(len(block) for block in blocks)


def opening(folder: Path, rows: int, quick: bool) -> dict[str, Any]:
    """Opening an index whose large files were checked on this machine."""
    from index.store import ReferenceIndex

    _warm(folder)
    times = []
    for _ in range(2 if quick else 7):
        began = time.perf_counter()
        ReferenceIndex.open(folder / "index", Given.embedder_id)
        times.append(1000 * (time.perf_counter() - began))
    return {"milliseconds": times[1:]}  # the first one may read and check every byte


# --- changing -----------------------------------------------------------------------------------------------------------


def change(folder: Path, rows: int, quick: bool) -> dict[str, Any]:
    """Retire 1,000 references that queries are near to, then add 1,000, on a copy that shares the segments' files."""
    from index.store import ReferenceIndex
    from index.vectors import StoredVectors

    copy = folder / "changed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "index", copy, copy_function=os.link)
    index = ReferenceIndex.open(copy, Given.embedder_id)
    asked, known = asked_of(folder), np.load(folder / "truth.npz")
    ids = ids_of(index, known["rows"])
    targets = list(dict.fromkeys(ids[:, 0].tolist()))
    each = min(CHANGED, len(targets) // (1 if quick else 3))
    wall, cpu, written = [], [], 0
    for turn in range(1 if quick else 3):  # different ones, one after the other
        before = _bytes(copy)
        began, process = time.perf_counter(), time.process_time()
        index.retire(targets[turn * each : (turn + 1) * each], reason="bench")
        wall.append(1000 * (time.perf_counter() - began))
        cpu.append(1000 * (time.process_time() - process))
        written = _bytes(copy) - before
    gone = set(targets[: each * len(wall)])
    wrong, counted = _wrong(index, asked.vectors, ids, known["cosines"], gone)
    fresh = further(rows, 100 if quick else CHANGED)
    np.save(folder / "fresh.npy", fresh)
    before, began = _bytes(copy), time.perf_counter()
    index.add_vectors(StoredVectors(folder / "fresh.npy", DIM), Given())
    seconds = time.perf_counter() - began
    found = [match[0].similarity > 1 - 1e-6 for match in index.search(fresh, 1) if match]
    return {
        "retired": each, "retire_wall_ms": wall, "retire_cpu_ms": cpu, "retire_bytes": written, "wrong": wrong,
        "asked": counted, "add_seconds": seconds, "add_bytes": _bytes(copy) - before, "added": len(fresh),
        "added_found": sum(found),
    }  # fmt: skip


def _wrong(index: ReferenceIndex, asked: np.ndarray, ids: np.ndarray, cosines: np.ndarray, gone: set[str]) -> tuple[int, int]:
    """Answers that name a retired reference, or whose cosine is not that of the id; and how many answers there were."""
    wrong = counted = 0
    for start in range(0, len(asked), BATCH):
        for n, mine in enumerate(index.search(asked[start : start + BATCH], K), start):
            known = dict(zip(ids[n].tolist(), cosines[n].tolist(), strict=True))
            for match in mine:
                counted += 1
                wrong += match.ref_id in gone or known.get(match.ref_id, match.similarity) != match.similarity
    return wrong, counted


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# --- counting -----------------------------------------------------------------------------------------------------------


def _seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Anonymous:"))


@contextmanager
def peak_anonymous() -> Iterator[list[int]]:
    """The most anonymous memory inside the block, above that before it; looked at twenty times a second."""
    most, done = [0], threading.Event()

    def resident() -> int:
        text = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon"))

    before = resident()

    def watch() -> None:
        while not done.wait(0.05):
            most[0] = max(most[0], resident() - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()
