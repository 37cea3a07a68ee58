"""Weights in prompts, as A1111 writes them: ``(word:1.3)``, ``(word)`` × 1.1, ``[word]`` ÷ 1.1; ``\\(`` is a bracket.

They are read only where the run file has ``generation.prompt_weighting = true``. Brackets nest, and their weights multiply. A
bracket without its other half stands for itself.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from index.errors import InputError

STEP = 1.1  # of a bracket without a number
MOST = 10.0
_CLOSE = {"(": ")", "[": "]"}
_NUMBER = re.compile(r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*$")


class Weighted(NamedTuple):
    """A prompt without its marks.

    Attributes:
        text: as the text encoder reads it.
        spans: (first character, behind the last, weight), where the weight is not 1.
    """

    text: str
    spans: tuple[tuple[int, int, float], ...] = ()


def weighted(prompt: str) -> Weighted:
    """Read the weights of a prompt.

    Raises:
        InputError: a weight is not from 0 to 10.
    """
    closed = _pairs(prompt)
    text: list[str] = []
    weights: list[float] = []
    _read(prompt, 0, len(prompt), 1.0, closed, text, weights)
    spans: list[tuple[int, int, float]] = []
    for at, weight in enumerate(weights):
        if weight == 1:
            continue
        if spans and spans[-1][1] == at and spans[-1][2] == weight:
            spans[-1] = (spans[-1][0], at + 1, weight)
        else:
            spans.append((at, at + 1, weight))
    return Weighted("".join(text), tuple(spans))


def quoted(text: str) -> str:
    """A text whose brackets are no weights: :func:`weighted` of it is the text."""
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


def _pairs(prompt: str) -> dict[int, int]:
    """Opening bracket → its other half; one without it is in neither place."""
    waiting: list[int] = []
    closed: dict[int, int] = {}
    at = 0
    while at < len(prompt):
        if prompt[at] == "\\":
            at += 1
        elif prompt[at] in _CLOSE:
            waiting.append(at)
        elif prompt[at] in ")]":
            fitting = [place for place in waiting if _CLOSE[prompt[place]] == prompt[at]]
            if fitting:
                closed[fitting[-1]] = at
                del waiting[waiting.index(fitting[-1]) :]
        at += 1
    return closed


def _read(prompt: str, at: int, end: int, weight: float, closed: dict[int, int], text: list[str], weights: list[float]) -> None:
    """Add the characters of ``prompt[at:end]``, each with its weight."""
    while at < end:
        character = prompt[at]
        if character == "\\" and at + 1 < end and prompt[at + 1] in "()[]\\":
            text.append(prompt[at + 1])
            weights.append(weight)
            at += 2
            continue
        if at in closed:
            behind, factor = closed[at], STEP if character == "(" else 1 / STEP
            number = _NUMBER.search(prompt[at + 1 : behind]) if character == "(" else None
            if number is not None:
                factor = float(number[1])
                if not 0 <= factor <= MOST:
                    what = f"the weight {number[1]} is not from 0 to {MOST:g}"
                    raise InputError(what, where="prompt", fix=r"Write another number, or \( and \) for brackets that are text")
            _read(prompt, at + 1, behind if number is None else at + 1 + number.start(), weight * factor, closed, text, weights)
            at = behind + 1
            continue
        text.append(character)
        weights.append(weight)
        at += 1
