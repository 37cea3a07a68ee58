"""Commitments to prompts and to the caller's own columns: they enter the chain in their place, under a salt."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from typing import Any


def default_salt(dataset_id: str) -> str:
    """The salt (hex) used when none is given: repeatable for a data set, and therefore no secret."""
    return hashlib.sha256(b"clearance prompt commitment\0" + dataset_id.encode()).hexdigest()


def prompt_commitment(prompt: str, negative_prompt: str, salt: str) -> str:
    """HMAC-SHA256 over prompt and negative prompt, keyed by the salt (hex)."""
    return _keyed(salt, json.dumps([prompt, negative_prompt], ensure_ascii=False, separators=(",", ":")))


def drawn_commitment(prompt: str | None, salt: str) -> str | None:
    """HMAC-SHA256 over a prompt that the policy rewrote, keyed by the salt (hex); None where it was drawn as it stands."""
    return None if prompt is None else _keyed(salt, f"clearance drawn prompt\0{prompt}")


def columns_commitment(columns: str | None, salt: str) -> str | None:
    """HMAC-SHA256 over a request's own columns (JSON text), keyed by the salt (hex); None where it has none."""
    return None if columns is None else _keyed(salt, f"clearance columns\0{columns}")


def _keyed(salt: str, message: str) -> str:
    return hmac.new(bytes.fromhex(salt), message.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def uncommitted(row: Mapping[str, Any], salt: str) -> Iterator[tuple[str, str]]:
    """The columns of a sample's row, beside the prompts, whose text does not match its commitment, and what is wrong."""
    if columns_commitment(row.get("columns"), salt) != row.get("columns_commit"):
        yield "columns", "the columns do not match their commitment"
    if drawn_commitment(row.get("drawn_prompt"), salt) != row.get("drawn_commit"):
        yield "drawn_prompt", "the rewritten prompt does not match its commitment"
