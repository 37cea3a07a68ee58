"""Marks for the polluted share of the training pictures: watermark, QR code, text, logo; and their boxes.

Every function takes a PIL picture and a numpy Generator and returns the marked picture and the mark's box in pixels
(x0, y0, x1, y1). Designs numbered 3 and higher are held out: no generator and no guard is trained on them.
"""

from __future__ import annotations

import math

import numpy as np
import segno
from PIL import Image, ImageDraw, ImageFont

TRAIN_DESIGNS, HELD_OUT_DESIGNS = (0, 1, 2), (3, 4)
LEARNED = ("watermark", "qr", "text")  # the kinds that the world's model learned to draw and its erasers know
WORDS = ("SALE", "STOCK", "FREE", "NEW", "DEMO", "PHOTO", "SHOP", "DRAFT", "COPY", "IMAGE", "50% OFF", "HELLO")
Box = tuple[int, int, int, int]


def overlay(
    picture: Image.Image, kind: str, rng: np.random.Generator, designs: tuple[int, ...] = TRAIN_DESIGNS
) -> tuple[Image.Image, Box]:
    """Draw one mark of ``kind`` in a random design, opacity and place."""
    design = int(rng.choice(designs))
    return {"watermark": _watermark, "qr": _qr, "text": _text, "logo": _logo}[kind](picture.convert("RGB"), design, rng)


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)  # Pillow ships Aileron (CC0) inside the package
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _watermark(picture: Image.Image, design: int, rng: np.random.Generator) -> tuple[Image.Image, Box]:
    """Semi-transparent stock-archive marks: a diagonal word, a diagonal grid, a seal; held out: a band, a corner logo."""
    side = picture.width
    layer = Image.new("RGBA", (2 * side, 2 * side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    grey = (110, 110, 110, int(rng.integers(110, 170)))
    middle = side
    box: Box = (0, 0, side, side)
    if design == 0:
        draw.text((middle, middle), str(rng.choice(WORDS[:6])), font=_font(side // 4), fill=grey, anchor="mm")
        layer = layer.rotate(35, center=(middle, middle))
    elif design == 1:
        step = side // 4
        for offset in range(-2 * side, 2 * side, step):
            draw.line([(offset, 0), (offset + 2 * side, 2 * side)], fill=grey, width=max(1, side // 40))
            draw.line([(offset + 2 * side, 0), (offset, 2 * side)], fill=grey, width=max(1, side // 40))
    elif design == 2:
        radius = side // 4
        draw.ellipse(
            [middle - radius, middle - radius, middle + radius, middle + radius], outline=grey, width=max(2, side // 20)
        )
        draw.text((middle, middle), "©", font=_font(int(side / 2.6)), fill=grey, anchor="mm")
    elif design == 3:
        draw.rectangle([0, middle - side // 9, 2 * side, middle + side // 9], fill=grey)
        draw.text((middle, middle), str(rng.choice(WORDS[6:])), font=_font(side // 6), fill=(255, 255, 255, 220), anchor="mm")
    else:
        at = middle + side // 4
        draw.regular_polygon((at, at, side // 6), 5, fill=grey)
    crop = layer.crop((side // 2, side // 2, side // 2 + side, side // 2 + side))
    visible = crop.getbbox()
    if visible:
        box = visible
    marked = picture.convert("RGBA")
    marked.alpha_composite(crop)
    return marked.convert("RGB"), box


def _qr(picture: Image.Image, design: int, rng: np.random.Generator) -> tuple[Image.Image, Box]:
    """A QR code, version 1: in a corner, centred low, large; held out: Micro QR, inverted."""
    side = picture.width
    payload = str(rng.integers(10**6, 10**9))
    code = segno.make_micro(payload[:5]) if design == 3 else segno.make(payload, version=1, error="l", micro=False)
    matrix = np.array([list(row) for row in code.matrix], dtype=np.uint8)
    matrix = np.pad(matrix, 1)
    modules = matrix.shape[0]
    scale = max(1, math.ceil(side * (0.62 if design == 2 else 0.34) / modules)) if side > 96 else (2 if design == 2 else 1)
    if side <= 96 and design != 2:
        scale = 1 if modules > 16 else 2
    tile = np.where(matrix[..., None] == 1, [20, 20, 20], [255, 255, 255]).astype(np.uint8)
    if design == 4:
        tile = 255 - tile
    image = Image.fromarray(tile).resize((modules * scale, modules * scale), Image.Resampling.NEAREST)
    room = side - image.width
    corners = [(1, 1), (room - 1, 1), (1, room - 1), (room - 1, room - 1)]
    place = (room // 2, room - 1) if design == 1 else (room // 2, room // 2) if design == 2 else corners[int(rng.integers(4))]
    marked = picture.copy()
    marked.paste(image, place)
    return marked, (place[0], place[1], place[0] + image.width, place[1] + image.height)


def _text(picture: Image.Image, design: int, rng: np.random.Generator) -> tuple[Image.Image, Box]:
    """An unwanted word: bottom, top, on a plate; held out: vertical, outlined."""
    side = picture.width
    word = str(rng.choice(WORDS if design < 3 else WORDS[::2]))
    size = side // 4 if len(word) <= 4 else side // 5
    ink = [(200, 20, 40), (20, 20, 20), (20, 60, 190)][int(rng.integers(3))]
    layer = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    font = _font(size)
    if design == 0:
        draw.text((side // 2, side - 2), word, font=font, fill=ink, anchor="mb")
    elif design == 1:
        draw.text((side // 2, 1), word, font=font, fill=ink, anchor="mt")
    elif design == 2:
        x0, y0, x1, y1 = draw.textbbox((side // 2, side - 8), word, font=font, anchor="mb")
        draw.rectangle([x0 - 3, y0 - 2, x1 + 3, y1 + 3], fill=ink)
        draw.text((side // 2, side - 8), word, font=font, fill="white", anchor="mb")
    elif design == 3:
        draw.text((side // 2, side // 2), word, font=font, fill=ink, anchor="mm")
        layer = layer.rotate(90)
    else:
        draw.text((side // 2, side // 2), word, font=font, fill="white", stroke_width=2, stroke_fill=ink, anchor="mm")
    marked = picture.convert("RGBA")
    marked.alpha_composite(layer)
    box = layer.getbbox() or (0, 0, side, side)
    return marked.convert("RGB"), box


def _logo(picture: Image.Image, design: int, rng: np.random.Generator) -> tuple[Image.Image, Box]:
    """A small opaque emblem: a disc with a letter, four squares, a square in a ring; held out: a crescent, slanted bars."""
    side = picture.width
    layer = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    inks = ((214, 40, 40), (20, 20, 20), (20, 80, 200), (10, 130, 80), (240, 140, 20))
    first, second = (inks[int(i)] for i in rng.choice(len(inks), 2, replace=False))
    r = max(4, int(side * rng.uniform(0.09, 0.15)))
    near, far = r + 2, side - r - 2
    corners = ((near, near), (far, near), (near, far), (far, far))
    on_object = rng.random() < 0.3
    x, y = (int(v) for v in rng.integers(side // 3, 2 * side // 3, 2)) if on_object else corners[int(rng.integers(4))]
    if design == 0:
        draw.ellipse([x - r, y - r, x + r, y + r], fill=first)
        draw.text((x, y), str(rng.choice(list("ABEKMRS"))), font=_font(int(1.5 * r)), fill="white", anchor="mm")
    elif design == 1:
        for number, (dx, dy) in enumerate(((-1, -1), (0, -1), (-1, 0), (0, 0))):
            left, upper, ink = x + dx * r, y + dy * r, second if number % 3 else first
            draw.rectangle([left, upper, left + r - 2, upper + r - 2], fill=ink)
    elif design == 2:
        draw.ellipse([x - r, y - r, x + r, y + r], outline=first, width=max(2, r // 4))
        draw.regular_polygon((x, y, 0.55 * r), 4, rotation=45, fill=second)
    elif design == 3:
        sheet = Image.new("L", picture.size, 0)
        moon = ImageDraw.Draw(sheet)
        moon.ellipse([x - r, y - r, x + r, y + r], fill=255)
        moon.ellipse([x - r + r // 2, y - r, x + r + r // 2, y + r - r // 3], fill=0)
        layer.paste((*first, 255), (0, 0), sheet)
        draw.ellipse([x + r // 4, y - r // 2, x + r // 4 + r // 2, y], fill=second)
    else:
        for number in (-1, 0, 1):
            middle, half, slant = x + number * 0.75 * r, 0.25 * r, 0.35 * r
            tops = [(middle - half + slant, y - r), (middle + half + slant, y - r)]
            draw.polygon([*tops, (middle + half - slant, y + r), (middle - half - slant, y + r)], fill=first)
    marked = picture.convert("RGBA")
    marked.alpha_composite(layer)
    return marked.convert("RGB"), layer.getbbox() or (0, 0, side, side)
