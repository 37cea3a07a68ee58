"""The codes guard, for machine-readable codes that decode: zxing-cpp, with the payload as evidence.

A generated smear that only resembles a QR code does not decode; the marks guard finds those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from guards.allowed import AllowList
from guards.base import Box, Defaults, Finding, Probe, import_package, require_package, require_pictures

UPSCALES = (1, 2, 4)  # small codes have modules of one pixel; the decoder wants two or more
LARGEST = 1024  # pixels of the longer side beyond which nothing is enlarged
FORMATS = ("QRCode", "MicroQRCode", "RMQRCode", "DataMatrix", "Aztec")  # stripes in drawings pass for linear codes
INSTALL = "Install it with `pip install zxing-cpp`"
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
        codes = _decode(picture)
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


def _decode(picture: np.ndarray) -> list[tuple[str, Box]]:
    """Payloads and boxes of the codes found at any enlargement, each payload once, in order of payload."""
    import zxingcpp

    formats: Any = zxingcpp.barcode_formats_from_str("|".join(FORMATS))
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    grey = (picture.astype(np.float32) @ luma).round().astype(np.uint8)
    found: dict[str, Box] = {}
    for times in UPSCALES:
        if times > 1 and times * max(grey.shape) > LARGEST:
            break
        # A quiet zone of white helps codes that touch the border; try_invert covers light-on-dark codes.
        pad = 4 * times
        shown = np.pad(grey.repeat(times, 0).repeat(times, 1), pad, constant_values=255)
        for code in zxingcpp.read_barcodes(shown, formats=formats, try_invert=True, try_rotate=True):
            if code.valid and code.text:
                found.setdefault(code.text, _box(code.position, pad, times, grey.shape))
    return sorted(found.items())


def _box(position: Any, pad: int, times: int, shape: tuple[int, ...]) -> Box:
    corners = (position.top_left, position.top_right, position.bottom_right, position.bottom_left)
    x = [min(1.0, max(0.0, (corner.x - pad) / (times * shape[1]))) for corner in corners]
    y = [min(1.0, max(0.0, (corner.y - pad) / (times * shape[0]))) for corner in corners]
    return min(x), min(y), max(x), max(y)
