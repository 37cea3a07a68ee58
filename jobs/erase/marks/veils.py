"""Watermarks for :mod:`jobs.erase.marks.designs`: translucent words, tiles, lines, bands, seals, logos and stamps.

Never drawn (held out, see there): a level grey band across the whole width with a white word, and any regular pentagon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from jobs.erase.marks.letters import pick_angle, pick_font, pick_place, pick_word, rotated

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

SIGNS = ("©", "®", "TM", "No.", "#")
Ink = tuple[int, int, int, int]


def _veil(rng: np.random.Generator) -> Ink:
    """A translucent ink: mostly grey, sometimes coloured, sometimes light."""
    chance = rng.random()
    alpha = int(rng.integers(80, 186))
    if chance < 0.72:
        grey = int(rng.integers(50, 151))
        return (grey, grey, grey, alpha)
    if chance < 0.88:
        red, green, blue = (int(v) for v in rng.integers(30, 220, 3))
        return (red, green, blue, alpha)
    light = int(rng.integers(215, 256))
    return (light, light, light, int(rng.integers(120, 211)))


def watermark(side: int, rng: np.random.Generator) -> Image:
    """A watermark as an RGBA layer of ``side`` × ``side`` pixels, transparent where there is none."""
    from PIL import Image as Pictures
    from PIL import ImageDraw as Draw

    layer = Pictures.new("RGBA", (2 * side, 2 * side), (0, 0, 0, 0))
    draw = Draw.Draw(layer)
    forms: tuple[Callable[[ImageDraw, int, Ink, np.random.Generator], tuple[float, tuple[int, int]]], ...]
    forms = (_word, _tiles, _lines, draw_band, _seal, _logo, _stamp)
    form = forms[int(rng.choice(len(forms), p=(0.2, 0.1, 0.13, 0.14, 0.13, 0.2, 0.1)))]
    angle, centre = form(draw, side, _veil(rng), rng)
    if angle:
        layer = rotated(layer, angle, centre)
    return layer.crop((side // 2, side // 2, side // 2 + side, side // 2 + side))


def _word(draw: ImageDraw, side: int, ink: Ink, rng: np.random.Generator) -> tuple[float, tuple[int, int]]:
    """One word or two lines, perhaps with a line under or through it."""
    centre = pick_place(side, rng, 0.25)
    word = pick_word(rng) if rng.random() < 0.8 else f"{pick_word(rng, 3, 6)}\n{pick_word(rng, 3, 6)}"
    font = pick_font(side * rng.uniform(0.14, 0.34), rng)
    draw.multiline_text(centre, word, font=font, fill=ink, anchor="mm", align="center")
    x0, y0, x1, y1 = draw.multiline_textbbox(centre, word, font=font, anchor="mm")
    if rng.random() < 0.25:
        y = y1 + 2 if rng.random() < 0.6 else (y0 + y1) // 2
        draw.line([(x0, y), (x1, y)], fill=ink, width=int(rng.integers(1, 4)))
    return pick_angle(rng), centre


def _tiles(draw: ImageDraw, side: int, ink: Ink, rng: np.random.Generator) -> tuple[float, tuple[int, int]]:
    """Small words or shapes repeated all over."""
    step = side * rng.uniform(0.22, 0.5)
    font, word = pick_font(side * rng.uniform(0.11, 0.2), rng), pick_word(rng, 2, 6)
    shape, radius = int(rng.choice([0, 0, 0, 3, 4, 6, 99])), max(2, int(step * rng.uniform(0.15, 0.3)))
    for row, y in enumerate(np.arange(0, 2 * side, step)):
        if shape == 0:
            draw.text((side + int(row % 2 * step / 2), int(y)), "  ".join([word] * 6), font=font, fill=ink, anchor="mm")
        else:
            for x in np.arange(row % 2 * step / 2, 2 * side, step):
                draw_polygon(draw, (int(x), int(y)), radius, shape, ink, outline=0)
    return float(rng.uniform(-60, 60)), (side, side)


def _lines(draw: ImageDraw, side: int, ink: Ink, rng: np.random.Generator) -> tuple[float, tuple[int, int]]:
    """Stripes, a grid, a lattice, one cross or one long line."""
    width, chance = int(rng.integers(1, max(2, side // 16) + 1)), rng.random()
    if chance < 0.3:
        centre = pick_place(side, rng, 0.2)
        reach = int(side * rng.uniform(0.2, 1.4))
        draw.line([(centre[0] - reach, centre[1]), (centre[0] + reach, centre[1])], fill=ink, width=width)
        if chance < 0.2:
            draw.line([(centre[0], centre[1] - reach), (centre[0], centre[1] + reach)], fill=ink, width=width)
        return float(rng.uniform(-50, 50)), centre
    step = int(rng.integers(max(width + 3, side // 7), side // 2))
    for x in range(int(rng.integers(step)), 2 * side, step):
        draw.line([(x, 0), (x, 2 * side)], fill=ink, width=width)
        if chance < 0.65:
            draw.line([(0, x), (2 * side, x)], fill=ink, width=width)
    return float(rng.uniform(-60, 60)), (side, side)


def draw_band(draw: ImageDraw, side: int, ink: Ink, rng: np.random.Generator) -> tuple[float, tuple[int, int]]:
    """A translucent bar or ribbon, with a word in it or not. Never level, grey, full-width and lettered in white at once."""
    centre = pick_place(side, rng, 0.3)
    half, high = int(side * rng.uniform(0.18, 0.46)), int(side * rng.uniform(0.06, 0.16))
    grey, full, tilted = max(ink[:3]) - min(ink[:3]) < 40, rng.random() < 0.45, rng.random() < 0.5
    if full:
        half = 2 * side
    box = [centre[0] - half, centre[1] - high, centre[0] + half, centre[1] + high]
    radius = 0 if full else int(rng.integers(0, high + 1))
    (draw.rounded_rectangle(box, radius, fill=ink) if rng.random() < 0.8 else draw.rectangle(box, outline=ink, width=2))
    if rng.random() < 0.6:
        dark = full and grey and not tilted  # the held-out band has a white word
        letters: Ink = (30, 30, 30, 170) if dark or rng.random() < 0.25 else (255, 255, 255, int(rng.integers(150, 230)))
        draw.text(centre, pick_word(rng, 3, 7), font=pick_font(1.5 * high, rng), fill=letters, anchor="mm")
    angle = float(rng.uniform(8, 60) * (1 if rng.random() < 0.5 else -1)) if tilted else 0.0
    return angle, centre


def _seal(draw: ImageDraw, side: int, ink: Ink, rng: np.random.Generator) -> tuple[float, tuple[int, int]]:
    """One ring or several, with a sign, a letter or a word inside, or a filled disc."""
    centre = pick_place(side, rng, 0.3)
    radius = int(side * rng.uniform(0.08, 0.36))
    width = int(rng.integers(1, max(2, side // 16) + 1))
    for ring in range(int(rng.choice([1, 1, 2, 3]))):
        r = int(radius * (1 - 0.3 * ring))
        draw_polygon(draw, centre, max(2, r), 99, ink, outline=width)
    chance = rng.random()
    if chance < 0.5:
        sign = str(rng.choice(SIGNS)) if rng.random() < 0.5 else pick_word(rng, 1, 4)
        draw.text(centre, sign, font=pick_font(radius * (1.3 if len(sign) == 1 else 0.8), rng), fill=ink, anchor="mm")
    elif chance < 0.7:
        draw_polygon(draw, centre, max(2, radius // 2), int(rng.choice([3, 4, 6, 99])), ink, outline=0)
    return float(rng.uniform(-30, 30)), centre


def _logo(draw: ImageDraw, side: int, ink: Ink, rng: np.random.Generator) -> tuple[float, tuple[int, int]]:
    """A filled or outlined shape, often small and in a corner, sometimes with a letter cut out or a word beside it."""
    radius = int(side * rng.uniform(0.07, 0.3))
    if rng.random() < 0.6:
        radius = int(side * rng.uniform(0.08, 0.2))
        inset = side * rng.uniform(0.18, 0.36)
        signs = rng.choice([-1, 1], 2)
        centre = (int(side + signs[0] * (side / 2 - inset)), int(side + signs[1] * (side / 2 - inset)))
    else:
        centre = pick_place(side, rng, 0.32)
    outline = 0 if rng.random() < 0.65 else int(rng.integers(1, max(2, side // 20) + 1))
    shape = int(rng.choice([3, 4, 6, 7, 8, 99, -4, -5, -6, -8]))
    if rng.random() < 0.15:  # a lopsided blob
        turn = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(6, 11))))
        reach = radius * rng.uniform(0.6, 1.15, len(turn))
        points = [(centre[0] + r * np.cos(t), centre[1] + r * np.sin(t)) for t, r in zip(turn, reach, strict=True)]
        draw.polygon(points, fill=ink)
    elif rng.random() < 0.15:  # an oblong
        wide, high = radius * rng.uniform(0.5, 1.6), radius * rng.uniform(0.4, 1.0)
        box = [centre[0] - wide, centre[1] - high, centre[0] + wide, centre[1] + high]
        draw.rounded_rectangle(box, int(min(wide, high) * rng.uniform(0, 1)), fill=ink)
    else:
        draw_polygon(draw, centre, radius, shape, ink, outline=outline)
    chance = rng.random()
    if chance < 0.2:
        letters: Ink = (255, 255, 255, 230) if not outline else ink
        draw.text(centre, pick_word(rng, 1, 3), font=pick_font(radius, rng), fill=letters, anchor="mm")
    elif chance < 0.3:
        draw.text(
            (centre[0], centre[1] + radius + 2), pick_word(rng, 2, 6), font=pick_font(side * 0.13, rng), fill=ink, anchor="mt"
        )
    return float(rng.uniform(-180, 180)) if chance >= 0.3 else float(rng.uniform(-20, 20)), centre


def _stamp(draw: ImageDraw, side: int, ink: Ink, rng: np.random.Generator) -> tuple[float, tuple[int, int]]:
    """A framed word, as from a rubber stamp."""
    centre = pick_place(side, rng, 0.2)
    font, word = pick_font(side * rng.uniform(0.14, 0.26), rng), pick_word(rng, 2, 7)
    x0, y0, x1, y1 = draw.textbbox(centre, word, font=font, anchor="mm")
    gap, width = int(rng.integers(2, 6)), int(rng.integers(1, 4))
    draw.text(centre, word, font=font, fill=ink, anchor="mm")
    frame = [x0 - gap, y0 - gap, x1 + gap, y1 + gap]
    draw.rounded_rectangle(frame, int(rng.integers(0, 6)), outline=ink, width=width)
    return pick_angle(rng), centre


def draw_polygon(draw: ImageDraw, centre: tuple[int, int], radius: int, shape: int, ink: Ink, *, outline: int) -> None:
    """A regular polygon of ``shape`` corners, a star of ``-shape`` points, or a disc (99); filled where ``outline`` is 0."""
    fill, line = (None, ink) if outline else (ink, None)
    x, y = centre
    if shape == 99:
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill, outline=line, width=max(1, outline))
        return
    corners = abs(shape) if shape > 0 else 2 * abs(shape)
    reach = [radius * (1.0 if shape > 0 or corner % 2 == 0 else 0.45) for corner in range(corners)]
    turns = [2 * np.pi * corner / corners - np.pi / 2 for corner in range(corners)]
    points = [(x + r * np.cos(t), y + r * np.sin(t)) for r, t in zip(reach, turns, strict=True)]
    draw.polygon(points, fill=fill, outline=line, width=max(1, outline))
