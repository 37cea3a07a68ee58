"""Which run folder ``out`` names: placeholders for date, data set and number, and the runs that such a name has made.

An ``out`` with ``{date}`` or ``{number}`` in its last part names a folder for every run: ``runs/{date}`` is
``runs/2026-11-28``, and ``runs/2026-11-28-2`` for a second run of that day. The day is that of UTC, wherever the machine is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from index.errors import ConfigError, InputError
from index.storage import entries, is_folder
from jobs.run.dataset.chain import LOST, Member, is_lost, members_of
from jobs.run.plan import run_place

DATE, NUMBER, DATASET = "{date}", "{number}", "{dataset}"
KNOWN = (DATE, NUMBER, DATASET)
PLACEHOLDER = re.compile(r"\{[^{}/]*\}")
AS_FOLDER = re.compile(r"[\w.@=+-]{1,200}")
_PATTERNS = {DATE: r"\d{4}-\d{2}-\d{2}", NUMBER: r"\d{4,}"}


@dataclass(frozen=True)
class Out:
    """What ``out`` names.

    Attributes:
        folder: the run folder; where ``pattern`` is set, the folder that the runs lie in.
        pattern: the name of a run with its placeholders; empty: ``out`` has none that change from run to run.
    """

    folder: Path
    pattern: str = ""

    @classmethod
    def of(cls, out: str, base: Path, dataset_id: str) -> Out:
        """Read ``out``.

        Args:
            out: of the run file, or ``--out``; relative ones start from ``base``.
            base: a folder.
            dataset_id: fills ``{dataset}``.

        Raises:
            ConfigError: an unknown placeholder, or one at a place where it cannot be.
        """
        for found in PLACEHOLDER.findall(out):
            if found not in KNOWN:
                near = get_close_matches(found.lower().strip("{} "), [name.strip("{}") for name in KNOWN], 1, 0.4)
                hint = f"Did you mean {{{near[0]}}}? " if near else ""
                fix = f"{hint}Use {DATE} (the day in UTC), {NUMBER} (0001, 0002, …) or {DATASET} (dataset_id)"
                raise ConfigError(f"there is no placeholder {found}", where="out", fix=fix)
        if DATASET in out and (not AS_FOLDER.fullmatch(dataset_id) or set(dataset_id) == {"."}):
            what = f"dataset_id {dataset_id!r} cannot be a folder's name, and {DATASET} makes it one"
            raise ConfigError(what, where="out", fix=f"Write a name in place of {DATASET}, or change dataset_id")
        head, slash, last = out.replace(DATASET, dataset_id).rstrip("/").rpartition("/")
        if DATE in head or NUMBER in head:
            raise ConfigError(f"{DATE} and {NUMBER} stand in the last part alone", where="out", fix='Write out = "runs/{date}"')
        if last.count(DATE) > 1 or last.count(NUMBER) > 1:
            raise ConfigError("has a placeholder twice", where="out", fix="Keep one of them")
        if DATE in last or NUMBER in last:
            return cls(run_place(head + (slash if not head else "") or ".", base), last)
        return cls(run_place(out.replace(DATASET, dataset_id), base))

    def runs(self) -> list[Member]:
        """The runs that are there, the oldest first; without a pattern none, or the one.

        Raises:
            IntegrityError: the plan of one of them was changed.
            InputError: one cannot be read, or is a link to nothing: the samples of that run would count as new.
        """
        folders = [self.folder / name for name in self._names()] if self.pattern else [self.folder]
        for folder in folders:
            if is_lost(folder):
                what = "is a link to nothing where a run of this name is expected, and what it holds would be drawn again"
                raise InputError(what, where=str(folder), fix=LOST)
        return members_of(folders)

    def next(self, now: datetime | None = None) -> Path:
        """The folder of a new run: the first name that is not taken."""
        if not self.pattern:
            return self.folder
        taken = set(self._names())
        name = self._day(now)
        if NUMBER in name:
            number = 1 + max((int(found[1]) for one in taken if (found := self._numbered().fullmatch(one))), default=0)
            return self.folder / name.replace(NUMBER, f"{number:04d}")
        counted = (f"{name}-{number}" for number in range(2, len(taken) + 3))
        return self.folder / next(one for one in (name, *counted) if one not in taken)

    def today(self, now: datetime | None = None) -> Path:
        """The folder that a run of today has if it is the only one; with a number, that of the next run."""
        return self.next(now) if NUMBER in self.pattern or not self.pattern else self.folder / self._day(now)

    def _day(self, now: datetime | None) -> str:
        return self.pattern.replace(DATE, (now or datetime.now(UTC)).strftime("%Y-%m-%d"))

    def _names(self) -> list[str]:
        if not is_folder(self.folder):
            return []
        pattern = self._any()
        fitting = [entry for entry in entries(self.folder) if pattern.fullmatch(entry.name)]
        linked = {one.name for one in fitting if one.kind == "link" and _may_be_run(self.folder / one.name)}
        return [one.name for one in fitting if one.kind == "folder" or one.name in linked]

    def _any(self) -> re.Pattern[str]:
        text = re.escape(self.pattern)
        for name, pattern in _PATTERNS.items():
            text = text.replace(re.escape(name), pattern)
        return re.compile(text + ("" if NUMBER in self.pattern else r"(-\d+)?"))

    def _numbered(self) -> re.Pattern[str]:
        text = re.escape(self.pattern).replace(re.escape(DATE), _PATTERNS[DATE])
        return re.compile(text.replace(re.escape(NUMBER), f"({_PATTERNS[NUMBER]})"))


def _may_be_run(link: Path) -> bool:
    """Whether a link leads to a folder, or to nothing, which may have been one."""
    return is_lost(link) or is_folder(link)
