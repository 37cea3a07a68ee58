"""The picture on top of the README: a protected drawing, what the model makes of its caption, and what Clearance lets out.

It is to be understood without words: a © on the protected drawing, a red cross on the copy, a green tick on the picture
that was accepted. Nothing is picked by hand: the first captions of the list, with the first seed that copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jobs.lab.bench.drawing import Drawn

SIDE, PAD, GAP, TITLE = 112, 10, 26, 24  # pixels: a picture's side, around it, between cards, above a card
CARDS, COLUMNS = 12, 3
GREY, RED, GREEN, INK = (132, 142, 153), (192, 57, 43), (39, 127, 99), (46, 52, 60)
Trio = tuple[str, np.ndarray, np.ndarray, np.ndarray]


def trios(unsteered: Drawn, cleared: Drawn, references: dict[str, np.ndarray], most: int = CARDS) -> list[Trio]:
    """(caption, protected drawing, copy, accepted picture of the same seed): the first seed of each caption that copies.

    Captions follow the order of ``unsteered``; those that no seed copies, or whose same seed was not accepted, are left out.
    """
    accepted = {
        (s.request.prompt, s.request.seed): s.final.picture  # type: ignore[union-attr]
        for s in cleared.samples
        if s.accepted_attempt is not None
    }
    found: dict[str, Trio] = {}
    for sample, copied in zip(unsteered.samples, unsteered.flagged("copies"), strict=True):
        caption, seed = sample.request.prompt, sample.request.seed
        if copied and caption not in found and (after := accepted.get((caption, seed))) is not None:
            found[caption] = (caption, references[caption], sample.final.picture, after)  # type: ignore[union-attr]
    return list(found.values())[:most]


def before_after(rows: Sequence[Trio]) -> Any:
    """A PIL picture of cards, three in a line."""
    from PIL import Image, ImageDraw, ImageFont

    wide, high = 3 * SIDE + 4 * PAD + 2 * GAP, TITLE + SIDE + 2 * PAD
    lines = -(-len(rows) // COLUMNS)
    out = Image.new("RGB", (COLUMNS * (wide + GAP) + GAP, lines * (high + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(size=17)
    for number, (caption, *pictures) in enumerate(rows):
        left, top = GAP + number % COLUMNS * (wide + GAP), GAP + number // COLUMNS * (high + GAP)
        draw.text((left, top - 4), caption, font=font, fill=INK)
        for place, (picture, colour, badge) in enumerate(
            zip(pictures, (GREY, RED, GREEN), (_owned, _cross, _tick), strict=True)
        ):
            x, y = left + PAD + place * (SIDE + PAD + GAP), top + TITLE + PAD
            out.paste(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
            draw.rounded_rectangle((x - 5, y - 5, x + SIDE + 4, y + SIDE + 4), radius=8, outline=colour, width=3)
            draw.ellipse((x + SIDE - 14, y - 14, x + SIDE + 14, y + 14), fill=colour, outline="white", width=2)
            badge(draw, x + SIDE, y)
            if place:
                _arrow(draw, x - 5 - (PAD + GAP - 10) // 2, y + SIDE // 2)
    return out


def _owned(draw: Any, x: int, y: int) -> None:
    draw.arc((x - 7, y - 7, x + 7, y + 7), 45, 315, fill="white", width=3)


def _cross(draw: Any, x: int, y: int) -> None:
    draw.line((x - 5, y - 5, x + 5, y + 5), fill="white", width=3)
    draw.line((x - 5, y + 5, x + 5, y - 5), fill="white", width=3)


def _tick(draw: Any, x: int, y: int) -> None:
    draw.line((x - 6, y, x - 2, y + 5, x + 6, y - 5), fill="white", width=3, joint="curve")


def _arrow(draw: Any, x: int, y: int) -> None:
    draw.line((x - 7, y, x + 4, y), fill=GREY, width=3)
    draw.polygon([(x + 2, y - 6), (x + 9, y), (x + 2, y + 6)], fill=GREY)
