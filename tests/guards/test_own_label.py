"""Guards look past the label that we draw ourselves, and past nothing else."""

from __future__ import annotations

import io
from typing import get_args

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from guards.base import Guard, worst
from guards.marks import MarksGuard
from guards.own_label import LABELS, draw, label_of, own_label, without_own_label
from guards.text import TextGuard
from pipeline.config import MarksConfig
from pipeline.fields import keys
from pipeline.marking.label import CHOICES, labelled
from pipeline.marking.tile import TileWatermark

from .conftest import drawing

SIDES = (256, 512)


def plain(side: int, seed: int = 3) -> np.ndarray:
    return np.asarray(drawing(seed, side))


def with_label(picture: np.ndarray, text: str = LABELS[0]) -> np.ndarray:
    made = draw(picture, text)
    assert made is not None
    return made


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def written(picture: np.ndarray, text: str, x: float, y: float, size: float) -> np.ndarray:
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((x, y), text, "black", font=ImageFont.load_default(size))
    return np.asarray(image)


@pytest.fixture(scope="module")
def text() -> TextGuard:
    return TextGuard()


@pytest.fixture(scope="module")
def marks() -> MarksGuard:
    return MarksGuard()


def flagged(guard: Guard, picture: np.ndarray) -> str:
    finding = worst(guard.check(picture[None])[0])
    return finding.category if finding is not None else ""


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("label", LABELS)
def test_the_text_guard_does_not_flag_our_label(text: TextGuard, label: str, side: int) -> None:
    assert flagged(text, with_label(plain(side), label)) == ""


@pytest.mark.parametrize("side", SIDES)
def test_the_marks_guard_does_not_flag_our_label(marks: MarksGuard, side: int) -> None:
    for seed in range(4):
        assert flagged(marks, with_label(plain(side, seed))) == flagged(marks, plain(side, seed))


def test_a_marked_file_is_not_flagged_for_label_and_watermark(text: TextGuard, marks: MarksGuard) -> None:
    marked = TileWatermark().embed(with_label(plain(512)), b"k" * 32, 7)
    for finished in (marked, jpeg(marked, 95), jpeg(marked, 75)):
        assert own_label(finished) is not None
        assert flagged(text, finished) == "" and flagged(marks, finished) == ""


def test_the_guards_could_read_the_label_if_it_were_not_ours(text: TextGuard) -> None:
    """The same words a little further left are no label of ours."""
    picture = plain(512)
    found = label_of(LABELS[0], 512, 512)
    assert found is not None
    (left, top, right, bottom), pixels = found
    moved = picture.copy()
    moved[top:bottom, left - 9 : right - 9] = pixels
    assert flagged(text, moved) == "text.ocr"


@pytest.mark.parametrize("more", ["by a rival", "SALE"])
def test_text_beside_our_label_is_flagged(text: TextGuard, more: str) -> None:
    assert flagged(text, written(with_label(plain(512)), more, 40, 470, 26)) == "text.ocr"


def test_the_label_with_a_word_more_is_flagged(text: TextGuard) -> None:
    picture = with_label(plain(512))
    found = label_of(LABELS[0], 512, 512)
    assert found is not None
    (left, top, _, bottom), _ = found
    picture[top:bottom, left - 90 : left] = 16  # the label made longer, with a name in it
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((left - 85, top + 4), "NOT", "white", font=ImageFont.load_default(19))
    assert flagged(text, np.asarray(image)) == "text.ocr"


def test_a_label_that_was_painted_over_is_not_ours(text: TextGuard) -> None:
    picture = with_label(plain(512))
    found = label_of(LABELS[0], 512, 512)
    assert found is not None
    (left, top, right, _), _ = found
    picture[top + 4 : top + 20, left + 4 : left + 24] = 255
    assert own_label(picture) is None
    other = with_label(plain(512), LABELS[0])
    other[top:, left:right][:, ::-1] = other[top:, left:right].copy()
    assert own_label(other) is None


def test_a_mark_elsewhere_is_still_flagged(marks: MarksGuard) -> None:
    from jobs.erase.marks.overlays import overlay

    rng = np.random.default_rng(3)
    stained = np.asarray(overlay(drawing(52), "qr", rng, (2,))[0].resize((512, 512), Image.Resampling.NEAREST))
    assert flagged(marks, stained) == "mark.qr"
    assert flagged(marks, with_label(stained)) == "mark.qr"


@pytest.mark.parametrize("quality", [95, 75, 60])
def test_our_label_is_recognised_after_jpeg(quality: int) -> None:
    assert own_label(jpeg(with_label(plain(512)), quality)) is not None


@pytest.mark.parametrize("times", [0.5, 2])
def test_in_a_copy_of_another_size_it_is_not_ours(times: float) -> None:
    """A limit: strokes of other widths are other pixels. The guards then flag it, which is the safe side."""
    side = round(512 * times)
    assert own_label(np.asarray(Image.fromarray(with_label(plain(512))).resize((side, side), Image.Resampling.BICUBIC))) is None


@pytest.mark.parametrize(("wide", "high"), [(64, 64), (100, 64), (65, 300), (1024, 256), (777, 1500)])
def test_the_label_fits_in_the_corner(wide: int, high: int) -> None:
    for label in LABELS:
        found = label_of(label, wide, high)
        if found is None:
            assert min(wide, high) < 96  # the longer words want a little more room
            continue
        (left, top, right, bottom), pixels = found
        assert 0 < left < right < wide and 0 < top < bottom < high
        assert pixels.shape == (bottom - top, right - left, 3) and pixels.max() > 200


def test_pictures_without_our_label_are_handed_on_untouched() -> None:
    pictures = np.stack([plain(256), plain(256, 5)])
    assert without_own_label(pictures) is pictures
    assert without_own_label(pictures[:0]) is not None


def test_only_the_label_is_painted_over() -> None:
    pictures = np.stack([plain(256), with_label(plain(256))])
    before = pictures.copy()
    clean = without_own_label(pictures)
    assert np.array_equal(pictures, before)
    assert np.array_equal(clean[0], pictures[0])
    assert (clean[1] != pictures[1]).any(2).mean() < 0.06
    assert np.abs(clean[1].astype(int) - plain(256)).mean() < 1.0  # white again where there was white


def test_the_run_files_choices_are_the_labels_that_the_guards_know() -> None:
    (key,) = [key for key in keys(MarksConfig) if key.loc == ("label",)]
    assert get_args(key.type) == CHOICES


def test_off_draws_nothing() -> None:
    picture = plain(256)
    made, there = labelled(picture, "off")
    assert made is picture and not there
