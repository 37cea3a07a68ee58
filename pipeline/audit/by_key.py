"""Find the samples of a run by the keys of their requests."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from index.errors import InputError
from pipeline.audit.ledger import sample_rows


def samples_by_key(folder: Path, keys: Sequence[str]) -> dict[str, str]:
    """sample_id by request key, in the order of the keys.

    Raises:
        InputError: a key that no committed sample has; the message names the nearest ones.
        ClearanceError: a shard cannot be read.
    """
    there = {str(row["request_key"]): str(row["sample_id"]) for row in sample_rows(folder, ["request_key", "sample_id"])}
    for key in keys:
        if key not in there:
            near = difflib.get_close_matches(key, there, n=3, cutoff=0.6)
            fix = f"Did you mean {' or '.join(near)}?" if near else "Keys stand in column request_key of the samples"
            raise InputError(f"no committed sample has the key {key!r}", where=str(folder), fix=fix)
    return {key: there[key] for key in dict.fromkeys(keys)}
