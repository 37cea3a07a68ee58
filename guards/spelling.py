"""Words and phrases in a text, however they are spelled: case, accents, look-alike letters, spaced letters, digits for letters.

A text is reduced to plain letters whose places in the text are kept, so that what is found can be replaced in it. Letters of
other scripts that look like Latin ones are found by Unicode's confusables (UTS #39), as ``confusable_homoglyphs`` ships them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

FEWEST_SPACED = 3  # letters one by one that are read as one word
LEAST_JOINED = 3  # letters that a phrase must have to be looked for among spaced letters, and without its spaces
SIGNS = {"@": "a", "$": "s", "€": "e", "!": "i", "|": "l", "0": "o", "1": "l", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b"}
_DROPPED = frozenset({"Mn", "Me", "Cf"})  # accents, enclosing marks, signs without width


class Plain(NamedTuple):
    """A text as plain small letters. ``at``: the place in the original of each."""

    text: str
    at: tuple[int, ...]


class Token(NamedTuple):
    """A word, and where it begins and ends in the original. ``other``: signs or digits stand in it for letters."""

    word: str
    start: int
    end: int
    other: bool = False


class Hit(NamedTuple):
    """A phrase that was found, and where it begins and ends in the original."""

    phrase: str
    start: int
    end: int


@lru_cache(maxsize=1)
def _look_alikes() -> Mapping[str, str]:
    """Letters that look like one ASCII letter or digit."""
    from confusable_homoglyphs.confusables import confusables_data

    found = {}
    for letter, alike in confusables_data.items():
        plain = [one["c"] for one in alike if len(one["c"]) == 1 and one["c"].isascii() and one["c"].isalnum()]
        if not letter.isascii() and plain:
            found[letter] = plain[0]
    return found


def plain(text: str) -> Plain:
    """The text in small letters, without accents and signs that are not shown, look-alikes as the letters they look like."""
    letters: list[str] = []
    at: list[int] = []
    for place, sign in enumerate(text):
        if sign.isascii():
            letters.append(sign.lower())
            at.append(place)
            continue
        for part in unicodedata.normalize("NFKD", sign):
            if unicodedata.category(part) in _DROPPED:
                continue
            small = (part if part.isascii() else _look_alikes().get(part, part)).casefold()
            letters.extend(small)
            at.extend([place] * len(small))
    return Plain("".join(letters), tuple(at))


def tokens(found: Plain, *, signs: bool = False) -> list[Token]:
    """The words of a plain text; ``signs``: with the letters that signs and digits stand for."""
    words, begun, word, other = [], -1, "", False
    for number, letter in enumerate((*found.text, " ")):
        stands_for = SIGNS.get(letter, letter) if signs else letter
        if stands_for.isalnum():
            begun = number if begun < 0 else begun
            word, other = word + stands_for, other or stands_for != letter
        elif begun >= 0:
            words.append(Token(word, found.at[begun], found.at[number - 1] + 1, other))
            begun, word, other = -1, "", False
    return words


class Phrases:
    """Phrases that are looked for in texts.

    Args:
        phrases: as people write them.
    """

    def __init__(self, phrases: Iterable[str]) -> None:
        self._by_words: dict[tuple[str, ...], str] = {}
        self._joined: dict[str, str] = {}
        self._unspaced: dict[str, str] = {}  # of scripts that put no spaces between words
        self.unusable: list[str] = []  # that hold no letter and no digit
        for phrase in phrases:
            words = tuple(token.word for token in tokens(plain(phrase)))
            if not words:
                self.unusable.append(phrase)
                continue
            self._by_words.setdefault(words, phrase)
            joined = "".join(words)
            if len(joined) >= LEAST_JOINED:
                self._joined.setdefault(joined, phrase)
            if any(unicodedata.east_asian_width(letter) in "WF" for letter in joined):
                self._unspaced.setdefault(joined, phrase)
        self._lengths = sorted({len(words) for words in self._by_words}, reverse=True)
        self._folded_joined = {_folded(joined): phrase for joined, phrase in self._joined.items()}
        self._folded = {tuple(map(_folded, words)): phrase for words, phrase in self._by_words.items()}

    def __len__(self) -> int:
        return len(self._by_words)

    def hits(self, text: str) -> list[Hit]:
        """Every phrase in the text, in the order of their places; one phrase at one place once."""
        found = plain(text)
        words = tokens(found)
        every = {*self._in(words, self._by_words), *_spaced(words, self._joined), *self._without_spaces(found)}
        odd = tokens(found, signs=True)
        if any(token.other for token in odd):
            folded = [token._replace(word=_folded(token.word)) for token in odd]
            every.update(self._in(folded, self._folded, other=True))
            every.update(_spaced(folded, self._folded_joined))
        return sorted(every, key=lambda hit: (hit.start, -hit.end, hit.phrase))

    def _in(self, words: list[Token], known: Mapping[tuple[str, ...], str], *, other: bool = False) -> Iterator[Hit]:
        for first in range(len(words)):
            for length in self._lengths:
                some = words[first : first + length]
                if len(some) < length or (other and not any(token.other for token in some)):
                    continue
                phrase = next((known[form] for form in _forms(tuple(token.word for token in some)) if form in known), None)
                if phrase is not None:
                    yield Hit(phrase, some[0].start, some[-1].end)
            word = words[first].word
            if not other and word in self._joined:
                yield Hit(self._joined[word], words[first].start, words[first].end)

    def _without_spaces(self, found: Plain) -> Iterator[Hit]:
        for joined, phrase in self._unspaced.items():
            place = found.text.find(joined)
            while place >= 0:
                yield Hit(phrase, found.at[place], found.at[place + len(joined) - 1] + 1)
                place = found.text.find(joined, place + 1)


def _spaced(words: list[Token], known: Mapping[str, str]) -> Iterator[Hit]:
    """Phrases among letters one by one: r e d, r.e.d."""
    run: list[Token] = []
    for token in (*words, Token("  ", 0, 0)):
        if len(token.word) == 1:
            run.append(token)
            continue
        if len(run) >= FEWEST_SPACED:
            text = "".join(one.word for one in run)
            for first in range(len(run)):
                for last in range(first + LEAST_JOINED, len(run) + 1):
                    if text[first:last] in known:
                        yield Hit(known[text[first:last]], run[first].start, run[last - 1].end)
        run = []


def without(text: str, hits: Iterable[Hit], instead: str) -> str:
    """The text with another text in the place of every hit; hits that overlap are one."""
    merged: list[list[int]] = []
    for hit in sorted(hits, key=lambda hit: hit.start):
        if merged and hit.start < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], hit.end)
        else:
            merged.append([hit.start, hit.end])
    for start, end in reversed(merged):
        text = text[:start] + instead + text[end:]
    return " ".join(text.split())


def _forms(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The words, and with the last one in the singular."""
    yield words
    last = words[-1]
    if last.endswith("s") and len(last) > LEAST_JOINED:
        yield (*words[:-1], last[:-1])
        if last.endswith("es"):
            yield (*words[:-1], last[:-2])


def _folded(word: str) -> str:
    """With signs and digits as letters, and i as l: both are written for 1."""
    return "".join(SIGNS.get(letter, letter) for letter in word).replace("i", "l")
