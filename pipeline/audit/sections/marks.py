"""The marks of the released pictures: which layers they carry, how robust those are, and what they answer to.

Counted from the rows, which hold what was read back from every finished file. The product states facts about marks; whether
they satisfy a law or a code is for people to judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.audit.numbers import rate
from pipeline.audit.requests import Row
from pipeline.marking.coverage import marks_coverage
from pipeline.marking.robustness import robustness_table
from pipeline.outcome import ACCEPTED

_WORTH = 50  # PDQ's own quality below which its hash means little


class MarksTable:
    """Per layer: how many released pictures carry it, by scheme and key, and why others do not."""

    COLUMNS = (
        "xmp_present", "c2pa_present", "watermark_scheme", "watermark_score", "digital_source_type", "pdq", "pdq_quality",
        "watermark_key_id", "watermark_reason", "visible_label", "c2pa_key_id", "iscc",
    )  # fmt: skip

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._schemes: Counter[str] = Counter()
        self._unmarked: Counter[str] = Counter()
        self._keys: set[str] = set()
        self._signers: set[str] = set()
        self._sources: set[str] = set()
        self._lowest: float | None = None

    def add(self, sample: Row, attempts: Sequence[Row]) -> None:
        if sample["outcome"] not in ACCEPTED:
            return
        self._counts["released"] += 1
        for name in ("xmp_present", "c2pa_present", "visible_label", "iscc"):
            self._counts[name] += bool(sample.get(name))
        self._counts["pdq"] += bool(sample["pdq"]) and (sample["pdq_quality"] or 0) >= _WORTH
        self._sources |= {str(sample["digital_source_type"])} - {"None", ""}
        self._signers |= {str(sample.get("c2pa_key_id") or "")} - {""}
        if scheme := sample["watermark_scheme"]:
            self._schemes[str(scheme)] += 1
            self._keys |= {str(sample.get("watermark_key_id") or "")} - {""}
            score = sample["watermark_score"]
            if score is not None:
                self._lowest = score if self._lowest is None else min(self._lowest, score)
        else:
            self._unmarked[str(sample.get("watermark_reason") or "off")] += 1

    def layers(self) -> list[dict[str, Any]]:
        """One row a layer: name, what it is, how many released pictures carry it, and what else is known."""
        marked = sum(self._schemes.values())
        schemes = ", ".join(f"{name} ({count})" for name, count in sorted(self._schemes.items()))
        why = ", ".join(f"{_REASONS.get(name, name)} ({count})" for name, count in sorted(self._unmarked.items()))
        score = "" if self._lowest is None else f"lowest score after encoding {self._lowest:.3f}"
        signers = ", ".join(sorted(self._signers))
        return [
            self._layer("xmp", "XMP metadata in the file", self._counts["xmp_present"], "xmp_present", *sorted(self._sources)),
            self._layer(
                "watermark",
                "Imperceptible watermark in the pixels",
                marked,
                "watermark_scheme <> ''",
                *(part for part in (schemes, score, f"not marked: {why}" if why else "") if part),
            ),
            self._layer(
                "c2pa",
                "Signed C2PA manifest in the file",
                self._counts["c2pa_present"],
                "c2pa_present",
                *([f"signed with key {signers}"] if signers else []),
            ),
            self._layer("label", "Visible label in the picture", self._counts["visible_label"], "visible_label"),
            self._layer(
                "pdq",
                "PDQ fingerprint in the record, nothing in the picture",
                self._counts["pdq"],
                f"pdq_quality >= {_WORTH}",
                f"of quality {_WORTH} and more",
            ),
            self._layer(
                "iscc", "ISCC fingerprint (ISO 24138) in the record, nothing in the picture", self._counts["iscc"], "iscc"
            ),
        ]

    def _layer(self, name: str, what: str, count: int, condition: str, *facts: str) -> dict[str, Any]:
        expression = f"count(samples where accepted and {condition}) / accepted"
        return {"name": name, "what": what, "carried": rate(count, self._counts["released"], expression), "facts": list(facts)}

    def rows(self, bench: Mapping[str, Any] | None, signed: str = "") -> dict[str, Any]:
        """The layers, the robustness table of the schemes in use, and the table of the Code of Practice.

        Args:
            bench: what the marks bench measured; None where none ships.
            signed: what the plan binds of the signature of pictures.
        """
        layers = self.layers()
        by_name = {layer["name"]: layer["carried"] for layer in layers}
        return {
            "layers": layers,
            "keys": sorted(self._keys),
            "schemes": sorted(self._schemes),
            "robustness": robustness_table(bench, self._schemes),
            "code_of_practice": marks_coverage(by_name, signed=signed, watermark_keys=self._keys),
        }


_REASONS = {"off": "switched off, or no key", "too_small": "the picture is too small"}
