"""For those who train on a run's pictures: what was counted of the released ones, in memory of 16 bytes a picture."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.audit.numbers import rate
from pipeline.audit.requests import Row
from pipeline.outcome import ACCEPTED

MOST_VALUES = 20  # of a user's column, for it to be counted by value
MOST_SIZES = 8
_WORTH = 50  # PDQ's own quality below which its hash means little


class TrainingTable:
    """Sizes, kinds of file, repeated pictures, prompts, and what became of the values of the user's own columns."""

    COLUMNS = ("width", "height", "media_type", "pixel_sha256", "pdq", "pdq_quality", "prompt_commit", "columns", "findings")

    def __init__(self) -> None:
        self._sizes: Counter[str] = Counter()
        self._files: Counter[str] = Counter()
        self._pixels, self._pdq, self._prompts = array("Q"), array("Q"), array("Q")
        self._compared = 0
        self._values: dict[str, dict[str, list[int]] | None] = {}  # column → value → requested, released; None: too many

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        released = sample["outcome"] in ACCEPTED
        for name, value in own_columns(sample).items():
            self._count(name, value, released)
        if not released:
            return
        self._compared += any(finding["guard"] == "faithfulness" for finding in sample["findings"])
        self._sizes[f"{sample['width']} × {sample['height']}"] += 1
        self._files[str(sample["media_type"])] += 1
        self._pixels.append(_beginning(sample["pixel_sha256"]))
        self._prompts.append(_beginning(sample["prompt_commit"]))
        if sample["pdq"] and (sample["pdq_quality"] or 0) >= _WORTH:
            self._pdq.append(hash_of(sample["pdq"]))

    def _count(self, name: str, value: str, released: bool) -> None:
        known = self._values.setdefault(name, {})
        if known is None:
            return
        counts = known.setdefault(value, [0, 0])
        counts[0] += 1
        counts[1] += released
        if len(known) > MOST_VALUES:
            self._values[name] = None

    def rows(self) -> dict[str, Any]:
        return {
            "released": len(self._pixels),
            "compared": self._compared,
            "sizes": [{"size": size, "pictures": n} for size, n in self._sizes.most_common(MOST_SIZES)],
            "more_sizes": max(0, len(self._sizes) - MOST_SIZES),
            "files": dict(sorted(self._files.items())),
            "same_pixels": _repeated(self._pixels),
            "same_pdq": _repeated(self._pdq),
            "pdq_counted": len(self._pdq),
            "prompts": len(self._prompts) - _repeated(self._prompts),
            "columns": [
                {"column": name, "values": None if values is None else _by_value(name, values)}
                for name, values in sorted(self._values.items())
            ],
        }


def own_columns(sample: Row) -> dict[str, str]:
    """The user's own columns of a row, as texts."""
    stored = sample.get("columns")
    if isinstance(stored, str):
        stored = json.loads(stored) if stored else {}
    pairs = stored.items() if isinstance(stored, Mapping) else stored or ()
    return {str(name): "" if value is None else str(value) for name, value in pairs}


def _by_value(name: str, values: Mapping[str, list[int]]) -> list[dict[str, Any]]:
    return [
        {"value": value, "released": rate(k, n, f"count(samples where columns.{name} = {value} and accepted) / requested")}
        for value, (n, k) in sorted(values.items())
    ]


def _beginning(digest: str) -> int:
    return int(digest[:16], 16)


def hash_of(pdq: str) -> int:
    """A PDQ hash as 64 bits: equal hashes stay equal, and two that differ fall together once in 2⁶⁴."""
    return int.from_bytes(hashlib.blake2b(pdq.lower().encode(), digest_size=8).digest(), "big")


def _repeated(hashes: array[int]) -> int:
    """How many of them stand there already."""
    return len(hashes) - len(np.unique(np.frombuffer(hashes, np.uint64))) if hashes else 0
