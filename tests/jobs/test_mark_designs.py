"""The generator of marks: exact boxes, the same marks from the same seed, and nothing that is held out for evaluation."""

from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import pytest
import segno
from PIL import Image, ImageDraw

from guards.mark_network import KINDS
from index.errors import InputError
from jobs.erase.marks import designs as mark_designs
from jobs.erase.marks import letters as mark_letters
from jobs.erase.marks import logos as mark_logos
from jobs.erase.marks import veils as mark_veils
from jobs.erase.marks.designs import LEAST, changed_box, draw_mark
from jobs.erase.marks.letters import FONTS, font_files, pick_angle
from tests.guards.conftest import drawing

absent = [package for package in FONTS if importlib.util.find_spec(package) is None]
needs_fonts = pytest.mark.skipif(bool(absent), reason=f"fonts of the extra 'erase' are not installed: {absent}")


@needs_fonts
@pytest.mark.parametrize("kind", KINDS)
def test_the_box_is_that_of_the_visible_change(kind: str) -> None:
    rng, again = np.random.default_rng(0), np.random.default_rng(0)
    boxes = set()
    for seed in range(25):
        before = drawing(seed)
        after, box = draw_mark(before, kind, rng)
        assert after.size == (64, 64) and after.mode == "RGB"
        changed = np.abs(np.asarray(before).astype(int) - np.asarray(after)).max(2) > mark_designs.SEEN
        assert changed.sum() >= LEAST
        x0, y0, x1, y1 = box
        outside = changed.copy()
        outside[y0:y1, x0:x1] = False
        assert not outside.any() and changed[y0].any() and changed[y1 - 1].any() and changed[:, x0].any()
        same, same_box = draw_mark(before, kind, again)
        assert same_box == box and same.tobytes() == after.tobytes()
        boxes.add(box)
    assert len(boxes) >= 12


def test_no_change_has_no_box() -> None:
    picture = np.asarray(drawing(0))
    assert changed_box(picture, picture) == ((0, 0, 0, 0), 0)


def test_words_are_never_turned_to_the_vertical() -> None:
    rng = np.random.default_rng(1)
    angles = np.array([pick_angle(rng) for _ in range(2000)]) % 180
    assert np.abs(angles - 90).min() > 5 and (np.abs(angles - 90) < 35).mean() > 0.25


@needs_fonts
def test_codes_are_full_and_dark_on_light(monkeypatch: pytest.MonkeyPatch) -> None:
    make, papers, inks = segno.make, [], []

    def spied(*args: object, **options: object) -> object:
        assert options["micro"] is False
        return make(*args, **options)

    new, module = Image.new, ImageDraw.ImageDraw.rounded_rectangle
    monkeypatch.setattr(segno, "make", spied)
    monkeypatch.setattr(Image, "new", lambda mode, size, colour=0: papers.append(colour) or new(mode, size, colour))
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "rounded_rectangle", lambda s, *a, **k: inks.append(k["fill"]) or module(s, *a, **k)
    )
    rng = np.random.default_rng(2)
    for _ in range(20):
        mark_designs.draw_qr(64, rng)
    opaque = [paper[:3] for paper in papers if isinstance(paper, tuple) and len(paper) == 4 and paper[3] == 255]
    assert len(opaque) == 20 and min(min(paper) for paper in opaque) >= 215
    assert len(inks) > 1000 and max(max(ink) for ink in inks) < 150


@needs_fonts
def test_no_pentagon_and_no_white_outlined_word(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, polygon, write = [], mark_veils.draw_polygon, ImageDraw.ImageDraw.multiline_text
    fills = []
    monkeypatch.setattr(
        mark_veils, "draw_polygon", lambda d, c, r, shape, *a, **k: shapes.append(shape) or polygon(d, c, r, shape, *a, **k)
    )

    def spied(self: object, *args: object, **options: object) -> None:
        if options.get("stroke_width"):
            fills.append(options["fill"])
        write(self, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "multiline_text", spied)
    rng = np.random.default_rng(3)
    for _ in range(250):
        mark_veils.watermark(64, rng)
        mark_designs.draw_text(64, rng)
    assert len(shapes) > 50 and 5 not in shapes
    assert len(fills) > 20 and all(min(fill) <= 130 for fill in fills)


@needs_fonts
def test_a_level_grey_band_across_the_picture_has_no_white_word(monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[tuple[int, ...]] = []
    write = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda s, *a, **k: words.append(k["fill"]) or write(s, *a, **k))
    rng = np.random.default_rng(4)
    checked = 0
    for _ in range(300):
        words.clear()
        layer = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
        angle, (_, y) = mark_veils.draw_band(ImageDraw.Draw(layer), 64, (110, 110, 110, 140), rng)
        across = layer.getpixel((1, y)) != (0, 0, 0, 0) and layer.getpixel((126, y)) != (0, 0, 0, 0)
        if across and not angle and words:
            checked += 1
            assert max(words[0][:3]) < 100
    assert checked >= 10


@needs_fonts
def test_no_logo_has_a_crescent_or_bars_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crescent is one disc laid over another, off its middle; bars would be rectangles in a row."""
    discs: list[tuple[tuple[int, int], int]] = []
    bars, polygon, rectangle = [0], mark_logos.draw_polygon, ImageDraw.ImageDraw.rectangle

    def spied(d: object, centre: tuple[int, int], r: int, shape: int, ink: object, *, outline: int) -> None:
        if shape == 99 and not outline:
            discs.append((centre, r))
        polygon(d, centre, r, shape, ink, outline=outline)  # type: ignore[arg-type]

    def counted(self: object, *args: object, **options: object) -> None:
        bars[0] += 1
        rectangle(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(mark_logos, "draw_polygon", spied)
    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", counted)
    rng = np.random.default_rng(5)
    seen = 0
    for _ in range(400):
        discs.clear()
        bars[0] = 0
        mark_logos.logo(64, rng)
        seen += len(discs) > 1
        for (a, r), (b, s) in itertools.combinations(discs, 2):
            apart = float(np.hypot(a[0] - b[0], a[1] - b[1]))
            assert apart == 0 or apart >= 0.9 * (r + s), "discs of one logo are concentric or side by side"
        assert bars[0] in (0, 1, 4)  # a shield's chief, four squares
    assert seen > 20


def test_a_missing_font_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "font_roboto" else find(n, *a))
    font_files.cache_clear()
    with pytest.raises(InputError, match=r"font-roboto is not installed.*clearance\[erase\]"):
        mark_letters.font_files()
    font_files.cache_clear()
