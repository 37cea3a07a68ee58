"""Comparisons with known answers, for calibrating a threshold: labelled by a person, or made from the index itself."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from index.edits import edit, foregrounds
from index.embed import embed_each
from index.errors import InputError
from index.fingerprint import content_digest
from index.picture import UnreadablePicture, read_picture
from index.reference import MATCHING, Match, NewReference
from index.sheet import delimiter_of
from index.store import ReferenceIndex

if TYPE_CHECKING:
    from index.embed import Embedder
    from index.second_look import Look

T = TypeVar("T")
BLOCK = 64  # pictures embedded at a time
ROUNDING = 1e-9  # of a cosine, summed in another order
LARGEST = 512  # side of the copies made of a work
COPY, NEAR_MISS, OTHER = "copy", "near-miss", "other"
LABELS = {
    COPY: "the reference, edited",
    NEAR_MISS: "the same idea in another expression: what must not be called a copy",
    OTHER: "another subject",
}
COLUMNS = ("picture", "reference", "label")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A picture and the reference it is compared with: both uint8 RGB (H, W, 3), of any size; ``label`` of :data:`LABELS`.

    ``cosine`` is filled where it is known already, as it is for pairs made from an index; ``reference`` may then be missing.
    ``of`` names what several pairs are made of: a work, a harmless picture.
    """

    picture: np.ndarray
    reference: np.ndarray | None
    label: str
    cosine: float | None = None
    of: str = ""


@dataclass(frozen=True)
class Measured:
    """What was measured for M pairs.

    Attributes:
        cosine: float64 (M,).
        looks: look → float64 (M,); NaN where the index does not keep a reference's picture: then there is no second look.
        label: M labels.
        of: M names of what the pairs are made of.
    """

    cosine: np.ndarray
    looks: Mapping[str, np.ndarray]
    label: np.ndarray
    of: tuple[str, ...]

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
    try:
        with sheet.open(encoding="utf-8-sig", newline="") as stream:
            sign = delimiter_of(stream.readline())
            stream.seek(0)
            reader = csv.DictReader(stream, delimiter=sign)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise InputError(f"has no column {missing[0]!r}", where=str(sheet), fix=f"Columns are: {', '.join(COLUMNS)}")
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"cannot be read as CSV ({error})", where=str(sheet), fix="Save it as CSV in UTF-8") from None
    pairs = []
    for number, row in enumerate(rows, start=2):
        where = f"{sheet}, line {number}"
        label = (row["label"] or "").strip()
        if label not in LABELS:
            raise InputError(f"unknown label {label!r}", where=where, fix=f"Labels are: {', '.join(LABELS)}")
        named = (row["reference"] or "").strip()
        if not named or not (row["picture"] or "").strip() or None in row:
            what = "has more cells than the header" if None in row else "names no picture, or no reference"
            raise InputError(
                what, where=where, fix=f"Write {', '.join(COLUMNS)} in every line; put quotes round what holds a comma"
            )
        picture = _open(sheet.parent / (row["picture"] or "").strip(), where)
        reference = index.picture(named) if index.get(named) is not None else _open(sheet.parent / named, where)
        if reference is None:
            fix = "Give its file, or keep pictures in the index (keep_picture)"
            raise InputError(f"the index keeps no picture of {named}", where=where, fix=fix)
        pairs.append(Pair(picture=picture, reference=reference, label=label, of=named))
    return pairs


class MadePairs:
    """Pairs made from an index, see :func:`make_pairs`; the attributes are filled while the pairs are made.

    Attributes:
        measured: ids of the references of which copies were made.
        strangers: given works that are not in the index.
    """

    def __init__(
        self, index: ReferenceIndex, embedder: Embedder, harmless: Iterable[NewReference], works: Iterable[NewReference],
        copies: int, seed: int,
    ) -> None:  # fmt: skip
        self._index, self._embedder = index, embedder
        self._harmless, self._works, self._copies, self._seed = harmless, works, copies, seed
        self.measured: dict[str, None] = {}
        self.strangers: list[str] = []

    def __iter__(self) -> Iterator[Pair]:
        rng = np.random.default_rng(self._seed)
        edited = ((ref_id, _edited(picture, rng, self._copies)) for ref_id, picture in self._pictures())
        for block in _blocks(edited, max(1, BLOCK // self._copies)):
            yield from self._copies_of(block)
        if not self.measured:
            if self.strangers:
                what, fix = "none of the works are in the index", "Name the works that it was built from: --works FOLDER"
            else:
                what = "keeps no pictures, so no copies can be made of them"
                fix = "Name the works that it was built from (--works FOLDER), or give labelled pairs (--pairs)"
            raise InputError(what, where="index", fix=fix)
        versions = (version for work in self._harmless for version in self._versions(work, rng))
        for pictures in _blocks(versions, BLOCK):
            found = self._index.search(embed_each(self._embedder, pictures), 1)
            for picture, matches in zip(pictures, found, strict=True):
                for match in matches:
                    yield self._pair(picture, match.ref_id, NEAR_MISS, match.similarity, match.ref_id)

    def _pictures(self) -> Iterator[tuple[str, np.ndarray]]:
        """The references with a picture: kept by the index, or among the works."""
        for ref_id in self._index.ids():
            if (kept := self._index.picture(ref_id)) is not None:
                self.measured[ref_id] = None
                yield ref_id, kept
        for work in self._works:
            ref_id = content_digest(work.picture)[:16]
            if self._index.get(ref_id) is None:
                self.strangers.append(work.place)
            elif ref_id not in self.measured:
                self.measured[ref_id] = None
                yield ref_id, work.picture

    def _copies_of(self, block: Sequence[tuple[str, list[np.ndarray]]]) -> Iterator[Pair]:
        vectors = embed_each(self._embedder, [copy for _, edited in block for copy in edited])
        found = iter(zip(vectors, self._index.search(vectors, 2), strict=True))
        for ref_id, edited in block:
            own, kept = self._index.embedding(ref_id).astype(np.float64), self._index.picture(ref_id)
            for copy, (vector, matches) in zip(edited, found, strict=False):
                cosine = float(vector.astype(np.float64) @ own)
                if self._missed(ref_id, cosine, matches):  # a run sees what was found instead
                    yield self._pair(copy, matches[0].ref_id, COPY, matches[0].similarity, ref_id)
                else:
                    yield Pair(picture=copy, reference=kept, label=COPY, cosine=cosine, of=ref_id)
                for match in [m for m in matches if m.ref_id != ref_id][:1]:
                    yield self._pair(copy, match.ref_id, OTHER, match.similarity, ref_id)

    def _missed(self, ref_id: str, cosine: float, matches: Sequence[Match]) -> bool:
        """Whether the search should have found a reference at this cosine and did not: beyond 20,000 it may miss one."""
        if not matches or any(match.ref_id == ref_id for match in matches) or cosine <= matches[-1].similarity + ROUNDING:
            return False
        return self._index.reference(ref_id).status in MATCHING

    def _pair(self, picture: np.ndarray, ref_id: str, label: str, cosine: float, of: str) -> Pair:
        return Pair(picture=picture, reference=self._index.picture(ref_id), label=label, cosine=cosine, of=of)

    def _versions(self, work: NewReference, rng: np.random.Generator) -> list[np.ndarray]:
        ref_id = content_digest(work.picture)[:16]
        same = self._index.get(ref_id)
        if same is not None and same.status in MATCHING:
            what = f"is reference {ref_id} itself ({same.title}), so it is not a harmless picture"
            raise InputError(what, where=work.place, fix="Take it out of the harmless pictures, or set the reference's status")
        return [work.picture, *_edited(work.picture, rng, 1)]


def make_pairs(
    index: ReferenceIndex,
    embedder: Embedder,
    harmless: Iterable[NewReference] = (),
    *,
    works: Iterable[NewReference] = (),
    copies: int = 4,
    seed: int = 0,
) -> MadePairs:
    """Make pairs from the index itself: no labelling, a first threshold for a new embedder.

    Copies are edited copies of every reference whose picture the index keeps or whose work is given again. Near misses are
    harmless pictures (which the caller knows to be no copies) against the reference nearest to each, as given and edited.
    "Other" are the edited copies against the nearest *other* reference: how near two of the works come to each other. A copy
    whose work the search misses is compared with what it finds, so that the recall contains such misses. Where the index keeps
    no picture there is no second look, as in a run.

    Raises (while it is gone through):
        InputError: no reference has a picture, or a harmless picture is a reference.
    """
    return MadePairs(index, embedder, harmless, works, copies, seed)


def measure(pairs: Iterable[Pair], embedder: Embedder, looks: Mapping[str, Look]) -> Measured:
    """Compare every pair by the embedder's cosine and by second looks, name → (picture, reference) → [0, 1]."""
    cosines: list[float] = []
    seen: dict[str, list[float]] = {name: [] for name in looks}
    labels: list[str] = []
    of: list[str] = []
    for block in _blocks(pairs, BLOCK // 2):
        unknown = [pair for pair in block if pair.cosine is None]
        both = [picture for pair in unknown for picture in (pair.picture, pair.reference) if picture is not None]
        vectors = iter(embed_each(embedder, both).astype(np.float64) if both else ())
        for pair in block:
            cosines.append(float(next(vectors) @ next(vectors)) if pair.cosine is None else pair.cosine)
            for name, look in looks.items():
                seen[name].append(np.nan if pair.reference is None else float(look(pair.picture, pair.reference)))
            labels.append(pair.label)
            of.append(pair.of or f"pair {len(of)}")
    scores = {name: np.array(found, np.float64) for name, found in seen.items()}
    return Measured(np.array(cosines, np.float64), scores, np.array(labels), tuple(of))


def _edited(picture: np.ndarray, rng: np.random.Generator, copies: int) -> list[np.ndarray]:
    """Edited copies, at most as large as what a generator draws."""
    import cv2

    factor = LARGEST / max(picture.shape[:2])
    if factor < 1:
        size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    inside = foregrounds(picture[None])[0]
    return [edit(picture, inside, rng) for _ in range(copies)]


def _blocks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    stream = iter(items)
    while block := list(islice(stream, size)):
        yield block


def _open(path: Path, where: str) -> np.ndarray:
    try:
        return read_picture(path)
    except UnreadablePicture as error:
        raise InputError(f"{path} {error.what}", where=where, fix="Name a picture file, relative to the sheet") from None
