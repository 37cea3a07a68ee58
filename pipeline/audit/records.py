"""The audit's rows: one for every requested sample, one for every attempt, whatever happened; and what names them.

Every row carries a digest of its committed columns and of the row before it. Payloads (pictures, prompts, embeddings) enter
that chain only as digests, so that one of them can be erased later without breaking it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from guards.base import Finding
from index.errors import InputError, IntegrityError
from index.reference import Match
from pipeline.audit.schema import LINKS, PAYLOADS, SCHEMA_VERSION, attempts_schema, samples_schema
from pipeline.marking.encode import DIGITAL_SOURCE_TYPE, SUFFIXES, decode, encode, pixel_digest, thumbnail, xmp_packet
from pipeline.outcome import ACCEPTED, Adapter, Attempt, Caught, Outcome, Request, Sample

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Anchors:
    """What a shard names of the folder it was written in; neither can be changed while a run is stopped without being found.

    Attributes:
        plan_file_sha256: digest of ``plan.json``. events_head: digest of the event that the session began with.
    """

    plan_file_sha256: str = ""
    events_head: str = ""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What is the same for every row of a run.

    Attributes:
        run_id: this run. dataset_id: the data set it belongs to; part of every sample's identity.
        plan_sha256: digest of the plan (configuration, policy, model, index, requests).
        model_id, model_revision, model_digest, model_licence: the diffusion model.
        adapters: what was loaded on top of it.
        scheduler, steps, guidance, dtype, device_kind, rows, threads: how pictures were drawn.
        index_id, embedder_id, calibration_id, copy_threshold: what copies were measured against.
        policy_id, policy_sha256, policy_name: the policy in force.
        actions: guard → what its triggered findings lead to.
        image_format: ``webp`` (lossless), ``png`` or ``jpeg``.
        retention_days: 0 keeps without limit.
        salt: hex; keys the prompt commitments. Empty: derived from the data set's name, which makes commitments
            repeatable but not secret. Pass a secret one when prompts are personal data.
        embedding_dim: length of the stored embeddings; -1 stores them as lists of any length.
        anchors: what the shards' headers name of the run folder.
    """

    run_id: str
    dataset_id: str
    plan_sha256: str
    model_id: str
    model_revision: str
    model_digest: str
    model_licence: str
    adapters: tuple[Adapter, ...] = ()
    scheduler: str
    steps: int
    guidance: float
    dtype: str
    device_kind: str
    rows: int
    threads: int
    index_id: str
    embedder_id: str
    calibration_id: str
    copy_threshold: float
    policy_id: str
    policy_sha256: str
    policy_name: str
    image_format: str = "webp"
    retention_days: int = 0
    salt: str = ""
    software_version: str = ""
    worker_id: str = ""
    embedding_dim: int = -1
    anchors: Anchors = field(default_factory=Anchors)
    actions: Mapping[str, str] = field(default_factory=dict)

    @property
    def prompt_salt(self) -> str:
        return self.salt or default_salt(self.dataset_id)


def default_salt(dataset_id: str) -> str:
    """The salt (hex) used when none is given: repeatable for a data set, and therefore no secret."""
    return hashlib.sha256(b"clearance prompt commitment\0" + dataset_id.encode()).hexdigest()


def salt_id(salt: str) -> str:
    """Names a salt without giving it away, so that a verifier knows whether it holds the right one."""
    return hashlib.sha256(b"clearance salt id\0" + bytes.fromhex(salt)).hexdigest()[:16]


def prompt_commitment(prompt: str, negative_prompt: str, salt: str) -> str:
    """HMAC-SHA256 over prompt and negative prompt, keyed by the salt (hex)."""
    message = json.dumps([prompt, negative_prompt], ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return hmac.new(bytes.fromhex(salt), message, hashlib.sha256).hexdigest()


def sample_identity(request: Request, context: RunContext) -> str:
    """Digest of data set, request key, prompt commitment and seed: a re-run names the same sample the same."""
    commit = prompt_commitment(request.prompt, request.negative_prompt, context.prompt_salt)
    return hashlib.sha256(canonical([context.dataset_id, request.key, commit, request.seed])).hexdigest()[:32]


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8; times as ISO 8601 in UTC. The form every digest is taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_json_plain).encode()


def _json_plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no canonical form")


def record_digest(row: Mapping[str, Any], prev: str) -> str:
    """sha256 of a row's committed columns (everything but payloads and links) and the digest of the row before it."""
    committed = {name: value for name, value in row.items() if name not in PAYLOADS and name not in LINKS}
    return hashlib.sha256(canonical([committed, prev])).hexdigest()


def header(table: str, shard_id: str, context: RunContext) -> dict[str, Any]:
    """The shard's header: kept in the table's metadata, and the start of its chain."""
    return {
        "table": table,
        "schema_version": SCHEMA_VERSION,
        "run_id": context.run_id,
        "dataset_id": context.dataset_id,
        "shard_id": shard_id,
        "plan_sha256": context.plan_sha256,
        "policy_sha256": context.policy_sha256,
        "salt_id": salt_id(context.prompt_salt),
        "writer": context.worker_id,
        "plan_file_sha256": context.anchors.plan_file_sha256,
        "events_head": context.anchors.events_head,
    }


def chain_start(shard_header: Mapping[str, Any]) -> str:
    """The first ``prev_sha256`` of a shard."""
    return hashlib.sha256(canonical(shard_header)).hexdigest()


def table_header(schema: pa.Schema) -> dict[str, Any]:
    """Read the shard header back from a table's schema metadata.

    Raises:
        IntegrityError: there is none, or it is unreadable.
    """
    try:
        found = json.loads((schema.metadata or {})[b"clearance"])
        if not isinstance(found, dict):
            raise TypeError
    except (KeyError, ValueError, TypeError, RecursionError):
        raise IntegrityError("has no readable shard header", fix="Only tables made by Clearance can be verified") from None
    return found


# --- rows ------------------------------------------------------------------------------------------------------------------


def sample_table(samples: Sequence[Sample], context: RunContext, shard_id: str) -> pa.Table:
    """One row per sample, in the order given, chained.

    Args:
        samples: the shard's samples; every request exactly once.
        context: what all rows share.
        shard_id: the shard.

    Returns:
        A table of :func:`samples_schema` with the shard header in its metadata.

    Raises:
        IntegrityError: two samples with one identity, or a picture that does not match its recorded digest.
        InputError: a seed outside 64 bits.
    """
    twice = [key for key, n in Counter(sample_identity(s.request, context) for s in samples).items() if n > 1]
    if twice:
        raise IntegrityError(
            f"{len(twice)} sample(s) appear twice", where=f"shard {shard_id}", fix="Give every request its own key or seed"
        )
    rows = (_sample_row(sample, context, shard_id) for sample in samples)
    return _chained(rows, samples_schema(context.embedding_dim), header("samples", shard_id, context))


def attempt_table(samples: Sequence[Sample], context: RunContext, shard_id: str) -> pa.Table:
    """One row per attempt of the samples, in order, chained. Empty when no sample got as far as a picture."""
    rows = (_attempt_row(attempt, sample, context, shard_id) for sample in samples for attempt in sample.attempts)
    return _chained(rows, attempts_schema(), header("attempts", shard_id, context))


def _chained(rows: Iterator[dict[str, Any]], schema: pa.Schema, shard_header: Mapping[str, Any]) -> pa.Table:
    import pyarrow as pa

    done, prev = [], chain_start(shard_header)
    for row in rows:
        row["prev_sha256"] = prev
        prev = row["record_sha256"] = record_digest(row, prev)
        done.append(row)
    metadata = {**(schema.metadata or {}), b"clearance": canonical(shard_header)}
    return pa.Table.from_pylist(done, schema=schema.with_metadata(metadata))


def _sample_row(sample: Sample, context: RunContext, shard_id: str) -> dict[str, Any]:
    request, final, accepted = sample.request, sample.final, sample.outcome in ACCEPTED
    if accepted and sample.accepted_attempt is None:
        raise IntegrityError("accepted without an accepted attempt", where=f"request {request.key!r}", fix="Report this")
    picture = final.picture if final is not None else None
    if final is not None and pixel_digest(final.picture) != final.pixel_sha256:
        raise IntegrityError("the final picture does not match its recorded digest", where=f"request {request.key!r}")
    sample_id = sample_identity(request, context)
    stored = None
    if accepted and picture is not None:
        software = f"Clearance {context.software_version}".strip()
        packet = xmp_packet(ai_system=context.model_id, ai_version=context.model_revision, software=software)
        stored = encode(picture, context.image_format, packet)
        # Not assumed: read back, because a library may drop metadata silently.
        xmp_present = DIGITAL_SOURCE_TYPE.encode() in decode(stored.data)[1]
    embedding = None
    if final is not None and final.embedding.size:
        embedding = np.asarray(final.embedding, dtype="<f2").reshape(-1)
    pdq, pdq_quality = _pdq(picture) if picture is not None else (None, None)
    finished = _time(sample.finished_at)
    retain = finished + timedelta(days=context.retention_days) if context.retention_days > 0 else None
    skipped = sorted({name for attempt in sample.attempts for name in attempt.skipped_guards})
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": context.run_id,
        "dataset_id": context.dataset_id,
        "shard_id": shard_id,
        "row_no": int(request.row_no),
        "sample_id": sample_id,
        "request_key": request.key,
        "outcome": str(sample.outcome),
        "reason": sample.reason,
        "image": {"bytes": stored.data, "path": f"{sample_id}.{SUFFIXES[stored.media_type]}"} if stored else None,
        "media_type": stored.media_type if stored else None,
        "width": int(picture.shape[1]) if picture is not None else None,
        "height": int(picture.shape[0]) if picture is not None else None,
        "pixel_sha256": final.pixel_sha256 if final is not None else None,
        "file_sha256": stored.file_sha256 if stored else None,
        "pdq": pdq,
        "pdq_quality": pdq_quality,
        "embedding": embedding,
        "embedding_sha256": hashlib.sha256(embedding.tobytes()).hexdigest() if embedding is not None else None,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "prompt_commit": prompt_commitment(request.prompt, request.negative_prompt, context.prompt_salt),
        "prompt_ref": "",
        "prompt_truncated": bool(sample.prompt_truncated),
        "base_seed": _seed(request.seed, request.key),
        "model_id": context.model_id,
        "model_revision": context.model_revision,
        "model_digest": context.model_digest,
        "model_licence": context.model_licence,
        "adapters": [
            {"name": a.name, "kind": a.kind, "digest": a.digest, "weight": float(a.weight), "tokens": list(a.tokens)}
            for a in context.adapters
        ],
        "scheduler": context.scheduler,
        "steps": int(context.steps),
        "guidance": float(context.guidance),
        "dtype": context.dtype,
        "device_kind": context.device_kind,
        "rows": int(context.rows),
        "threads": int(context.threads),
        "attempts": len(sample.attempts),
        "accepted_attempt": sample.accepted_attempt,
        "findings": [_finding(f, context) for f in final.findings] if final is not None else [],
        "nearest": [_match(m) for m in final.nearest] if final is not None else [],
        "index_id": context.index_id,
        "embedder_id": context.embedder_id,
        "calibration_id": context.calibration_id,
        "copy_threshold": float(context.copy_threshold),
        "policy_id": context.policy_id,
        "policy_sha256": context.policy_sha256,
        "policy_name": context.policy_name,
        "interventions": [row for a in sample.attempts if (row := _intervention(a)) is not None],
        "skipped_guards": skipped,
        "digital_source_type": DIGITAL_SOURCE_TYPE if stored else None,
        "c2pa_present": False,
        "xmp_present": xmp_present if stored else False,
        "watermark_scheme": "",
        "watermark_score": None,
        "review_state": "open" if sample.outcome is Outcome.REVIEW else "none",
        "error_class": sample.error_class,
        "error_message": sample.error_message,
        "denoiser_evals": float(sample.denoiser_evals),
        "device_seconds": float(sample.device_seconds),
        "wall_seconds": float(sample.finished_at - sample.started_at),
        "worker_id": context.worker_id,
        "software_version": context.software_version,
        "started_at": _time(sample.started_at),
        "finished_at": finished,
        "retain_until": retain,
        "legal_hold": False,
    }


def _attempt_row(attempt: Attempt, sample: Sample, context: RunContext, shard_id: str) -> dict[str, Any]:
    where = f"request {sample.request.key!r} attempt {attempt.number}"
    if pixel_digest(attempt.picture) != attempt.pixel_sha256:
        raise IntegrityError("the picture does not match its recorded digest", where=where)
    sample_id = sample_identity(sample.request, context)
    small = thumbnail(attempt.picture)
    failed = sample.outcome is Outcome.ERROR and attempt is sample.attempts[-1]
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": context.run_id,
        "shard_id": shard_id,
        "sample_id": sample_id,
        "request_key": sample.request.key,
        "row_no": int(sample.request.row_no),
        "attempt": int(attempt.number),
        "seed": _seed(attempt.seed, sample.request.key),
        "resumed_from_step": int(attempt.resumed_from_step),
        "rows_from": [{"step": int(step), "rows": int(rows)} for step, rows in attempt.rows_from],
        "padded_rows": {name: list(shapes) for name, shapes in attempt.padded_rows._asdict().items()},
        "intervention": _intervention(attempt),
        "caught": [_caught(c) for c in attempt.caught],
        "guidance_norms": [float(norm) for norm in attempt.guidance_norms],
        "update_norms": [float(norm) for norm in attempt.update_norms],
        "pixel_sha256": attempt.pixel_sha256,
        "thumbnail": {"bytes": small, "path": f"{sample_id}-{attempt.number}.webp"},
        "thumbnail_sha256": hashlib.sha256(small).hexdigest(),
        "findings": [_finding(f, context) for f in attempt.findings],
        "nearest": [_match(m) for m in attempt.nearest],
        "decision": str(attempt.decision.verdict),
        "reason": attempt.decision.reason,
        "skipped_guards": list(attempt.skipped_guards),
        "denoiser_evals": float(attempt.denoiser_evals),
        "device_seconds": float(attempt.device_seconds),
        "error_class": sample.error_class if failed else "",
        "error_message": sample.error_message if failed else "",
    }


def _finding(finding: Finding, context: RunContext) -> dict[str, Any]:
    return {
        "guard": finding.guard,
        "version": finding.version,
        "category": finding.category,
        "score": float(finding.score),
        "threshold": float(finding.threshold),
        "triggered": bool(finding.triggered),
        "confirmed": bool(finding.confirmed),
        "action": context.actions.get(finding.guard, ""),
        "box": [float(edge) for edge in finding.box] if finding.box is not None else None,
        "ref_id": finding.ref_id,
        "detail": finding.detail,
    }


def _match(match: Match) -> dict[str, Any]:
    return {
        "ref_id": match.ref_id,
        "title": match.title,
        "similarity": float(match.similarity),
        "confirm": float(match.confirm) if match.confirm is not None else None,
        "rights_basis": match.rights_basis,
        "status": match.status,
    }


def _caught(caught: Caught) -> dict[str, Any]:
    return {
        "step": int(caught.step),
        "signal": caught.signal,
        "score": float(caught.score),
        "threshold": float(caught.threshold),
        "armed": bool(caught.armed),
        "ref_ids": [match.ref_id for match in caught.nearest],
        "denoiser_evals": float(caught.denoiser_evals),
    }


def _intervention(attempt: Attempt) -> dict[str, Any] | None:
    done = attempt.intervention
    if done is None:
        return None
    return {
        "attempt": int(attempt.number),
        "kind": done.kind,
        "strength": float(done.strength),
        "ref_ids": list(done.ref_ids),
        "tokens": list(done.tokens),
        "adapters": list(done.adapters),
    }


def _pdq(picture: np.ndarray) -> tuple[str, int]:
    import pdqhash

    bits, quality = pdqhash.compute(np.ascontiguousarray(picture))
    return np.packbits(np.asarray(bits, dtype=np.uint8)).tobytes().hex(), int(quality)


def _seed(seed: int, key: str) -> int:
    if not -(2**63) <= int(seed) < 2**63:
        raise InputError(f"seed {seed} does not fit 64 bits", where=f"request {key!r}", fix="Use a smaller seed")
    return int(seed)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(round(seconds * 1_000_000) / 1_000_000, UTC)
