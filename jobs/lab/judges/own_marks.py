"""Marks of the judges' own design: watermark, QR code, text; and litter that is none of them.

The pipeline's detector learned from the numbered designs of :mod:`jobs.erase.marks.overlays`. A judge trained on the same
designs would share its blind spots. These designs therefore use other means: other typefaces, QR codes of random modules
instead of encoded ones, every size, place, rotation and ink. The numbered designs only measure the judge.

Everything is drawn four times as large and averaged down. Pictures are uint8 (S, S, 3).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jobs.lab.judges.own_watermarks import cover
from jobs.lab.judges.own_words import word, write

KINDS = ("watermark", "qr", "text")  # the order of the judge's scores; judges share nothing with the guards, not even this list
FINE = 4  # drawn so many times larger


def stamp(picture: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """The picture with one mark of ``kind`` on it."""
    return {"watermark": _watermark, "qr": _code, "text": _text}[kind](picture, rng)


def litter(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture with something added that is not a mark: a pattern, loose strokes, a solid shape, a pale veil."""
    import cv2

    side = picture.shape[0]
    form = int(rng.integers(5))
    big = side * FINE
    ink = rng.uniform(0, 255, 3)
    alpha = np.zeros((big, big), np.float32)
    if form == 0:  # a patch of checks, stripes or dots, regular as no code is
        period = float(rng.uniform(3, 9)) * FINE
        turn = rng.uniform(0, np.pi)
        y, x = np.mgrid[0:big, 0:big].astype(np.float32)
        u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
        a, b = np.sin(2 * np.pi * u / period), np.sin(2 * np.pi * v / period)
        alpha = ((a * b > 0), (a > 0), (a + b > 0.9))[int(rng.integers(3))].astype(np.float32)
        alpha *= _patch(big, rng)
    elif form == 1:  # strokes
        for _ in range(int(rng.integers(1, 6))):
            points = rng.integers(0, big, (int(rng.integers(2, 5)), 1, 2)).astype(np.int32)
            cv2.polylines(alpha, [points], False, 1.0, int(rng.integers(2, 5 * FINE)), cv2.LINE_AA)
    elif form == 2:  # a solid shape
        x0, y0 = (int(v) for v in rng.integers(0, big * 3 // 4, 2))
        w, h = (int(v) for v in rng.integers(big // 10, big // 2, 2))
        if rng.random() < 0.5:
            cv2.rectangle(alpha, (x0, y0), (x0 + w, y0 + h), 1.0, -1 if rng.random() < 0.6 else FINE * 2)
        else:
            cv2.ellipse(
                alpha, (x0 + w // 2, y0 + h // 2), (w // 2, h // 2), 0, 0, 360, 1.0, -1 if rng.random() < 0.6 else FINE * 2
            )
    elif form == 3:  # blots
        for x, y in rng.integers(0, big, (int(rng.integers(2, 14)), 2)):
            cv2.circle(alpha, (int(x), int(y)), int(rng.integers(2, 4 * FINE)), 1.0, -1)
    else:  # a smudge
        noise = rng.normal(0, 1, (7, 7)).astype(np.float32)
        alpha = np.clip(cv2.resize(noise, (big, big), interpolation=cv2.INTER_CUBIC), 0, 1) * 0.4
    return _lay(picture, alpha * float(rng.uniform(0.4, 1.0)), ink)


def _watermark(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Something half transparent over the subject, grey more often than not."""
    alpha = cover(picture.shape[0] * FINE, rng)
    chance = rng.random()
    ink = np.full(3, rng.uniform(60, 165)) + rng.normal(0, 6, 3)
    if chance > 0.9:
        ink = rng.uniform(30, 220, 3)
    elif chance > 0.8:
        ink = np.full(3, rng.uniform(200, 255))
    return _lay(picture, alpha * float(rng.uniform(0.35, 0.75)), ink)


def _code(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random square modules with finder patterns and a quiet zone, dark on light or light on dark."""
    import cv2

    side = picture.shape[0]
    finders = 1 if rng.random() < 0.2 else 3
    modules = int(rng.integers(11, 18)) if finders == 1 else int(rng.choice((21, 21, 21, 25, 29)))
    grid = (rng.random((modules, modules)) < rng.uniform(0.42, 0.58)).astype(np.float32)
    finder = np.zeros((8, 8), np.float32)
    finder[:7, :7] = 1
    finder[1:6, 1:6] = 0
    finder[2:5, 2:5] = 1
    grid[:8, :8] = finder
    if finders == 3:
        grid[:8, -8:] = finder[:, ::-1]
        grid[-8:, :8] = finder[::-1]
    grid = np.pad(grid, int(rng.integers(1, 3)))
    if rng.random() < 0.25:
        grid = 1 - grid
    least = max(0.26, len(grid) * 0.85 / side)
    size = int(float(rng.uniform(least, 0.8) if rng.random() < 0.5 else rng.uniform(least, least + 0.15)) * side * FINE)
    tile = cv2.resize(grid, (size, size), interpolation=cv2.INTER_NEAREST)
    big = side * FINE
    room = max(1, big - size)
    x, y = (int(v) for v in rng.integers(0, room, 2))
    if rng.random() < 0.4:  # codes like corners
        x, y = int(rng.choice((FINE, room - FINE))), int(rng.choice((FINE, room - FINE)))
    dark, cover = np.zeros((big, big), np.float32), np.zeros((big, big), np.float32)
    x, y = max(0, x), max(0, y)
    dark[y : y + size, x : x + size] = tile[: big - y, : big - x]
    cover[y : y + size, x : x + size] = 1
    if rng.random() < 0.3:
        turn = cv2.getRotationMatrix2D((x + size / 2, y + size / 2), float(rng.normal(0, 10)), 1.0)
        dark, cover = cv2.warpAffine(dark, turn, (big, big)), cv2.warpAffine(cover, turn, (big, big))
    paper = _lay(picture, cover, np.full(3, rng.uniform(225, 255)))
    return _lay(paper, dark * cover, rng.uniform(0, 70, 3))


def _text(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A word in opaque ink: bare, on a plate or outlined, most often level."""
    import cv2

    side = picture.shape[0]
    big = side * FINE
    text = word(rng)
    size = float(rng.uniform(0.15, 0.33)) * big
    ink = rng.uniform(0, 215, 3) if rng.random() < 0.7 else np.full(3, rng.uniform(0, 60))
    y = int(rng.choice((rng.uniform(0.1, 0.25), rng.uniform(0.75, 0.92), rng.uniform(0.2, 0.8))) * big)
    at = (int(big * (0.5 + rng.normal(0, 0.06))), y)
    alpha = np.zeros((big, big), np.float32)
    wide, high = write(alpha, text, at, 0.8 * size, rng, room=big)
    form = rng.random()
    under, paper = np.zeros_like(alpha), np.full(3, 255.0)
    if form < 0.3:  # on a plate
        pad = int(size * rng.uniform(0.1, 0.35))
        cv2.rectangle(
            under,
            (at[0] - wide // 2 - pad, at[1] - high // 2 - pad),
            (at[0] + wide // 2 + pad, at[1] + high // 2 + pad),
            1.0,
            -1,
        )
        paper, ink = (ink, paper) if rng.random() < 0.8 else (paper, ink)
    elif form < 0.5:  # outlined
        under = cv2.dilate(alpha, np.ones((2 * FINE + 1, 2 * FINE + 1), np.uint8))
        paper, ink = (ink, paper) if rng.random() < 0.7 else (paper, ink)
    turn = 0.0
    if rng.random() < 0.3:
        turn = float(rng.choice((90.0, -90.0, rng.uniform(-30, 30))))
    if turn:
        matrix = cv2.getRotationMatrix2D((big / 2, big / 2), turn, 1.0)
        alpha, under = cv2.warpAffine(alpha, matrix, (big, big)), cv2.warpAffine(under, matrix, (big, big))
    return _lay(_lay(picture, under, paper), alpha, ink)


def _patch(big: int, rng: np.random.Generator) -> np.ndarray:
    """A box or an ellipse somewhere, 1 inside."""
    import cv2

    out = np.zeros((big, big), np.float32)
    x0, y0 = (int(v) for v in rng.integers(0, big * 2 // 3, 2))
    w, h = (int(v) for v in rng.integers(big // 6, big * 2 // 3, 2))
    if rng.random() < 0.5:
        cv2.rectangle(out, (x0, y0), (x0 + w, y0 + h), 1.0, -1)
    else:
        cv2.ellipse(out, (x0 + w // 2, y0 + h // 2), (w // 2, h // 2), 0, 0, 360, 1.0, -1)
    return out


def _lay(picture: np.ndarray, alpha: np.ndarray, ink: Any) -> np.ndarray:
    """Lay ``ink`` over the picture with ``alpha`` (FINE times larger)."""
    import cv2

    side = picture.shape[0]
    small = cv2.resize(alpha.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)[..., None]
    mixed = picture * (1 - small) + np.asarray(ink, np.float32) * small
    return np.asarray(np.clip(np.rint(mixed), 0, 255), np.uint8)
