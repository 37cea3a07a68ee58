"""Values of columns as JSON: times as ISO 8601 in UTC, embeddings as lists of numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np


def json_line(values: Mapping[str, Any]) -> bytes:
    """One JSON object on one line, UTF-8; half a surrogate pair stays an escape."""
    text = json.dumps(dict(values), ensure_ascii=False, default=_plain)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(dict(values), default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
