"""Readable words are found with their place, whatever the picture's size; ornaments are not; nothing is downloaded."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import segno
from PIL import Image, ImageDraw, ImageFont

import guards.text
from guards.mark_weights import STICKERS
from guards.text import TextGuard, tiles
from index.errors import GuardUnavailable, InputError, IntegrityError

from .conftest import drawing


class Settings:
    threshold = 0.5


@pytest.fixture(scope="module")
def guard() -> TextGuard:
    return TextGuard()


def with_word(word: str, seed: int = 5, side: int = 64, size: int = 15) -> np.ndarray:
    picture = drawing(seed, side)
    ImageDraw.Draw(picture).text((side // 2, side - 2), word, font=ImageFont.load_default(size), fill=(20, 20, 20), anchor="mb")
    return np.asarray(picture)


def written(text: str, size: int, place: tuple[int, int], side: int) -> np.ndarray:
    """Dark letters of that height on white, the text's middle at that place."""
    picture = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(picture).text(place, text, font=ImageFont.load_default(size), fill=(20, 20, 20), anchor="mm")
    return np.asarray(picture)


def two_chinese_letters(size: int, side: int) -> np.ndarray:
    """The word for "in the mountains", whose two letters consist of straight strokes, so that no font is needed."""
    strokes = [
        [[(5, 0), (5, 10)], [(0, 4), (0, 10), (10, 10), (10, 4)]],
        [[(0, 2), (10, 2), (10, 7), (0, 7), (0, 2)], [(5, 0), (5, 10)]],
    ]
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)
    for number, letter in enumerate(strokes):
        for line in letter:
            at = [(side / 3 + number * size * 1.2 + x * size / 10, side / 3 + y * size / 10) for x, y in line]
            draw.line(at, fill=(20, 20, 20), width=max(1, size // 10))
    return np.asarray(picture)


def test_words_are_read(guard: TextGuard) -> None:
    (small,), (other,) = guard.check(np.stack([with_word("STOCK"), with_word("SALE", 6)]))
    assert small.triggered and small.category == "text.ocr" and "STOCK" in small.detail
    assert other.triggered and "SALE" in other.detail
    assert small.box is not None and small.box[1] > 0.6 and small.box[3] > 0.9  # at the bottom


def test_clean_pictures_and_short_ornaments_are_not_flagged(guard: TextGuard, clean: np.ndarray) -> None:
    shown = np.concatenate([clean[:4], with_word("A8", 8)[None]])
    assert [findings[0].score for findings in guard.check(shown)] == [0.0] * 5


@pytest.mark.parametrize(("size", "side"), [(14, 512), (48, 1024), (10, 1536)], ids=lambda number: str(number))
def test_small_words_are_read_in_large_pictures(guard: TextGuard, size: int, side: int) -> None:
    (findings,) = guard.check(written("sample text", size, (side // 4, side // 2), side)[None])
    assert findings[0].score > 0.9
    assert findings[0].detail == "sample text"
    assert findings[0].box is not None
    x0, y0, x1, y1 = (edge * side for edge in findings[0].box)
    assert x0 < side / 4 < x1 and y0 < side / 2 < y1
    assert x1 - x0 < 8 * size and y1 - y0 < 3 * size


@pytest.mark.parametrize("size", [200, 450])
def test_letters_larger_than_a_tile_are_read(guard: TextGuard, size: int) -> None:
    (findings,) = guard.check(written("SALE", size, (768, 768), 1536)[None])
    assert findings[0].score > 0.9 and findings[0].detail == "SALE"


def test_a_word_on_the_border_of_tiles_is_one_word(guard: TextGuard) -> None:
    (findings,) = guard.check(written("WATERMARK", 60, (512, 512), 1024)[None])
    assert findings[0].detail == "WATERMARK"


@pytest.mark.parametrize(
    ("text", "side"), [("$12.99", 512), ("50%", 512), ("2024", 512), ("42", 512), ("$5", 512), ("$5", 1024)]
)
def test_prices_and_numbers_are_text(guard: TextGuard, text: str, side: int) -> None:
    (findings,) = guard.check(written(text, 40, (side // 2, side // 3), side)[None])
    assert findings[0].score > 0.8 and findings[0].detail == text


@pytest.mark.parametrize("side", [512, 1024])
def test_a_word_of_two_chinese_letters_is_text(guard: TextGuard, side: int) -> None:
    (findings,) = guard.check(two_chinese_letters(28, side)[None])
    assert findings[0].score > 0.8 and len(findings[0].detail) == 2


def test_none_of_the_shipped_drawings_is_text(guard: TextGuard) -> None:
    drawings = sorted((STICKERS / "references").glob("*.png"))
    pictures = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in drawings])
    flagged = [path.name for path, (found,) in zip(drawings, guard.check(pictures), strict=True) if found.score > 0]
    assert len(drawings) == 62 and flagged == []


def test_the_rule_is_the_policys(guard: TextGuard) -> None:
    ornament, price = with_word("A8", 8)[None], written("$12.99", 40, (256, 256), 512)[None]
    assert TextGuard(least_signs=2, sure=0.0).check(ornament)[0][0].score > 0
    assert guard.check(price)[0][0].triggered
    assert TextGuard(least_signs=9).check(price)[0][0].score == 0


def test_what_a_picture_of_one_look_holds_is_what_it_always_was(guard: TextGuard) -> None:
    (word,) = guard.check(with_word("STOCK", side=640, size=30)[None])[0]
    assert "STOCK" in word.detail
    assert list(tiles(640, 640)) == [(0, 0, 640, 640)]


@pytest.mark.parametrize(("high", "wide"), [(1, 1), (641, 300), (1024, 1024), (1536, 2048), (700, 5000)])
def test_tiles_cover_the_picture_and_share_what_one_of_them_cuts(high: int, wide: int) -> None:
    seen = np.zeros((high, wide), np.uint8)
    cuts = list(tiles(high, wide))
    for top, left, bottom, right in cuts:
        assert 0 <= top < bottom <= high and bottom - top <= 640
        assert 0 <= left < right <= wide and right - left <= 640
        seen[top:bottom, left:right] += 1
    assert seen.min() == 1
    columns = sorted({(left, right) for _, left, _, right in cuts})
    assert all(before[1] - after[0] >= 127 for before, after in itertools.pairwise(columns))


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (3, 1200), (1200, 3), (2, 2)])  # of three tiles at most
def test_strips_end_in_a_finding(guard: TextGuard, shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, *shape, 3), dtype=np.uint8)
    (findings,) = guard.check(picture)
    assert 0 <= findings[0].score <= 1


def test_a_word_on_a_strip_is_read(guard: TextGuard) -> None:
    strip = written("sample text", 20, (2000, 1000), 2000)  # cut at the right edge, so the strip holds its beginning
    strip = np.ascontiguousarray(np.roll(strip, -800, axis=1)[985:1015])
    (findings,) = guard.check(strip[None])
    assert findings[0].score > 0.8


def test_a_confidence_that_is_no_number_is_refused() -> None:
    class Broken(TextGuard):
        def _load(self) -> Any:
            box = [[1, 1], [9, 1], [9, 9], [1, 9]]
            return lambda _: SimpleNamespace(txts=("$5", "SALE"), scores=(float("nan"), 0.9), boxes=[box, box])

    with pytest.raises(InputError, match="guard text: a score is not a finite number"):
        Broken().check(np.zeros((1, 64, 64, 3), np.uint8))


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


@pytest.mark.parametrize("content", [b"", b"no model", None], ids=["empty", "text", "a folder"])
def test_damaged_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "det.onnx"
    path.mkdir() if content is None else path.write_bytes(content)
    monkeypatch.setitem(guards.text.MODELS, "Det", str(path))  # an absolute path is not looked for in the wheel
    with pytest.raises((IntegrityError, GuardUnavailable), match=r"rapidocr 3\.10 again"):
        TextGuard.open(Settings())


def test_the_wheel_holds_the_weights() -> None:
    assert all(isinstance(path, Path) and path.stat().st_size > 100_000 for path in guards.text.model_paths().values())


def with_code(*places: tuple[int, int], word: str = "", under: str = "", wrecked: bool = False, turn: float = 0) -> np.ndarray:
    """A picture of 640 pixels with one code in several places, ``word`` in their middles and ``under`` at its foot."""
    code = segno.make("https://example.org/leaflet", micro=False, error="h")
    dark = np.pad(np.array([list(row) for row in code.matrix], dtype=np.uint8), 2)
    tile = Image.fromarray(255 - 255 * dark.repeat(8, 0).repeat(8, 1)).convert("RGB")
    if wrecked:
        tile.paste((255, 255, 255), (0, 0, 120, tile.height))
    if word:
        middle = tile.width // 2
        ImageDraw.Draw(tile).rectangle([middle - 40, middle - 14, middle + 40, middle + 14], fill="white")
        ImageDraw.Draw(tile).text((middle, middle), word, font=ImageFont.load_default(26), fill=(20, 20, 20), anchor="mm")
    picture = Image.new("RGB", (640, 640), (205, 220, 235))
    for place in places:
        picture.paste(tile.rotate(turn, expand=True, fillcolor=(205, 220, 235)), place)
    ImageDraw.Draw(picture).text((320, 600), under, font=ImageFont.load_default(40), fill=(20, 20, 20), anchor="mm")
    return np.asarray(picture)


@pytest.mark.parametrize(("places", "turn"), [([(180, 60)], 0), ([(20, 40), (330, 300)], 0), ([(120, 60)], 8)], ids=str)
def test_what_stands_in_a_code_is_no_text_and_what_stands_under_it_is(
    guard: TextGuard, places: list[tuple[int, int]], turn: float
) -> None:
    bare, named = (with_code(*places, word="SALE", under=under, turn=turn) for under in ("", "SCAN ME"))
    assert "SALE" in " ".join(word.text for word in guard._counted(bare))  # else this test shows nothing
    (quiet,), (found,) = guard.check(np.stack([bare, named]))
    assert quiet.score == 0.0
    assert found.triggered and found.detail == "SCAN ME"
    assert found.box is not None and found.box[1] > 0.85


def test_a_word_in_a_code_that_does_not_decode_is_text(guard: TextGuard) -> None:
    ((found,),) = guard.check(with_code((180, 60), word="SALE", wrecked=True)[None])
    assert found.triggered and "SALE" in found.detail


def test_a_missing_reader_of_codes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zxingcpp", None)
    with pytest.raises(GuardUnavailable, match="zxing-cpp"):
        TextGuard.open(Settings)
