"""The runs of one data set: those that continue one another, found by the ``parent`` in their plans.

A run is never changed by a later one: each has its own folder, plan, record and seal. A later run holds requests that are new,
or repeats of requests that ended as errors. Of a request that several runs hold, the outcome of the latest is in force; the
rows of the others stay where they are and count nowhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from index.errors import InputError, IntegrityError, PlanMismatch
from index.storage import entries, entry_of, is_folder, is_remote
from jobs.run.planning.stored_plan import stored_plan
from pipeline.audit.binding import PLAN_FILE
from pipeline.audit.shards import RUN_FILE
from pipeline.outcome import Request

LOST = "Mount what it leads to, or remove the link"
_FILE_ENDING = re.compile(r"\.[A-Za-z]\w*")  # of `notes.txt`; `2026.11` has none


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run: its folder, and its plan.json."""

    folder: Path
    stored: Mapping[str, Any] = field(repr=False)

    @property
    def plan_sha256(self) -> str:
        return str(self.stored["plan_sha256"])

    @property
    def parent(self) -> str:
        """Plan digest of the run that it continues; empty: it is the first."""
        return str(self.stored["parent"])

    @property
    def dataset_id(self) -> str:
        return str(self.stored["config"]["dataset_id"])

    @property
    def sealed(self) -> bool:
        return entry_of(self.folder, RUN_FILE) is not None


def member(folder: Path) -> Member | None:
    """The run in a folder; None where there is none.

    Raises:
        IntegrityError: its plan was changed.
    """
    if not is_folder(folder) or entry_of(folder, PLAN_FILE) is None:
        return None
    return Member(folder=folder, stored=stored_plan(folder))


def members_of(folders: Iterable[Path]) -> list[Member]:
    """The runs in some folders, in order; folders that hold nothing of a run are left out.

    Raises:
        IntegrityError: a plan was changed, or removed while the rest of its run is there: a set without one of its runs would
            pass for the whole.
    """
    from pipeline.audit.coverage import holds_run

    found = []
    for folder in folders:
        if (one := member(folder)) is not None:
            found.append(one)
        elif is_folder(folder) and holds_run(folder):
            fix = "Restore it from a copy, or move the folder away if it is none of these runs"
            raise IntegrityError("is missing, and the folder holds files of a run", where=str(folder / PLAN_FILE), fix=fix)
    return in_order(found)


class Inside(NamedTuple):
    """What lies in a folder that is no run itself.

    Attributes:
        runs: the run folders, however damaged; a run elsewhere may be linked there.
        lost: links to nothing, each of which may have been a run.
        deeper: runs in the folders beside the runs, one level deeper. Whoever asks for all runs would miss them.
        unread: folders that cannot be read, each of which may be a run, and why.
        of_disk: folders that cannot be read and are the file system's own.
    """

    runs: list[Path]
    lost: list[Path]
    deeper: list[Path]
    unread: dict[Path, InputError]
    of_disk: list[Path]


def look_inside(folder: Path) -> Inside:
    """What of runs lies in a folder; without a run directly in it nothing is looked for deeper.

    Raises:
        InputError: the folder itself cannot be read.
    """
    from pipeline.audit.coverage import holds_run

    inside = Inside([], [], [], {}, [])

    def sort(places: Iterable[Path], runs: list[Path], others: list[Path]) -> None:
        for place in places:
            try:
                (runs if holds_run(place) else others).append(place)
            except InputError as error:
                if _is_of_disk(place):
                    inside.of_disk.append(place)
                else:
                    inside.unread[place] = error

    others: list[Path] = []
    places, lost = folders_in(folder)
    sort(places, inside.runs, others)
    inside.lost.extend(lost)
    known = {place.resolve() for place in inside.runs}
    deeper: list[Path] = []
    # A folder that is no run may be anything: a link to nothing in it is none of our business.
    for other in others if inside.runs else ():
        sort(folders_in(other)[0], deeper, [])
    inside.deeper.extend(one for one in deeper if one.resolve() not in known)
    return inside


def _is_of_disk(folder: Path) -> bool:
    """Whether a folder is the ``lost+found`` of a file system: root's, where the file system begins. No run has that name."""
    try:
        return folder.name == "lost+found" and os.lstat(folder).st_uid == 0 and os.path.ismount(folder.parent)
    except OSError:
        return False


def runs_inside(folder: Path, told: Callable[[Path], None] = lambda path: None) -> list[Path]:
    """The runs in a folder, for one who shows all of them as one data set.

    Args:
        folder: a folder that is no run.
        told: called with each folder that cannot be read and is passed over, because it is the file system's own.

    Raises:
        InputError: runs lie one folder deeper, beside the runs is a link to nothing that may have been a run, or a folder
            cannot be read.
    """
    runs, lost, deeper, unread, of_disk = look_inside(folder)
    for path in of_disk:
        told(path)
    for path, error in unread.items():
        what = f"{error.what}, and may be a run"
        fix = "Let this user read it, or move it away from beside the runs; without that no set is shown"
        raise InputError(what, where=str(path), fix=fix) from error
    if deeper:
        raise left_out(deeper[0], fix="Move its runs beside the others")
    for path in lost if runs else ():
        ending = path.suffix if _FILE_ENDING.fullmatch(path.suffix) else ""
        if not ending or any(run.suffix == ending for run in runs):
            raise InputError("is a link to nothing, and may have been a run", where=str(path), fix=LOST)
    return runs


def left_out(deeper: Path, *, fix: str) -> InputError:
    """The error for a run that lies one folder deeper than the runs that were named."""
    what = f"is a run one folder deeper than the runs beside {deeper.parent.name}, and would be left out"
    return InputError(what, where=str(deeper), fix=fix)


def folders_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders in a folder, those behind links too, each once; and the links to nothing, one for each target."""
    named = [entry for entry in entries(folder) if not entry.name.startswith(".")]
    found = [folder / entry.name for entry in named if entry.kind == "folder"]
    links = [folder / entry.name for entry in named if entry.kind == "link"]
    known = {os.path.realpath(path) for path in (folder, *found)} if links else set()
    lost = []
    for path in links:
        real = os.path.realpath(path)
        if real in known:
            continue
        known.add(real)
        if is_lost(path):
            lost.append(path)
        elif is_folder(path):
            found.append(path)
    return sorted(found), sorted(lost)


def is_lost(path: Path) -> bool:
    """Whether a local path is a link that leads to nothing. On an object store there is no link."""
    return not is_remote(path) and os.path.islink(path) and not os.path.exists(path)


def in_order(members: Sequence[Member]) -> list[Member]:
    """Runs in the order in which they began; none before the one that it continues, whatever their clocks said."""
    by_time = sorted(members, key=lambda one: (one.stored["created_at"], one.folder.name))
    depth: dict[Path, int] = {}

    def depth_of(one: Member) -> int:
        if one.folder not in depth:
            depth[one.folder] = 0  # ends a circle, which digests forbid
            before = _parent(one, by_time)
            depth[one.folder] = 0 if before is None else 1 + depth_of(before)
        return depth[one.folder]

    return sorted(by_time, key=depth_of)


def _parent(one: Member, members: Sequence[Member]) -> Member | None:
    """The run that one continues. A plan may have been run twice: then the latest that began before."""
    same = [other for other in members if one.parent and other.plan_sha256 == one.parent and other.folder != one.folder]
    before = [other for other in same if other.stored["created_at"] <= one.stored["created_at"]]
    found = before or same
    return found[-1] if found else None


def latest(members: Sequence[Member]) -> Member | None:
    """The run that began last; None where there is none."""
    return max(members, key=lambda one: (one.stored["created_at"], one.folder.name), default=None)


class _AllBut:
    """Every key but some."""

    def __init__(self, others: frozenset[str]) -> None:
        self._others = others

    def __contains__(self, key: object) -> bool:
        return key not in self._others


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The runs of one data set, the oldest first; at least one."""

    members: tuple[Member, ...]

    @classmethod
    def of(cls, last: Member, members: Sequence[Member]) -> Chain:
        """The runs that belong to the same data set as one of them.

        Raises:
            InputError: the run that one of them continues is not there.
        """
        ordered = in_order(members)
        roots = {one.folder: _root(one, ordered).folder for one in ordered}
        return cls(members=tuple(one for one in ordered if roots[one.folder] == roots[last.folder]))

    @classmethod
    def inside(cls, folder: Path, runs: Sequence[Path]) -> Chain:
        """The data set whose runs, at least one, lie in a folder (:func:`runs_inside`).

        Raises:
            InputError: the runs do not continue one another.
            IntegrityError: as :func:`members_of`.
        """
        found = members_of(runs)
        last = latest(found)
        assert last is not None  # there are some
        chain = cls.of(last, found)
        if len(chain.members) < len(found):
            what = f"holds {len(found)} runs, which do not all continue one another: they are several data sets"
            raise InputError(what, where=str(folder), fix=f"Name one of the runs; the latest is {last.folder}")
        return chain

    @property
    def last(self) -> Member:
        return self.members[-1]

    @property
    def dataset_id(self) -> str:
        return self.last.dataset_id

    def unfinished(self) -> Member | None:
        """The latest run that is not sealed."""
        return next((one for one in reversed(self.members) if not one.sealed), None)

    @cached_property
    def counted(self) -> tuple[Container[str], ...]:
        """For each run the keys of the requests whose outcome is in force: those that no later run has ended.

        Raises:
            IntegrityError: a shard cannot be read.
        """
        later: set[str] = set()
        found: list[Container[str]] = []
        for one in reversed(self.members):
            found.append(_AllBut(frozenset(later)))
            if one is not self.members[0]:
                later |= set(_ended(one.folder))
        return tuple(reversed(found))

    def failed(self) -> list[str]:
        """Keys of the requests whose outcome in force is an error; raises as :func:`jobs.run.folder.failed_keys`."""
        from jobs.run.folder import failed_keys

        pairs = zip(self.members, self.counted, strict=True)
        return [key for one, counted in pairs for key in failed_keys(one.folder) if key in counted]

    def new(self, requests: Sequence[Request]) -> list[str]:
        """Keys of the requests that no run of the data set holds.

        Raises:
            PlanMismatch: a request that is there was another, for example by its prompt or seed.
        """
        there = dict(self._requests())
        changed = [one for one in requests if (old := there.get(one.key)) is not None and _differs(old, one)]
        if changed:
            first, old = changed[0], there[changed[0].key]
            assert old is not None
            now, was = _drawn_from(first), _drawn_from(old)
            other = [name for name in now if now[name] != was[name]]
            values = ", ".join(f"{name} {_in_words(was[name])} there and {_in_words(now[name])} now" for name in other)
            raise PlanMismatch(
                f"{len(changed)} of the requests that the data set holds are others now; the first is {first.key!r}: {values}",
                where=str(self.last.folder.parent),
                fix="Give a row that changed a new key. Rows without a key get one from their number: add new ones at the end",
            )
        return [one.key for one in requests if one.key not in there]

    def _requests(self) -> Iterator[tuple[str, Request | None]]:
        """Every request by key; None where its prompt was erased."""
        from jobs.run.plan import Plan
        from jobs.run.planning.begun import prompts_erased

        for one in self.members:
            if prompts_erased(one.folder):
                yield from ((key, None) for key in _ended(one.folder))
            else:
                yield from ((request.key, request) for request in Plan.load(one.folder).requests)


def _root(one: Member, members: Sequence[Member]) -> Member:
    seen = {one.folder}
    while one.parent:
        before = _parent(one, members)
        if before is None or before.folder in seen:
            fix = "Put the folder of that run beside it"
            what = f"the run that it continues is not there (plan {one.parent[:12]})"
            raise InputError(what, where=str(one.folder), fix=fix)
        seen.add(before.folder)
        one = before
    return one


def _ended(folder: Path) -> list[str]:
    from pipeline.audit.ledger import sample_rows

    return [str(row["request_key"]) for row in sample_rows(folder, ["request_key"])]


def _differs(old: Request, now: Request) -> bool:
    """Whether a request is another than it was. One that could not be drawn may have been mended."""
    return old.problem is None and _drawn_from(old) != _drawn_from(now)


def _drawn_from(one: Request) -> dict[str, Any]:
    """What makes a request's picture, by its name for people."""
    return {
        "prompt": one.prompt,
        "seed": one.seed,
        "negative prompt": one.negative_prompt,
        "adapter": one.adapter,
        **one.stated._asdict(),
    }


def _in_words(value: Any) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:39]}…")
    return "unstated" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
