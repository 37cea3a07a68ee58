"""Synthetic marks in great variety, each with its exact box: the mark detectors learn each *kind* of mark from them.

The numbered designs of :mod:`jobs.erase.marks.overlays` are few: a detector trained on them learns those designs. Here a
watermark is anything translucent laid over a drawing (words, tiled words, grids, stripes, bands, seals, rings,
polygons, stars, stamps, emblems), a logo is a small opaque emblem with a word or without, a QR code has any version from 1 to
3, module size, style, colour, turn and place, and a text any font, size, ink, plate, stroke, shadow, turn and number of lines.

The held-out designs 3 and 4 of the overlays are for evaluation only, so these forms are **never drawn here**:

* watermark 3, a grey band across the whole width with a white word: bands that span the width are coloured, or carry
  a dark word or none, or are tilted by at least 8 degrees;
* watermark 4, a grey pentagon at the lower right: no regular pentagon at all, in no ink and no place;
* QR 3, Micro QR: only full codes (versions 1 to 3), some of them cut by the picture's edge;
* QR 4, inverted codes: modules are always darker than their paper;
* text 3, a vertical word: no word turned to within 5 degrees of the vertical, and no letters in a column;
* text 4, a white word with an outline: stroked words have a coloured or pale yellow fill, never white or grey;
* logo 3, a crescent with a dot: no crescent;
* logo 4, three slanted bars: no bars side by side.

What stands near them is drawn: bars shorter than the picture, hexagons, codes of small modules, steep words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.erase.marks.letters import pick_angle, pick_font, pick_place, pick_word, rotated
from jobs.erase.marks.logos import logo
from jobs.erase.marks.overlays import Box
from jobs.erase.marks.veils import watermark

if TYPE_CHECKING:
    from PIL.Image import Image

SEEN = 8  # a pixel belongs to a mark when a channel changed by more than so many levels
LEAST = 36  # a mark changes at least so many pixels of a 64-pixel picture, or it is drawn anew


def draw_mark(picture: Image, kind: str, rng: np.random.Generator) -> tuple[Image, Box]:
    """Lay one visible mark of ``kind`` over a square picture.

    Args:
        picture: the drawing, square; sizes of marks are fractions of its side.
        kind: watermark, qr, text or logo.
        rng: source of every choice; the same state gives the same mark.

    Returns:
        The marked RGB picture and the box (x0, y0, x1, y1) in pixels around every pixel that the mark changed visibly.
    """
    plain = picture.convert("RGB")
    while True:  # a white mark on white paper is none: draw another
        layer = mark_layer(plain.width, kind, rng)
        marked = plain.convert("RGBA")
        marked.alpha_composite(layer)
        after = marked.convert("RGB")
        box, pixels = changed_box(np.asarray(plain), np.asarray(after))
        if pixels >= LEAST * (plain.width / 64) ** 2:
            return after, box


def mark_layer(side: int, kind: str, rng: np.random.Generator) -> Image:
    """One mark of ``kind`` alone: RGBA, ``side`` × ``side``, transparent where there is none."""
    return {"watermark": watermark, "qr": draw_qr, "text": draw_text, "logo": logo}[kind](side, rng)


def changed_box(before: np.ndarray, after: np.ndarray) -> tuple[Box, int]:
    """Box around the visibly changed pixels of two uint8 (H, W, 3) pictures, and how many they are; (0, 0, 0, 0) when none."""
    changed = np.abs(before.astype(np.int16) - after.astype(np.int16)).max(2) > SEEN
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    if not len(rows):
        return (0, 0, 0, 0), 0
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1), int(changed.sum())


# ---- QR codes --------------------------------------------------------------------------------------------------------


def draw_qr(side: int, rng: np.random.Generator) -> Image:
    import segno
    from PIL import Image as Pictures
    from PIL import ImageDraw as Draw

    version = int(rng.choice([1, 1, 2, 3]))
    code = segno.make(str(rng.integers(10**5, 10**12)), version=version, error=str(rng.choice(list("lmqh"))), micro=False)
    dark = np.pad(np.array([list(row) for row in code.matrix], dtype=bool), int(rng.choice([0, 1, 1, 2, 4])))
    ink = tuple(int(v) for v in (rng.integers(0, 60, 3) if rng.random() < 0.7 else rng.integers(0, 150, 3)))
    paper = (255, 255, 255) if rng.random() < 0.7 else tuple(int(v) for v in rng.integers(215, 256, 3))
    fine = 6
    count = len(dark)
    tile = Pictures.new("RGBA", (count * fine, count * fine), (*paper, 255))
    brush = Draw.Draw(tile)
    style = int(rng.choice([0, 0, 0, 1, 2]))  # squares, dots, rounded squares
    for row, column in zip(*np.nonzero(dark), strict=True):
        x, y = int(column) * fine, int(row) * fine
        if style == 1:
            brush.ellipse([x, y, x + fine - 1, y + fine - 1], fill=ink)
        else:
            brush.rounded_rectangle([x, y, x + fine - 1, y + fine - 1], 2 if style == 2 else 0, fill=ink)
    if rng.random() < 0.12:  # a logo in the middle
        middle, radius = count * fine / 2, count * fine * rng.uniform(0.1, 0.2)
        hue = tuple(int(v) for v in rng.integers(0, 256, 3))
        brush.ellipse([middle - radius] * 2 + [middle + radius] * 2, fill=(*hue, 255), outline=(*paper, 255), width=fine)
    whole = rng.random() < 0.6 and count <= side  # whole pixels per module, or any size
    size = count * int(rng.integers(1, side // count + 1)) if whole else int(side * rng.uniform(0.28, 0.98))
    tile = tile.resize((size, size), Pictures.Resampling.BOX if size <= count * fine else Pictures.Resampling.NEAREST)
    layer = Pictures.new("RGBA", (2 * side, 2 * side), (0, 0, 0, 0))
    over = int(0.4 * size) if rng.random() < 0.12 else 0  # cut by the edge
    x, y = (int(v) for v in side // 2 + rng.integers(-over, max(1, side - size + over + 1), 2))
    if not over and rng.random() < 0.25:  # into a corner
        x, y = (int(v) for v in side // 2 + rng.choice([1, max(0, side - size - 1)], 2))
    layer.paste(tile, (x, y))
    if rng.random() < 0.25:
        layer = rotated(layer, float(rng.uniform(-45, 45)), (x + size // 2, y + size // 2))
    return layer.crop((side // 2, side // 2, side // 2 + side, side // 2 + side))


# ---- text ------------------------------------------------------------------------------------------------------------


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """A dark or saturated ink: light greys are for watermarks."""
    if rng.random() < 0.3:
        grey = int(rng.integers(0, 60))
        return grey, grey, grey
    channels = [int(rng.integers(0, 80)), int(rng.integers(0, 200)), int(rng.integers(120, 256))]
    order = rng.permutation(3)
    return channels[order[0]], channels[order[1]], channels[order[2]]


def draw_text(side: int, rng: np.random.Generator) -> Image:
    from PIL import Image as Pictures
    from PIL import ImageDraw as Draw

    layer = Pictures.new("RGBA", (2 * side, 2 * side), (0, 0, 0, 0))
    draw = Draw.Draw(layer)
    centre = pick_place(side, rng, 0.34)
    lines = int(rng.choice([1, 1, 1, 1, 2, 3]))
    word = "\n".join(pick_word(rng, 2, 8) for _ in range(lines))
    size = side * rng.uniform(0.15, 0.34) / (1 + 0.25 * (lines - 1))
    settings: dict[str, Any] = {"font": pick_font(size, rng), "anchor": "mm", "align": "center", "spacing": 1}
    ink = _colour(rng)
    style = rng.random()
    if style < 0.28:  # on an opaque plate, lettered in white or another light colour
        x0, y0, x1, y1 = draw.multiline_textbbox(centre, word, **settings)
        dx, dy = (int(v) for v in rng.integers(1, 6, 2))
        plate = [x0 - dx, y0 - dy, x1 + dx, y1 + dy]
        light = rng.random() < 0.2
        pale = (255, 255, 255) if rng.random() < 0.7 else tuple(int(v) for v in rng.integers(190, 256, 3))
        draw.rounded_rectangle(plate, int(rng.choice([0, 0, 2, 4])), fill=(255, 235, 120) if light else ink)
        draw.multiline_text(centre, word, fill=ink if light else pale, **settings)
    elif style < 0.46:  # stroked: a coloured or yellow fill, never white
        fill = (255, int(rng.integers(190, 245)), int(rng.integers(0, 130))) if rng.random() < 0.5 else _colour(rng)
        edge = _colour(rng) if rng.random() < 0.75 else (255, 255, 255)
        draw.multiline_text(centre, word, fill=fill, stroke_width=int(rng.integers(1, 3)), stroke_fill=edge, **settings)
    else:
        if style < 0.6:  # a shadow
            shift = int(rng.integers(1, 3))
            shade = (120, 120, 120, 255) if rng.random() < 0.6 else (*_colour(rng), 255)
            draw.multiline_text((centre[0] + shift, centre[1] + shift), word, fill=shade, **settings)
        draw.multiline_text(centre, word, fill=(*ink, int(rng.integers(225, 256))), **settings)
        if rng.random() < 0.12:
            x0, _, x1, y1 = draw.multiline_textbbox(centre, word, **settings)
            draw.line([(x0, y1 + 1), (x1, y1 + 1)], fill=ink, width=int(rng.integers(1, 3)))
    angle = pick_angle(rng)
    if abs(angle) > 2:
        layer = rotated(layer, angle, centre)
    return layer.crop((side // 2, side // 2, side // 2 + side, side // 2 + side))
