"""Works whose vectors were made elsewhere, for ``clearance index build`` and ``add``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.counted import counted
from index.errors import InputError
from jobs.cli.index_tables import pictures_otherwise, shortened
from jobs.console import make_console, say, say_json
from jobs.run.progress import Steps

if TYPE_CHECKING:
    from index.collect import Reading
    from index.embed import Embedder
    from index.store import ReferenceIndex
    from index.vectors import StoredVectors, VectorBlock


@dataclass(frozen=True)
class TakenIn:
    """What a build or an addition of vectors did: the index, its id before (empty: it is new), and the source."""

    index: ReferenceIndex
    before: str
    source: StoredVectors


def holds_vectors(path: Path) -> bool:
    """Whether a source is vectors, see :func:`index.vectors.holds_vectors`.

    Raises:
        InputError: vectors on an object store.
    """
    from index import storage

    if storage.is_remote(path):
        if str(path).endswith(".npy"):
            raise InputError(
                "vectors are not read from an object store", where=str(path), fix="Copy them to this machine first"
            )
        return False
    if path.suffix != ".npy" and not path.is_dir():
        return False
    from index import vectors

    return vectors.holds_vectors(path)


def build_of_vectors(path: Path, out: Path, how: Reading, embedder: Embedder) -> TakenIn:
    """Build an index of vectors; raises as :meth:`index.store.ReferenceIndex.build_of_vectors`."""
    from index.store import ReferenceIndex

    source = _source(path, how, embedder)
    with Steps(make_console(stderr=True), "taking vectors in", source.total) as steps:
        index = ReferenceIndex.build_of_vectors(out, _shown(source, steps), embedder)
    return TakenIn(index, "", source)


def add_vectors(path: Path, index: ReferenceIndex, how: Reading, embedder: Embedder) -> TakenIn:
    """Add vectors to an index; raises as :meth:`index.store.ReferenceIndex.add_vectors`."""
    before, source = index.index_id, _source(path, how, embedder)
    with Steps(make_console(stderr=True), "taking vectors in", source.total) as steps:
        index.add_vectors(_shown(source, steps), embedder)
    return TakenIn(index, before, source)


def _source(path: Path, how: Reading, embedder: Embedder) -> StoredVectors:
    from index.vectors import StoredVectors

    source = StoredVectors(path, int(embedder.dim), how)
    source.spot_check(embedder)
    return source


def _shown(source: StoredVectors, steps: Steps) -> Iterator[VectorBlock]:
    """The blocks, with a bar that counts works."""
    done = 0

    def counting(blocks: Iterable[VectorBlock]) -> Iterator[VectorBlock]:
        nonlocal done
        for block in blocks:
            yield block
            done += len(block.vectors)

    yield from steps.over(counting(source), lambda: done)


def say_vectors(taken_in: TakenIn, *, as_json: bool) -> None:
    """Print what became of the works."""
    index, taken, source = taken_in.index, taken_in.index.taken, taken_in.source
    if as_json:
        say_json(_data(taken_in))
        return
    counts = (
        f"{counted(source.total, 'vector')}, {counted(len(taken.new), 'new reference')}, {counted(len(index), 'reference')}"
    )
    was = f"index {taken_in.before} is now {index.index_id}" if taken_in.before else f"index {index.index_id}"
    say(f"{index.folder}: {counts}; {was}")
    for heading, names in (
        ("duplicates", [f"{place} of {first}" for place, first in taken.duplicates]),
        ("in the index already", [f"{place} ({ref_id})" for place, ref_id in taken.known]),
        ("with another status, the strictest is in force",
         [f"{c.origin} is {c.stated}, {c.ref_id} was {c.before}: {c.kept}" for c in taken.conflicts]),
        *pictures_otherwise(taken).items(),
        ("not read", [f"{name} ({what})" for name, what in source.others]),
    ):  # fmt: skip
        if names:
            say(f"{heading} ({len(names)}): {shortened(names)}")
    if source.checked:
        say(f"{counted(source.checked, 'vector')} held against pictures beside them: they are the embedder's")
    else:
        say(
            f"note: nothing shows that the vectors are those of {index.embedder_id}: no pictures lie beside them (metadata, "
            f"column file). If they are not, no copy is found. Try one: clearance index search {index.folder} PICTURE"
        )
    say("no pictures are kept: copies are found, but no second look clears a hit, and nothing is steered away from them")


def _data(taken_in: TakenIn) -> dict[str, Any]:
    index, taken, source = taken_in.index, taken_in.index.taken, taken_in.source
    return {
        "index": str(index.folder), "before": taken_in.before, "index_id": index.index_id, "embedder_id": index.embedder_id,
        "vectors": source.total, "vectors_checked": source.checked, "references": len(index), "new": list(taken.new),
        "duplicates": [{"row": place, "of": first} for place, first in taken.duplicates],
        "in_the_index_already": [{"row": place, "ref_id": ref_id} for place, ref_id in taken.known],
        "conflicts": [{"row": c.origin, "ref_id": c.ref_id, "stated": c.stated, "before": c.before, "in_force": c.kept}
                      for c in taken.conflicts],
        "pictures_not_kept": taken.not_kept, "pictures_still_kept": taken.still_kept,
        "other_files": [{"file": name, "is": what} for name, what in source.others],
    }  # fmt: skip
