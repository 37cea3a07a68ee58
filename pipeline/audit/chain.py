"""The chain of a table's rows: canonical form, a sample's identity, digest of a row, the shard header it starts from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from index.errors import IntegrityError
from pipeline.audit.commitments import prompt_commitment
from pipeline.audit.context import RunContext
from pipeline.audit.schema import LINKS, PAYLOADS, SCHEMA_VERSION
from pipeline.outcome import Request
from pipeline.salt import salt_id

if TYPE_CHECKING:
    import pyarrow as pa


def canonical(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8; times as ISO 8601 in UTC. The form every digest is taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_json_plain).encode()


def _json_plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no canonical form")


def sample_identity(request: Request, context: RunContext) -> str:
    """Digest of data set, request key, prompt commitment and seed: a re-run names the same sample the same."""
    commit = prompt_commitment(request.prompt, request.negative_prompt, context.prompt_salt)
    return hashlib.sha256(canonical([context.dataset_id, request.key, commit, request.seed])).hexdigest()[:32]


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


def chained(rows: Iterable[dict[str, Any]], schema: pa.Schema, shard_header: Mapping[str, Any]) -> pa.Table:
    """A table of the rows, each with its digest and that of the row before, and the shard header in its metadata."""
    import pyarrow as pa

    done, prev = [], chain_start(shard_header)
    for row in rows:
        row["prev_sha256"] = prev
        prev = row["record_sha256"] = record_digest(row, prev)
        done.append(row)
    metadata = {**(schema.metadata or {}), b"clearance": canonical(shard_header)}
    return pa.Table.from_pylist(done, schema=schema.with_metadata(metadata))


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
