"""The audit's rows: one for every requested sample and one for every attempt, whatever happened.

Every row carries a digest of its committed columns and of the row before it (:mod:`pipeline.audit.chain`). Payloads (pictures,
prompts, embeddings) enter that chain only as digests, so that one of them can be erased later without breaking it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from guards.base import Finding
from index.errors import InputError, IntegrityError
from index.fingerprint import iscc, pdq, pdq_hex, pixel_digest
from index.reference import Match
from pipeline.audit.chain import chained, header, sample_identity
from pipeline.audit.commitments import columns_commitment, drawn_commitment, prompt_commitment
from pipeline.audit.context import RunContext
from pipeline.audit.kept import is_hard_stop
from pipeline.audit.schema import SCHEMA_VERSION, attempts_schema, samples_schema
from pipeline.marking.encode import Encoded, thumbnail
from pipeline.marking.mark import MarkedPicture, Origin, mark
from pipeline.marking.markers import Markers
from pipeline.marking.watermark import run_tag
from pipeline.outcome import ACCEPTED, Adapter, Attempt, Caught, Machine, Outcome, Request, Sample
from pipeline.policy import ASKED
from pipeline.row_adapters import row_adapters

if TYPE_CHECKING:
    import pyarrow as pa


def sample_table(
    samples: Sequence[Sample],
    context: RunContext,
    shard_id: str,
    markers: Markers | None = None,
    *,
    kept: Mapping[int, Encoded] | None = None,
) -> pa.Table:
    """One row per sample, in the order given, chained.

    Args:
        samples: the shard's samples; every request exactly once.
        context: what all rows share.
        shard_id: the shard.
        markers: what accepted pictures are marked with, beside XMP.
        kept: the pictures that are kept of samples that were not released, by row number.

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
    files = {row_no: file.file_sha256 for row_no, file in (kept or {}).items()}
    rows = (
        {
            **_sample_row(sample, marked(sample, context, markers), context, shard_id),
            "kept_sha256": files.get(sample.request.row_no),
        }
        for sample in samples
    )
    return chained(rows, samples_schema(context.embedding_dim), header("samples", shard_id, context))


def attempt_table(samples: Sequence[Sample], context: RunContext, shard_id: str) -> pa.Table:
    """One row per attempt of the samples, in order, chained. Empty when no sample got as far as a picture."""
    rows = (_attempt_row(attempt, sample, context, shard_id) for sample in samples for attempt in sample.attempts)
    return chained(rows, attempts_schema(), header("attempts", shard_id, context))


def marked(sample: Sample, context: RunContext, markers: Markers | None = None) -> MarkedPicture | None:
    """The file of a sample's accepted picture with its marks; None for a sample that was not accepted.

    Raises:
        IntegrityError: the sample is accepted and names no accepted attempt.
        ConfigError: unknown image format.
        RunStopped: a mark could not be made.
    """
    if sample.outcome not in ACCEPTED:
        return None
    if sample.final is None or sample.accepted_attempt is None:
        where = f"request {sample.request.key!r}"
        raise IntegrityError("accepted without an accepted attempt", where=where, fix="Report this")
    software = f"Clearance {context.software_version}".strip()
    origin = Origin(context.model_id, context.model_version, software, run_tag(context.plan_sha256))
    return mark(sample.final.picture, context.image_format, origin, markers)


def _sample_row(sample: Sample, file: MarkedPicture | None, context: RunContext, shard_id: str) -> dict[str, Any]:
    request = sample.request
    finished = _time(sample.finished_at)
    sample_id = sample_identity(request, context)
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
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "drawn_prompt": sample.drawn_prompt,
        "drawn_commit": drawn_commitment(sample.drawn_prompt, context.prompt_salt),
        "prompt_commit": prompt_commitment(request.prompt, request.negative_prompt, context.prompt_salt),
        "prompt_ref": "",
        "columns": request.columns or None,
        "columns_commit": columns_commitment(request.columns or None, context.prompt_salt),
        "prompt_truncated": bool(sample.prompt_truncated),
        "base_seed": _seed(request.seed, request.key),
        "group": _group(request, context),
        "attempts": len(sample.attempts),
        "accepted_attempt": sample.accepted_attempt,
        "interventions": [row for a in sample.attempts if (row := _intervention(a)) is not None],
        "skipped_guards": sorted({name for attempt in sample.attempts for name in attempt.skipped_guards}),
        "review_state": "open" if sample.outcome is Outcome.REVIEW else "none",
        "error_class": sample.error_class,
        "error_message": sample.error_message,
        "denoiser_evals": float(sample.denoiser_evals),
        "device_seconds": float(sample.device_seconds),
        "wall_seconds": float(sample.finished_at - sample.started_at),
        "started_at": _time(sample.started_at),
        "finished_at": finished,
        "retain_until": finished + timedelta(days=context.retention_days) if context.retention_days > 0 else None,
        "legal_hold": False,
        **_file_columns(file, sample_id),
        **_picture_columns(sample, file, context),
        **_run_columns(context),
        "adapters": [*map(_adapter, _loaded(sample, context)), *_of_the_row(request, context)],
        **{name: value for name, value in _stated(sample).items() if value is not None},
    }


def _stated(sample: Sample) -> dict[str, Any]:
    """What the request states of its picture in place of the run file."""
    return {"steps": sample.request.stated.steps, "guidance": sample.request.stated.guidance_scale}


def _file_columns(file: MarkedPicture | None, sample_id: str) -> dict[str, Any]:
    """What is stored of an accepted picture."""
    if file is None:
        nothing = "image media_type file_sha256 stored_pixel_sha256 digital_source_type watermark_score".split()
        no_marks = {"c2pa_present": False, "xmp_present": False, "visible_label": False}
        empty = ("watermark_scheme", "watermark_key_id", "watermark_reason", "c2pa_key_id")
        return {**dict.fromkeys(nothing), **no_marks, **dict.fromkeys(empty, "")}
    return {
        "image": {"bytes": file.data, "path": f"{sample_id}.{file.suffix}"},
        "media_type": file.media_type,
        "file_sha256": file.file_sha256,
        "stored_pixel_sha256": file.stored_pixel_sha256,
        "digital_source_type": file.digital_source_type,
        "c2pa_present": file.c2pa_present,
        "xmp_present": file.xmp_present,
        "watermark_scheme": file.watermark_scheme,
        "watermark_score": file.watermark_score,
        "watermark_key_id": file.watermark_key_id,
        "watermark_reason": file.watermark_reason,
        "visible_label": file.visible_label,
        "c2pa_key_id": file.c2pa_key_id,
    }


def _picture_columns(sample: Sample, file: MarkedPicture | None, context: RunContext) -> dict[str, Any]:
    """What was seen of the final picture, accepted or not."""
    final = sample.final
    if final is None:
        nothing = ("width", "height", "pixel_sha256", "pdq", "pdq_quality", "iscc", "embedding", "embedding_sha256")
        found = [_finding(f, context) for f in sample.prompt_findings]
        return {**dict.fromkeys(nothing), "findings": found, "nearest": []}
    if (file.pixel_sha256 if file is not None else pixel_digest(final.picture)) != final.pixel_sha256:
        where = f"request {sample.request.key!r}"
        raise IntegrityError("the final picture does not match its recorded digest", where=where)
    embedding = np.asarray(final.embedding, dtype="<f2").reshape(-1) if final.embedding.size else None
    bits, quality = pdq(final.picture)
    return {
        "width": int(final.picture.shape[1]),
        "height": int(final.picture.shape[0]),
        "pixel_sha256": final.pixel_sha256,
        "pdq": pdq_hex(bits),
        "pdq_quality": quality,
        "iscc": (file.iscc or iscc(final.picture)) if file is not None else None,
        "embedding": embedding,
        "embedding_sha256": hashlib.sha256(embedding.tobytes()).hexdigest() if embedding is not None else None,
        "findings": [_finding(f, context, final.asked) for f in final.findings],
        "nearest": [_match(m) for m in final.nearest],
    }


def _loaded(sample: Sample, context: RunContext) -> Sequence[Adapter]:
    """The adapters of every row; of a row that asks for marks that the policy keeps, those that do not erase these."""
    asked = sample.final.asked if sample.final is not None else ()
    return context.adapters_if_asked.get(asked, context.adapters) if asked else context.adapters


def _adapter(adapter: Adapter) -> dict[str, Any]:
    weight, tokens = float(adapter.weight), list(adapter.tokens)
    return {"name": adapter.name, "kind": adapter.kind, "digest": adapter.digest, "weight": weight, "tokens": tokens}


def _of_the_row(request: Request, context: RunContext) -> list[dict[str, Any]]:
    """The adapters that a row names for itself, each with its strength."""
    found = []
    drawn = request.problem is None and context.named_adapters  # none are known of what was never drawn
    for name, strength in row_adapters(request.adapter, context.named_adapters) if drawn else ():
        one = context.named_adapters[name]
        found.append(_adapter(one if strength is None else replace(one, weight=strength)))
    return found


def _run_columns(context: RunContext) -> dict[str, Any]:
    """What every row of a run repeats."""
    return {
        "model_id": context.model_id,
        "model_revision": context.model_revision,
        "model_digest": context.model_digest,
        "model_licence": context.model_licence,
        "scheduler": context.scheduler,
        "steps": int(context.steps),
        "guidance": float(context.guidance),
        "preset": context.preset,
        "dtype": context.dtype,
        "device_kind": context.device_kind,
        "machine": _machine(context.machine),
        "rows": int(context.rows),
        "threads": int(context.threads),
        "index_id": context.index_id,
        "embedder_id": context.embedder_id,
        "calibration_id": context.calibration_id,
        "copy_threshold": float(context.copy_threshold),
        "policy_id": context.policy_id,
        "policy_sha256": context.policy_sha256,
        "policy_name": context.policy_name,
        "worker_id": context.worker_id,
        "software_version": context.software_version,
    }


def _machine(machine: Machine) -> dict[str, Any]:
    return asdict(machine) | {"libraries": [{"name": name, "version": version} for name, version in machine.libraries.items()]}


def _attempt_row(attempt: Attempt, sample: Sample, context: RunContext, shard_id: str) -> dict[str, Any]:
    where = f"request {sample.request.key!r} attempt {attempt.number}"
    if pixel_digest(attempt.picture) != attempt.pixel_sha256:
        raise IntegrityError("the picture does not match its recorded digest", where=where)
    sample_id = sample_identity(sample.request, context)
    small = None if is_hard_stop(attempt, context) else thumbnail(attempt.picture)
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
        "group": attempt.group or None,
        "rows_from": [{"step": int(step), "rows": int(rows)} for step, rows in attempt.rows_from],
        "padded_rows": {name: list(shapes) for name, shapes in attempt.padded_rows._asdict().items()},
        "intervention": _intervention(attempt),
        "caught": [_caught(c) for c in attempt.caught],
        "guidance_norms": [float(norm) for norm in attempt.guidance_norms],
        "update_norms": [float(norm) for norm in attempt.update_norms],
        "pixel_sha256": attempt.pixel_sha256,
        "thumbnail": {"bytes": small, "path": f"{sample_id}-{attempt.number}.webp"} if small is not None else None,
        "thumbnail_sha256": hashlib.sha256(small).hexdigest() if small is not None else None,
        "findings": [_finding(f, context, attempt.asked) for f in attempt.findings],
        "nearest": [_match(m) for m in attempt.nearest],
        "decision": str(attempt.decision.verdict),
        "reason": attempt.decision.reason,
        "skipped_guards": list(attempt.skipped_guards),
        "denoiser_evals": float(attempt.denoiser_evals),
        "device_seconds": float(attempt.device_seconds),
        "guard_seconds": [{"guard": name, "seconds": float(seconds)} for name, seconds in attempt.guard_seconds],
        "error_class": sample.error_class if failed else "",
        "error_message": sample.error_message if failed else "",
    }


def _finding(finding: Finding, context: RunContext, asked: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "guard": finding.guard,
        "version": finding.version,
        "category": finding.category,
        "score": float(finding.score),
        "threshold": float(finding.threshold),
        "triggered": bool(finding.triggered),
        "confirmed": bool(finding.confirmed),
        "action": ASKED if finding.category in asked else context.action_of(finding.guard, finding.category),
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


def _group(request: Request, context: RunContext) -> dict[str, Any] | None:
    if not request.group:
        return None
    d = context.diversity
    return {
        "id": request.group,
        "member": int(request.member),
        "size": int(request.group_size),
        "alpha": float(d.alpha),
        "token_threshold": float(d.token_threshold),
        "window": float(d.window),
        "rows": d.rows,
        "placement": d.placement,
        "attention": d.attention,
        "resolution": d.resolution,
        "window_from": float(d.window_from),
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


def _seed(seed: int, key: str) -> int:
    if not -(2**63) <= int(seed) < 2**63:
        raise InputError(f"seed {seed} does not fit 64 bits", where=f"request {key!r}", fix="Use a smaller seed")
    return int(seed)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(round(seconds * 1_000_000) / 1_000_000, UTC)
