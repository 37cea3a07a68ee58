"""The columns of the audit's two tables, samples and attempts, each with the sentence that documents it.

The reference is generated from here. A changed column is a changed product: raise ``SCHEMA_VERSION``.
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    SAMPLES: pa.Schema
    ATTEMPTS: pa.Schema

SCHEMA_VERSION = 2

# Payloads can be erased; the chain holds their digests (prompt_commit, file_sha256, embedding_sha256, thumbnail_sha256).
PAYLOADS = frozenset({"image", "prompt", "negative_prompt", "embedding", "thumbnail"})
LINKS = frozenset({"prev_sha256", "record_sha256"})


def _columns(embedding_dim: int) -> tuple[list[tuple[str, Any, str]], list[tuple[str, Any, str]]]:
    import pyarrow as pa

    text, number, whole, flag = pa.string(), pa.float64(), pa.int32(), pa.bool_()
    time = pa.timestamp("us", tz="UTC")
    picture = pa.struct([("bytes", pa.binary()), ("path", text)])
    finding = pa.struct(
        [
            ("guard", text),
            ("version", text),
            ("category", text),
            ("score", number),
            ("threshold", number),
            ("triggered", flag),
            ("confirmed", flag),
            ("action", text),
            ("box", pa.list_(number)),
            ("ref_id", text),
            ("detail", text),
        ]
    )
    match = pa.struct(
        [
            ("ref_id", text),
            ("title", text),
            ("similarity", number),
            ("confirm", number),
            ("rights_basis", text),
            ("status", text),
        ]
    )
    intervention = pa.struct(
        [
            ("attempt", whole), ("kind", text), ("strength", number), ("ref_ids", pa.list_(text)),
            ("tokens", pa.list_(text)), ("adapters", pa.list_(text)),
        ]
    )  # fmt: skip
    caught = pa.struct(
        [("step", whole), ("signal", text), ("score", number), ("threshold", number), ("armed", flag),
         ("ref_ids", pa.list_(text)), ("denoiser_evals", number)]
    )  # fmt: skip
    adapter = pa.struct([("name", text), ("kind", text), ("digest", text), ("weight", number), ("tokens", pa.list_(text))])
    links = [
        ("prev_sha256", text, "record_sha256 of the row before; of the first row: digest of the shard header"),
        ("record_sha256", text, "sha256 of the canonical JSON of the committed columns and prev_sha256"),
    ]
    samples = [
        ("schema_version", whole, "version of this schema"),
        ("run_id", text, "the run that wrote the row"),
        ("dataset_id", text, "the data set the sample belongs to"),
        ("shard_id", text, "the shard, the unit of commit"),
        ("row_no", pa.int64(), "position of the request in the input, from 0"),
        ("sample_id", text, "digest of dataset_id, request_key, prompt_commit and base_seed; a re-run gives the same"),
        ("request_key", text, "the caller's key"),
        ("outcome", text, "accepted, accepted_after_steering, review, rejected, quarantined or error"),
        ("reason", text, "stable reason code; empty when accepted"),
        ("image", picture, "the accepted picture's file; null for every other outcome (payload, not in the chain)"),
        ("media_type", text, "media type of image"),
        ("width", whole, "pixels"),
        ("height", whole, "pixels"),
        ("pixel_sha256", text, "digest of the final picture's RGB bytes before marking: reproducibility"),
        ("file_sha256", text, "digest of the encoded file after marking: integrity"),
        ("pdq", text, "PDQ perceptual hash of the final picture, hex"),
        ("pdq_quality", whole, "PDQ's own quality of that hash, 0-100; below 50 it says little"),
        ("embedding", pa.list_(pa.float16(), embedding_dim), "unit-length embedding of the final picture (payload)"),
        ("embedding_sha256", text, "digest of the embedding's little-endian float16 bytes"),
        ("prompt", text, "the prompt in plain text (payload: erasable, not in the chain)"),
        ("negative_prompt", text, "the caller's negative prompt (payload)"),
        ("prompt_commit", text, "HMAC-SHA256 of prompt and negative prompt under the run's salt"),
        ("prompt_ref", text, "where the prompt is kept when it is not kept here; empty otherwise"),
        ("prompt_truncated", flag, "the prompt had more tokens than the text encoder takes; the rest was dropped"),
        ("base_seed", pa.int64(), "seed of the first attempt"),
        ("model_id", text, "the diffusion model"),
        ("model_revision", text, "its revision"),
        ("model_digest", text, "digest of its weights"),
        ("model_licence", text, "its licence"),
        ("adapters", pa.list_(adapter), "adapters loaded on top of it"),
        ("scheduler", text, "sampler"),
        ("steps", whole, "denoising steps of a full attempt"),
        ("guidance", number, "classifier-free guidance scale"),
        ("dtype", text, "number format of the weights"),
        ("device_kind", text, "kind of device"),
        ("rows", whole, "fixed rows per denoiser call"),
        ("threads", whole, "threads per worker"),
        ("attempts", whole, "pictures made for this request"),
        ("accepted_attempt", whole, "number of the accepted attempt; null when none was"),
        ("findings", pa.list_(finding), "everything every guard reported about the final picture"),
        ("nearest", pa.list_(match), "nearest references of the final picture, best first"),
        ("index_id", text, "digest of the reference index"),
        ("embedder_id", text, "digest of the embedder"),
        ("calibration_id", text, "digest of the calibration behind the copy threshold"),
        ("copy_threshold", number, "similarity from which a picture counts as too near"),
        ("policy_id", text, "the policy's name and version"),
        ("policy_sha256", text, "digest of the policy"),
        ("policy_name", text, "the policy's name"),
        ("interventions", pa.list_(intervention), "what was changed, attempt by attempt"),
        ("skipped_guards", pa.list_(text), "optional guards that could not run for at least one attempt"),
        ("digital_source_type", text, "IPTC digital source type of the stored picture"),
        ("c2pa_present", flag, "the stored file carries a C2PA manifest"),
        ("xmp_present", flag, "the stored file carries XMP with the digital source type"),
        ("watermark_scheme", text, "imperceptible watermark in the stored picture; empty: none"),
        ("watermark_score", number, "its detection score after encoding; null: none"),
        ("review_state", text, "open for outcome review, none otherwise"),
        ("error_class", text, "exception class for outcome error"),
        ("error_message", text, "its message"),
        (
            "denoiser_evals",
            number,
            "denoiser evaluations, in guided steps, over all attempts and the flight that an error ended",
        ),
        ("device_seconds", number, "device time of the same"),
        ("wall_seconds", number, "finished_at minus started_at"),
        ("worker_id", text, "the worker that made it"),
        ("software_version", text, "version of Clearance"),
        ("started_at", time, "when work on the request started"),
        ("finished_at", time, "when it ended"),
        ("retain_until", time, "end of retention; null: no limit"),
        ("legal_hold", flag, "must not be erased"),
        *links,
    ]
    attempts = [
        ("schema_version", whole, "version of this schema"),
        ("run_id", text, "the run that wrote the row"),
        ("shard_id", text, "the shard, the unit of commit"),
        ("sample_id", text, "the sample it was made for"),
        ("request_key", text, "the caller's key"),
        ("row_no", pa.int64(), "position of the request in the input, from 0"),
        ("attempt", whole, "0 for the first picture of a request"),
        ("seed", pa.int64(), "seed of the initial noise"),
        ("resumed_from_step", whole, "denoising step it was resumed from; 0: from noise"),
        (
            "rows_from",
            pa.list_(pa.struct([("step", whole), ("rows", whole)])),
            "from that step on its denoiser calls had that many rows; more than one entry when memory ran out",
        ),
        (
            "padded_rows",
            pa.struct([(name, pa.list_(whole)) for name in ("text", "encode", "decode", "embed", "marks", "yolo")]),
            "rows that its worker's calls of text encoder, autoencoder, embedder and mark detectors have had so far; more than "
            "one when memory ran out, and then the last drew this picture or looked at it; empty: there is no such network",
        ),
        (
            "intervention",
            intervention,
            "what was changed against the attempt before; null for attempt 0 unless that was caught in mid-flight",
        ),
        (
            "caught",
            pa.list_(caught),
            "flights of this attempt that a probe ended early: after how many steps, on what; their cost is in denoiser_evals",
        ),
        ("guidance_norms", pa.list_(number), "norm of the difference that text makes, at each step from resumed_from_step on"),
        ("update_norms", pa.list_(number), "norm of the latent's change at the same steps"),
        ("pixel_sha256", text, "digest of the picture's RGB bytes"),
        ("thumbnail", picture, "WebP of at most 128 pixels, exact when the picture is no larger (payload)"),
        ("thumbnail_sha256", text, "digest of the thumbnail's file"),
        ("findings", pa.list_(finding), "everything every guard reported"),
        ("nearest", pa.list_(match), "nearest references, best first"),
        ("decision", text, "accept, steer, review or reject"),
        ("reason", text, "reason code behind the decision; empty for accept"),
        ("skipped_guards", pa.list_(text), "optional guards that could not run"),
        ("denoiser_evals", number, "denoiser evaluations, in guided steps"),
        ("device_seconds", number, "device time, shared out over the rows of each batch"),
        ("error_class", text, "exception class when the request ended in an error after this attempt; empty otherwise"),
        ("error_message", text, "its message"),
        *links,
    ]
    return samples, attempts


def _schema(columns: list[tuple[str, Any, str]], picture: str) -> pa.Schema:
    import pyarrow as pa

    feature = {"info": {"features": {picture: {"_type": "Image"}}}}
    return pa.schema(
        [pa.field(name, kind, metadata={"doc": doc}) for name, kind, doc in columns],
        metadata={"huggingface": json.dumps(feature), "clearance_schema_version": str(SCHEMA_VERSION)},
    )


@cache
def samples_schema(embedding_dim: int = -1) -> pa.Schema:
    """Schema of the samples table; ``embedding_dim`` fixes the length of the embeddings (-1: lists of any length)."""
    return _schema(_columns(embedding_dim)[0], "image")


@cache
def attempts_schema() -> pa.Schema:
    """Schema of the attempts table."""
    return _schema(_columns(-1)[1], "thumbnail")


def __getattr__(name: str) -> pa.Schema:
    # Built on first use: importing this module must not import pyarrow.
    if name == "SAMPLES":
        return samples_schema()
    if name == "ATTEMPTS":
        return attempts_schema()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
