"""What every guard is: a named, versioned check that looks at finished pictures and reports findings.

A guard reports; it never decides. Thresholds are operating points handed to it by the policy and repeated in each
finding, so that a row can be judged again from what is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Finding:
    """One thing one guard saw (or measured and did not see) in one picture.

    Attributes:
        guard: name of the guard, e.g. ``copies``.
        version: version of the guard's code and weights.
        category: stable reason code: ``copy.protected``, ``copy.memorised``, ``mark.watermark``, ``mark.qr``,
            ``mark.text``, ``text.ocr``, ``unsafe.nsfw``.
        score: larger is worse; comparable only within one guard and category.
        threshold: the operating point in force; the finding is triggered when ``score >= threshold``.
        confirmed: a second, independent look agreed (always True for guards that have no second look).
        box: x0, y0, x1, y1 as fractions of width and height, when the guard can say where.
        detail: short text for people: decoded QR payload, recognised words, reference id.
    """

    guard: str
    version: str
    category: str
    score: float
    threshold: float
    confirmed: bool = True
    box: Box | None = None
    detail: str = ""

    @property
    def triggered(self) -> bool:
        return self.score >= self.threshold


@runtime_checkable
class Guard(Protocol):
    """The protocol of every guard. Constructors only load; ``check`` is deterministic and changes nothing.

    A guard whose package or weights are missing raises :class:`index.errors.GuardUnavailable` when constructed.
    The findings of a picture must not depend on the other pictures of the call.
    """

    name: str
    version: str
    categories: tuple[str, ...]

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        """Check uint8 RGB pictures (N, H, W, 3); returns N lists of findings, at least one per picture and category."""
        ...


def worst(findings: Sequence[Finding]) -> Finding | None:
    """The triggered finding furthest above its threshold, or None."""
    triggered = [finding for finding in findings if finding.triggered]
    return max(triggered, key=lambda finding: finding.score - finding.threshold, default=None)
