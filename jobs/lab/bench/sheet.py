"""Contact sheets: rows of small pictures with captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

TILE, CAPTION, GAP = 64, 13, 18


def strip(title: str, pictures: Sequence[np.ndarray | None], notes: Sequence[str] = ()) -> np.ndarray:
    """One row: pictures uint8 (64, 64, 3) side by side (None leaves a gap), the title above the first, notes above the rest."""
    from PIL import Image, ImageDraw, ImageFont

    wide = TILE * len(pictures)
    out = Image.new("RGB", (wide, TILE + CAPTION), "white")
    draw = ImageDraw.Draw(out)
    font = ImageFont.load_default(size=10)
    draw.text((1, 0), title, font=font, fill=(40, 40, 40))
    for i, note in enumerate(notes):
        draw.text((TILE * i + 1, 0), note, font=font, fill=(150, 60, 40))
    for i, picture in enumerate(pictures):
        if picture is not None:
            out.paste(Image.fromarray(picture).resize((TILE, TILE)), (TILE * i, CAPTION))
    return np.asarray(out)


def arrange(strips: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Arrange strips of equal width in columns: uint8 (H, W, 3)."""
    blank = np.full_like(strips[0], 255)
    gap = np.full((strips[0].shape[0], GAP, 3), 255, np.uint8)
    padded = [*strips, *[blank] * (-len(strips) % columns)]
    lines = []
    for start in range(0, len(padded), columns):
        line: list[np.ndarray] = []
        for s in padded[start : start + columns]:
            line += [s, gap]
        lines.append(np.concatenate(line[:-1], axis=1))
    return np.concatenate(lines, axis=0)


def stack(parts: Sequence[tuple[str, np.ndarray]]) -> Any:
    """Stack sections with their headings: a PIL picture."""
    from PIL import Image, ImageDraw, ImageFont

    wide = max(part.shape[1] for _, part in parts) + 2 * GAP
    high = sum(part.shape[0] + 34 for _, part in parts) + GAP
    out = Image.new("RGB", (wide, high), "white")
    draw = ImageDraw.Draw(out)
    y = 8
    for heading, part in parts:
        draw.text((GAP, y), heading, font=ImageFont.load_default(size=15), fill="black")
        out.paste(Image.fromarray(part), (GAP, y + 22))
        y += part.shape[0] + 34
    return out
