"""Weights in prompts, as A1111 writes them: ``(word:1.3)``, ``(word)`` × 1.1, ``[word]`` ÷ 1.1; ``\\(`` is a bracket.

They are read only where the run file has ``generation.prompt_weighting = true``. Brackets nest, and their weights multiply; the
product has the range of a weight. A bracket without its other half stands for itself. Reading takes time in proportion to the
prompt's length.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from index.errors import InputError

STEP = 1.1  # of a bracket without a number
MOST = 10.0
DEEPEST = 50  # brackets in one another
_OPEN = {")": "(", "]": "["}
_NUMBER = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*")
_AS_TEXT = r"or \( and \) for brackets that are text"


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
        InputError: a weight, or what weights of nested brackets multiply to, is not from 0 to 10; or brackets nest too deep.
    """
    closed = _pairs(prompt)
    text: list[str] = []
    weights: list[float] = []
    _read(prompt, 0, len(prompt), 1.0, closed, text, weights)
    if max(weights, default=0.0) > MOST * (1 + 1e-9):  # 1.1 · 10 / 1.1 may be a last bit more than 10
        what = f"weights of nested brackets multiply to {max(weights):.4g}, which is not from 0 to {MOST:g}"
        raise InputError(what, where="prompt", fix=f"Write smaller numbers or fewer brackets, {_AS_TEXT}")
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
    """Opening bracket → its other half; one without it is in neither place.

    Raises:
        InputError: brackets nest deeper than :data:`DEEPEST`.
    """
    waiting: list[int] = []
    open_of = {"(": 0, "[": 0}  # how many of each kind wait
    closed: dict[int, int] = {}
    at = 0
    while at < len(prompt):
        character = prompt[at]
        if character == "\\":
            at += 1
        elif character in open_of:
            waiting.append(at)
            open_of[character] += 1
        elif character in _OPEN and open_of[_OPEN[character]]:
            while True:  # those of the other kind that it passes over have no other half
                opened = waiting.pop()
                open_of[prompt[opened]] -= 1
                if prompt[opened] == _OPEN[character]:
                    break
            closed[opened] = at
        at += 1
    ends: list[int] = []  # of the pairs that are open at a place
    for opened in sorted(closed):
        while ends and ends[-1] < opened:
            ends.pop()
        ends.append(closed[opened])
        if len(ends) > DEEPEST:
            what = f"brackets stand more than {DEEPEST} deep in one another"
            raise InputError(what, where="prompt", fix=f"Write one weight in place of them, as in (word:1.3), {_AS_TEXT}")
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
            colon = prompt.rfind(":", at + 1, behind) if character == "(" else -1
            number = _NUMBER.fullmatch(prompt, colon + 1, behind) if colon >= 0 else None
            if number is not None:
                factor = float(number[1])
                if not 0 <= factor <= MOST:
                    what = f"the weight {number[1]:.20} is not from 0 to {MOST:g}"
                    raise InputError(what, where="prompt", fix=f"Write another number, {_AS_TEXT}")
            _read(prompt, at + 1, behind if number is None else colon, weight * factor, closed, text, weights)
            at = behind + 1
            continue
        text.append(character)
        weights.append(weight)
        at += 1
