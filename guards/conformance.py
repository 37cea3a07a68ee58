"""The conformance suite: the promises that every guard must keep, a shipped one and one of another package."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from guards.base import Finding, Guard
from index.errors import InputError

SIZES = ((64, 64), (512, 512), (96, 160), (130, 67), (1, 1), (1, 64), (64, 1), (2, 1500), (1500, 2))  # height, width


def check_guard(guard: Guard, pictures: np.ndarray) -> None:
    """Check a guard against the protocol with real pictures; use it in the tests of your guard.

    Args:
        guard: the guard, freshly constructed or not.
        pictures: uint8 RGB (N, H, W, 3), at least three, some with a finding and some without.

    Raises:
        AssertionError: naming the promise that the guard breaks.
    """
    different = len(np.unique(pictures.reshape(len(pictures), -1), axis=0)) if len(pictures) else 0
    _require(different >= 3, "give three different pictures")
    _require(isinstance(guard, Guard), "it has name, version, categories and check()")
    _require(all(isinstance(text, str) and text for text in (guard.name, guard.version)), "name and version are non-empty text")
    _require(isinstance(guard.categories, tuple) and len(guard.categories) > 0, "categories is a non-empty tuple")

    before = pictures.copy()
    found = _check(guard, pictures)
    _require(np.array_equal(before, pictures), "check() does not modify its input")
    frozen = pictures.copy()
    frozen.setflags(write=False)
    _require(guard.check(frozen) == found, "check() is deterministic and takes read-only pictures")
    _check_findings(guard, found, len(pictures))

    _require(guard.check(pictures[::-1].copy()) == found[::-1], "findings do not depend on the order of the pictures")
    alone = [guard.check(pictures[i : i + 1])[0] for i in range(len(pictures))]
    _require(alone == found, "findings do not depend on batch mates")
    crowd = np.concatenate([np.full_like(pictures[:1], 255), pictures, pictures[:1]])
    _require(guard.check(crowd)[1:-1] == found, "findings do not depend on the place in a larger batch")
    _require(guard.check(pictures[:0]) == [], "an empty batch gives an empty list")

    for high, wide in SIZES:
        _check_findings(guard, _check(guard, _fit(pictures[:1], high, wide)), 1)

    for wrong, what in (
        (pictures.astype(np.float32) / 255, "floating-point"),
        (pictures[..., 0], "grayscale"),
        (pictures[0], "a single unstacked picture"),
        (np.concatenate([pictures, pictures[..., :1]], axis=3), "four channels"),
    ):
        try:
            guard.check(wrong)
        except InputError as error:
            _require(bool(error.fix), f"the error about {what} input names a fix")
        else:
            raise AssertionError(f"{guard.name}: {what} input is refused with InputError")


def _check(guard: Guard, pictures: np.ndarray) -> list[list[Finding]]:
    try:
        return guard.check(pictures)
    except Exception as error:
        promise = f"check() takes every picture; {pictures.shape[1:]} ended in {type(error).__name__}: {error}"
        raise AssertionError(f"broken promise: {promise}") from error


def _check_findings(guard: Guard, found: Sequence[Sequence[Finding]], count: int) -> None:
    _require(isinstance(found, list) and len(found) == count, "check() returns one list of findings per picture")
    thresholds: dict[str, set[float]] = {}
    for findings in found:
        seen = {finding.category for finding in findings}
        _require(seen == set(guard.categories), f"a picture has findings of every category and of no other; got {sorted(seen)}")
        for finding in findings:
            named = (finding.guard, finding.version) == (guard.name, guard.version)
            _require(named, "findings carry the guard's name and version")
            plain = type(finding.score) is float and type(finding.threshold) is float and type(finding.confirmed) is bool
            _require(plain, "score, threshold and confirmed are plain Python values")
            _require(math.isfinite(finding.score) and math.isfinite(finding.threshold), "scores and thresholds are finite")
            _require(isinstance(finding.detail, str), "detail is text")
            thresholds.setdefault(finding.category, set()).add(finding.threshold)
            if finding.box is not None:
                x0, y0, x1, y1 = finding.box
                _require(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, f"boxes are ordered fractions; got {finding.box}")
    _require(all(len(values) == 1 for values in thresholds.values()), "the operating point is repeated, not changed")


def _fit(pictures: np.ndarray, high: int, wide: int) -> np.ndarray:
    rows = np.arange(high) * pictures.shape[1] // high
    columns = np.arange(wide) * pictures.shape[2] // wide
    return np.ascontiguousarray(pictures[:, rows][:, :, columns])


def _require(holds: bool, promise: str) -> None:
    # Not an assert statement: the suite must also work under `python -O`.
    if not holds:
        raise AssertionError(f"broken promise: {promise}")
