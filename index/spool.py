"""What a build remembers of its works: some bytes each in memory, their texts on disk.

A million works as Python objects would take 650 MB beside the embedder.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from index.ids import Ids
from index.parquet import parquet_file
from index.reference import COLUMNS, STATUSES, NewReference

RUNS = 8  # sorted runs that are searched one after the other; with more, they become one
PENDING = 512  # entries that are not in a run yet
TOGETHER = 512  # works in a file
READ = 2  # files whose texts are in memory
_ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)  # odd: factors of a check


def parted(digests: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digests as their ids' numbers uint64 (N,), a check of the other 48 digits uint64 (N,), and whole as uint64 (N, 4).

    Checks of digests that differ in one of the three other words differ (an odd factor loses nothing); others are alike once
    in 2^64.
    """
    words = np.frombuffer(bytes.fromhex("".join(digests)), ">u8").astype(np.uint64).reshape(-1, 4)
    return words[:, 0], (words[:, 1:] * _ODD).sum(axis=1, dtype=np.uint64), words


class Runs:
    """Numbers, each with a check and a value: sorted runs, so that many take little memory.

    Args:
        kind: of the values.
    """

    def __init__(self, kind: Any) -> None:
        self._kind = np.dtype(kind)
        self._runs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def found(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The value (N,) of each number, -1 for one that was not put in; and its check uint64 (N,)."""
        found, checks = np.full(len(numbers), -1, self._kind), np.zeros(len(numbers), np.uint64)
        for run, check, value in self._runs:
            at = np.minimum(np.searchsorted(run, numbers), len(run) - 1)
            there = run[at] == numbers
            found[there], checks[there] = value[at[there]], check[at[there]]
        return found, checks

    def put(self, numbers: np.ndarray, checks: np.ndarray, values: np.ndarray) -> None:
        """Put in numbers that are not there."""
        if not len(numbers):
            return
        order = np.argsort(numbers)
        self._runs.append((numbers[order], checks[order], values[order].astype(self._kind)))
        while len(self._runs) > 1 and (len(self._runs) > RUNS or len(self._runs[-1][0]) >= len(self._runs[-2][0])):
            both = [np.concatenate(pair) for pair in zip(self._runs.pop(), self._runs.pop(), strict=True)]
            order = np.argsort(both[0], kind="stable")
            self._runs.append((both[0][order], both[1][order], both[2][order]))

    def set(self, number: np.ndarray, value: int) -> None:
        """Give a number uint64 (1,) that is there another value."""
        for run, _, held in self._runs:
            at = int(np.searchsorted(run, number[0]))
            if at < len(run) and run[at] == number[0]:
                held[at] = value


class SharedId(Exception):
    """Two digests begin with the same sixteen digits."""


class Places:
    """Digest → a whole number from 0 on, in 24 bytes each."""

    def __init__(self) -> None:
        self._runs, self._pending = Runs(np.int64), dict[str, int]()

    def get(self, digest: str) -> int | None:
        """The number of a digest; None where it has none.

        Raises:
            SharedId: another digest has the same beginning.
        """
        if digest in self._pending:
            return self._pending[digest]
        (value,) = self.several([digest])
        return None if value < 0 else int(value)

    def several(self, digests: Sequence[str]) -> np.ndarray:
        """The numbers int64 (N,) of digests, -1 for one that has none; raises as :meth:`get`."""
        numbers, checks, _ = parted(digests)
        found, known = self._runs.found(numbers)
        if ((found >= 0) & (known != checks)).any():
            raise SharedId
        if self._pending:
            for at, digest in enumerate(digests):
                found[at] = self._pending.get(digest, found[at])
        return found

    def put(self, digest: str, value: int, *, new: bool) -> None:
        """Give a digest a number; ``new``: it had none. Raises as :meth:`get`."""
        if not new and digest not in self._pending:
            self._runs.set(parted([digest])[0], value)
            return
        self._pending[digest] = value
        if len(self._pending) >= PENDING:
            numbers, checks, _ = parted([*self._pending])
            if len(np.unique(numbers)) < len(numbers):
                raise SharedId
            self._runs.put(numbers, checks, np.fromiter(self._pending.values(), np.int64, len(numbers)))
            self._pending.clear()


class Spool:
    """New works in the order in which they came: where each is, and its status; their texts lie in files.

    Args:
        folder: of the files; those of a build that was stopped are removed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._places = folder, Places()
        self._status, self._numbers = array("b"), array("Q")
        self._waiting: list[dict[str, Any]] = []
        self._stricter: dict[int, NewReference] = {}
        self._read = lru_cache(maxsize=READ)(self._texts_of)
        for left in folder.glob("works-*.parquet"):
            left.unlink()

    def __len__(self) -> int:
        return len(self._status)

    def find(self, digest: str) -> int | None:
        """The number of the work with that digest; None where none has it. Raises as :meth:`Places.get`."""
        return self._places.get(digest)

    def several(self, digests: Sequence[str]) -> np.ndarray:
        """The same of many, int64 (N,), -1 where no work has it."""
        return self._places.several(digests)

    def add(self, digest: str, work: NewReference) -> int:
        """Take a work in that is not there; returns its number. Raises as :meth:`Places.get`."""
        number = len(self._status)
        self._places.put(digest, number, new=True)
        self._status.append(STATUSES.index(work.status))
        self._numbers.append(int(digest[:16], 16))
        self._waiting.append(_row(work))
        if len(self._waiting) >= TOGETHER:
            self._write()
        return number

    def replace(self, number: int, work: NewReference) -> None:
        """Another work has the same picture and a stricter status: it counts."""
        self._status[number] = STATUSES.index(work.status)
        self._stricter[number] = work

    def status(self, number: int) -> str:
        """The status of a work."""
        return STATUSES[self._status[number]]

    def place(self, number: int) -> str:
        """What messages call a work."""
        return str(self.row(number)["place"])

    def row(self, number: int) -> dict[str, Any]:
        """The texts of a work, whether its picture is kept (``keep``), and its ``place``."""
        if (work := self._stricter.get(number)) is not None:
            return _row(work)
        part, at = divmod(number, TOGETHER)
        written = len(self._status) - len(self._waiting)
        return self._read(part)[at] if number < written else self._waiting[number - written]

    def ids(self) -> Ids:
        """The ids of all works, in order."""
        return Ids.of_numbers(np.frombuffer(self._numbers, np.uint64)) if self._numbers else Ids()

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._folder.mkdir(parents=True, exist_ok=True)
        part = (len(self._status) - 1) // TOGETHER
        pq.write_table(pa.Table.from_pylist(self._waiting), self._path(part), compression="none")
        self._waiting = []

    def _texts_of(self, part: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = parquet_file(self._path(part)).read(use_threads=False).to_pylist()
        return rows

    def _path(self, part: int) -> Path:
        return self._folder / f"works-{part:09d}.parquet"


def _row(work: NewReference) -> dict[str, Any]:
    return {**{name: getattr(work, name) for name in COLUMNS}, "keep": work.keep_picture, "place": work.place}
