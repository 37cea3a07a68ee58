"""The kinds of tampering. Each takes a copy of a run and a source of chance, changes something, and returns where.

A kind returns the places (beginnings of paths) of which one must be named by a problem. Where it returns none, whatever is
named is right. Kinds whose change lies outside the record must be named as not covered.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.audit.envelope import ENVELOPE_FILE
from pipeline.audit.shards import committed, write_parquet
from pipeline.audit.timestamp import STAMP_FILE
from tests.tampering import forge, in_parts
from tests.tampering.runs import REPORTS, Runs

Found = Literal["problem", "not covered"]
Apply = Callable[[Path, random.Random, Runs], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of tampering.

    Attributes:
        apply: does it. expected: how it must come out.
        stopped: it is done to a stopped run, and found when that is continued, or afterwards.
        erased: it is done to a run from which payloads were erased. compacted: to one whose small files became large parts.
        by_pixels: only decoding the picture finds it, which the small verifier names as not done.
        by_key: only the key, which lies outside the folder, finds it.
    """

    apply: Apply
    expected: Found = "problem"
    stopped: bool = False
    erased: bool = False
    compacted: bool = False
    by_pixels: bool = False
    by_key: bool = False

    @property
    def name(self) -> str:
        return self.apply.__name__.replace("_", " ")

    def victim(self, runs: Runs) -> Path:
        """The run that it is done to a copy of."""
        if self.compacted:
            return runs.compacted
        return runs.stopped if self.stopped else runs.erased if self.erased else runs.whole


# --- bytes of files --------------------------------------------------------------------------------------------------------


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def _one_of(folder: Path, pattern: str, rng: random.Random) -> Path:
    return rng.choice(sorted(path for path in folder.glob(pattern) if path.is_file()))


def _shard(folder: Path, rng: random.Random) -> str:
    return rng.choice(sorted(committed(folder)))


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def a_bit_of_a_data_file(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    path = _one_of(folder, rng.choice(("samples/*", "attempts/*", "kept/*")), rng)
    _flip(path, rng)
    return (_name(path, folder),)


def a_bit_of_a_marker(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    path = _one_of(folder, "commits/*.json", rng)
    _flip(path, rng)
    return (_name(path, folder),)


def a_bit_of_the_statement(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    _flip(folder / "run.json", rng)
    return ("run.json",)


def a_bit_of_an_event_part(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    path = _one_of(folder, "events/*", rng)
    _flip(path, rng)
    return (_name(path, folder),)


def a_bit_of_the_plan(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    path = folder / rng.choice(("plan.json", "requests.parquet", "events-head.json"))
    _flip(path, rng)
    return (path.name, "events/")


def a_file_cut_emptied_or_removed(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    patterns = "samples/* attempts/* kept/* commits/* events/* run.json plan.json requests.parquet run.dsse.json run.tsr"
    path = _one_of(folder, rng.choice(patterns.split()), rng)
    how, data = rng.choice(("cut", "empty", "gone", "twice")), path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": data[: rng.randrange(len(data))], "empty": b"", "twice": data * 2}[how])
    return (_name(path, folder), "events/", "events-head.json")


def a_link_in_the_place_of_a_file(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """What it leads to holds the right bytes, so that nothing but the link is wrong."""
    patterns = "samples/* attempts/* kept/* commits/* events/* run.json run.dsse.json run.tsr plan.json events-head.json"
    path = _one_of(folder, rng.choice(patterns.split()), rng)
    outside = folder.parent / f"victim-{rng.randrange(10**9)}"
    shutil.move(path, outside)
    path.symlink_to(outside)
    return (_name(path, folder),)


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
        shutil.copy(_one_of(folder, f"{place}/*.parquet", rng), path)
    else:
        path.write_bytes(rng.randbytes(20))
    return (_name(path, folder),)


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
        _flip(path, rng)
    else:
        path.write_bytes(b"<p>1,000 % accepted")
    return (path.name,)


# --- shards ----------------------------------------------------------------------------------------------------------------


def a_shard_of_another_run_after_the_seal(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """Of the same plan, with marker and all, in the place of ours."""
    shard_id, donor = _shard(folder, rng), runs.other
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
    return (_name(one, folder), _name(other, folder))


def a_shard_removed(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    shard_id = _shard(folder, rng)
    for file in committed(folder)[shard_id].files:
        (folder / file.path).unlink()
    (folder / "commits" / f"{shard_id}.json").unlink()
    return (f"commits/{shard_id}.json",)


# --- rows ------------------------------------------------------------------------------------------------------------------

EDITS: dict[str, dict[str, Any]] = {
    "samples": {"outcome": "review", "reason": "", "request_key": "x", "policy_name": "better", "seed": 7, "base_seed": 7,
                "copy_threshold": 0.99, "denoiser_evals": 0.0, "retain_until": None, "legal_hold": True,
                "model_licence": "MIT"},
    "attempts": {"decision": "review", "reason": "fine", "seed": 7, "denoiser_evals": 1.0, "request_key": "x"},
    "kept": {"attempt": 9, "width": 3, "request_key": "x"},
}  # fmt: skip


def _edit(rng: random.Random, table: str) -> Callable[[forge.Rows], Any]:
    def change(rows: forge.Rows) -> None:
        row = rng.choice(rows)
        options = {name: value for name, value in EDITS[table].items() if name in row and row[name] != value}
        row.update([rng.choice(list(options.items()))])

    return change


def _editable(folder: Path, rng: random.Random) -> tuple[str, str]:
    """A shard, and a table of it that has rows."""
    shard_id = _shard(folder, rng)
    return shard_id, rng.choice([file.table for file in committed(folder)[shard_id].files if file.rows])


def a_row_edited_in_its_file(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    shard_id, table = _editable(folder, rng)
    path = folder / next(file.path for file in committed(folder)[shard_id].files if file.table == table)
    changed = forge.rewritten(forge.table_of(path), _edit(rng, table), rechain=False)
    with path.open("wb") as stream:
        write_parquet(changed, stream)
    return (_name(path, folder),)


def a_row_edited_and_its_marker_redone(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    shard_id, table = _editable(folder, rng)
    change = _edit(rng, table)
    receipt = forge.recommit(folder, shard_id, {table: lambda rows: forge.rewritten(rows, change, rechain=False)})
    return tuple(f"{file.path} row" for file in receipt.files if file.table == table)


def a_row_edited_and_its_chain_redone(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    shard_id, table = _editable(folder, rng)
    change = _edit(rng, table)
    receipt = forge.recommit(folder, shard_id, {table: lambda rows: forge.rewritten(rows, change, rechain=True)})
    return (f"commits/{shard_id}.json", "run.json", *(file.path for file in receipt.files))


def a_row_edited_and_all_sealed_again(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    a_row_edited_and_its_chain_redone(folder, rng, runs)
    forge.reseal(folder)
    return (ENVELOPE_FILE,)


def rows_removed_or_reordered(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    shard_id, table = _editable(folder, rng)
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
    shard_id, table = _editable(folder, rng)

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
    shard_id = _shard(folder, rng)
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
    shard_id, table = _editable(folder, rng)
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


# --- erasures ----------------------------------------------------------------------------------------------------------------


def _erased_files(runs: Runs) -> list[str]:
    """Files that the erasure changed."""
    names = [path.relative_to(runs.erased).as_posix() for path in sorted(runs.erased.rglob("*.parquet"))]
    shared = [name for name in names if (runs.unerased / name).exists()]
    return [name for name in shared if (runs.erased / name).read_bytes() != (runs.unerased / name).read_bytes()]


def an_erased_payload_put_back(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    name = rng.choice(_erased_files(runs))
    shutil.copy(runs.unerased / name, folder / name)
    return (name,)


def a_further_payload_emptied_beside_an_erasure(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    names = [name for name in _erased_files(runs) if name.startswith(("samples", "attempts", "kept"))]
    name = rng.choice(names)
    table = forge.table_of(folder / name)
    there = [(n, c) for n, row in enumerate(table.to_pylist()) for c in ("image", "thumbnail", "embedding") if row.get(c)]
    if not there:  # the erasure took everything: one more row is removed instead
        changed = table.slice(1)
    else:
        at, column = rng.choice(there)
        changed = forge.rewritten(table, lambda rows: rows[at].update({column: None}), rechain=False)
    with (folder / name).open("wb") as stream:
        write_parquet(changed, stream)
    return (name,)


def an_erasure_without_its_event(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """The events are those from before: the chain ends whole, and too early."""
    shutil.rmtree(folder / "events")
    shutil.copytree(runs.unerased / "events", folder / "events")
    shutil.copy(runs.unerased / "events-head.json", folder)
    return tuple(_erased_files(runs))


def a_row_changed_under_cover_of_an_erasure(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """File digest and event are redone, as an erasure would: what is committed of the row contradicts."""
    from pipeline.audit.erasure import ERASED, ErasedFile
    from pipeline.audit.events import append_event

    shard_id, table = _editable(folder, rng)
    file = next(file for file in committed(folder)[shard_id].files if file.table == table)
    path, before = folder / file.path, forge.sha256(folder / file.path)
    changed = forge.rewritten(forge.table_of(path), _edit(rng, table), rechain=rng.random() < 0.5)
    with path.open("wb") as stream:
        write_parquet(changed, stream)
    named = ErasedFile(
        seq=-1, path=file.path, table=table, columns={}, before_sha256=before, after_sha256=forge.sha256(path),
        after_bytes=path.stat().st_size,
    )  # fmt: skip
    append_event(folder, ERASED, "privacy", "asked for", details={"files": [named.plain()]})
    return (file.path,)


# --- statement and events --------------------------------------------------------------------------------------------------


def a_statement_changed_with_its_digest(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    changes: tuple[dict[str, Any], ...] = (
        {"policy_name": "better"}, {"requested": 5}, {"merkle_root": "00" * 32}, {"content_root": "00" * 32},
        {"shards": {}}, {"events": {"count": 0, "head": "00" * 32}}, {"model": {"licence": "MIT"}}, {"run_id": "another"},
    )  # fmt: skip
    forge.restate(folder, lambda predicate: predicate.update(rng.choice(changes)))
    return ("run.json",)


def the_statement_of_another_run(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    for name in rng.choice((("run.json",), ("run.json", ENVELOPE_FILE), ("run.json", ENVELOPE_FILE, STAMP_FILE))):
        shutil.copy(runs.other / name, folder / name)
    return ("run.json",)


def event_parts_removed(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    parts = sorted((folder / "events").iterdir())
    for path in rng.sample(parts, rng.randrange(1, 3)) if rng.random() < 0.7 else parts:
        path.unlink()
    return ("events", "events-head.json", "run.json")


def the_last_events_removed_with_their_head(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """The head file is redone, so that the chain ends whole, and too early."""
    keep = rng.randrange(1, 4)
    forge.redo_events(folder, lambda events: events[:keep])
    return ()


def events_exchanged_or_renamed(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    first, second = rng.sample(sorted((folder / "events").iterdir()), 2)
    data = first.read_bytes()
    if rng.random() < 0.5:
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)
    else:
        shutil.copy(runs.other / "events" / first.name, first)
    return ("events", "events-head.json", "run.json")


def the_events_of_another_run(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    shutil.rmtree(folder / "events")
    shutil.copytree(runs.other / "events", folder / "events")
    shutil.copy(runs.other / "events-head.json", folder)
    return ("events", "run.json", "run.dsse.json", "plan.json")


def an_event_changed_with_its_chain(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """Before the seal: a person's decision or the start is rewritten, and every digest after it."""
    at = rng.randrange(0, 3)

    def change(events: forge.Rows) -> forge.Rows:
        events[at]["reason"] = "nothing happened"
        return events

    forge.redo_events(folder, change)
    return ("events", "samples/", "attempts/", "kept/")


# --- proofs ----------------------------------------------------------------------------------------------------------------


def a_signature_changed_removed_or_exchanged(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    path = folder / ENVELOPE_FILE
    how = rng.choice(("flip", "gone", "other", "signature"))
    if how == "flip":
        _flip(path, rng)
    elif how == "gone":
        path.unlink()
    elif how == "other":
        shutil.copy(runs.other / ENVELOPE_FILE, path)
    else:
        mine, theirs = json.loads(path.read_bytes()), json.loads((runs.other / ENVELOPE_FILE).read_bytes())
        mine["signatures"] = theirs["signatures"]
        path.write_bytes(json.dumps(mine, sort_keys=True, indent=1).encode() + b"\n")
    return (ENVELOPE_FILE,)


def a_time_stamp_changed_removed_or_exchanged(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    path = folder / STAMP_FILE
    how = rng.choice(("flip", "gone", "other"))
    if how == "flip":
        _flip(path, rng)
    elif how == "gone":
        path.unlink()
    else:
        shutil.copy(runs.other / STAMP_FILE, path)
    return (STAMP_FILE,)


def a_signature_by_another_key(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """With the event of signing that goes with it."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from pipeline.audit.envelope import local_signer, sign_run

    own = rng.random() < 0.5
    sign_run(folder, local_signer(Ed25519PrivateKey.generate(), runs.trust.key_id if own else "0123456789abcdef"))
    return (ENVELOPE_FILE,)


def everything_forged_anew(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """Row, chain, marker, statement and events redone; signature and time stamp, which the forger cannot make, removed."""
    a_row_edited_and_its_chain_redone(folder, rng, runs)
    forge.everything_anew(folder)
    return (ENVELOPE_FILE,)


# --- while the run is stopped ----------------------------------------------------------------------------------------------


def a_foreign_shard_before_the_seal(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """Of another run of this plan: under the name of a shard that is still to be drawn, or in the place of one that was."""
    donor = runs.finished
    shard_id = rng.choice(sorted(committed(donor)))
    if (folder / "commits" / f"{shard_id}.json").exists():
        for file in committed(folder)[shard_id].files:
            (folder / file.path).unlink()
    for file in committed(donor)[shard_id].files:
        (folder / file.path).parent.mkdir(exist_ok=True)
        shutil.copy(donor / file.path, folder / file.path)
    shutil.copy(donor / "commits" / f"{shard_id}.json", folder / "commits")
    return ("samples/", "attempts/", "kept/", "commits/", "plan.json", "events")


def the_plan_changed_while_stopped(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    path = folder / rng.choice(("plan.json", "requests.parquet"))
    how = rng.choice(("flip", "other", "value"))
    if how == "other":
        shutil.copy(runs.foreign / path.name, path)
    elif how == "value" and path.name == "plan.json":
        plan = json.loads(path.read_bytes())
        plan["config"]["retention_days"] = 3
        path.write_bytes(json.dumps(plan, sort_keys=True, indent=1).encode() + b"\n")
    else:
        _flip(path, rng)
    return ("requests.parquet", "plan.json")


def the_events_changed_while_stopped(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    how = rng.choice(("flip", "gone", "reason", "other"))
    if how == "flip":
        _flip(_one_of(folder, "events/*", rng), rng)
    elif how == "gone":
        sorted((folder / "events").iterdir())[rng.randrange(2)].unlink()
    elif how == "other":
        shutil.rmtree(folder / "events")
        shutil.copytree(runs.foreign / "events", folder / "events")
        shutil.copy(runs.foreign / "events-head.json", folder)
    else:

        def change(events: forge.Rows) -> forge.Rows:
            events[0]["reason"] = "another beginning"
            return events

        forge.redo_events(folder, change)
    return ("events", "plan.json", "samples/", "attempts/")


KINDS: tuple[Kind, ...] = (
    *(Kind(apply=apply) for apply in (
        a_bit_of_a_data_file, a_bit_of_a_marker, a_bit_of_the_statement, a_bit_of_an_event_part, a_bit_of_the_plan,
        a_file_cut_emptied_or_removed, a_link_in_the_place_of_a_file, a_link_in_the_place_of_a_folder, a_file_among_the_shards,
        a_shard_of_another_run_after_the_seal, a_further_shard, two_shards_exchanged, a_shard_removed, a_row_edited_in_its_file,
        a_row_edited_and_its_marker_redone, a_row_edited_and_its_chain_redone, a_row_edited_and_all_sealed_again,
        rows_removed_or_reordered, a_column_removed_or_of_another_type, a_payload_emptied, a_payload_exchanged,
        a_statement_changed_with_its_digest, the_statement_of_another_run, event_parts_removed,
        the_last_events_removed_with_their_head, events_exchanged_or_renamed, the_events_of_another_run,
        an_event_changed_with_its_chain, a_signature_changed_removed_or_exchanged, a_time_stamp_changed_removed_or_exchanged,
    )),
    *(Kind(apply=apply, erased=True) for apply in (
        an_erased_payload_put_back, a_further_payload_emptied_beside_an_erasure, an_erasure_without_its_event,
    )),
    Kind(apply=a_row_changed_under_cover_of_an_erasure),
    *(Kind(apply=apply, compacted=True) for apply in (
        in_parts.a_bit_of_a_part_or_of_their_index, in_parts.a_part_cut_removed_or_exchanged,
        in_parts.rows_of_a_part_edited_and_all_named_again, in_parts.an_index_edited_and_named_again,
        in_parts.the_index_of_another_run, a_statement_changed_with_its_digest, event_parts_removed,
    )),
    Kind(apply=a_picture_exchanged_with_its_digest, by_pixels=True),
    Kind(apply=a_signature_by_another_key, by_key=True),
    Kind(apply=everything_forged_anew, by_key=True),
    Kind(apply=a_file_beside_the_record, expected="not covered"),
    Kind(apply=a_report),
    Kind(apply=a_foreign_shard_before_the_seal, stopped=True),
    Kind(apply=the_plan_changed_while_stopped, stopped=True),
    Kind(apply=the_events_changed_while_stopped, stopped=True),
)  # fmt: skip
