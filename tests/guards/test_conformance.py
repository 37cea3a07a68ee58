"""Every guard passes the suite, and the suite catches guards that break their promises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from guards.base import Finding, Guard, require_pictures
from guards.codes import CodesGuard
from guards.conformance import check_guard
from guards.copies import CopiesGuard
from guards.marks import MarksGuard
from guards.text import TextGuard
from guards.unsafe import UnsafeGuard
from index.calibrate import OperatingPoint
from index.embed import OpenCLIPEmbedder
from index.reference import NewReference
from index.store import ReferenceIndex
from jobs.erase.marks.overlays import overlay

from .conftest import drawing


def mixed() -> np.ndarray:
    """A clean drawing, one with a QR code, one with a word."""
    rng = np.random.default_rng(3)
    marked = [drawing(50), overlay(drawing(51), "qr", rng, (2,))[0], overlay(drawing(52), "text", rng, (2,))[0]]
    return np.stack([np.asarray(picture) for picture in marked])


@pytest.mark.parametrize("make", [CodesGuard, MarksGuard, TextGuard, UnsafeGuard])
def test_every_guard_conforms(make: Callable[[], Guard]) -> None:
    check_guard(make(), mixed())


def test_the_copies_guard_conforms_with_its_own_embedder_and_second_look(tmp_path: Path) -> None:
    embedder = OpenCLIPEmbedder.open("stickers", "")
    works = [NewReference(title=str(seed), picture=np.asarray(drawing(seed)), keep_picture=True) for seed in (50, 60)]
    index = ReferenceIndex.build(tmp_path / "index", works, embedder)
    point = OperatingPoint(threshold=-1.0)  # so that everything gets the second look
    check_guard(CopiesGuard(index, embedder, point=point, hues=3), mixed())
    check_guard(CopiesGuard(index, embedder, point=point, edits=("turned", "negative")), mixed())


class Brightness:
    """A correct little guard, to break in one way at a time."""

    name, version = "brightness", "1"
    categories: tuple[str, ...] = ("bright",)

    def finding(self, score: float) -> Finding:
        return Finding(guard=self.name, version=self.version, category="bright", score=score, threshold=200.0)

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        require_pictures(pictures, guard=self.name)
        return [[self.finding(float(p.mean()))] for p in pictures]


class Modifies(Brightness):
    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        found = super().check(pictures)
        if pictures.flags.writeable:
            pictures += 1
        return found


class LooksAside(Brightness):
    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        middle = float(pictures.mean()) if len(pictures) else 0.0
        return [[replace(f, score=f.score - middle) for f in row] for row in super().check(pictures)]


class Forgets(Brightness):
    categories = ("bright", "dark")


class Random(Brightness):
    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        return [[replace(f, score=float(np.random.default_rng().random())) for f in row] for row in super().check(pictures)]


class NotANumber(Brightness):
    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        return [[replace(f, score=float("nan")) for f in row] for row in super().check(pictures)]


class Infinite(Brightness):
    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        return [[replace(f, score=float("inf")) for f in row] for row in super().check(pictures)]


class NeverTriggers(Brightness):
    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        return [[replace(f, threshold=float("inf")) for f in row] for row in super().check(pictures)]


class DislikesStrips(Brightness):
    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        found = super().check(pictures)
        halves = pictures[:, : pictures.shape[1] // 2]
        if halves.size == 0 and len(pictures):
            raise ValueError("a picture of one row has no upper half")
        return found


class PixelBox(Brightness):
    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        return [[replace(f, box=(0.0, 0.0, 32.0, 32.0)) for f in row] for row in super().check(pictures)]


class MovesThreshold(Brightness):
    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        return [[replace(f, threshold=f.score + 1) for f in row] for row in super().check(pictures)]


class TakesAnything(Brightness):
    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        return [[self.finding(float(np.mean(p)))] for p in pictures]


def test_the_suite_accepts_a_correct_guard() -> None:
    check_guard(Brightness(), mixed())


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (Modifies, "modify its input"),
        (LooksAside, "batch mates"),
        (Forgets, "every category"),
        (Random, "deterministic"),
        (NotANumber, "finite"),
        (Infinite, "finite"),
        (NeverTriggers, "finite"),
        (DislikesStrips, r"takes every picture; \(1, 1, 3\) ended in ValueError"),
        (PixelBox, "fractions"),
        (MovesThreshold, "operating point"),
        (TakesAnything, "refused with InputError"),
    ],
)
def test_the_suite_catches(broken: Callable[[], Guard], promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        check_guard(broken(), mixed())
