"""Kinds of tampering with files, shards, rows and payloads."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.audit.envelope import ENVELOPE_FILE
from pipeline.audit.shards import committed, write_parquet
from tests.tampering import forge
from tests.tampering.runs import REPORTS, Runs
from tests.tampering.touch import a_shard, an_edit, editable, flip, name_of, one_of


def a_bit_of_a_data_file(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    path = one_of(folder, rng.choice(("samples/*", "attempts/*", "kept/*")), rng)
    flip(path, rng)
    return (name_of(path, folder),)


def a_bit_of_a_marker(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    path = one_of(folder, "commits/*.json", rng)
    flip(path, rng)
    return (name_of(path, folder),)


def a_bit_of_the_statement(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    flip(folder / "run.json", rng)
    return ("run.json",)


def a_bit_of_an_event_part(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    path = one_of(folder, "events/*", rng)
    flip(path, rng)
    return (name_of(path, folder),)


def a_bit_of_the_plan(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    path = folder / rng.choice(("plan.json", "requests.parquet", "events-head.json"))
    flip(path, rng)
    return (path.name, "events/")


def a_file_cut_emptied_or_removed(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    patterns = "samples/* attempts/* kept/* commits/* events/* run.json plan.json requests.parquet run.dsse.json run.tsr"
    path = one_of(folder, rng.choice(patterns.split()), rng)
    how, data = rng.choice(("cut", "empty", "gone", "twice")), path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": data[: rng.randrange(len(data))], "empty": b"", "twice": data * 2}[how])
    return (name_of(path, folder), "events/", "events-head.json")


def a_link_in_the_place_of_a_file(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """What it leads to holds the right bytes, so that nothing but the link is wrong."""
    patterns = "samples/* attempts/* kept/* commits/* events/* run.json run.dsse.json run.tsr plan.json events-head.json"
    path = one_of(folder, rng.choice(patterns.split()), rng)
    outside = folder.parent / f"victim-{rng.randrange(10**9)}"
    shutil.move(path, outside)
    path.symlink_to(outside)
    return (name_of(path, folder),)


def a_link_in_the_place_of_a_folder(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    path = folder / rng.choice(("samples", "attempts", "kept", "commits", "events"))
    outside = folder.parent / f"victim-{rng.randrange(10**9)}"
    shutil.move(path, outside)
    path.symlink_to(outside)
    return (path.name,)


# --- files that are too many -----------------------------------------------------------------------------------------------


def a_file_among_the_shards(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    place = rng.choice(("samples", "attempts", "kept", "commits", "events"))
    name = rng.choice(("part-000000-0123456789abcdef.parquet", "notes.txt", "x", "more"))
    path = folder / place / name
    if name == "more":
        path.mkdir()
    elif rng.random() < 0.5 and place not in ("commits", "events"):
        shutil.copy(one_of(folder, f"{place}/*.parquet", rng), path)
    else:
        path.write_bytes(rng.randbytes(20))
    return (name_of(path, folder),)


def a_file_beside_the_record(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    kind = rng.choice(("file", "folder", "link", "pipe", "hidden", "card"))
    path = folder / {"hidden": ".notes", "card": "README.md"}.get(kind, f"extra-{rng.randrange(99)}")
    if kind == "folder":
        (path / "deep").mkdir(parents=True)
    elif kind == "link":
        path.symlink_to(runs.base)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(rng.randbytes(30))
    return (path.name,)


def a_report(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    path = folder / rng.choice(REPORTS)
    if rng.random() < 0.5:
        flip(path, rng)
    else:
        path.write_bytes(b"<p>1,000 % accepted")
    return (path.name,)


# --- shards ----------------------------------------------------------------------------------------------------------------


def a_shard_of_another_run_after_the_seal(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """Of the same plan, with marker and all, in the place of ours."""
    shard_id, donor = a_shard(folder, rng), runs.other
    for file in committed(folder)[shard_id].files:
        (folder / file.path).unlink()
    for file in committed(donor)[shard_id].files:
        shutil.copy(donor / file.path, folder / file.path)
    shutil.copy(donor / "commits" / f"{shard_id}.json", folder / "commits")
    return ("samples/", "attempts/", "commits/", "run.json")


def a_further_shard(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    donor, receipt = runs.foreign, rng.choice(list(committed(runs.foreign).values()))
    new = f"{rng.randrange(900, 999):06d}"
    shutil.copy(donor / "commits" / f"{receipt.shard_id}.json", folder / "commits" / f"{new}.json")
    for file in receipt.files:
        shutil.copy(donor / file.path, folder / file.path)
    return (f"commits/{new}.json", "samples/", "attempts/")


def two_shards_exchanged(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    first, second = rng.sample(sorted(committed(folder)), 2)
    receipts = committed(folder)
    if rng.random() < 0.5:
        one, other = folder / "commits" / f"{first}.json", folder / "commits" / f"{second}.json"
    else:
        table = rng.choice(("samples", "attempts"))
        one, other = (folder / next(f.path for f in receipts[name].files if f.table == table) for name in (first, second))
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    return (name_of(one, folder), name_of(other, folder))


def a_shard_removed(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    shard_id = a_shard(folder, rng)
    for file in committed(folder)[shard_id].files:
        (folder / file.path).unlink()
    (folder / "commits" / f"{shard_id}.json").unlink()
    return (f"commits/{shard_id}.json",)


def a_row_edited_in_its_file(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    shard_id, table = editable(folder, rng)
    path = folder / next(file.path for file in committed(folder)[shard_id].files if file.table == table)
    changed = forge.rewritten(forge.table_of(path), an_edit(rng, table), rechain=False)
    with path.open("wb") as stream:
        write_parquet(changed, stream)
    return (name_of(path, folder),)


def a_row_edited_and_its_marker_redone(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    shard_id, table = editable(folder, rng)
    change = an_edit(rng, table)
    receipt = forge.recommit(folder, shard_id, {table: lambda rows: forge.rewritten(rows, change, rechain=False)})
    return tuple(f"{file.path} row" for file in receipt.files if file.table == table)


def a_row_edited_and_its_chain_redone(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    shard_id, table = editable(folder, rng)
    change = an_edit(rng, table)
    receipt = forge.recommit(folder, shard_id, {table: lambda rows: forge.rewritten(rows, change, rechain=True)})
    return (f"commits/{shard_id}.json", "run.json", *(file.path for file in receipt.files))


def a_row_edited_and_all_sealed_again(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    a_row_edited_and_its_chain_redone(folder, rng, runs)
    forge.reseal(folder)
    return (ENVELOPE_FILE,)


def rows_removed_or_reordered(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    shard_id, table = editable(folder, rng)
    how = rng.choice(("remove", "repeat", "reverse"))

    def change(rows: forge.Rows) -> None:
        if how == "remove":
            rows.pop(rng.randrange(len(rows)))
        elif how == "reverse" and len(rows) > 1:
            rows.reverse()
        else:
            rows.append(dict(rng.choice(rows)))

    forge.recommit(folder, shard_id, {table: lambda rows: forge.rewritten(rows, change, rechain=rng.random() < 0.5)})
    return ()


def a_column_removed_or_of_another_type(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    shard_id, table = editable(folder, rng)

    def change(rows: pa.Table) -> pa.Table:
        names = [name for name in rows.schema.names if pa.types.is_string(rows.schema.field(name).type)]
        name = rng.choice(names)
        if rng.random() < 0.5:
            return rows.drop_columns([name])
        cells = pa.array([None if cell is None else 7 for cell in rows.column(name).to_pylist()], pa.int64())
        return rows.set_column(rows.schema.get_field_index(name), name, cells)

    try:
        forge.recommit(folder, shard_id, {table: change})
    except (KeyError, pa.ArrowException):  # the column that a commit itself needs
        return a_shard_removed(folder, rng, runs) if (folder / "commits" / f"{shard_id}.json").exists() else ()
    return ()


# --- payloads --------------------------------------------------------------------------------------------------------------


def a_payload_emptied(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """Without the event that an erasure has, though file and marker fit."""
    shard_id = a_shard(folder, rng)
    there: list[tuple[str, str]] = []
    for file in committed(folder)[shard_id].files:
        rows = forge.table_of(folder / file.path).to_pylist()
        names = ("image", "thumbnail", "embedding")
        there += [(file.table, name) for name in names if any(row.get(name) is not None for row in rows)]
    table, column = rng.choice(there)

    def change(rows: forge.Rows) -> None:
        rng.choice([row for row in rows if row[column] is not None])[column] = None

    receipt = forge.recommit(folder, shard_id, {table: lambda rows: forge.rewritten(rows, change, rechain=False)})
    return tuple(f"{file.path} row" for file in receipt.files if file.table == table)


def a_payload_exchanged(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    shard_id, table = editable(folder, rng)
    columns = {"samples": ("prompt", "image", "embedding"), "attempts": ("thumbnail",), "kept": ("image",)}[table]
    column = rng.choice(columns)
    values = {"prompt": "another", "embedding": [0.5, 0.5, 0.5, 0.5]}
    picture = {"bytes": rng.randbytes(90), "path": "x.webp"}

    def change(rows: forge.Rows) -> None:
        rng.choice(rows)[column] = values.get(column, picture)

    receipt = forge.recommit(folder, shard_id, {table: lambda rows: forge.rewritten(rows, change, rechain=False)})
    return tuple(f"{file.path} row" for file in receipt.files if file.table == table)


def a_picture_exchanged_with_its_digest(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """Chain, marker and statement are redone, so that nothing but the pixels contradicts."""
    shards = [one for one in sorted(committed(folder)) if committed(folder)[one].outcomes.get("accepted")]
    shard_id = rng.choice(shards)
    donors = [row for one in committed(runs.foreign).values() for row in _rows(runs.foreign, one.files[0].path)]

    def change(rows: forge.Rows) -> None:
        row = next(row for row in rows if row["image"] is not None)
        donor = next(other for other in donors if other["pixel_sha256"] != row["pixel_sha256"])
        row.update(image=donor["image"], file_sha256=donor["file_sha256"])

    forge.recommit(folder, shard_id, {"samples": lambda rows: forge.rewritten(rows, change, rechain=True)})
    forge.everything_anew(folder)
    return ("samples/",)


def _rows(folder: Path, path: str) -> forge.Rows:
    return [row for row in pq.ParquetFile(folder / path).read().to_pylist() if row["image"] is not None]
