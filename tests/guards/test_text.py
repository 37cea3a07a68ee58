"""Readable words are found with their place; short ornaments are not; nothing is downloaded."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageDraw, ImageFont

import guards.text
from guards.text import TextGuard
from index.errors import GuardUnavailable

from .conftest import drawing


@pytest.fixture(scope="module")
def guard() -> TextGuard:
    return TextGuard()


def with_word(word: str, seed: int = 5, side: int = 64, size: int = 15) -> np.ndarray:
    picture = drawing(seed, side)
    ImageDraw.Draw(picture).text((side // 2, side - 2), word, font=ImageFont.load_default(size), fill=(20, 20, 20), anchor="mb")
    return np.asarray(picture)


def test_words_are_read(guard: TextGuard) -> None:
    (small,), (other,) = guard.check(np.stack([with_word("STOCK"), with_word("SALE", 6)]))
    assert small.triggered and small.category == "text.ocr" and "STOCK" in small.detail
    assert other.triggered and "SALE" in other.detail
    assert small.box is not None and small.box[1] > 0.6 and small.box[3] > 0.9  # at the bottom


def test_clean_pictures_and_short_ornaments_are_not_flagged(guard: TextGuard, clean: np.ndarray) -> None:
    shown = np.concatenate([clean[:4], with_word("A8", 8)[None]])
    assert [findings[0].score for findings in guard.check(shown)] == [0.0] * 5


def test_detail_is_short(guard: TextGuard) -> None:
    (findings,) = guard.check(
        with_word("a long line of words that goes on and on, word after word, until the picture ends", 5, 640, 16)[None]
    )
    assert findings[0].triggered and 60 <= len(findings[0].detail) <= 80


QUIET = """
import socket, sys
import numpy as np
from guards.text import TextGuard

def refuse(*_):
    raise AssertionError("the text guard opened a connection")

socket.socket.connect = refuse
picture = np.load(sys.argv[1])
assert TextGuard().check(picture[None])[0][0].triggered
"""


def test_it_is_quiet_and_stays_off_the_network(tmp_path: Path) -> None:
    np.save(tmp_path / "picture.npy", with_word("STOCK"))
    command = [sys.executable, "-c", QUIET, str(tmp_path / "picture.npy")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_pickled_guard_loads_its_own_recogniser(guard: TextGuard) -> None:
    pictures = with_word("STOCK")[None]
    assert pickle.loads(pickle.dumps(guard)).check(pictures) == guard.check(pictures)


def test_missing_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(guards.text.MODELS, "Rec", "elsewhere.onnx")
    with pytest.raises(GuardUnavailable, match=r"elsewhere\.onnx is not in the installed package"):
        TextGuard()


def test_the_wheel_holds_the_weights() -> None:
    assert all(isinstance(path, Path) and path.stat().st_size > 100_000 for path in guards.text.model_paths().values())
