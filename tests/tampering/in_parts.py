"""Kinds of tampering with a compacted run: its parts, their index, and the event that names it."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.audit.compacted import PARTS_INDEX, PartsIndex, index_bytes, parts_index
from pipeline.audit.events import append_event
from pipeline.audit.shards import write_parquet
from tests.tampering.runs import Runs


def a_bit_of_a_part_or_of_their_index(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    path = rng.choice(sorted((folder / "parts").iterdir()))
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return (f"parts/{path.name}",)


def a_part_cut_removed_or_exchanged(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    paths = sorted(path for path in (folder / "parts").iterdir() if path.name != "index.parquet")
    path = rng.choice(paths)
    how = rng.choice(("cut", "gone", "other"))
    if how == "cut":
        path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    elif how == "gone":
        path.unlink()
    else:
        shutil.copy(rng.choice([other for other in paths if other != path]), path)
    return (f"parts/{path.name}",)


def rows_of_a_part_edited_and_all_named_again(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """The part is written again by its own writer; a new index names it, and a new event the index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = _index(folder)
    number = rng.choice([n for n, part in enumerate(index.parts) if part.rows > 1])
    part = index.parts[number]
    table = pq.ParquetFile(folder / part.path).read()
    how = rng.choice(("edited", "exchanged", "twice"))
    rows = list(range(table.num_rows))
    if how == "edited":
        row, place = (
            rng.randrange(table.num_rows),
            table.schema.get_field_index("row_no" if part.table != "attempts" else "seed"),
        )
        values = table.column(place).to_pylist()
        values[row] += 1
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    elif how == "exchanged":
        rows[0], rows[-1] = rows[-1], rows[0]
    else:
        rows[0] = rows[1]
    with (folder / part.path).open("wb") as stream:
        write_parquet(table.take(rows), stream)
    parts = list(index.parts)
    parts[number] = replace(part, **_digest(folder / part.path))
    _name_again(folder, replace(index, parts=tuple(parts)))
    return (f"parts/{part.path.rpartition('/')[2]}",)


def an_index_edited_and_named_again(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    index = _index(folder)
    shards = sorted(index.slices)
    one, other = rng.sample(shards, 2)
    slices = {shard: dict(own) for shard, own in index.slices.items()}
    markers: dict[str, Any] = dict(index.markers)
    how = rng.choice(("headers", "rows", "places", "markers", "gone"))
    mine, theirs = slices[one]["samples"], slices[other]["samples"]
    if how == "headers":
        slices[one]["samples"] = mine._replace(header=theirs.header)
    elif how == "rows":
        slices[one]["samples"] = mine._replace(rows=mine.rows + 1)
    elif how == "places":
        slices[one]["samples"] = mine._replace(path=theirs.path, first=theirs.first)
        slices[other]["samples"] = theirs._replace(path=mine.path, first=mine.first)
    elif how == "markers":
        markers[one], markers[other] = markers[other], markers[one]
    else:
        del markers[one], slices[one]
    _name_again(folder, replace(index, markers=markers, slices=slices))
    return ()


def the_index_of_another_run(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """With its parts, and an event that names it."""
    from jobs.by import By
    from jobs.compact import compact_run

    other = Path(shutil.copytree(runs.other, folder.parent / f"{folder.name}-other"))
    compact_run(other, By(role="forger", reason="again"))
    shutil.rmtree(folder / "parts")
    shutil.move(other / "parts", folder / "parts")
    shutil.rmtree(other)
    if rng.random() < 0.5:
        append_event(folder, "run.compacted", "forger", "again", index_sha256=_index(folder).sha256)
    return ("parts/", "commits/", "samples/", "run.json")


def _index(folder: Path) -> PartsIndex:
    index = parts_index(folder)
    assert index is not None
    return index


def _digest(path: Path) -> dict[str, Any]:
    import hashlib

    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}


def _name_again(folder: Path, index: PartsIndex) -> None:
    (folder / PARTS_INDEX).write_bytes(index_bytes(index.parts, index.markers, index.slices))
    append_event(folder, "run.compacted", "forger", "again", index_sha256=str(_digest(folder / PARTS_INDEX)["sha256"]))
