"""Line charts as pictures: several curves over steps with their intervals, for documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = ("#0b6e4f", "#1f77b4", "#8856a7", "#d95f02", "#999999", "#c51b7d", "#000000", "#b8860b")
WIDE, HIGH, LEFT, TOP, BOTTOM, RIGHT = 640, 360, 56, 34, 44, 190
SCALE = 2  # drawn twice as large, then averaged down: smooth lines


@dataclass(frozen=True)
class Curve:
    """One line: its name, and a value with its interval at every x."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def panel(title: str, curves: Sequence[Curve], *, bottom: float, top: float, below: str, lines: Sequence[float] = ()) -> Any:
    """A chart as a PIL picture: curves with shaded intervals, dashed horizontal ``lines``, the legend at the right.

    Args:
        title: above it.
        curves: their x share one range.
        bottom, top: of the y axis.
        below: under the x axis.
        lines: y values to mark.
    """
    from PIL import Image, ImageDraw, ImageFont

    size = (WIDE * SCALE, HIGH * SCALE)
    image = Image.new("RGB", size, "white")
    font, small = (ImageFont.load_default(points * SCALE) for points in (14, 11))
    xs = [x for curve in curves for x in curve.x]
    first, last = min(xs), max(xs)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - first) / max(1e-9, last - first) * (WIDE - LEFT - RIGHT)
        up = (min(max(y, bottom), top) - bottom) / (top - bottom)
        return across * SCALE, (HIGH - BOTTOM - up * (HIGH - TOP - BOTTOM)) * SCALE

    for i, curve in enumerate(curves):
        if curve.low and curve.high:
            veil = Image.new("L", size, 0)
            outline = [place(*p) for p in zip(curve.x, curve.high, strict=True)]
            outline += [place(*p) for p in reversed(list(zip(curve.x, curve.low, strict=True)))]
            ImageDraw.Draw(veil).polygon(outline, fill=34)
            image.paste(Image.new("RGB", size, COLOURS[i % len(COLOURS)]), mask=veil)
    draw = ImageDraw.Draw(image)
    draw.text((LEFT * SCALE, 8 * SCALE), title, "black", font)
    for tick in range(6):
        value = bottom + tick / 5 * (top - bottom)
        left, up = place(first, value)
        draw.line([(left, up), (place(last, value)[0], up)], "#e4e4e4", SCALE)
        draw.text((left - 40 * SCALE, up - 7 * SCALE), f"{value:.2f}", "#444444", small)
    for value in lines:
        left, up = place(first, value)
        for start in range(int(left), int(place(last, value)[0]), 12 * SCALE):
            draw.line([(start, up), (start + 6 * SCALE, up)], "#444444", SCALE)
    for x in sorted(set(xs)):
        draw.text((place(x, bottom)[0] - 4 * SCALE, (HIGH - BOTTOM + 4) * SCALE), f"{x:g}", "#444444", small)
    draw.text((LEFT * SCALE, (HIGH - 20) * SCALE), below, "#444444", small)
    for i, curve in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        draw.line([place(*p) for p in zip(curve.x, curve.y, strict=True)], colour, 2 * SCALE, joint="curve")
        across, up = (WIDE - RIGHT + 12) * SCALE, (TOP + 20 * i) * SCALE
        draw.line([(across, up + 8 * SCALE), (across + 18 * SCALE, up + 8 * SCALE)], colour, 3 * SCALE)
        draw.text((across + 24 * SCALE, up), curve.name, "black", small)
    return image.resize((WIDE, HIGH), Image.Resampling.LANCZOS)
