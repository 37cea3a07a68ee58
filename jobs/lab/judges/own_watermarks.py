"""Watermarks of the judges' own design: words, tiles, lines, emblems, shapes, strips and stamps, translucent, in great variety.

Each form covers ``alpha``, float32 of twice the picture's side, around its middle; what lies outside is cropped after turning.
"""

from __future__ import annotations

import numpy as np

from jobs.lab.judges.own_words import LETTERS, SIGNS, word, write

Point = tuple[int, int]
SHARES = (0.46, 0.07, 0.08, 0.18, 0.08, 0.06, 0.07)  # of FORMS: faint words are found last
CENTRAL = 0.45  # share in the middle, words aslant, as picture archives lay them


def cover(big: int, rng: np.random.Generator) -> np.ndarray:
    """What one watermark covers, float32 (big, big) in [0, 1]."""
    import cv2

    alpha = np.zeros((2 * big, 2 * big), np.float32)
    central = rng.random() < CENTRAL
    reach = 0.04 if central else 0.36 if rng.random() < 0.4 else 0.16
    at: Point = (int(big + rng.uniform(-reach, reach) * big), int(big + rng.uniform(-reach, reach) * big))
    form = FORMS[int(rng.choice(len(FORMS), p=SHARES))]
    form(alpha, big, at, rng)
    chance = rng.random()
    turn = 0.0 if chance < 0.25 else float(rng.normal(0, 6)) if chance < 0.35 else float(rng.uniform(-90, 90))
    if central and form is _word:
        turn = float(rng.uniform(20, 50)) * (1 if chance < 0.75 else -1)
    middle = (float(big), float(big)) if rng.random() < 0.5 else (float(at[0]), float(at[1]))
    turned = cv2.warpAffine(alpha, cv2.getRotationMatrix2D(middle, turn, 1.0), alpha.shape)
    return np.asarray(turned[big // 2 : big // 2 + big, big // 2 : big // 2 + big])


def _word(alpha: np.ndarray, big: int, at: Point, rng: np.random.Generator) -> None:
    """One word or two lines, perhaps with a line under or through it."""
    text = word(rng) if rng.random() < 0.8 else f"{word(rng, 3, 6)}\n{word(rng, 3, 6)}"
    wide, high = write(alpha, text, at, float(rng.uniform(0.11, 0.3)) * big, rng)
    if rng.random() < 0.2:
        y = at[1] if rng.random() < 0.4 else at[1] + high // 2 + big // 40
        alpha[y : y + int(rng.integers(4, 12)), max(0, at[0] - wide // 2) : at[0] + wide // 2] = 1


def _tiles(alpha: np.ndarray, big: int, at: Point, rng: np.random.Generator) -> None:
    """A small word, ring or shape again and again."""
    step = float(rng.uniform(0.24, 0.55)) * big
    text, size = word(rng, 2, 6), float(rng.uniform(0.08, 0.16)) * big
    lettered, corners, thick = rng.random() < 0.6, _corners(rng), int(rng.choice((-1, 4, 8)))
    for row, y in enumerate(np.arange(0, 2 * big, step)):
        for x in np.arange(0.5 * step * (row % 2), 2 * big, step * (2 if lettered else 1)):
            if lettered:
                write(alpha, text, (int(x), int(y)), size, rng, plain=True)
            else:
                _outline(alpha, (int(x), int(y)), step * 0.22, corners, thick)


def _lines(alpha: np.ndarray, big: int, at: Point, rng: np.random.Generator) -> None:
    """Parallel lines, a net, a cross or one long line."""
    import cv2

    thick, chance = int(rng.integers(3, 17)), rng.random()
    if chance < 0.3:
        reach = int(big * rng.uniform(0.25, 1.4))
        cv2.line(alpha, (at[0] - reach, at[1]), (at[0] + reach, at[1]), 1.0, thick)
        if chance < 0.2:
            cv2.line(alpha, (at[0], at[1] - reach), (at[0], at[1] + reach), 1.0, thick)
        return
    for place in np.arange(float(rng.uniform(0, 30)), 2 * big, max(3.0 * thick, float(rng.uniform(0.12, 0.5)) * big)):
        cv2.line(alpha, (int(place), 0), (int(place), 2 * big), 1.0, thick)
        if chance < 0.7:
            cv2.line(alpha, (0, int(place)), (2 * big, int(place)), 1.0, thick)


def _emblem(alpha: np.ndarray, big: int, at: Point, rng: np.random.Generator) -> None:
    """One outline or several, round more often than not, with a letter, a sign, a short word, a shape or nothing in it."""
    radius, corners = float(rng.uniform(0.11, 0.36)) * big, _corners(rng, rounds=0.65)
    thick, start = int(rng.integers(4, 17)), float(rng.uniform(0, 2 * np.pi))
    for ring in range(int(rng.choice((1, 1, 1, 2, 3)))):
        _outline(alpha, at, radius * (1 - 0.25 * ring), corners, thick, start)
    chance = rng.random()
    if chance < 0.5:
        write(alpha, str(rng.choice(list(LETTERS + 4 * SIGNS))), at, float(rng.uniform(0.7, 1.2)) * radius, rng)
    elif chance < 0.65:
        write(alpha, word(rng, 2, 4), at, 0.55 * radius, rng)
    elif chance < 0.82:
        inner = int(rng.choice((-1, thick)))
        _outline(alpha, at, radius * float(rng.uniform(0.3, 0.6)), _corners(rng), inner, float(rng.uniform(0, 6)))


def _shape(alpha: np.ndarray, big: int, at: Point, rng: np.random.Generator) -> None:
    """A filled shape: disc, polygon, star, blob or oblong; perhaps with a letter cut out or a word under it."""
    import cv2

    radius = float(rng.uniform(0.08, 0.28)) * big
    chance = rng.random()
    if chance < 0.15:
        turns = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(6, 12))))
        _fill(alpha, at, radius * rng.uniform(0.6, 1.2, len(turns)), turns)
    elif chance < 0.3:
        wide, high = (int(v) for v in radius * rng.uniform(0.4, 1.7, 2))
        cv2.rectangle(alpha, (at[0] - wide, at[1] - high), (at[0] + wide, at[1] + high), 1.0, -1)
    elif chance < 0.55:  # a star
        points = int(rng.integers(4, 10))
        reach = np.where(np.arange(2 * points) % 2, radius * float(rng.uniform(0.4, 0.75)), radius)
        _fill(alpha, at, reach, np.arange(2 * points) * np.pi / points + rng.uniform(0, 6))
    else:
        _outline(alpha, at, radius, _corners(rng), -1, float(rng.uniform(0, 6)))
    if rng.random() < 0.25:
        hole = np.zeros_like(alpha)
        write(hole, word(rng, 1, 3), at, 0.8 * radius, rng)
        alpha *= 1 - hole
    elif rng.random() < 0.2:
        write(alpha, word(rng, 3, 6), (at[0], int(at[1] + 1.3 * radius)), 0.1 * big, rng)


def _strip(alpha: np.ndarray, big: int, at: Point, rng: np.random.Generator) -> None:
    """A bar across the picture or a part of it, filled or outlined, perhaps with a word left open in it."""
    import cv2

    half, high = int(float(rng.uniform(0.18, 0.45)) * big), int(float(rng.uniform(0.06, 0.16)) * big)
    if rng.random() < 0.5:
        half = 2 * big
    filled = rng.random() < 0.8
    cv2.rectangle(alpha, (at[0] - half, at[1] - high), (at[0] + half, at[1] + high), 1.0, -1 if filled else 7)
    if rng.random() < 0.65:
        letters = np.zeros_like(alpha)
        write(letters, word(rng), at, 1.2 * high, rng)
        alpha[:] = alpha * (1 - letters) if filled else np.maximum(alpha, letters)


def _stamp(alpha: np.ndarray, big: int, at: Point, rng: np.random.Generator) -> None:
    """A framed word."""
    import cv2

    wide, high = write(alpha, word(rng), at, float(rng.uniform(0.1, 0.2)) * big, rng)
    gap, thick = int(rng.integers(10, 30)), int(rng.integers(4, 12))
    x, y = wide // 2 + gap, high // 2 + gap
    cv2.rectangle(alpha, (at[0] - x, at[1] - y), (at[0] + x, at[1] + y), 1.0, thick)


def _corners(rng: np.random.Generator, *, rounds: float = 0.4) -> int:
    return 48 if rng.random() < rounds else int(rng.integers(3, 9))


def _outline(alpha: np.ndarray, at: Point, radius: float, corners: int, thick: int, start: float = 0.0) -> None:
    """A regular polygon's outline ``thick`` pixels wide; filled where ``thick`` is -1."""
    import cv2

    turns = np.arange(corners) * 2 * np.pi / corners + start
    if thick < 0:
        _fill(alpha, at, np.full(corners, radius), turns)
        return
    points = np.stack([at[0] + radius * np.cos(turns), at[1] + radius * np.sin(turns)], 1).astype(np.int32)
    cv2.polylines(alpha, [points[:, None]], True, 1.0, thick, cv2.LINE_AA)


def _fill(alpha: np.ndarray, at: Point, reach: np.ndarray, turns: np.ndarray) -> None:
    import cv2

    points = np.stack([at[0] + reach * np.cos(turns), at[1] + reach * np.sin(turns)], 1).astype(np.int32)
    cv2.fillPoly(alpha, [points], 1.0)


FORMS = (_word, _tiles, _lines, _emblem, _shape, _strip, _stamp)
