"""Words that a recogniser read: which of them count as text, and which readings are of one word."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

LEAST_SIGNS = 3
SURE = 0.8
CERTAIN = 0.95  # of 1,049 drawings none was read as a number of two digits with this confidence, unless it showed one
ROUND_OR_STRAIGHT = frozenset("018")  # what rings and strokes in a drawing are read as
NESTED_SQUARES = frozenset("\u56de\u56d7\u53e3\u25a1\u25a3")  # what corners of a QR code are read as
SAME = 0.5  # share of the smaller box that two readings of one word have in common
LINE = 0.5  # readings whose middles differ by less than this share of their height stand in one line


@dataclass(frozen=True, kw_only=True)
class Word:
    """One reading: its text, the recogniser's confidence in it, and its box in pixels (x0, y0, x1, y1)."""

    text: str
    score: float
    box: tuple[float, float, float, float]


def signs(text: str) -> float:
    """The weight of a word: a letter or digit 1, a Chinese, Japanese or Korean letter 1.5, a currency or per cent sign 2."""
    return sum(_sign(letter) for letter in text)


def counts(word: Word, least: float = LEAST_SIGNS, sure: float = SURE) -> bool:
    """Whether a word is text and not an ornament that the recogniser took for letters.

    With ``least`` letters it is, however sure the recogniser is; the guard's threshold decides about that. With as many signs
    but fewer letters (prices, numbers, two Chinese letters), which drawings resemble more, it must be ``sure``. A number may
    have one sign less where the recogniser is all but certain. The corners of a code are none: other guards look for codes.
    """
    if NESTED_SQUARES.issuperset("".join(word.text.split())):
        return False
    letters = sum(letter.isalpha() for letter in word.text)
    if letters >= least:
        return True
    if set(word.text.strip()) <= ROUND_OR_STRAIGHT and len(set(word.text.strip())) == 1:
        return False
    number = not letters and word.score >= CERTAIN
    return word.score >= sure and signs(word.text) >= least - number


def merged(words: Sequence[Word]) -> list[Word]:
    """Each word once, in reading order: readings of one word that overlap become one, with the longer text and both boxes.

    No reading is dropped: a word that was cut in two (SAL, ALE) is put together where the pieces share letters, and pieces that
    share none stay words of their own.
    """
    kept: list[Word] = []
    for word in sorted(words, key=lambda word: (-len(word.text), -word.score, word.box)):
        at = next((i for i, other in enumerate(kept) if _overlap(word, other) and _joined(other, word) is not None), None)
        if at is None:
            kept.append(word)
        else:
            kept[at] = replace(_one(kept[at], word), text=_joined(kept[at], word) or kept[at].text)
    return _in_reading_order(kept)


def _sign(letter: str) -> float:
    if letter.isalpha() and unicodedata.east_asian_width(letter) == "W":
        return 1.5
    if letter.isalnum():
        return 1.0
    return 2.0 if letter in "%‰％" or unicodedata.category(letter) == "Sc" else 0.0


def _overlap(a: Word, b: Word) -> bool:
    wide = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    high = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    smaller = min((w.box[2] - w.box[0]) * (w.box[3] - w.box[1]) for w in (a, b))
    return wide > 0 and high > 0 and wide * high >= SAME * smaller


def _joined(longer: Word, other: Word) -> str | None:
    """The text of two overlapping readings; None where they have nothing in common."""
    if other.text in longer.text:
        return longer.text
    first, second = sorted((longer, other), key=lambda word: word.box[0])
    for shared in range(min(len(first.text), len(second.text)) - 1, 0, -1):
        if first.text.endswith(second.text[:shared]):
            return first.text + second.text[shared:]
    return None


def _one(a: Word, b: Word) -> Word:
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a.box, b.box
    box = (min(ax0, bx0), min(ay0, by0), max(ax1, bx1), max(ay1, by1))
    return Word(text=a.text, score=max(a.score, b.score), box=box)


def _in_reading_order(words: Sequence[Word]) -> list[Word]:
    lines: list[list[Word]] = []
    for word in sorted(words, key=lambda word: (word.box[1] + word.box[3], word.box)):
        middle, high = (word.box[1] + word.box[3]) / 2, word.box[3] - word.box[1]
        last = lines[-1][0].box if lines else None
        if last is not None and abs(middle - (last[1] + last[3]) / 2) < LINE * min(high, last[3] - last[1]):
            lines[-1].append(word)
        else:
            lines.append([word])
    return [word for line in lines for word in sorted(line, key=lambda word: word.box)]
