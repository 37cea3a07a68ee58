"""The marks that a prompt asks for, by a small list of words for each kind of mark.

A mark that the prompt asks for is not spurious. Whether it stays is for the policy to state (its table ``asked``): a prompt
comes from outside, and must not turn a safeguard off by naming a word. In doubt a mark counts as not asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache

from guards.spelling import Phrases

CATEGORIES: Mapping[str, tuple[str, ...]] = {  # of the findings of each kind of mark
    "watermark": ("mark.watermark",),
    "qr": ("mark.qr",),
    "text": ("mark.text", "text.ocr"),
    "logo": ("mark.logo",),
}
NAMES: Mapping[str, str] = {"watermark": "a watermark", "qr": "a QR code", "text": "text", "logo": "a logo"}  # for people
WORDS: Mapping[str, tuple[str, ...]] = {  # an eraser's own tokens are among them: <qr> reads as qr
    "watermark": ("watermark", "watermarked"),
    "qr": ("QR", "QR code", "data matrix", "Aztec code"),
    "text": ("text", "the word", "lettering", "inscription", "that says", "that reads"),
    "logo": ("logo", "logotype"),
}
QUOTED = re.compile(  # between single marks at least two signs: rock 'n' roll quotes nothing
    r"""(?<!\w)(?:"[^"\n]+"|'[^'\n]{2,}'|\u201c[^\u201c\u201d\n]+\u201d|\u2018[^\u2018\u2019\n]{2,}\u2019"""
    r"""|\u00ab[^\u00ab\u00bb\n]+\u00bb)(?!\w)"""
)
_END = re.compile(r"[.!?;](?=\s|$)|\n")  # of a sentence
_STRUCK = r"avoid\w*|exclud\w*|omit\w*|remov\w*|delet\w*|eras\w*|forbid\w*|hidden|absent|none|not|never"
_NOT = r"n['\u2019]t\b"
_NO = re.compile(
    rf"\b(?:no|non|nor|neither|without|cannot|zero|minus|negative|except|lack\w*|absence|free|hid(?:e|ing)|{_STRUCK})\b|{_NOT}",
    re.IGNORECASE,
)
_AGAIN = re.compile(r"\bbut\b|[,;]\s*with\b|\band with\b", re.IGNORECASE)  # what follows is no longer negated
_NO_BEHIND = re.compile(
    rf"[\s-]*free\b|\W*(?:\w+\W+){{0,2}}?(?:(?:missing|{_STRUCK})\b|\w*{_NOT})", re.IGNORECASE
)  # at most two words lie between


def asked_for(prompt: str, negative_prompt: str = "") -> frozenset[str]:
    """The kinds of marks (keys of :data:`WORDS`) that a prompt asks for.

    Text in quotation marks asks for text, and what stands in it asks for nothing else. A mention does not count behind a
    negating word of its sentence ("no people, text, watermark"), unless a "but" or a new "with" stands between; nor shortly
    before one ("text removed", "watermark-free"). A kind that the negative prompt names is not asked for.
    """
    quotes = [match.span() for match in QUOTED.finditer(prompt) if any(letter.isalnum() for letter in match[0])]
    bare = prompt
    for start, end in quotes:
        bare = bare[:start] + " " * (end - start) + bare[end:]
    found = {kind for kind, start, end in _mentions(bare) if not _negated(bare, start, end)}
    if any(not _negated(bare, start, end) for start, end in quotes):
        found.add("text")
    return frozenset(found - {kind for kind, _, _ in _mentions(negative_prompt)})


def _mentions(text: str) -> Iterator[tuple[str, int, int]]:
    phrases, kinds = _phrases()
    for hit in phrases.hits(text):
        yield kinds[hit.phrase], hit.start, hit.end


@cache
def _phrases() -> tuple[Phrases, dict[str, str]]:
    """Every phrase, and the kind of each."""
    kinds = {phrase: kind for kind, words in WORDS.items() for phrase in words}
    return Phrases(kinds), kinds


def _negated(text: str, start: int, end: int) -> bool:
    before = _END.split(text[:start])[-1]
    before = _AGAIN.split(before)[-1]
    behind = _END.split(text[end:])[0].split(",")[0]
    return _NO.search(before) is not None or _NO_BEHIND.match(behind) is not None
