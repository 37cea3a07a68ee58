"""What an index does to harmless pictures and to the pictures of runs, counted for :mod:`index.doctor`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from guards.copies import HARMLESS, CopiesGuard
from index.doctor import Fired, fired_on
from jobs.reaudit.rows import copies_of
from jobs.reaudit.standing import DECIDED, Standing
from pipeline.audit.committed_files import CommittedFiles
from pipeline.audit.ledger import sample_rows

if TYPE_CHECKING:
    from index.calibrate import OperatingPoint
    from index.embed import Embedder
    from index.reference import NewReference
    from index.store import ReferenceIndex

AT_ONCE = 32


def on_harmless(
    index: ReferenceIndex,
    embedder: Embedder,
    works: Iterable[NewReference],
    *,
    point: OperatingPoint,
    k: int = 3,
    hues: int = 12,
) -> Fired:
    """What fires on pictures that are known to be harmless, after both looks, as in a run.

    Args:
        index, embedder: the index and its embedder.
        works: the pictures.
        point, k, hues: of the copies guard.
    """
    guard = CopiesGuard(index, embedder, point=point, k=k, hues=hues)
    return fired_on(_examined(guard, works), point.threshold)


def _examined(guard: CopiesGuard, works: Iterable[NewReference]) -> Iterator[Any]:
    pictures = (work.picture for work in works)
    while block := list(islice(pictures, AT_ONCE)):
        shapes: dict[tuple[int, ...], list[np.ndarray]] = {}
        for picture in block:
            shapes.setdefault(picture.shape, []).append(picture)
        for same in shapes.values():
            yield from guard.examine(np.stack(same))


def in_runs(folders: Sequence[Path]) -> Fired:
    """What was near the pictures of runs, by their rows; and what people accepted although a reference had held it back.

    Raises:
        ClearanceError: a run cannot be read, or a file in it is not the one that was committed.
    """
    fired = Fired()
    for folder in folders:
        standing = Standing.of(folder)
        accepted = {
            sample_id for event in standing.events if event["kind"] == DECIDED for sample_id in event["samples"]
            if standing.settled_by_person(sample_id) is not None
        }  # fmt: skip
        columns = ["sample_id", "outcome", "findings", "nearest", "copy_threshold", "pixel_sha256"]
        for row in sample_rows(folder, columns, opener=CommittedFiles.of(folder).open):
            if not row["pixel_sha256"]:
                continue
            held = copies_of(row)
            near = (m for m in row["nearest"] or [] if m["status"] not in HARMLESS and m["similarity"] >= row["copy_threshold"])
            fired.pictures += 1
            fired.both.update(held)
            fired.near.update({match["ref_id"] for match in near})
            if row["sample_id"] in accepted:
                named = standing.settled_by_person(row["sample_id"]) or set()
                fired.accepted.update(held | named)
    return fired
