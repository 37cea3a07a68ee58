"""Take works in whose vectors are given: block after block, kept on disk until they are in force (see :mod:`index.intake`).

In memory are one block and seventeen bytes a work, which find those that come twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import InputError
from index.ids import Ids
from index.intake import NO_PICTURE, Taken, compare, shared_id
from index.reference import COLUMNS, STATUSES, NewReference, Reference, stricter
from index.vectors import VectorBlock

_ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)  # odd: factors of a check
RUNS = 8  # sorted runs of ids that are searched one after the other; with more, they become one


class VectorIntake:
    """Takes vectors in for one build or addition.

    Args:
        folder: of the index.
        known: the reference of an id that the index has; None where it has none.
        there: which of some ids the index has, bool (N,).
    """

    def __init__(
        self, folder: Path, known: Callable[[str], Reference | None], there: Callable[[Sequence[str]], np.ndarray]
    ) -> None:
        self.folder, self._known, self._there = folder / "building", known, there
        self._seen = _Seen()
        self._files: list[Path] = []
        self._stricter: dict[str, NewReference] = {}
        self._changed: dict[str, Reference] = {}
        self.taken = Taken()

    def take(self, blocks: Iterable[VectorBlock]) -> Taken:
        """Go through the works once.

        Raises:
            InputError: the folder is a link.
            IntegrityError: two different pictures share one id.
            whatever the iterable raises.
        """
        if self.folder.is_symlink():  # its files are removed in the end: they must be ours
            raise InputError("is a link", where=str(self.folder), fix="Remove the link; the folder is made anew")
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob("vectors-*.parquet"):  # of a build that was stopped
            left.unlink()
        for block in blocks:
            self._take(block)
        return self.taken

    def _take(self, block: VectorBlock) -> None:
        digests = block.texts["content_sha256"]
        numbers, checks, words = _parted(digests)
        self.taken.ref_ids.extend(Ids.of_numbers(numbers))
        status = np.array([STATUSES.index(value) for value in block.texts["status"]], np.int8)
        ref_ids = [digest[:16] for digest in digests]
        there = self._there(ref_ids)
        _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
        before, check = self._seen.found(numbers)
        other = (words != words[first[inverse]]).any(axis=1) | ((before >= 0) & (check != checks))
        for row in np.flatnonzero(other):
            raise shared_id(block.where(int(row)))
        fresh = np.zeros(len(numbers), bool)
        fresh[first] = True
        fresh &= ~there
        fresh &= before < 0
        for row in np.flatnonzero(there):
            self._compare(block, int(row), ref_ids[row])
        self._seen.put(numbers[fresh], checks[fresh], status[fresh])
        for row in np.flatnonzero(~fresh & ~there):
            self._repeated(block, int(row), numbers[row : row + 1])
        if fresh.any():
            self._write(block, fresh)
            self.taken.new.extend(Ids.of_numbers(numbers[fresh]))

    def _compare(self, block: VectorBlock, row: int, ref_id: str) -> None:
        """A work that the index has: the stricter status counts; a retired one takes the work's."""
        known = self._changed.get(ref_id) or self._known(ref_id)
        assert known is not None
        changed = compare(self.taken, known, block.texts["content_sha256"][row], _work(block, row))
        if changed is not None:
            self._changed[ref_id] = changed

    def _repeated(self, block: VectorBlock, row: int, number: np.ndarray) -> None:
        """A work that came before: the stricter status counts."""
        work, ref_id = _work(block, row), block.texts["content_sha256"][row][:16]
        before = STATUSES[int(self._seen.found(number)[0][0])]
        self.taken.repeat(ref_id, work, "an earlier row", before)
        if stricter(work.status, before):
            self._stricter[ref_id] = work
            self._seen.set(number, STATUSES.index(work.status))

    def _write(self, block: VectorBlock, fresh: np.ndarray) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = np.flatnonzero(fresh)
        texts = {name: pa.array(values, pa.string()).take(pa.array(rows)) for name, values in block.texts.items()}
        flat = pa.array(np.ascontiguousarray(block.vectors[rows]).reshape(-1))
        table = pa.table({**texts, "embedding": pa.FixedSizeListArray.from_arrays(flat, block.vectors.shape[1])})
        path = self.folder / f"vectors-{len(self._files):09d}.parquet"
        pq.write_table(table, path, compression="none", use_dictionary=False)
        self._files.append(path)

    def tables(self) -> Iterator[Any]:
        """The new references as Arrow tables with the columns of a segment, a block at a time."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        for path in self._files:
            table = pq.read_table(path)
            ref_ids = pc.utf8_slice_codeunits(table.column("content_sha256"), 0, 16)
            later = [self._stricter.get(ref_id) for ref_id in ref_ids.to_pylist()] if self._stricter else []
            if any(later):
                for name in COLUMNS:
                    values = table.column(name).to_pylist()
                    values = [value if work is None else getattr(work, name) for value, work in zip(values, later, strict=True)]
                    table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
            table = table.append_column("ref_id", ref_ids)
            yield table.append_column("picture", pa.nulls(table.num_rows, pa.large_binary()))

    def done(self) -> None:
        """The works are in force: remove what was kept on the way."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _Seen:
    """Ids as numbers, each with a check of the rest of its digest and the place of its status in
    :data:`index.reference.STATUSES`: sorted runs, seventeen bytes an id."""

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def found(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The status int8 (N,) of each, -1 for one that was not put in; and its check uint64 (N,)."""
        found, checks = np.full(len(numbers), -1, np.int8), np.zeros(len(numbers), np.uint64)
        for run, check, status in self._runs:
            at = np.minimum(np.searchsorted(run, numbers), len(run) - 1)
            there = run[at] == numbers
            found[there], checks[there] = status[at[there]], check[at[there]]
        return found, checks

    def put(self, numbers: np.ndarray, checks: np.ndarray, status: np.ndarray) -> None:
        """Put in ids that are not there."""
        if not len(numbers):
            return
        order = np.argsort(numbers)
        self._runs.append((numbers[order], checks[order], status[order]))
        while len(self._runs) > 1 and (len(self._runs) > RUNS or len(self._runs[-1][0]) >= len(self._runs[-2][0])):
            both = [np.concatenate(pair) for pair in zip(self._runs.pop(), self._runs.pop(), strict=True)]
            order = np.argsort(both[0], kind="stable")
            self._runs.append((both[0][order], both[1][order], both[2][order]))

    def set(self, number: np.ndarray, status: int) -> None:
        """Give an id that is there another status."""
        for run, _, held in self._runs:
            at = int(np.searchsorted(run, number[0]))
            if at < len(run) and run[at] == number[0]:
                held[at] = status


def _parted(digests: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digests as their ids' numbers uint64 (N,), a check of the other 48 digits uint64 (N,), and whole as uint64 (N, 4).

    Checks of digests that differ in one of the three other words differ (an odd factor loses nothing); others are alike once
    in 2^64.
    """
    words = np.frombuffer(bytes.fromhex("".join(digests)), ">u8").astype(np.uint64).reshape(-1, 4)
    return words[:, 0], (words[:, 1:] * _ODD).sum(axis=1, dtype=np.uint64), words


def _work(block: VectorBlock, row: int) -> NewReference:
    columns: dict[str, Any] = {name: block.texts[name][row] for name in COLUMNS}
    return NewReference(picture=NO_PICTURE, origin=block.where(row), **columns)
