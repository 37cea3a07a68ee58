"""The unsafe guard runs, does not flag drawings, and names its package when it is missing."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from guards.unsafe import UnsafeGuard
from index.errors import GuardUnavailable


def test_drawings_are_safe(clean: np.ndarray) -> None:
    found = UnsafeGuard().check(clean[:4])
    assert len(found) == 4
    assert all(f.category == "unsafe.nsfw" and 0 <= f.score < 0.5 and not f.triggered for (f,) in found)


def test_the_score_depends_on_the_picture(clean: np.ndarray) -> None:
    assert len({f.score for (f,) in UnsafeGuard().check(clean[:4])}) == 4


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n.startswith("yahoo") else find(n, *a))
    with pytest.raises(GuardUnavailable, match=r"clearance\[unsafe\]"):
        UnsafeGuard()
