"""Comparisons with known answers, for calibrating a threshold: labelled by people, or made from the index itself."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from index.collect import read_picture
from index.errors import InputError
from index.reference import NewReference
from index.store import ReferenceIndex

if TYPE_CHECKING:
    from index.embed import Embedder

COPY, NEAR_MISS, OTHER = "copy", "near-miss", "other"
LABELS = {
    COPY: "the reference, edited",
    NEAR_MISS: "the same idea in another expression: what must not be called a copy",
    OTHER: "another subject",
}
COLUMNS = ("picture", "reference", "label")


@dataclass(frozen=True)
class Pair:
    """A picture and the reference it is compared with: both uint8 RGB (H, W, 3), of any size; ``label`` of :data:`LABELS`.

    ``cosine`` is filled where it is known already, as it is for pairs made from an index; ``reference`` may then be missing.
    """

    picture: np.ndarray
    reference: np.ndarray | None
    label: str
    cosine: float | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured for M pairs.

    Attributes:
        cosine: float64 (M,).
        confirm: float64 (M,), the second look; 0 where a reference's picture is not kept.
        label: M labels.
    """

    cosine: np.ndarray
    confirm: np.ndarray
    label: np.ndarray

    @property
    def copy(self) -> np.ndarray:
        """bool (M,): which pairs are copies."""
        return np.asarray(self.label == COPY, bool)


def read_pairs(sheet: Path, index: ReferenceIndex) -> list[Pair]:
    """Read labelled pairs from a CSV file with the columns picture, reference and label.

    Args:
        sheet: ``picture`` is a file (relative to the sheet); ``reference`` is a file or a ref_id of the index; ``label``
            is copy, near-miss or other.
        index: where ref_ids are looked up.

    Raises:
        InputError: no such file, a missing column, an unknown label, an unreadable picture, a reference without picture.
    """
    if not sheet.is_file():
        raise InputError("does not exist", where=str(sheet), fix=f"Name a CSV file with the columns {', '.join(COLUMNS)}")
    with sheet.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise InputError(f"has no column {missing[0]!r}", where=str(sheet), fix=f"Columns are: {', '.join(COLUMNS)}")
        rows = list(reader)
    known = {reference.ref_id for reference in index.references()}
    pairs = []
    for number, row in enumerate(rows, start=2):
        where = f"{sheet}, line {number}"
        label = (row["label"] or "").strip()
        if label not in LABELS:
            raise InputError(f"unknown label {label!r}", where=where, fix=f"Labels are: {', '.join(LABELS)}")
        named = (row["reference"] or "").strip()
        picture = _open(sheet.parent / (row["picture"] or "").strip(), where)
        reference = index.picture(named) if named in known else _open(sheet.parent / named, where)
        if reference is None:
            fix = "Give its file, or keep pictures in the index (keep_picture)"
            raise InputError(f"the index keeps no picture of {named}", where=where, fix=fix)
        pairs.append(Pair(picture, reference, label))
    return pairs


def make_pairs(
    index: ReferenceIndex, embedder: Embedder, harmless: Iterable[NewReference] = (), *, copies: int = 4, seed: int = 0
) -> Iterator[Pair]:
    """Make pairs from the index itself: no labelling, a first threshold for a new embedder.

    Copies are edited copies of every reference whose picture is kept. Near misses are harmless pictures (which the
    caller knows to be no copies) against the reference nearest to each, as given and edited. "Other" are the edited
    copies against the nearest *other* reference: how near two of the works come to each other.

    Raises:
        InputError: no reference has a picture.
    """
    from index.edits import edit, foregrounds

    rng = np.random.default_rng(seed)
    works = sorted(index.references(), key=lambda reference: reference.ref_id)
    kept = [(r.ref_id, picture) for r in works if (picture := index.picture(r.ref_id)) is not None]
    if not kept:
        fix = "Give labelled pairs (--pairs), or build the index with keep_picture"
        raise InputError("keeps no pictures, so no copies can be made of them", where="index", fix=fix)
    for ref_id, picture in kept:
        inside = foregrounds(picture[None])[0]
        edited = np.stack([edit(picture, inside, rng) for _ in range(copies)])
        vectors = embedder.images(edited)
        own = index.embedding(ref_id).astype(np.float64)
        for copy, vector, matches in zip(edited, vectors, index.search(vectors, 2), strict=True):
            yield Pair(copy, picture, COPY, float(vector.astype(np.float64) @ own))
            for match in [m for m in matches if m.ref_id != ref_id][:1]:
                yield Pair(copy, index.picture(match.ref_id), OTHER, match.similarity)
    for work in harmless:
        versions = np.stack([work.picture, edit(work.picture, foregrounds(work.picture[None])[0], rng)])
        for version, matches in zip(versions, index.search(embedder.images(versions), 1), strict=True):
            for match in matches:
                yield Pair(version, index.picture(match.ref_id), NEAR_MISS, match.similarity)


def measure(pairs: Iterable[Pair], embedder: Embedder, confirm: Callable[[np.ndarray, np.ndarray], float]) -> Measured:
    """Compare every pair twice: by the embedder's cosine and by the second look, (picture, reference) → [0, 1]."""
    cosines, looks, labels = [], [], []
    for pair in pairs:
        if pair.cosine is None:
            assert pair.reference is not None
            a, b = (embedder.images(x[None]).astype(np.float64)[0] for x in (pair.picture, pair.reference))
            cosines.append(float(a @ b))
        else:
            cosines.append(pair.cosine)
        looks.append(0.0 if pair.reference is None else float(confirm(pair.picture, pair.reference)))
        labels.append(pair.label)
    return Measured(np.array(cosines, np.float64), np.array(looks, np.float64), np.array(labels))


def _open(path: Path, where: str) -> np.ndarray:
    try:
        return read_picture(path)
    except (OSError, ValueError, SyntaxError) as error:
        what = f"{path} cannot be read ({type(error).__name__})"
        raise InputError(what, where=where, fix="Name a picture file, relative to the sheet") from None
