"""Segments of indexes of formats 1 and 2: everything in one Parquet file, read into memory.

The next merge writes them in today's form. Their FAISS index has keys for ids, and is not mapped.
"""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import IntegrityError
from index.files import RESTORE
from index.parquet import parquet_file
from index.segment import ANN, TEXTS, Segment, key_of, row_digest

OLD_TABLE = "references.parquet"
OLD_FILES = frozenset({OLD_TABLE, ANN})


class OldSegment(Segment):
    """A segment of format 1 or 2."""

    _table_name = _pictures_name = OLD_TABLE

    def _open(self) -> None:
        import pyarrow as pa

        file = parquet_file(self.folder / OLD_TABLE)
        table = file.read(columns=[*TEXTS, "embedding"])
        if table.num_rows != self.rows:
            raise ValueError(f"{table.num_rows} rows, not {self.rows}")
        embeddings = table.column("embedding").combine_chunks()
        self.vectors = np.asarray(embeddings.flatten(), np.float32).reshape(self.rows, -1)
        if self.rows and self.vectors.shape[1] != self.dim:
            what = f"holds vectors of {self.vectors.shape[1]} dimensions, the index has {self.dim}"
            raise IntegrityError(what, where=str(self.folder), fix=RESTORE)
        kept = [file.read_row_group(n, ["picture"]).column(0).is_valid() for n in range(file.metadata.num_row_groups)]
        valid = [value for column in kept for value in column.to_pylist()]
        self._table = table.select(TEXTS).append_column("kept", pa.array(valid, pa.bool_()))
        keys = np.fromiter((key_of(ref_id) for ref_id in self.ref_ids()), np.int64, self.rows)
        self._row = np.argsort(keys, kind="stable")
        self._sorted = keys[self._row]

    late = True  # a constant, where today's form has to look

    def ann(self) -> Any:
        if self._ann is None:
            from index import ann

            path = self.folder / ANN
            try:
                stored = ann.from_bytes(path.read_bytes())
                if (stored.ntotal, stored.d) != (self.rows, self.dim):
                    raise ValueError(f"{stored.ntotal} vectors of {stored.d} dimensions")
                # Its ids are keys. A flat index is made anew in a moment; a large one trains, which `index renew` ends.
                with tempfile.TemporaryDirectory() as folder:
                    ann.write(self.vectors, Path(folder) / ANN)
                    self._ann = ann.mapped(Path(folder) / ANN)  # what is mapped stays when its name is gone
            except Exception as error:  # FAISS raises bare RuntimeErrors
                first = (str(error).splitlines() or [""])[0][:200]
                raise IntegrityError(f"holds no vectors ({first})", where=str(path), fix=RESTORE) from None
        return self._ann

    @cached_property
    def _digests(self) -> np.ndarray:
        rows = zip(self.references(), self.kept, self.vectors, strict=True)
        digests = [row_digest(reference, bool(kept), vector) for reference, kept, vector in rows]
        return np.frombuffer(b"".join(digests), np.uint8).reshape(self.rows, 32)
