"""Words in the judges' own typefaces, which the pipeline's detector never learned from.

Source Sans Pro, Source Serif Pro and Manrope (SIL OFL 1.1) from the ``font-…`` packages of the extra ``lab``, and the strokes
that OpenCV draws. The detector's typefaces are others (:mod:`jobs.erase.marks.letters`).
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jobs.lab.judges.errors import JudgeUnavailable

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
SIGNS = "&@%+*#§?!"
TYPEFACES = {
    "font_source_sans_pro": ("Light", "Regular", "Semibold", "Bold", "Black", "It", "BoldIt"),
    "font_source_serif_pro": ("Regular", "Semibold", "Bold", "Black", "BoldIt"),
    "font_manrope": ("Regular", "SemiBold", "Bold", "ExtraBold"),
}
STROKES = 0.2  # share of the words that OpenCV draws


@functools.cache
def files() -> tuple[Path, ...]:
    """The typefaces' files.

    Raises:
        JudgeUnavailable: a package is not installed.
    """
    found = []
    for package, cuts in TYPEFACES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise JudgeUnavailable(
                f"the package {package.replace('_', '-')} is not installed; the judges' own marks are lettered with it",
                where="judges",
                fix="Install the extra with `pip install 'clearance[lab]'`",
            )
        name = package.removeprefix("font_").title().replace("_", "")
        found += [Path(spec.origin).parent / "files" / f"{name}-{cut}.ttf" for cut in cuts]
    return tuple(found)


@functools.lru_cache(maxsize=256)
def _face(number: int, size: int) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(str(files()[number]), size)


def word(rng: np.random.Generator, least: int = 3, most: int = 8) -> str:
    """``least`` to ``most`` letters, capitals more often; one in ten is a sign or has one."""
    letters = "".join(rng.choice(list(LETTERS), int(rng.integers(least, most + 1))))
    if rng.random() < 0.1:
        letters = letters[:-1] + str(rng.choice(list(SIGNS)))
    return letters.lower() if rng.random() < 0.15 else letters


def write(
    alpha: np.ndarray, text: str, at: tuple[int, int], size: float, rng: np.random.Generator, *,
    plain: bool = False, room: int = 0,
) -> tuple[int, int]:  # fmt: skip
    """Write ``text`` centred on ``at`` into ``alpha`` (float32 in [0, 1]), less where it would not fit.

    Args:
        alpha: what covers, changed in place.
        text: letters, perhaps in two lines.
        at: x and y in pixels.
        size: height of the capitals in pixels.
        rng: of the typeface.
        plain: OpenCV's thinnest strokes.
        room: pixels that it may be wide; half of ``alpha`` if 0, which is twice the picture for watermarks.

    Returns:
        width and height in pixels.
    """
    room = int(0.94 * (room or alpha.shape[1] // 2))
    if plain or ("\n" not in text and rng.random() < STROKES):
        return _strokes(alpha, text, at, size, rng, plain=plain, room=room)
    from PIL import Image, ImageDraw

    number = int(rng.integers(len(files())))
    height = max(8, round(size / 0.68))  # capitals are two thirds of a typeface's size
    longest = max(text.split("\n"), key=len)
    wide = _face(number, height).getlength(longest)
    if wide > room:
        height = max(8, int(height * room / wide))
    sheet = Image.new("L", alpha.shape[::-1], 0)
    draw = ImageDraw.Draw(sheet)
    face = _face(number, height)
    draw.multiline_text(at, text, font=face, fill=255, anchor="mm", align="center", spacing=height // 8)
    x0, y0, x1, y1 = draw.multiline_textbbox(at, text, font=face, anchor="mm", align="center", spacing=height // 8)
    np.maximum(alpha, np.asarray(sheet, np.float32) / 255, out=alpha)
    return int(x1 - x0), int(y1 - y0)


def _strokes(
    alpha: np.ndarray, text: str, at: tuple[int, int], size: float, rng: np.random.Generator, *, plain: bool, room: int
) -> tuple[int, int]:
    import cv2

    fonts = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX)
    font = cv2.FONT_HERSHEY_SIMPLEX if plain else int(rng.choice(fonts))
    thick = max(2, int(size * (0.14 if plain else rng.uniform(0.1, 0.24))))
    (wide, high), _ = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(size / high, room / wide)
    (wide, high), _ = cv2.getTextSize(text, font, scale, thick)
    canvas = np.zeros(alpha.shape, np.uint8)
    cv2.putText(canvas, text, (at[0] - wide // 2, at[1] + high // 2), font, scale, 255, thick, cv2.LINE_AA)
    np.maximum(alpha, canvas / np.float32(255), out=alpha)
    return int(wide), int(high)
