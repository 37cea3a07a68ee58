"""Logos for :mod:`jobs.erase.marks.designs`: small opaque emblems in corners and on objects, with a word beside some of them.

A logo is opaque; a translucent emblem is a watermark (:mod:`jobs.erase.marks.veils`). Never drawn, because the numbered logos 3
and 4 of :mod:`jobs.erase.marks.overlays` are held out: a crescent in any place, and bars side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from jobs.erase.marks.letters import pick_font, pick_word, rotated
from jobs.erase.marks.veils import Ink, draw_polygon

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

BENDS = (  # a tick, a roof, an arrow's head, a zigzag: x, y, x, y, … in radii
    (-1, 0, -0.2, 0.8, 1, -0.8),
    (-1, 0.6, 0, -0.6, 1, 0.6),
    (-1, -0.6, 0.8, 0, -1, 0.6),
    (-1, 0.5, -0.3, -0.5, 0.3, 0.5, 1, -0.5),
)
SHAPES = (3, 4, 5, 6, 8, 99, -4, -5, -6)  # regular polygons, a disc, stars

Form = Callable[["ImageDraw", tuple[int, int], int, np.random.Generator], None]


def logo(side: int, rng: np.random.Generator) -> Image:
    """A logo as an RGBA layer of ``side`` × ``side`` pixels, transparent where there is none."""
    from PIL import Image as Pictures
    from PIL import ImageDraw as Draw

    layer = Pictures.new("RGBA", (2 * side, 2 * side), (0, 0, 0, 0))
    draw = Draw.Draw(layer)
    radius = max(4, int(side * rng.uniform(0.07, 0.19)))
    if rng.random() < 0.6:  # in a corner
        inset = radius + side * rng.uniform(0.01, 0.09)
        signs = rng.choice([-1, 1], 2)
        x, y = (int(side + sign * (side / 2 - inset)) for sign in signs)
    else:
        x, y = (int(v) for v in side + rng.uniform(-0.3, 0.3, 2) * side)
    forms: tuple[Form, ...] = (_badge, _ring, _pair, _stroke, _quarters, _shield, _target, _blob)
    forms[int(rng.choice(len(forms), p=(0.26, 0.14, 0.14, 0.12, 0.08, 0.08, 0.08, 0.1)))](draw, (x, y), radius, rng)
    if rng.random() < 0.22:
        _word(draw, (x, y), radius, side, rng)
    if rng.random() < 0.4:
        layer = rotated(layer, float(rng.uniform(-25, 25)), (x, y))
    return layer.crop((side // 2, side // 2, side // 2 + side, side // 2 + side))


def _ink(rng: np.random.Generator) -> Ink:
    """An opaque ink: saturated, dark, or seldom pale."""
    chance = rng.random()
    if chance < 0.25:
        grey = int(rng.integers(0, 70))
        return grey, grey, grey, 255
    if chance < 0.35:
        red, green, blue = (int(v) for v in rng.integers(200, 256, 3))
        return red, green, blue, 255
    channels = [int(rng.integers(0, 90)), int(rng.integers(0, 210)), int(rng.integers(140, 256))]
    order = rng.permutation(3)
    return channels[order[0]], channels[order[1]], channels[order[2]], 255


def _contrast(ink: Ink, rng: np.random.Generator) -> Ink:
    """An ink that shows on ``ink``."""
    light = 0.299 * ink[0] + 0.587 * ink[1] + 0.114 * ink[2] > 140
    if rng.random() < 0.75:
        return (20, 20, 20, 255) if light else (255, 255, 255, 255)
    return (int(rng.integers(0, 90)), 20, 60, 255) if light else (255, int(rng.integers(190, 256)), 90, 255)


def _badge(draw: ImageDraw, at: tuple[int, int], radius: int, rng: np.random.Generator) -> None:
    """A filled shape with a letter, two letters or a shape inside."""
    ink = _ink(rng)
    if rng.random() < 0.3:
        box = [at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius]
        draw.rounded_rectangle(box, int(radius * rng.uniform(0, 0.6)), fill=ink)
    else:
        draw_polygon(draw, at, radius, int(rng.choice(SHAPES)), ink, outline=0)
    inner = _contrast(ink, rng)
    if rng.random() < 0.6:
        letters = pick_word(rng, 1, 3)[:2]
        draw.text(at, letters, font=pick_font(radius * (1.4 if len(letters) == 1 else 1.0), rng), fill=inner, anchor="mm")
    else:
        draw_polygon(draw, at, max(2, int(radius * rng.uniform(0.35, 0.6))), int(rng.choice(SHAPES)), inner, outline=0)


def _ring(draw: ImageDraw, at: tuple[int, int], radius: int, rng: np.random.Generator) -> None:
    """An outlined shape with a letter or a shape inside."""
    ink = _ink(rng)
    draw_polygon(draw, at, radius, int(rng.choice(SHAPES)), ink, outline=max(1, radius // int(rng.integers(3, 7))))
    second = ink if rng.random() < 0.6 else _ink(rng)
    if rng.random() < 0.55:
        draw.text(at, pick_word(rng, 1, 2)[:1], font=pick_font(radius * 1.3, rng), fill=second, anchor="mm")
    else:
        draw_polygon(draw, at, max(2, radius // 2), int(rng.choice(SHAPES)), second, outline=0)


def _pair(draw: ImageDraw, at: tuple[int, int], radius: int, rng: np.random.Generator) -> None:
    """Two or three equal shapes that overlap, in inks of their own. Never one light disc over another: that is a crescent."""
    shape, small = int(rng.choice(SHAPES)), max(3, int(0.65 * radius))
    turn = rng.uniform(0, 2 * np.pi)
    for number in range(int(rng.choice([2, 2, 3]))):
        angle = turn + number * (np.pi if number < 2 else np.pi / 2)
        place = (int(at[0] + 0.5 * radius * np.cos(angle)), int(at[1] + 0.5 * radius * np.sin(angle)))
        outline = max(1, radius // 5) if shape == 99 else 0  # discs as rings
        draw_polygon(draw, place, small, shape, _ink(rng), outline=outline)


def _stroke(draw: ImageDraw, at: tuple[int, int], radius: int, rng: np.random.Generator) -> None:
    """A tick, an arrow, a zigzag or a bent line of one thick stroke, sometimes on a disc."""
    ink = _ink(rng)
    if rng.random() < 0.35:
        draw_polygon(draw, at, radius, 99, ink, outline=0)
        ink, radius = _contrast(ink, rng), int(0.7 * radius)
    bends = np.array(BENDS[int(rng.integers(len(BENDS)))]).reshape(-1, 2) * radius * rng.uniform(0.7, 1.1, 2)
    width = max(2, int(radius * rng.uniform(0.25, 0.5)))
    draw.line([(at[0] + x, at[1] + y) for x, y in bends], fill=ink, width=width, joint="curve")


def _quarters(draw: ImageDraw, at: tuple[int, int], radius: int, rng: np.random.Generator) -> None:
    """Four squares or discs in a square, each in an ink of its own or all in one."""
    one, gap = _ink(rng), int(rng.integers(0, 3))
    half = max(2, (radius - gap) // 2)
    round_ones = rng.random() < 0.35
    for dx in (-1, 1):
        for dy in (-1, 1):
            x, y = at[0] + dx * (half + gap), at[1] + dy * (half + gap)
            ink = one if rng.random() < 0.3 else _ink(rng)
            if round_ones:
                draw_polygon(draw, (x, y), half, 99, ink, outline=0)
            else:
                draw.rectangle([x - half, y - half, x + half, y + half], fill=ink)


def _shield(draw: ImageDraw, at: tuple[int, int], radius: int, rng: np.random.Generator) -> None:
    """A shield with a letter, a star or a chief of another ink."""
    ink, wide = _ink(rng), radius * rng.uniform(0.7, 1.0)
    points = [(-wide, -radius), (wide, -radius), (wide, 0.2 * radius), (0, radius), (-wide, 0.2 * radius)]
    draw.polygon([(at[0] + x, at[1] + y) for x, y in points], fill=ink)
    inner, middle = _contrast(ink, rng), (at[0], at[1] - radius // 6)
    chance = rng.random()
    if chance < 0.35:
        draw.rectangle([at[0] - wide, at[1] - radius, at[0] + wide, at[1] - 0.5 * radius], fill=inner)
    elif chance < 0.7:
        draw.text(middle, pick_word(rng, 1, 2)[:1], font=pick_font(radius * 1.2, rng), fill=inner, anchor="mm")
    else:
        draw_polygon(draw, middle, max(2, radius // 2), int(rng.choice((-4, -5, -6, 4))), inner, outline=0)


def _target(draw: ImageDraw, at: tuple[int, int], radius: int, rng: np.random.Generator) -> None:
    """Concentric discs or squares in two inks."""
    ink, shape = _ink(rng), int(rng.choice((99, 99, 4, 6)))
    inner = _contrast(ink, rng)
    for ring, share in enumerate((1.0, 0.66, 0.33)[: int(rng.integers(2, 4))]):
        draw_polygon(draw, at, max(1, int(radius * share)), shape, inner if ring % 2 else ink, outline=0)


def _blob(draw: ImageDraw, at: tuple[int, int], radius: int, rng: np.random.Generator) -> None:
    """A lopsided closed shape, with a small shape or a letter in it."""
    turn = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(5, 10))))
    reach = radius * rng.uniform(0.6, 1.15, len(turn))
    ink = _ink(rng)
    draw.polygon([(at[0] + r * np.cos(t), at[1] + r * np.sin(t)) for t, r in zip(turn, reach, strict=True)], fill=ink)
    if rng.random() < 0.5:
        draw_polygon(draw, at, max(2, radius // 3), int(rng.choice(SHAPES)), _contrast(ink, rng), outline=0)
    else:
        draw.text(at, pick_word(rng, 1, 2)[:1], font=pick_font(radius, rng), fill=_contrast(ink, rng), anchor="mm")


def _word(draw: ImageDraw, at: tuple[int, int], radius: int, side: int, rng: np.random.Generator) -> None:
    """A small name beside the emblem, towards the picture's middle, or under it."""
    font, ink, name = pick_font(side * rng.uniform(0.1, 0.14), rng), _ink(rng), pick_word(rng, 2, 5)
    if rng.random() < 0.6:
        left = at[0] < side
        draw.text((at[0] + (radius + 2) * (1 if left else -1), at[1]), name, font=font, fill=ink, anchor="lm" if left else "rm")
    else:
        draw.text((at[0], at[1] + radius + 1), name, font=font, fill=ink, anchor="mt")
