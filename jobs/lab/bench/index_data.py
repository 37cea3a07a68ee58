"""What ``bench index`` searches and looks up: made-up vectors in clusters, and real embeddings of edited drawings among them.

The threshold is that of the calibration that ships. Most queries are near-copies whose cosine lies within a few hundredths of
it, on both sides, so that a candidate that the search misses, or a rounded cosine, changes a decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

DIM = 512
SEED = 20_261_128
BLOCK = 16_384  # vectors made at a time
PER_CLUSTER = 40
EDITED = 20  # edited versions of every drawing among the references
ASKED = 32  # other edited versions of every drawing among the queries
ALIKE = ((300, 0.95), (1_000, 0.95), (2_000, 0.9))  # works of one template: how many, and how much of each is the template
NEAR = 0.08  # of the threshold, on both sides: cosine of a near-copy


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Queries.

    Attributes:
        vectors: float32 (Q, DIM), unit length.
        real: bool (Q,): an embedding of an edited drawing; the others are made up.
    """

    vectors: np.ndarray
    real: np.ndarray


def threshold() -> float:
    """The copy threshold of the calibration that ships."""
    from index.calibrate import Calibration
    from index.shipped import STICKERS

    return Calibration.load(STICKERS / "calibration.json").threshold


def write_references(path: Path, rows: int, real: np.ndarray) -> None:
    """Write float32 (rows, DIM) as ``.npy``: real embeddings spread among made-up ones; a block is in memory at a time."""
    real = real[: rows // 2]
    places = np.sort(np.random.default_rng(SEED).choice(rows, len(real), replace=False))
    out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, DIM))
    for start in range(0, rows, BLOCK):
        block = _members(rows, start, min(BLOCK, rows - start))
        inside = (places >= start) & (places < start + len(block))
        block[places[inside] - start] = real[inside]
        out[start : start + len(block)] = block
    out.flush()


def queries(references: np.ndarray, made_up: int, real: np.ndarray) -> Asked:
    """Queries about references float32 (N, DIM).

    Of the made-up ones six in ten lie within :data:`NEAR` of the threshold from a reference, two in ten are closer copies, and
    two in ten are further members of the clusters: near misses.
    """
    rng = np.random.default_rng([SEED, len(references), made_up])
    copies = made_up * 8 // 10
    at_risk = made_up * 6 // 10
    of = np.sort(rng.choice(len(references), copies, replace=copies > len(references)))
    cosine = rng.permutation(
        np.concatenate([
            rng.uniform(threshold() - NEAR, threshold() + NEAR, at_risk), rng.uniform(0.85, 0.99, copies - at_risk)
        ])
    )  # fmt: skip
    source = np.asarray(references[of], np.float32)
    noise = rng.normal(size=(copies, DIM)).astype(np.float32)
    noise[: copies // 2] *= spectrum()  # half of them depart as members of a cluster do, half in any direction
    noise -= np.sum(noise * source, axis=1, keepdims=True) * source
    near = cosine[:, None] * source + np.sqrt(1 - cosine[:, None] ** 2) * _unit(noise)
    misses = _members(len(references), len(references), made_up - copies)
    vectors = np.concatenate([_unit(near.astype(np.float32)), misses, real])
    return Asked(vectors=vectors, real=np.arange(len(vectors)) >= made_up)


def write_alike(path: Path, references: np.ndarray) -> np.ndarray:
    """Write the references float32 (N, DIM) again, with works of a few templates in place of the first ones.

    Returns:
        int64 (A,): the rows of these works. A template that would take more than half of the references is left out.
    """
    out = np.lib.format.open_memmap(path, "w+", np.float32, references.shape)
    for start in range(0, len(references), BLOCK):
        out[start : start + BLOCK] = references[start : start + BLOCK]
    rng, taken = np.random.default_rng([SEED, len(references), 1]), 0
    for count, share in ALIKE:
        if taken + count <= len(references) // 2:
            template, own = (_unit(rng.normal(size=(n, DIM)) * spectrum()) for n in (1, count))
            out[taken : taken + count] = _unit(share * template + np.sqrt(1 - share**2) * own)
            taken += count
    out.flush()
    return np.arange(taken)


def copies_of(vectors: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Queries float32 (count, DIM): copies of some of these rows, half of them verbatim, half at a cosine of 0.85 to 0.99."""
    rng = np.random.default_rng([SEED, len(vectors), 2])
    source = np.asarray(vectors[np.sort(rng.choice(rows, count))], np.float32)
    cosine = np.where(np.arange(count) % 2, rng.uniform(0.85, 0.99, count), 1.0)[:, None]
    noise = rng.normal(size=(count, DIM))
    noise -= np.sum(noise * source, axis=1, keepdims=True) * source
    return _unit(cosine * source + np.sqrt(1 - cosine**2) * _unit(noise))


def further(rows: int, count: int) -> np.ndarray:
    """Further members of the clusters, float32 (count, DIM), that stand neither among the references nor among the queries."""
    return _members(rows, 2 * rows, count)


def spectrum() -> np.ndarray:
    """Standard deviations float32 (DIM,) of the coordinates: they fall off, as those of embeddings do."""
    shape = (np.arange(DIM) + 8.0) ** -0.5
    return np.asarray(shape / np.linalg.norm(shape), np.float32)


def _members(rows: int, start: int, count: int) -> np.ndarray:
    """Members of clusters float32 (count, DIM): some clusters are large and some small, some tight and some wide."""
    rng = np.random.default_rng([SEED, rows, start])
    centres, shares = _clusters(rows)
    at = (len(centres) * rng.random(count) ** 1.5).astype(np.int64)
    share = shares[at][:, None]
    noise = _unit(rng.normal(size=(count, DIM)).astype(np.float32) * spectrum())
    return _unit(share * centres[at] + np.sqrt(1 - share**2) * noise)


@lru_cache(maxsize=1)
def _clusters(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres float32 (C, DIM) of the clusters, and how much of a member is its centre, float32 (C,)."""
    rng = np.random.default_rng([SEED, rows])
    clusters = max(1, rows // PER_CLUSTER)
    centres = np.empty((clusters, DIM), np.float32)
    for start in range(0, clusters, BLOCK):
        part = centres[start : start + BLOCK]
        part[:] = _unit(rng.normal(size=part.shape).astype(np.float32) * spectrum())
    return centres, rng.uniform(0.5, 0.95, clusters).astype(np.float32)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length, float32, rounded once."""
    wide = vectors.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True), np.float32)


def drawings() -> tuple[np.ndarray, np.ndarray]:
    """Real embeddings float32 (N, DIM): the drawings that ship and edited versions of them; further edited versions to look up.

    The shipped embedder has 128 dimensions; a fixed rotation places them in :data:`DIM`, which changes no cosine.
    """
    from PIL import Image

    from index.edits import edit, foregrounds
    from index.embed import OpenCLIPEmbedder, embed_each
    from index.shipped import STICKERS

    files = sorted((STICKERS / "references").glob("*.png"))
    originals = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    inside = foregrounds(originals)
    rng = np.random.default_rng(SEED)
    edits = [edit(originals[n], inside[n], rng) for n in range(len(originals)) for _ in range(EDITED + ASKED)]
    vectors = embed_each(OpenCLIPEmbedder.open("stickers"), [*originals, *edits])
    rotation, _ = np.linalg.qr(np.random.default_rng(SEED).normal(size=(DIM, DIM)))
    placed = _unit(vectors.astype(np.float64) @ rotation[: vectors.shape[1]])
    first, rest = placed[: len(originals)], placed[len(originals) :].reshape(len(originals), EDITED + ASKED, DIM)
    return np.concatenate([first, rest[:, :EDITED].reshape(-1, DIM)]), rest[:, EDITED:].reshape(-1, DIM)
