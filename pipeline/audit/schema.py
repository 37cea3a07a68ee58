"""The columns of the audit's two tables, samples and attempts: name, type, the sentence that documents it, how it is stored.

One row of the lists below is all that a column needs here; its value comes from :mod:`pipeline.audit.records`. The reference
is generated from here. A changed column is a changed product: raise ``SCHEMA_VERSION``.

The schema only grows: a column or a field of a struct that is there stays, with its name, type and meaning. A new one states in
``since`` the version it came with, and files of every earlier version remain readable: what they lack is read as null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from enum import Flag
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

# 2: what a finding led to, and its reference; 3: marks, fingerprint, kept pictures, own columns; 4: machine, groups, preset
SCHEMA_VERSION = 4

KEPT, REQUESTS = "kept", "requests"  # the second: of the plan's requests, whose rows have keys instead of sample ids
# Payloads can be erased; the chain holds their digests (prompt_commit, file_sha256, embedding_sha256, thumbnail_sha256,
# columns_commit, drawn_commit). Nothing would cover a payload in a table that has no digest of it: verifying refuses one.
PAYLOADS_OF = {
    "samples": frozenset({"image", "prompt", "negative_prompt", "embedding", "columns", "drawn_prompt"}),
    "attempts": frozenset({"thumbnail"}),
    KEPT: frozenset({"image"}),
    REQUESTS: frozenset({"prompt", "negative_prompt", "columns"}),
}
PAYLOADS = frozenset[str]().union(*PAYLOADS_OF.values())
LINKS = frozenset({"prev_sha256", "record_sha256"})


class Store(Flag):
    """How a column is stored in Parquet beside the default: compressed with zstd, no dictionary, no statistics."""

    DEFAULT = 0
    DICTIONARY = 1  # it has few distinct values; elsewhere a dictionary only costs time
    STATISTICS = 2  # readers look rows up by it
    PLAIN = 4  # its content is compressed already


DICTIONARY, STATISTICS, PLAIN = Store.DICTIONARY, Store.STATISTICS, Store.PLAIN


class Column(NamedTuple):
    """One column of a table, or one field of a struct.

    Attributes:
        name: the column's.
        type: a plain type of :func:`_type`, a name of ``STRUCTS``, or ``list of`` one of them.
        doc: the sentence that documents it; fields of structs have none.
        store: how it is stored.
        since: the version of the schema that it came with.
    """

    name: str
    type: str
    doc: str = ""
    store: Store = Store.DEFAULT
    since: int = 1


STRUCTS: dict[str, tuple[Column, ...]] = {
    "picture": (
        Column("bytes", "bytes", store=PLAIN),
        Column("path", "text"),
    ),
    "finding": (
        Column("guard", "text", store=DICTIONARY),
        Column("version", "text", store=DICTIONARY),
        Column("category", "text", store=DICTIONARY),
        Column("score", "number"),
        Column("threshold", "number"),
        Column("triggered", "flag"),
        Column("confirmed", "flag"),
        Column("action", "text", since=2),
        Column("box", "list of number"),
        Column("ref_id", "text", store=DICTIONARY, since=2),
        Column("detail", "text"),
    ),
    "match": (
        Column("ref_id", "text", store=DICTIONARY),
        Column("title", "text", store=DICTIONARY),
        Column("similarity", "number"),
        Column("confirm", "number"),
        Column("rights_basis", "text", store=DICTIONARY),
        Column("status", "text", store=DICTIONARY),
    ),
    "intervention": (
        Column("attempt", "whole"),
        Column("kind", "text", store=DICTIONARY),
        Column("strength", "number"),
        Column("ref_ids", "list of text"),
        Column("tokens", "list of text"),
        Column("adapters", "list of text"),
    ),
    "caught": (
        Column("step", "whole"),
        Column("signal", "text"),
        Column("score", "number"),
        Column("threshold", "number"),
        Column("armed", "flag"),
        Column("ref_ids", "list of text"),
        Column("denoiser_evals", "number"),
    ),
    "adapter": (
        Column("name", "text"),
        Column("kind", "text", store=DICTIONARY),
        Column("digest", "text"),
        Column("weight", "number"),
        Column("tokens", "list of text"),
    ),
    "guard time": (
        Column("guard", "text", store=DICTIONARY, since=3),
        Column("seconds", "number", since=3),
    ),
    "library": (
        Column("name", "text", since=4),
        Column("version", "text", store=DICTIONARY, since=4),
    ),
    "machine": (
        Column("card", "text", store=DICTIONARY, since=4),
        Column("capability", "text", store=DICTIONARY, since=4),
        Column("driver", "text", store=DICTIONARY, since=4),
        Column("libraries", "list of library", since=4),
        Column("attention", "text", store=DICTIONARY, since=4),
        Column("autoencoder", "text", store=DICTIONARY, since=4),
        Column("tf32", "flag", since=4),
        Column("fills_memory", "flag", since=4),
        Column("deterministic", "flag", since=4),
    ),
    "group": (
        Column("id", "text", since=4),
        Column("member", "whole", since=4),
        Column("size", "whole", since=4),
        Column("alpha", "number", since=4),
        Column("token_threshold", "number", since=4),
        Column("window", "number", since=4),
        Column("rows", "text", since=4),
        Column("placement", "text", store=DICTIONARY, since=4),
        Column("attention", "text", store=DICTIONARY, since=4),
        Column("resolution", "text", store=DICTIONARY, since=4),
        Column("window_from", "number", since=4),
    ),
    "rows from": (
        Column("step", "whole"),
        Column("rows", "whole"),
    ),
    "padded rows": tuple(Column(name, "list of whole") for name in ("text", "encode", "decode", "embed", "marks", "yolo")),
}
LINK_COLUMNS = (
    Column("prev_sha256", "text", "record_sha256 of the row before; of the first row: digest of the shard header"),
    Column("record_sha256", "text", "sha256 of the canonical JSON of the committed columns and prev_sha256"),
)
SAMPLE_COLUMNS = (
    Column("schema_version", "whole", "version of this schema"),
    Column("run_id", "text", "the run that wrote the row", DICTIONARY),
    Column("dataset_id", "text", "the data set the sample belongs to", DICTIONARY),
    Column("shard_id", "text", "the shard, the unit of commit", DICTIONARY),
    Column("row_no", "long", "position of the request in the input, from 0", STATISTICS),
    Column(
        "sample_id",
        "text",
        "digest of dataset_id, request_key, prompt_commit and base_seed; a re-run gives the same",
        STATISTICS,
    ),
    Column("request_key", "text", "the caller's key", STATISTICS),
    Column(
        "outcome", "text", "accepted, accepted_after_steering, review, rejected, quarantined or error", DICTIONARY | STATISTICS
    ),
    Column("reason", "text", "stable reason code; empty when accepted", DICTIONARY | STATISTICS),
    Column("image", "picture", "the accepted picture's file; null for every other outcome (payload, not in the chain)"),
    Column("media_type", "text", "media type of image", DICTIONARY),
    Column("width", "whole", "pixels"),
    Column("height", "whole", "pixels"),
    Column("pixel_sha256", "text", "digest of the final picture's RGB bytes before marking: reproducibility"),
    Column(
        "stored_pixel_sha256",
        "text",
        "digest of the RGB bytes in the file, after label and watermark; null: no picture, or a lossy format",
        since=3,
    ),
    Column("file_sha256", "text", "digest of the encoded file after marking: integrity"),
    Column(
        "kept_sha256",
        "text",
        "digest of the full picture's file that is kept apart for a sample that was not released; null: none is kept",
        since=3,
    ),
    Column("pdq", "text", "PDQ perceptual hash of the final picture, hex"),
    Column("pdq_quality", "whole", "PDQ's own quality of that hash, 0-100; below 50 the hash means little"),
    Column("iscc", "text", "ISCC image code (ISO 24138, 256 bits) of an accepted picture, before marking", since=3),
    Column("embedding", "embedding", "unit-length embedding of the final picture (payload)"),
    Column("embedding_sha256", "text", "digest of the embedding's little-endian float16 bytes"),
    Column("prompt", "text", "the prompt in plain text (payload: erasable, not in the chain)"),
    Column("negative_prompt", "text", "the caller's negative prompt (payload)"),
    Column(
        "drawn_prompt",
        "text",
        "the prompt that was drawn in the caller's place, where the policy rewrites it; null: it does not (payload)",
        since=4,
    ),
    Column("drawn_commit", "text", "HMAC-SHA256 of drawn_prompt under the run's salt; null: there is none", since=4),
    Column("prompt_commit", "text", "HMAC-SHA256 of prompt and negative prompt under the run's salt"),
    Column("prompt_ref", "text", "where the prompt is kept when it is not kept here; empty otherwise", DICTIONARY),
    Column("columns", "text", "the request's own columns of the prompts file, as one JSON object (payload)", since=3),
    Column("columns_commit", "text", "HMAC-SHA256 of columns under the run's salt; null: the request has none", since=3),
    Column("prompt_truncated", "flag", "the prompt had more tokens than the text encoder takes; the rest was dropped"),
    Column("base_seed", "long", "seed of the first attempt"),
    Column("model_id", "text", "the diffusion model", DICTIONARY),
    Column("model_revision", "text", "its revision", DICTIONARY),
    Column("model_digest", "text", "digest of its weights", DICTIONARY),
    Column("model_licence", "text", "its licence", DICTIONARY),
    Column("adapters", "list of adapter", "adapters loaded on top of it"),
    Column("scheduler", "text", "sampler", DICTIONARY),
    Column("steps", "whole", "denoising steps of a full attempt"),
    Column("guidance", "number", "classifier-free guidance scale"),
    Column("preset", "text", "preset of few-step models in force; empty: none", DICTIONARY, since=4),
    Column("dtype", "text", "number format of the weights", DICTIONARY),
    Column("device_kind", "text", "kind of device", DICTIONARY),
    Column(
        "machine",
        "machine",
        "card or processor, driver, library versions and settings of torch: with these, the number of rows and the same "
        "request the bytes are promised",
        since=4,
    ),
    Column("rows", "whole", "fixed rows per denoiser call"),
    Column("threads", "whole", "threads per worker"),
    Column(
        "group",
        "group",
        "the group whose members pushed one another apart in the first attempt, and how; its bytes depend on all of them; "
        "null: it stood alone",
        since=4,
    ),
    Column("attempts", "whole", "pictures made for this request"),
    Column("accepted_attempt", "whole", "number of the accepted attempt; null when none was"),
    Column("findings", "list of finding", "everything every guard reported about the final picture and the prompt"),
    Column("nearest", "list of match", "nearest references of the final picture, best first"),
    Column("index_id", "text", "digest of the reference index", DICTIONARY),
    Column("embedder_id", "text", "digest of the embedder", DICTIONARY),
    Column("calibration_id", "text", "digest of the calibration behind the copy threshold", DICTIONARY),
    Column("copy_threshold", "number", "similarity from which a picture counts as too near"),
    Column("policy_id", "text", "the policy's name and version", DICTIONARY),
    Column("policy_sha256", "text", "digest of the policy", DICTIONARY),
    Column("policy_name", "text", "the policy's name", DICTIONARY),
    Column("interventions", "list of intervention", "what was changed, attempt by attempt"),
    Column("skipped_guards", "list of text", "optional guards that could not run for at least one attempt"),
    Column("digital_source_type", "text", "IPTC digital source type of the stored picture", DICTIONARY),
    Column("c2pa_present", "flag", "the stored file carries a C2PA manifest"),
    Column("xmp_present", "flag", "the stored file carries XMP with the digital source type"),
    Column("watermark_scheme", "text", "imperceptible watermark in the stored picture; empty: none", DICTIONARY),
    Column("watermark_score", "number", "its detection score after encoding; null: none"),
    Column("watermark_key_id", "text", "digest prefix of the key of that watermark; empty: none", DICTIONARY, since=3),
    Column("watermark_reason", "text", "why the stored picture has no watermark; empty: it has one", DICTIONARY, since=3),
    Column("visible_label", "flag", "a visible label that names it as made by a model is drawn into the picture", since=3),
    Column("c2pa_key_id", "text", "digest prefix of the certificate that signed the C2PA manifest", DICTIONARY, since=3),
    Column("review_state", "text", "open for outcome review, none otherwise; what became of it is in the events", DICTIONARY),
    Column("error_class", "text", "exception class for outcome error", DICTIONARY),
    Column("error_message", "text", "its message"),
    Column(
        "denoiser_evals",
        "number",
        "denoiser evaluations, in guided steps, over all attempts and the try that an error ended",
    ),
    Column("device_seconds", "number", "device time of the same"),
    Column("wall_seconds", "number", "finished_at minus started_at"),
    Column("worker_id", "text", "the worker that made it", DICTIONARY),
    Column("software_version", "text", "version of Clearance", DICTIONARY),
    Column("started_at", "time", "when work on the request started"),
    Column("finished_at", "time", "when it ended", STATISTICS),
    Column("retain_until", "time", "end of retention, as the row was written; null: no limit", STATISTICS),
    Column("legal_hold", "flag", "false: rows are written before there can be a hold; holds are events"),
    *LINK_COLUMNS,
)
ATTEMPT_COLUMNS = (
    Column("schema_version", "whole", "version of this schema"),
    Column("run_id", "text", "the run that wrote the row", DICTIONARY),
    Column("shard_id", "text", "the shard, the unit of commit", DICTIONARY),
    Column("sample_id", "text", "the sample it was made for", STATISTICS),
    Column("request_key", "text", "the caller's key", STATISTICS),
    Column("row_no", "long", "position of the request in the input, from 0", STATISTICS),
    Column("attempt", "whole", "0 for the first picture of a request", STATISTICS),
    Column("seed", "long", "seed of the initial noise"),
    Column("resumed_from_step", "whole", "denoising step it was resumed from; 0: from noise"),
    Column(
        "group", "text", "the group that it was drawn in; null: alone, as every attempt after the first", DICTIONARY, since=4
    ),
    Column(
        "rows_from",
        "list of rows from",
        "from that step on its denoiser calls had that many rows; more than one entry when memory ran out",
    ),
    Column(
        "padded_rows",
        "padded rows",
        "rows that its worker's calls of text encoder, autoencoder, embedder and mark detectors have had so far; more "
        "than one when memory ran out, and then the last drew this picture or looked at it; empty: there is no such network",
    ),
    Column(
        "intervention",
        "intervention",
        "what was changed against the attempt before; null for attempt 0 unless that was caught in mid-flight",
    ),
    Column(
        "caught",
        "list of caught",
        "earlier tries of this attempt that a probe stopped: the step, and the references that caused it; "
        "their cost is in denoiser_evals",
    ),
    Column(
        "guidance_norms", "list of number", "norm of the difference that text makes, at each step from resumed_from_step on"
    ),
    Column("update_norms", "list of number", "norm of the latent's change at the same steps"),
    Column("pixel_sha256", "text", "digest of the picture's RGB bytes"),
    Column("thumbnail", "picture", "WebP of at most 128 pixels, exact when the picture is no larger (payload)"),
    Column("thumbnail_sha256", "text", "digest of the thumbnail's file; null: a hard stop ended it, and no picture is kept"),
    Column("findings", "list of finding", "everything every guard reported"),
    Column("nearest", "list of match", "nearest references, best first"),
    Column("decision", "text", "accept, steer, review or reject", DICTIONARY),
    Column("reason", "text", "reason code behind the decision; empty for accept", DICTIONARY | STATISTICS),
    Column("skipped_guards", "list of text", "optional guards that could not run"),
    Column("denoiser_evals", "number", "denoiser evaluations, in guided steps"),
    Column("device_seconds", "number", "device time, shared out over the rows of each batch"),
    Column(
        "guard_seconds",
        "list of guard time",
        "seconds of the clock that each guard took, shared out over the pictures that it looked at together",
        since=3,
    ),
    Column(
        "error_class",
        "text",
        "exception class when the request ended in an error after this attempt; empty otherwise",
        DICTIONARY,
    ),
    Column("error_message", "text", "its message"),
    *LINK_COLUMNS,
)

KEPT_COLUMNS = (
    Column("schema_version", "whole", "version of this schema", since=3),
    Column("run_id", "text", "the run that wrote the row", DICTIONARY, since=3),
    Column("shard_id", "text", "the shard, the unit of commit", DICTIONARY, since=3),
    Column("row_no", "long", "position of the request in the input, from 0", STATISTICS, since=3),
    Column("sample_id", "text", "the sample, which was not released", STATISTICS, since=3),
    Column("request_key", "text", "the caller's key", STATISTICS, since=3),
    Column("attempt", "whole", "the attempt that it is the picture of, the last one", since=3),
    Column("image", "picture", "the full picture's file, without loss (payload)", since=3),
    Column("media_type", "text", "media type of image", DICTIONARY, since=3),
    Column("width", "whole", "pixels", since=3),
    Column("height", "whole", "pixels", since=3),
    Column("pixel_sha256", "text", "digest of the picture's RGB bytes", since=3),
    Column("kept_sha256", "text", "digest of the file; the same as in samples", since=3),
    *(column._replace(since=3) for column in LINK_COLUMNS),
)


@cache
def stored_as(how: Store) -> frozenset[str]:
    """Names of the columns and struct fields that are stored that way."""
    return frozenset(column.name for column in _every() if how in column.store)


def _every() -> Iterator[Column]:
    for columns in (SAMPLE_COLUMNS, ATTEMPT_COLUMNS, KEPT_COLUMNS, *STRUCTS.values()):
        yield from columns


def _type(name: str, embedding_dim: int, version: int) -> pa.DataType:
    import pyarrow as pa

    if name.startswith("list of "):
        return pa.list_(_type(name.removeprefix("list of "), embedding_dim, version))
    if name in STRUCTS:
        fields = [field for field in STRUCTS[name] if field.since <= version]
        return pa.struct([(field.name, _type(field.type, embedding_dim, version)) for field in fields])
    return {
        "text": pa.string(),
        "number": pa.float64(),
        "whole": pa.int32(),
        "long": pa.int64(),
        "flag": pa.bool_(),
        "bytes": pa.binary(),
        "time": pa.timestamp("us", tz="UTC"),
        "embedding": pa.list_(pa.float16(), embedding_dim),
    }[name]


def _schema(columns: Iterable[Column], picture: str, version: int, embedding_dim: int = -1) -> pa.Schema:
    import pyarrow as pa

    feature = {"info": {"features": {picture: {"_type": "Image"}}}}
    return pa.schema(
        [
            pa.field(column.name, _type(column.type, embedding_dim, version), metadata={"doc": column.doc})
            for column in columns
            if column.since <= version
        ],
        metadata={"huggingface": json.dumps(feature), "clearance_schema_version": str(version)},
    )


@cache
def samples_schema(embedding_dim: int = -1, version: int = SCHEMA_VERSION) -> pa.Schema:
    """Schema of the samples table, as a version wrote it; ``embedding_dim`` fixes the length of the embeddings (-1: any)."""
    return _schema(SAMPLE_COLUMNS, "image", version, embedding_dim)


@cache
def attempts_schema(version: int = SCHEMA_VERSION) -> pa.Schema:
    """Schema of the attempts table, as a version wrote it."""
    return _schema(ATTEMPT_COLUMNS, "thumbnail", version)


@cache
def kept_schema(version: int = SCHEMA_VERSION) -> pa.Schema:
    """Schema of the table of kept pictures, as a version wrote it."""
    return _schema(KEPT_COLUMNS, "image", version)


def schema_of(table: str, version: int = SCHEMA_VERSION) -> pa.Schema:
    """Schema of the table of that name, as a version wrote it."""
    if table == KEPT:
        return kept_schema(version)
    return samples_schema(version=version) if table == "samples" else attempts_schema(version)


def is_readable(version: object) -> bool:
    """Whether files of that version of the schema can be read."""
    return type(version) is int and 1 <= version <= SCHEMA_VERSION
