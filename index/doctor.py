"""Look over an index: references that fire where they should not, that stand there twice, or whose right nobody recorded.

A reference that fires on harmless pictures holds back pictures that nobody claims, and wears out the people who review them.
The doctor names it with its numbers and the command that takes it out of force; a person decides.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from index.at_uri import beside, place_of
from index.calibrate import MIN_RECALL, Calibration
from index.errors import ClearanceError
from index.rate import Rate
from index.reference import MATCHING
from index.storage import is_remote
from index.store import ReferenceIndex

PROBLEM, NOTE = "problem", "note"
TWINS = 0.98  # cosine from which two references are the same drawing to the embedder
MOST_COMPARED = 100_000  # references that are compared with one another
OFTEN_SHARE, OFTEN_TIMES = 0.02, 5  # of the pictures of runs, by the lower end of the interval, and at least so many times
DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Remark:
    """One thing that the doctor says.

    Attributes:
        level: ``problem`` or ``note``. topic: a word for what kind.
        what: a sentence with numbers. ref_ids: the references. fix: a command or advice; empty where there is nothing to do.
    """

    level: str
    topic: str
    what: str
    ref_ids: tuple[str, ...] = ()
    fix: str = ""

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(kw_only=True)
class Fired:
    """How often references were found near pictures.

    Attributes:
        pictures: how many pictures there were.
        both: by reference: pictures that both looks call too near. near: those that the embedder calls near.
        accepted: pictures that a person accepted although the reference had held them back.
    """

    pictures: int = 0
    both: Counter[str] = field(default_factory=Counter)
    near: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)


def look_over(index: ReferenceIndex, *, harmless: Fired | None = None, runs: Fired | None = None) -> list[Remark]:
    """Everything there is to say about an index, problems first.

    Args:
        index: the index.
        harmless: what fired on pictures that are known to be harmless.
        runs: what fired on the pictures of runs.
    """
    found = [*_rights(index), *_twins(index), *_pictures(index), *_calibration(index)]
    if harmless is not None:
        found += _on_harmless(index, harmless)
    if runs is not None:
        found += _in_runs(index, runs)
    return sorted(found, key=lambda remark: remark.level != PROBLEM)


def _title(index: ReferenceIndex, ref_id: str) -> str:
    known = index.get(ref_id)
    return ref_id if known is None else known.title


def _command(index: ReferenceIndex, ref_id: str, reason: str) -> str:
    return f'clearance index set-status {place_of(index.folder)} {ref_id} allowed --reason "{reason}"'


def _rights(index: ReferenceIndex) -> Iterator[Remark]:
    """Claims of which nothing is recorded but a title."""
    claims = (r for r in index.in_force() if r.status in MATCHING and r.rights_basis == "claim")
    bare = [r.ref_id for r in claims if not (r.rightsholder or r.source_uri or r.claim_id or r.licence)]
    if bare:
        what = f"{len(bare)} of {len(index)} references are claims without rightsholder, source, licence or claim"
        fix = "Record whose works they are (columns of metadata.csv), or retire those that nobody can name"
        yield Remark(level=NOTE, topic="rights", what=what, ref_ids=tuple(bare), fix=fix)


def _twins(index: ReferenceIndex) -> Iterator[Remark]:
    """Pairs of references that are one drawing to the embedder."""
    if len(index) > MOST_COMPARED:
        what = f"{len(index)} references were not compared with one another: more than {MOST_COMPARED}"
        yield Remark(level=NOTE, topic="twins", what=what)
        return
    ids = [ref_id for ref_id in index.ids() if index.reference(ref_id).status in MATCHING]
    seen: set[frozenset[str]] = set()
    for start in range(0, len(ids), 1024):
        block = ids[start : start + 1024]
        found = index.search(np.stack([index.embedding(ref_id) for ref_id in block]), 4)
        for ref_id, matches in zip(block, found, strict=True):
            for match in matches:
                pair = frozenset({ref_id, match.ref_id})
                if match.ref_id != ref_id and match.similarity >= TWINS and pair not in seen:
                    seen.add(pair)
                    both = f"{index.reference(ref_id).title!r} and {match.title!r}"
                    what = f"{both} are one drawing to the embedder (cosine {match.similarity:.3f})"
                    yield Remark(
                        level=NOTE, topic="twins", what=what, ref_ids=(ref_id, match.ref_id), fix="Retire one of them if so"
                    )


def _pictures(index: ReferenceIndex) -> Iterator[Remark]:
    missing = len(index) - index.kept
    if missing:
        what = (
            f"of {missing} of {len(index)} references no picture is kept: nothing clears their hits, and their copies in other "
            "colours are not searched for"
        )
        yield Remark(level=NOTE, topic="pictures", what=what)


def _calibration(index: ReferenceIndex, now: float | None = None) -> Iterator[Remark]:
    """Age, fit and recall of the calibration beside the index."""
    place = place_of(index.folder)
    path = beside(place, "calibration.json")
    again = f"clearance index calibrate {place} --works WORKS --harmless PICTURES"
    if not path.exists():
        what = "no calibration was made with this index: how many copies its runs miss is known from elsewhere, if at all"
        yield Remark(level=NOTE, topic="calibration", what=what, fix=again)
        return
    try:
        found = Calibration.load(path)
    except ClearanceError as error:
        yield Remark(level=PROBLEM, topic="calibration", what=f"the calibration {error.what}", fix=again)
        return
    days = ((time.time() if now is None else now) - path.stat().st_mtime) / DAY
    old = "" if is_remote(place) else f"is {days:.0f} days old and "  # a copy is as old as its fetching
    if found.embedder_id != index.embedder_id:
        what = f"the calibration is of embedder {found.embedder_id}; the index has {index.embedder_id}"
        yield Remark(level=PROBLEM, topic="calibration", what=what, fix=again)
    if found.index_id and found.index_id != index.index_id:
        what = f"the calibration {old}was measured on another state of the index ({found.index_id})"
        yield Remark(level=NOTE, topic="calibration", what=what, fix=again)
    least = found.min_recall or MIN_RECALL
    if found.forced or found.recall.low < least:
        what = f"the calibration finds {found.recall} of edited copies; the interval's lower end should reach {least:.0%}"
        yield Remark(level=PROBLEM, topic="calibration", what=what, fix=again)


def _on_harmless(index: ReferenceIndex, fired: Fired) -> Iterator[Remark]:
    """References that fire on pictures that are known to be harmless."""
    for ref_id, count in fired.both.most_common():
        rate = Rate.of(count, fired.pictures)
        what = (
            f"{_title(index, ref_id)!r} fires on {count} of {fired.pictures} harmless pictures after both looks "
            f"({rate.text}), on {fired.near[ref_id]} by the embedder"
        )
        fix = _command(index, ref_id, "fires on harmless pictures")
        yield Remark(level=PROBLEM, topic="harmless", what=what, ref_ids=(ref_id,), fix=fix)
    cleared = {ref_id: n for ref_id, n in fired.near.items() if ref_id not in fired.both}
    if cleared:
        what = f"{len(cleared)} references are near harmless pictures to the embedder, and the second look cleared all of them"
        yield Remark(level=NOTE, topic="harmless", what=what, ref_ids=tuple(sorted(cleared)))


def _in_runs(index: ReferenceIndex, fired: Fired) -> Iterator[Remark]:
    """References that fire on many pictures of runs, or that people overruled."""
    named = {*fired.both, *fired.near, *fired.accepted}
    for ref_id in sorted(ref_id for ref_id in named if index.get(ref_id) is not None):
        count, near = fired.both[ref_id], fired.near[ref_id]
        rate = Rate.of(max(count, near), fired.pictures)
        if fired.accepted[ref_id]:
            what = f"people accepted {fired.accepted[ref_id]} pictures that {_title(index, ref_id)!r} had held back"
            fix = _command(index, ref_id, "people accept what it holds back")
            yield Remark(level=PROBLEM, topic="overruled", what=what, ref_ids=(ref_id,), fix=fix)
        if rate.low > OFTEN_SHARE and rate.hits >= OFTEN_TIMES:
            what = (
                f"{_title(index, ref_id)!r} is near {near} of {fired.pictures} pictures of these runs, and {count} are too "
                f"near to it ({rate.text}): either the model draws it often, or it is like everything"
            )
            yield Remark(
                level=NOTE, topic="often", what=what, ref_ids=(ref_id,), fix=_command(index, ref_id, "is like everything")
            )


def fired_on(examined: Iterable[Any], threshold: float) -> Fired:
    """Count what fired in examinations of the copies guard (:class:`guards.copies.Examination`)."""
    fired = Fired()
    for one in examined:
        fired.pictures += 1
        fired.both.update({finding.ref_id for finding in one.findings if finding.triggered and finding.ref_id})
        fired.near.update({match.ref_id for match in one.nearest if match.similarity >= threshold and match.status in MATCHING})
    return fired
