"""Look at a run again: screen its stored embeddings, then let the copies guard decide on the pictures that came near.

Nothing is drawn. The guard is the one that runs have, with the same operating point, so that a picture gets the findings that
it would get today. Where the marks or a label changed a picture after the guards saw it, the stored embedding stands for the
picture that they saw, and the bars lie lower by what float16 may have moved it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from guards.base import Finding
from guards.copies import HARMLESS, MEMORISED, PROBE, PROTECTED, CopiesGuard, Examination
from index.chosen import ChosenReferences, IndexWithout
from index.errors import ClearanceError
from index.near import ROUNDING, Views, near
from index.reference import Match
from pipeline.audit.committed_files import CommittedFiles
from pipeline.audit.pictures import COLUMNS, GONE, Shown, pictures_of
from pipeline.audit.requests import Opener, Row
from pipeline.audit.state import state_of
from pipeline.audit.stored import Embeddings, chosen_rows, embeddings, samples_of

if TYPE_CHECKING:
    from index.calibrate import OperatingPoint
    from index.embed import Embedder
    from index.store import ReferenceIndex
    from pipeline.policy import CopiesPolicy

AT_ONCE = 32  # pictures in memory
MOST_VIEWED = 10_000  # references that are embedded in all their colours for one re-audit
References = Union["ReferenceIndex", ChosenReferences, IndexWithout]
ROW_COLUMNS = (*COLUMNS, "request_key", "findings", "nearest")
PICTURE, EMBEDDING = "picture", "embedding"


@dataclass(frozen=True, kw_only=True, eq=False)
class Standard:
    """What a run is held against.

    Attributes:
        references: the whole index, or a claim's references. embedder: theirs.
        point: the guard's operating point. k: references it keeps. hues: parts of the circle of hues. edits: that it undoes.
        views: what stored embeddings are compared with; None: the index's own search proposes, without other colours.
        every_picture: look at every picture, whatever its embedding is near to.
    """

    references: References
    embedder: Embedder
    point: OperatingPoint
    k: int
    hues: int
    views: Views | None
    edits: tuple[str, ...] = ()
    every_picture: bool = False
    _guards: dict[tuple[bool, bool], CopiesGuard] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls,
        references: References,
        embedder: Embedder,
        *,
        point: OperatingPoint,
        k: int,
        hues: int,
        edits: tuple[str, ...] = (),
        every_picture: bool = False,
    ) -> Standard:
        """An index, with the k that runs have; or chosen references, of which none is crowded out by others that are nearer."""
        views = None
        if isinstance(references, ChosenReferences):
            k = max(1, len(references))
            ids, vectors = references.ref_ids, references.vectors
            views = Views.of(ids, vectors, references.picture, embedder, point=point, hues=hues)
        elif not every_picture and _index_of(references).matching <= MOST_VIEWED:
            index = _index_of(references)
            ids = [ref_id for ref_id in index.ids() if index.reference(ref_id).status not in HARMLESS]
            zero = np.zeros((0, index.dim), np.float32)
            vectors = np.stack([index.embedding(ref_id) for ref_id in ids]) if ids else zero
            views = Views.of(ids, vectors, index.picture, embedder, point=point, hues=hues)
        return cls(
            references=references, embedder=embedder, point=point, k=k, hues=hues, views=views, edits=edits,
            every_picture=every_picture,
        )  # fmt: skip

    def candidates(self, vectors: np.ndarray) -> dict[int, bool]:
        """Rows of stored embeddings float16 (N, D) that deserve a look, and whether for their colours as well."""
        if self.views is not None:
            rows, views, _ = near(vectors, self.views)
            return dict.fromkeys(rows.tolist(), False) | dict.fromkeys(rows[self.views.turned[views]].tolist(), True)
        bar = min(self.point.threshold, self.point.look_from) - ROUNDING
        found = self.references.search(vectors.astype(np.float32), 1)
        return {row: False for row, matches in enumerate(found) if matches and matches[0].similarity >= bar}

    @property
    def unkept(self) -> bool:
        """Whether the index keeps no picture of some references, so that nothing is turned, confirmed or cleared by them."""
        if isinstance(self.references, ChosenReferences):
            return any(self.references.picture(ref_id) is None for ref_id in self.references.ref_ids)
        index = _index_of(self.references)
        return index.kept < len(index)

    def guard(self, *, colours: bool, rounded: bool) -> CopiesGuard:
        """The guard: with the search for other colours or without it, its bars lower by the rounding or not. Made once."""
        if (colours, rounded) not in self._guards:
            point = self.point
            if rounded:
                look_from = min(point.look_from, point.threshold) - ROUNDING
                point = replace(point, threshold=point.threshold - ROUNDING, look_from=look_from)
            index: ReferenceIndex = self.references  # type: ignore[assignment]  # chosen ones answer what the guard asks
            hues = self.hues if colours else 1
            guard = CopiesGuard(index, self.embedder, point=point, k=self.k, hues=hues, edits=self.edits)
            self._guards[colours, rounded] = guard
        return self._guards[colours, rounded]


class Standards:
    """What runs are held against: a standard for each operating point and settings of the copies guard, made once."""

    def __init__(self, references: References, embedder: Embedder, *, every_picture: bool) -> None:
        self.references, self.embedder, self.every_picture = references, embedder, every_picture
        self._made: dict[tuple[Any, ...], Standard] = {}

    def of(self, point: OperatingPoint, copies: CopiesPolicy) -> Standard:
        """The standard of runs with that operating point and those settings."""
        key = (point, copies.k, copies.hues, copies.edits)
        if key not in self._made:
            self._made[key] = Standard.of(
                self.references, self.embedder, point=point, k=copies.k, hues=copies.hues, edits=copies.edits,
                every_picture=self.every_picture,
            )  # fmt: skip
        return self._made[key]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A sample that deserved a look, and what was seen.

    Attributes:
        sample_id, request_key: the sample. born: its outcome in the row.
        by: what was looked at, ``picture`` or ``embedding`` (where no picture is kept, so that nothing could clear it).
        findings: of the copies guard. nearest: references near it, best first.
        row: findings and nearest references in its row, as they were born.
    """

    sample_id: str
    request_key: str
    born: str
    by: str
    findings: tuple[Finding, ...]
    nearest: tuple[Match, ...]
    row: Mapping[str, list[Row]] = field(repr=False, default_factory=dict)

    @property
    def hits(self) -> list[Finding]:
        """The findings that reach their threshold, the worst first."""
        return sorted(
            (f for f in self.findings if f.triggered), key=lambda f: (f.confirmed, f.score - f.threshold), reverse=True
        )

    def match(self, ref_id: str) -> Match | None:
        """What is known of it and one reference."""
        return next((match for match in self.nearest if match.ref_id == ref_id), None)


@dataclass(kw_only=True)
class Looked:
    """What came of looking at a run.

    Attributes:
        compared: samples whose embedding, or picture, was compared.
        seen: those that deserved a look.
        cleared: of those, how many the embedder finds near and the second look cleared.
        unreached: what could not be looked at: (sample id or file, why).
        missing: of each sample among them, the columns without which it could not be looked at.
        lasting: the samples among them of which events say that all of this was erased on purpose: nothing will ever reach
            them.
    """

    compared: int = 0
    seen: list[Seen] = field(default_factory=list)
    cleared: int = 0
    unreached: list[tuple[str, str]] = field(default_factory=list)
    missing: dict[str, frozenset[str]] = field(default_factory=dict)
    lasting: set[str] = field(default_factory=set)

    @property
    def hits(self) -> list[Seen]:
        return [one for one in self.seen if one.hits]


class _Lack(StrEnum):
    """Why a sample has no embedding to compare, as receipts say it."""

    ERASED = "its embedding was erased"
    CHANGED = "its embedding is not the one that was committed"
    NEVER_MADE = "it has no embedding"


@dataclass(kw_only=True)
class _Candidate:
    """A sample to look at: its stored embedding, or why there is none, and whether its colours may be others."""

    sample_id: str
    vector: np.ndarray | None = None
    colours: bool = False
    lack: _Lack | None = None


def _index_of(references: References) -> ReferenceIndex:
    return references.index if isinstance(references, IndexWithout) else references  # type: ignore[return-value]


Wanted = Callable[[str, str], bool]
# Samples compared by their embeddings; of those near enough to be looked at in full, how many were, and how many there are.
Progress = Callable[[int, int, int], None]


def look(
    folder: Path,
    standard: Standard,
    *,
    wanted: Wanted = lambda sample_id, outcome: True,
    own: Mapping[str, Sequence[str]] | None = None,
    only: Collection[str] | None = None,
    fully: Collection[str] = (),
    progress: Progress = lambda compared, looked, near: None,
    files: CommittedFiles | None = None,
) -> Looked:
    """Look at a run again.

    Rows are read from files that are those that were committed. A picture that was kept apart, or a small one, is held against
    the digest in its sample's row alone: its file may be damaged elsewhere, and the picture is looked at all the same. One that
    is gone from there, and that no event names as erased, is not reached.

    Args:
        folder: the run folder.
        standard: what it is held against.
        wanted: whether a sample matters: its id and its outcome in the row.
        own: sample id → the references that it was steered away from, which always get the second look.
        only: when given, these samples are looked at in full, and no others.
        fully: these are looked at in full, whatever their embedding is near to.
        progress: called while samples are compared, and after every block of pictures; see :data:`Progress`.
        files: the run's data files, as they were committed; asked for here where they are not given.

    Returns:
        What was seen. A file that cannot be read, or is not the one that was committed, is among what was not reached.

    Raises:
        IntegrityError: the run's events, statement or index of parts was changed.
    """
    found, own = Looked(), own or {}
    opener = (files or CommittedFiles.of(folder)).open
    chooser = _Chooser(standard, own, only, frozenset(fully))
    candidates = _screen(folder, opener, chooser, found, wanted, progress)
    near, done = sum(map(len, candidates.values())), 0
    progress(found.compared, done, near)
    for path, rows in candidates.items():
        looker = _Looker(folder=folder, opener=opener, standard=standard, own=own, found=found)
        try:
            for looked in looker.look_at(path, rows):
                done += looked
                progress(found.compared, done, near)
        except ClearanceError as error:
            found.unreached.append((_file_of(error, folder) or path, error.what))
    found.unreached.sort()
    if found.unreached:
        state = state_of(folder)
        found.lasting = {sample_id for sample_id, missing in found.missing.items() if missing <= state.of(sample_id).erased}
        found.unreached = [(where, _gone(why, state.of(where).erased)) for where, why in found.unreached]
    return found


def _file_of(error: ClearanceError, folder: Path) -> str:
    """The file that an error is about, as the run names it."""
    return error.where.removeprefix(f"{folder}/")


def _gone(why: str, erased: Collection[str]) -> str:
    """Why a sample was not looked at. A picture that was kept apart is gone from a file that nobody has hashed."""
    return why if "image" in erased else why.replace(GONE, "its picture is gone, and no event names it as erased")


@dataclass(frozen=True)
class _Chooser:
    """Which samples of a batch deserve a look."""

    standard: Standard
    own: Mapping[str, Sequence[str]]
    only: Collection[str] | None
    fully: Collection[str]

    def choose(self, batch: Embeddings) -> dict[int, _Candidate]:
        """By row of the file."""
        if self.only is not None or self.standard.every_picture:
            ids = batch.ids.to_pylist()
            chosen = {n: True for n, one in enumerate(ids) if self.only is None or one in self.only}
        else:
            chosen = self.standard.candidates(batch.vectors)
            for n, one in enumerate(batch.ids.to_pylist()) if self.own or self.fully else ():
                if one in self.fully:
                    chosen[n] = True
                elif one in self.own:
                    chosen.setdefault(n, False)
        return {
            int(batch.rows[n]): _Candidate(sample_id=batch.ids[n].as_py(), vector=batch.vectors[n].copy(), colours=colours)
            for n, colours in chosen.items()
        }

    def concerns(self, sample_id: str) -> bool:
        return self.only is None or sample_id in self.only


def _screen(
    folder: Path, opener: Opener, chooser: _Chooser, found: Looked, wanted: Wanted, progress: Progress
) -> dict[str, dict[int, _Candidate]]:
    """The samples that deserve a look, by file and row."""
    candidates: dict[str, dict[int, _Candidate]] = {}
    damaged: list[ClearanceError] = []
    lost: dict[str, _Lack] = {}
    for batch in embeddings(folder, int(chooser.standard.embedder.dim), damaged=damaged, opener=opener):
        mine = chooser.choose(batch)
        candidates.setdefault(batch.path, {}).update(mine)
        found.compared += len(batch.rows) if chooser.only is None else len(mine)
        without = dict.fromkeys(batch.erased, _Lack.ERASED) | dict.fromkeys(batch.changed, _Lack.CHANGED)
        without |= {sample_id: _Lack.NEVER_MADE for sample_id, outcome in batch.absent if outcome != "error"}
        lost |= {sample_id: lack for sample_id, lack in without.items() if chooser.concerns(sample_id)}
        progress(found.compared, 0, 0)
    found.unreached += [(_file_of(error, folder), error.what) for error in damaged]
    _without_embedding(folder, opener, lost, candidates)
    return {path: kept for path, rows in candidates.items() if (kept := _of_those(folder, opener, path, rows, wanted))}


def _without_embedding(
    folder: Path, opener: Opener, lost: Mapping[str, _Lack], candidates: dict[str, dict[int, _Candidate]]
) -> None:
    """Samples without a usable embedding are looked at in any case, if there is a picture."""
    for part in samples_of(folder, damaged=[], opener=opener) if lost else ():
        for row, sample_id in enumerate(part.ids):
            if sample_id in lost:
                candidate = _Candidate(sample_id=sample_id, colours=True, lack=lost[sample_id])
                candidates.setdefault(part.path, {})[row] = candidate


def _of_those(folder: Path, opener: Opener, path: str, rows: dict[int, _Candidate], wanted: Wanted) -> dict[int, _Candidate]:
    if not rows:
        return {}
    try:
        read = chosen_rows(folder, path, rows, ["outcome"], opener=opener)
        outcomes = {row: str(one["outcome"]) for row, one in read}
    except ClearanceError:  # it is met again, and named, where the pictures are read
        return rows
    return {row: one for row, one in rows.items() if wanted(one.sample_id, outcomes[row])}


@dataclass(frozen=True, kw_only=True)
class _Looker:
    """Looks at the pictures of one run, and notes what it sees."""

    folder: Path
    opener: Opener
    standard: Standard
    own: Mapping[str, Sequence[str]]
    found: Looked

    def look_at(self, path: str, rows: Mapping[int, _Candidate]) -> Iterator[int]:
        """The candidates of one file, a block of pictures at a time; the number of each block, once it was looked at."""
        read = chosen_rows(self.folder, path, rows, ROW_COLUMNS, opener=self.opener)
        while block := dict(islice(read, AT_ONCE)):
            self._block([(rows[number], row) for number, row in block.items()], pictures_of(self.folder, path, block))
            yield len(block)

    def _block(self, block: Sequence[tuple[_Candidate, Row]], pictures: Mapping[str, Shown]) -> None:
        groups: dict[tuple[tuple[int, ...], bool, bool], list[tuple[_Candidate, Row, np.ndarray]]] = {}
        for candidate, row in block:
            shown = pictures[candidate.sample_id]
            if shown.picture is None:
                self._by_embedding(candidate, row, shown.why)
                continue
            rounded = not shown.exact and candidate.vector is not None
            kind = (shown.picture.shape, candidate.colours, rounded)
            groups.setdefault(kind, []).append((candidate, row, shown.picture))
        for (_, colours, rounded), those in groups.items():
            guard = self.standard.guard(colours=colours, rounded=rounded)
            vectors = [one.vector for one, _, _ in those if one.vector is not None]
            known = np.stack(vectors).astype(np.float32) if rounded else None
            own = [self.own.get(one.sample_id, ()) for one, _, _ in those]
            looks = guard.examine(np.stack([picture for _, _, picture in those]), own, embeddings=known)
            for (candidate, row, _), examined in zip(those, looks, strict=True):
                self._note(candidate, row, examined)

    def _note(self, candidate: _Candidate, row: Row, examined: Examination) -> None:
        seen = _seen(candidate, row, PICTURE, examined.findings, examined.nearest)
        bar = self.standard.point.threshold
        near_one = any(match.similarity >= bar and match.status not in HARMLESS for match in examined.nearest)
        self.found.cleared += near_one and not seen.hits
        self.found.seen.append(seen)

    def _by_embedding(self, candidate: _Candidate, row: Row, why: str) -> None:
        """Without a picture: what the embedder finds too near is a hit, for nothing can clear it; the rest is unknown."""
        standard, bar = self.standard, self.standard.point.threshold - ROUNDING
        matches: list[Match] = []
        if candidate.vector is not None:
            found = standard.references.search(candidate.vector.astype(np.float32)[None], standard.k)[0]
            matches = [match for match in found if match.status not in HARMLESS]
        if matches and matches[0].similarity >= bar:
            best = matches[0]
            finding = Finding(
                guard=CopiesGuard.name, version=standard.guard(colours=False, rounded=False).version,
                category=MEMORISED if best.rights_basis == PROBE else PROTECTED,
                score=best.similarity, threshold=bar, ref_id=best.ref_id, detail=best.title,
            )  # fmt: skip
            self.found.seen.append(_seen(candidate, row, EMBEDDING, (finding,), tuple(matches)))
        gone = candidate.lack in (_Lack.ERASED, _Lack.CHANGED)
        self.found.missing[candidate.sample_id] = frozenset({"image", "embedding"} if gone else {"image"})
        reasons = ", and ".join(part for part in (candidate.lack, why) if part)
        self.found.unreached.append((candidate.sample_id, f"{reasons}: it was not looked at"))


def _seen(candidate: _Candidate, row: Row, by: str, findings: Iterable[Finding], nearest: Iterable[Match]) -> Seen:
    return Seen(
        sample_id=candidate.sample_id, request_key=str(row["request_key"]), born=str(row["outcome"]), by=by,
        findings=tuple(findings), nearest=tuple(nearest),
        row={"findings": row["findings"] or [], "nearest": row["nearest"] or []},
    )  # fmt: skip
