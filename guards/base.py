"""A guard is a named, versioned check that looks at finished pictures and reports findings.

A guard reports; it never decides. Thresholds are operating points that the policy sets. Every finding repeats its threshold, so
that a decision can be checked again from the stored rows.

A guard is declared in one class: name, categories, licence, what a policy may set (:class:`GuardClass`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from index.errors import GuardUnavailable, InputError, IntegrityError

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that one guard measured in one picture, triggered or not.

    Attributes:
        guard: name of the guard, e.g. ``copies``.
        version: version of the guard's code and weights.
        category: stable reason code: ``copy.protected``, ``copy.memorised``, ``mark.watermark``, ``mark.qr``,
            ``mark.text``, ``text.ocr``, ``unsafe.nsfw``.
        score: larger is worse; comparable only within one guard and category.
        threshold: the operating point in force; the finding is triggered when ``score >= threshold``.
        confirmed: a second, independent look agreed (always True for guards that have no second look).
        box: x0, y0, x1, y1 as fractions of width and height, where the guard locates the finding.
        ref_id: the reference that the finding is about, on which steering acts; empty where there is none.
        detail: short text for people: a code's payload, the recognised words, the reference's title.

    Raises:
        InputError: score or threshold is not a finite number.
    """

    guard: str
    version: str
    category: str
    score: float
    threshold: float
    confirmed: bool = True
    box: Box | None = None
    ref_id: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        # Comparisons with NaN or an infinite threshold are always false: the finding would never be triggered.
        if not (math.isfinite(self.score) and math.isfinite(self.threshold)):
            what = f"a score is not a finite number ({self.category}: {self.score} against {self.threshold})"
            raise InputError(what, where=f"guard {self.guard}", fix="Look at the picture, and at the guard's weights")

    @property
    def triggered(self) -> bool:
        return self.score >= self.threshold


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """A guard's threshold and action where the policy sets none."""

    threshold: float = 0.5
    action: str = "steer"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A guard's version and weights on this machine, found without loading it.

    Attributes:
        version: of its code and weights; that of the opened guard.
        weights: file name → sha256 of every file that decides its findings.
        calibrated_on: the one family of models whose pictures its operating points were measured on ("stickers", the embedded
            world); empty: it is not bound to a family.
    """

    version: str
    weights: Mapping[str, str] = field(default_factory=dict)
    calibrated_on: str = ""


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


@runtime_checkable
class OnDevice(Protocol):
    """A guard whose network can be moved; one that has no such method stays on the CPU."""

    def to(self, device: str) -> None:
        """Run the network on that torch device from now on."""
        ...


class GuardClass(Protocol):
    """The declarations of a guard's class; registry, policy, documents and ``clearance doctor`` read nothing else.

    ``probe`` finds packages and files and loads nothing; ``open`` loads. Both take the policy's settings of the guard (its
    ``threshold``, and for a guard from another package its ``options``). They raise
    :class:`index.errors.GuardUnavailable` where something is missing and :class:`index.errors.IntegrityError` where it is
    damaged.
    """

    name: str
    categories: tuple[str, ...]
    licence: str
    defaults: Defaults

    @classmethod
    def probe(cls, settings: Any) -> Probe: ...

    @classmethod
    def open(cls, settings: Any) -> Guard: ...


def is_copy(category: str) -> bool:
    """Whether findings of this category are copies, which ``policy.ladder`` answers."""
    return category.startswith("copy.")


def is_mark(category: str) -> bool:
    """Whether findings of this category are marks, which ``policy.mark_ladder`` answers."""
    return category.startswith(("mark.", "text."))


def worst(findings: Sequence[Finding]) -> Finding | None:
    """The triggered finding furthest above its threshold, or None."""
    triggered = [finding for finding in findings if finding.triggered]
    return max(triggered, key=lambda finding: finding.score - finding.threshold, default=None)


def require_pictures(pictures: np.ndarray, *, guard: str) -> None:
    """Refuse anything but uint8 RGB (N, H, W, 3) with H, W ≥ 1.

    Raises:
        InputError: with what was given instead and how to convert it.
    """
    if not isinstance(pictures, np.ndarray):
        what = f"pictures must be a numpy array, not {type(pictures).__name__}"
        raise InputError(what, where=guard, fix="Stack them with np.stack")
    if pictures.dtype != np.uint8:
        fix = "Scale to 0…255 and use .astype(np.uint8)"
        raise InputError(f"pictures must be uint8, not {pictures.dtype}", where=guard, fix=fix)
    if pictures.ndim != 4 or pictures.shape[3] != 3 or 0 in pictures.shape[1:]:
        fix = "One RGB picture is (1, H, W, 3); turn grayscale or RGBA into RGB first"
        raise InputError(f"pictures must have shape (N, H, W, 3), not {pictures.shape}", where=guard, fix=fix)


def require_package(module: str, distribution: str, *, guard: str, install: str) -> str:
    """Return the version of an installed package without importing it.

    Raises:
        GuardUnavailable: when it is not installed; ``install`` is the command to type.
    """
    if importlib.util.find_spec(module) is None:
        raise GuardUnavailable(f"the package {distribution} is not installed", where=f"guard {guard}", fix=install)
    return importlib.metadata.version(distribution)


def import_package(module: str, *, guard: str, install: str) -> Any:
    """Import a package that a guard runs on.

    Raises:
        GuardUnavailable: it is there, and it cannot be imported: a library that it needs is missing, or it is damaged.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # its code may raise anything
        what = f"the package {module} cannot be imported ({type(error).__name__}: {error})"
        raise GuardUnavailable(what, where=f"guard {guard}", fix=install) from error


def file_digest(path: Path, *, guard: str, fix: str) -> str:
    """sha256 of a weight file; read once as long as its size and time of change stay the same.

    Raises:
        GuardUnavailable: there is no such file; ``fix`` names how to get it.
        IntegrityError: it cannot be read.
    """
    if not path.is_file():
        raise GuardUnavailable(f"{path.name} is missing", where=f"guard {guard}: {path}", fix=fix)
    try:
        found = path.stat()
        return _digest(path, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise IntegrityError(f"cannot be read ({error})", where=f"guard {guard}: {path}", fix=fix) from None


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> str:  # both stand for the content that is remembered
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
