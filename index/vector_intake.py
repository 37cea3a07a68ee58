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
from index.parquet import parquet_file
from index.reference import COLUMNS, STATUSES, NewReference, Reference, stricter
from index.spool import Runs, parted
from index.vectors import VectorBlock


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
        self._seen = Runs(np.int8)  # statuses, by their place in STATUSES
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
        numbers, checks, words = parted(digests)
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

        for path in self._files:
            table = parquet_file(path).read()
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


def _work(block: VectorBlock, row: int) -> NewReference:
    columns: dict[str, Any] = {name: block.texts[name][row] for name in COLUMNS}
    return NewReference(picture=NO_PICTURE, origin=block.where(row), **columns)
