"""The codes guard, for machine-readable codes that decode: zxing-cpp, with the payload as evidence.

A generated smear that only resembles a QR code does not decode; the marks guard finds those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from guards.allowed import AllowList
from guards.base import Box, Defaults, Finding, Probe, import_package, require_package, require_pictures
from guards.code_reader import INSTALL, decoded

DETAIL = 80  # characters of payload kept in a finding


class CodesGuard:
    """Decodable matrix codes; category ``mark.qr``, score 1.0 when one is decoded and 0.0 otherwise.

    Args:
        threshold: anything above 0 and up to 1 flags every decoded code.
        allow: codes that are not flagged, such as our own provenance marks; see :mod:`guards.allowed`.

    Raises:
        GuardUnavailable: zxing-cpp is missing.
        ConfigError: an entry of ``allow`` cannot be compared, or would allow everything.
    """

    name: str = "codes"
    categories: tuple[str, ...] = ("mark.qr",)
    licence: str = "Apache-2.0"
    defaults = Defaults()

    @classmethod
    def probe(cls, settings: Any) -> Probe:
        return Probe(version=f"zxing-cpp {require_package('zxingcpp', 'zxing-cpp', guard=cls.name, install=INSTALL)}")

    @classmethod
    def open(cls, settings: Any) -> CodesGuard:
        import_package("zxingcpp", guard=cls.name, install=INSTALL)
        return cls(settings.threshold, getattr(settings, "allow", ()))

    def __init__(self, threshold: float = 0.5, allow: Sequence[str] | str = ()) -> None:
        self.version = self.probe(None).version
        self.threshold = threshold
        self.allow = ((allow,) if allow else ()) if isinstance(allow, str) else tuple(allow)
        self._allowed = AllowList(self.allow)

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        """Check uint8 RGB (N, H, W, 3): one finding per decoded code that is not allowed, or one with score 0."""
        require_pictures(pictures, guard=self.name)
        return [self._one(picture) for picture in pictures]

    def _one(self, picture: np.ndarray) -> list[Finding]:
        found: dict[str, Box] = {}
        for code in decoded(picture):
            found.setdefault(code.payload, code.box)
        codes = sorted(found.items())
        flagged = [code for code in codes if code[0] not in self._allowed]
        if not flagged:
            detail = f"allowed: {codes[0][0]}"[:DETAIL] if codes else ""
            return [self._finding(0.0, detail)]
        return [self._finding(1.0, payload[:DETAIL], box) for payload, box in flagged]

    def _finding(self, score: float, detail: str, box: Box | None = None) -> Finding:
        return Finding(
            guard=self.name, version=self.version, category="mark.qr", score=score, threshold=self.threshold, box=box,
            detail=detail,
        )  # fmt: skip
