"""Kinds of tampering with erasures, the statement, events and proofs, and with a stopped run."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.audit.envelope import ENVELOPE_FILE
from pipeline.audit.ledger import sample_rows
from pipeline.audit.shards import committed, write_parquet
from pipeline.audit.timestamp import STAMP_FILE
from tests.tampering import forge, in_tables
from tests.tampering.runs import Runs
from tests.tampering.touch import an_edit, editable, flip, one_of

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
    shard_id, table = editable(folder, rng)
    file = next(file for file in committed(folder)[shard_id].files if file.table == table)
    changed = forge.rewritten(forge.table_of(folder / file.path), an_edit(rng, table), rechain=rng.random() < 0.5)
    _replace(folder, file.path, table, changed, {})
    return (file.path,)


def the_requests_replaced_under_cover_of_an_erasure(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """One cell is emptied as the event says, or the event names none; beside that something else is asked for."""
    path, ids = folder / "requests.parquet", {row["row_no"]: row["sample_id"] for row in sample_rows(folder)}
    rows = pq.ParquetFile(path).read().to_pylist()
    edits = (
        {"prompt": "a cloud"},
        {"negative_prompt": "rain"},
        {"key": "x"},
        {"seed": 7},
        {"row_no": 99},
        {"problem_code": "x"},
    )
    named: dict[str, tuple[str, ...]] = {}
    if rng.random() < 0.7:
        gone = rng.choice(rows)
        gone.update(prompt=None, negative_prompt=None)
        named = dict.fromkeys(("prompt", "negative_prompt"), (ids[gone["row_no"]],))
    row = rng.choice([row for row in rows if row["prompt"] and not row["problem_code"]])
    row.update(rng.choice(edits))
    table = pa.Table.from_pylist(rows, schema=pq.read_schema(path))
    how = rng.choice(("cell", "cell", "cell", "row", "column"))
    if how == "row":
        table = table.slice(1)
    elif how == "column":
        table = table.append_column("notes", pa.array(["anything"] * len(rows)))
    _replace(folder, "requests.parquet", "requests", table, named)
    return ("requests.parquet",)


def cells_outside_the_chain_replaced_under_cover_of_an_erasure(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    """What no digest in the row covers: a picture's path, one of two prompts, another table's payload, a member more."""
    receipt = rng.choice([one for one in committed(folder).values() if one.outcomes.get("accepted")])
    path = next(file.path for file in receipt.files if file.table == "samples")
    table = forge.table_of(folder / path)
    rows, place = table.to_pylist(), table.schema.get_field_index("image")
    row = rng.choice([row for row in rows if row["image"] is not None])
    row["prompt"], named = None, {"prompt": (row["sample_id"],)}
    how = rng.choice(("path", "prompt", "column", "member"))
    row["negative_prompt"] = "in the style of somebody" if how == "prompt" else None
    named |= {} if how == "prompt" else {"negative_prompt": (row["sample_id"],)}
    if how == "path":
        row["image"]["path"] = "/etc/passwd"
    changed = pa.Table.from_pylist(rows, schema=table.schema)
    if how == "column":
        changed = changed.append_column("thumbnail", pa.array(["anything"] * len(rows)))
    elif how == "member":
        pictures = [{**one["image"], "note": "anything"} if one["image"] else None for one in rows]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string()), ("note", pa.string())])
        changed = changed.set_column(place, "image", pa.array(pictures, kind))
    _replace(folder, path, "samples", changed, named)
    return (path,)


def _replace(folder: Path, path: str, table: str, changed: pa.Table, named: dict[str, tuple[str, ...]]) -> None:
    """Write a file anew, with the event of an erasure that names its digests and these cells."""
    from pipeline.audit.erasure import ERASED, ErasedFile
    from pipeline.audit.events import append_event

    before = forge.sha256(folder / path)
    with (folder / path).open("wb") as stream:
        write_parquet(changed, stream)
    about = ErasedFile(
        seq=-1, path=path, table=table, columns=named, before_sha256=before, after_sha256=forge.sha256(folder / path),
        after_bytes=(folder / path).stat().st_size,
    )  # fmt: skip
    append_event(folder, ERASED, "privacy", "asked for", details={"files": [about.plain()]})


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
        flip(path, rng)
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
        flip(path, rng)
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
    in_tables.a_row_edited_and_its_chain_redone(folder, rng, runs)
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
        flip(path, rng)
    return ("requests.parquet", "plan.json")


def the_events_changed_while_stopped(folder: Path, rng: random.Random, runs: Runs) -> tuple[str, ...]:
    how = rng.choice(("flip", "gone", "reason", "other"))
    if how == "flip":
        flip(one_of(folder, "events/*", rng), rng)
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
