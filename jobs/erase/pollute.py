"""Put marks on clean pictures and record their places: watermark, QR code, text, in known designs, opacity and place.

The designs are those of :mod:`jobs.erase.marks.overlays` (numbered: 0 to 2 for training, 3 and 4 held out) and the free variety
of :mod:`jobs.erase.marks.designs`. Pictures may have any size and need not be square: a mark is drawn for the shorter side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from index.errors import ConfigError
from jobs.erase.marks.designs import LEAST, changed_box, mark_layer
from jobs.erase.marks.overlays import HELD_OUT_DESIGNS, LEARNED, TRAIN_DESIGNS, overlay

if TYPE_CHECKING:
    from PIL.Image import Image

Designs = Literal["train", "held-out", "varied"]
Place = Literal["own", "corner", "centre", "anywhere"]
NUMBERED = {"train": TRAIN_DESIGNS, "held-out": HELD_OUT_DESIGNS}
HINTED = 0.85  # share of the marks on a subject that has a kind of its own, that are of that kind
TRIES = 64


@dataclass(frozen=True, kw_only=True)
class Pollution:
    """How a clean set is polluted.

    Attributes:
        kinds: of marks, drawn alike often: watermark, qr, text.
        ratio: share of the pictures that get one.
        opacity: lowest and highest factor on the design's own opacity, drawn evenly.
        place: the design's ``own`` place, a ``corner``, the ``centre``, or ``anywhere`` inside the picture.
        designs: the numbered ones for ``train``, those ``held-out``, or endlessly ``varied`` ones.
    """

    kinds: tuple[str, ...] = LEARNED
    ratio: float = 0.5
    opacity: tuple[float, float] = (1.0, 1.0)
    place: Place = "own"
    designs: Designs = "train"

    def __post_init__(self) -> None:
        if not self.kinds or set(self.kinds) - set(LEARNED):
            raise ConfigError(f"no such kinds of mark: {', '.join(self.kinds)}", where="kinds", fix=f"Use {', '.join(LEARNED)}")
        if not 0 <= self.ratio <= 1:
            raise ConfigError(f"must be 0 to 1, not {self.ratio}", where="ratio", fix="Give a share")
        if not 0.05 <= self.opacity[0] <= self.opacity[1] <= 1:
            raise ConfigError(f"must rise from 0.05 to 1, not {self.opacity}", where="opacity", fix="Give lowest and highest")
        for name, value, known in (
            ("place", self.place, ("own", "corner", "centre", "anywhere")), ("designs", self.designs, (*NUMBERED, "varied")),
        ):  # fmt: skip
            if value not in known:
                raise ConfigError(f"{value!r} is not known", where=name, fix=f"Use one of {', '.join(known)}")


@dataclass(frozen=True)
class Mark:
    """One mark on one picture: kind, design ("train:1", "varied"), factor on its opacity, and box in pixels."""

    kind: str
    design: str
    opacity: float
    box: tuple[float, float, float, float]


def pollute(picture: np.ndarray, how: Pollution, rng: np.random.Generator, hint: str = "") -> tuple[np.ndarray, Mark | None]:
    """A share ``how.ratio`` of the pictures gets one visible mark.

    Args:
        picture: uint8 RGB (H, W, 3).
        how: see :class:`Pollution`.
        rng: source of every choice; the same state gives the same mark.
        hint: the kind this subject tends to carry; used where it is among ``how.kinds``.

    Returns:
        The picture, marked or untouched, and the mark; its box surrounds every pixel that the mark changed visibly.

    Raises:
        ConfigError: no mark can be seen on this picture at this opacity.
    """
    from PIL import Image

    if rng.random() >= how.ratio:
        return picture, None
    height, width = picture.shape[:2]
    side = min(height, width)
    kind = hint if hint in how.kinds and rng.random() < HINTED else str(rng.choice(how.kinds))
    for _ in range(TRIES):  # a white mark on white paper is invisible: draw another
        layer, design = _layer(side, kind, how.designs, rng)
        opacity = float(rng.uniform(*how.opacity))
        canvas = _placed(layer, (width, height), how.place, rng)
        if opacity < 1:
            canvas.putalpha(canvas.getchannel("A").point(lambda alpha, factor=opacity: round(alpha * factor)))
        marked = Image.fromarray(picture).convert("RGBA")
        marked.alpha_composite(canvas)
        after = np.asarray(marked.convert("RGB"))
        box, pixels = changed_box(picture, after)
        if pixels >= LEAST * (side / 64) ** 2:
            return after, Mark(kind, design, opacity, box)
    raise ConfigError(f"a {kind} of opacity {how.opacity} cannot be seen", where="erase dataset", fix="Raise the opacity")


def _layer(side: int, kind: str, designs: Designs, rng: np.random.Generator) -> tuple[Image, str]:
    """One mark alone, RGBA (side, side), and the name of its design."""
    if designs == "varied":
        return mark_layer(side, kind, rng), designs
    number = int(rng.choice(NUMBERED[designs]))
    return lifted(side, kind, number, int(rng.integers(2**63))), f"{designs}:{number}"


def lifted(side: int, kind: str, number: int, seed: int) -> Image:
    """A numbered design as a layer: the same mark on black and on white paper gives its colour and its alpha.

    On paper p a pixel of colour c and opacity α is αc + (1−α)p; so white − black = 255(1−α), and black = αc.
    """
    from PIL import Image

    black, white = (
        np.asarray(overlay(Image.new("RGB", (side, side), paper), kind, np.random.default_rng(seed), (number,))[0], np.float32)
        for paper in ("black", "white")
    )
    alpha = (1 - (white - black).mean(2) / 255).clip(0, 1)
    colour = np.divide(black, alpha[..., None], out=np.zeros_like(black), where=alpha[..., None] > 0.01)
    layer = np.dstack([colour.clip(0, 255), 255 * alpha]).round().astype(np.uint8)
    return Image.fromarray(layer, "RGBA")


def _placed(layer: Image, size: tuple[int, int], place: Place, rng: np.random.Generator) -> Image:
    """The layer on a transparent sheet of the picture's size, its visible part at ``place``."""
    from PIL import Image as Pictures

    (width, height), side = size, layer.width
    sheet = Pictures.new("RGBA", size, (0, 0, 0, 0))
    box = layer.getbbox()
    if place == "own" or box is None:
        at = tuple(int(rng.integers(room + 1)) for room in (width - side, height - side))  # the longer side leaves room
        sheet.paste(layer, (at[0], at[1]))
        return sheet
    mark = layer.crop(box)
    room = width - mark.width, height - mark.height
    if place == "centre":
        at = room[0] // 2, room[1] // 2
    elif place == "corner":
        margin = max(1, side // 64)
        at = tuple(int(rng.choice([min(margin, r), max(0, r - margin)])) for r in room)
    else:
        at = tuple(int(rng.integers(r + 1)) for r in room)
    sheet.paste(mark, (at[0], at[1]))
    return sheet
