"""Words for synthetic marks: fonts, words and angles. No font of the machine is used, so every machine draws the same.

Fonts: Pillow's Aileron (CC0), and Roboto, Caladea (Apache-2.0), Fredoka One, Amatic SC (SIL OFL 1.1) from the ``font-…``
packages of the extra ``world``.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from index.errors import InputError
from jobs.erase.marks.overlays import WORDS

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

FONTS = {
    "font_roboto": ("Roboto-Regular.ttf", "Roboto-Bold.ttf", "Roboto-Black.ttf", "Roboto-MediumItalic.ttf"),
    "font_caladea": ("Caladea-Regular.ttf", "Caladea-BoldItalic.ttf"),
    "font_fredoka_one": ("FredokaOne-Regular.ttf",),
    "font_amatic_sc": ("AmaticSC-Bold.ttf",),
}
LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ" * 2 + "abcdefghijklmnopqrstuvwxyz" + "0123456789")


@functools.cache
def font_files() -> tuple[Path | None, ...]:
    """The fonts words are set in; None stands for Pillow's own.

    Raises:
        InputError: a font package of the extra ``erase`` is not installed.
    """
    files: list[Path | None] = [None]
    for package, names in FONTS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            what = f"the package {package.replace('_', '-')} is not installed; marks are drawn with its font"
            raise InputError(what, where="marks", fix="Install the extra with `pip install 'clearance[erase]'`")
        files += [Path(spec.origin).parent / "files" / name for name in names]
    return tuple(files)


@functools.lru_cache(maxsize=512)
def _font_of(number: int, size: int) -> FreeTypeFont:
    from PIL import ImageFont

    path = font_files()[number]
    font = ImageFont.load_default(size=size) if path is None else ImageFont.truetype(str(path), size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def pick_font(size: float, rng: np.random.Generator) -> FreeTypeFont:
    number = int(rng.choice(len(font_files())))
    small = number == len(font_files()) - 1  # Amatic's letters are narrow and low
    return _font_of(number, max(7, round(size * (1.4 if small else 1.0))))


def pick_word(rng: np.random.Generator, least: int = 3, most: int = 8) -> str:
    if rng.random() < 0.35:
        return str(rng.choice(WORDS))
    word = "".join(rng.choice(LETTERS, int(rng.integers(least, most))))
    return word.lower() if rng.random() < 0.2 else word


def pick_angle(rng: np.random.Generator) -> float:
    """An angle in degrees for a word: mostly level, often steep, sometimes upside down, never within 5 degrees of vertical."""
    chance = rng.random()
    if chance < 0.42:
        return float(rng.uniform(-6, 6))
    angle = float(rng.uniform(-78, 78)) if chance < 0.72 else float(rng.uniform(55, 84) * rng.choice([-1, 1]))
    return angle + 180 if rng.random() < 0.12 else angle


def pick_place(side: int, rng: np.random.Generator, reach: float) -> tuple[int, int]:
    """A point on the doubled canvas, up to ``reach`` of a side from its middle."""
    x, y = side + rng.uniform(-reach, reach, 2) * side
    return int(x), int(y)


def rotated(layer: Image, angle: float, centre: tuple[int, int]) -> Image:
    from PIL import Image as Pictures

    return layer.rotate(angle, resample=Pictures.Resampling.BICUBIC, center=centre)
