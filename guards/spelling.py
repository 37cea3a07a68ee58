"""Words and phrases in a text, however they are spelled: case, accents, look-alike letters, spaced letters, digits for letters.

A text is reduced to plain letters whose places in the text are kept, so that what is found can be replaced in it. Letters of
other scripts that look like Latin ones are found by Unicode's confusables (UTS #39), as ``confusable_homoglyphs`` ships them.
A capital may look like another letter than its small form does (Cyrillic Н and н): a text is read both ways.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

FEWEST_SPACED = 3  # letters one by one that are read as one word
LEAST_JOINED = 3  # letters that a phrase must have to be looked for among spaced letters, and without its spaces
SIGNS = {"@": "a", "$": "s", "€": "e", "!": "i", "|": "l", "0": "o", "1": "l", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b"}
DIGITS = "0123456789"
_DROPPED = frozenset({"Mn", "Me", "Cf"})  # accents, enclosing marks, signs without width
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u0640")  # letters to Unicode, and blank; the last draws Arabic words out
_UNSPACED = re.compile("THAI |LAO |KHMER |MYANMAR |TAI |NEW TAI |JAVANESE |BALINESE ")  # beginnings of letters' names
_PARTS = frozenset(
    '\u3001\u3002\uff0c\uff0e\uff1a\uff1b\uff01\uff1f\u300c\u300d\uff08\uff09,.:;!?()"'
)  # signs that end a part of a sentence
# Letters that no table of confusables has, by their names: small capitals, letters in boxes, letters with a stroke.
_NAMED = re.compile(
    r"(?:LATIN|NEGATIVE (?:CIRCLED|SQUARED) LATIN|REGIONAL INDICATOR SYMBOL) (?:SMALL |CAPITAL )?LETTER (?:SMALL CAPITAL )?"
    r"([A-Z])(?: WITH .+)?"
)


class Plain(NamedTuple):
    """A text as plain small letters.

    Attributes:
        text: the letters. at: the place in the original of each.
        doubtful: numbers of the letters that look like i and like l, and stand there for either.
    """

    text: str
    at: tuple[int, ...]
    doubtful: frozenset[int] = frozenset()


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


@lru_cache(maxsize=4096)
def _looks_like(letter: str) -> str:
    """The ASCII letter or digit that a letter looks like; itself where there is none."""
    if (found := _look_alikes().get(letter)) is not None:
        return found
    named = _NAMED.fullmatch(unicodedata.name(letter, ""))
    return named[1] if named is not None else letter


def _not_shown(letter: str) -> bool:
    return unicodedata.category(letter) in _DROPPED or letter in _FILLERS


def _in_word(letter: str) -> bool:
    """Whether it is part of a word: a letter, a digit, or a vowel sign (of Hindi, Burmese and others)."""
    return letter.isalnum() or unicodedata.category(letter) == "Mc"


@lru_cache(maxsize=4096)
def _unspaced(letter: str) -> bool:
    """Whether its script puts no spaces between words, or needs none."""
    return unicodedata.east_asian_width(letter) in "WF" or _UNSPACED.match(unicodedata.name(letter, "")) is not None


def _strays(mark: str, letters: list[str]) -> bool:
    """Whether a vowel sign stands behind a letter of another script, which is no word of any language."""
    if unicodedata.category(mark) != "Mc":
        return False
    return not letters or unicodedata.name(mark, "").split(" ")[0] != unicodedata.name(letters[-1], "").split(" ")[0]


def plain(text: str, *, small_first: bool = False) -> Plain:
    """The text in small letters, without accents and signs that are not shown, look-alikes as the letters they look like.

    ``small_first``: as the small form of a capital looks, not as the capital itself does.
    """
    letters: list[str] = []
    at: list[int] = []
    doubtful: set[int] = set()
    for place, sign in enumerate(text):
        if sign.isascii():
            letters.append(sign.lower())
            at.append(place)
            continue
        for part in unicodedata.normalize("NFKD", sign.casefold() if small_first else sign):
            if _not_shown(part) or _strays(part, letters):
                continue
            small = (part if part.isascii() else _looks_like(part)).casefold()
            if small in ("i", "l") and not part.isascii():
                doubtful.add(len(letters))
            letters.extend(small)
            at.extend([place] * len(small))
    return Plain("".join(letters), tuple(at), frozenset(doubtful))


def readings(text: str) -> list[Plain]:
    """The text as its capitals look, and as their small forms do where that is something else."""
    by_capital, by_small = plain(text), plain(text, small_first=True)
    return [by_capital] if by_small.text == by_capital.text else [by_capital, by_small]


def as_written(text: str) -> Plain:
    """The text with its accents and in its own script, each composed (NFC); only signs that are not shown are left out."""
    letters: list[str] = []
    at: list[int] = []
    begun = 0
    for place in range(1, len(text) + 1):
        if place < len(text) and unicodedata.category(text[place]) in _DROPPED:
            continue  # it belongs to the letter before it
        shown = [sign for sign in text[begun:place] if unicodedata.category(sign) != "Cf" and sign not in _FILLERS]
        composed = unicodedata.normalize("NFC", "".join(shown))
        letters.extend(composed)
        at.extend([begun] * len(composed))
        begun = place
    return Plain("".join(letters), tuple(at))


def tokens(found: Plain, *, signs: bool = False) -> list[Token]:
    """The words of a plain text; ``signs``: with the letters that signs, digits and doubtful letters stand for."""
    words, begun, word, other = [], -1, "", False
    for number, letter in enumerate((*found.text, " ")):
        stands_for = SIGNS.get(letter, letter) if signs else letter
        if _in_word(stands_for):
            begun = number if begun < 0 else begun
            word, other = word + stands_for, other or stands_for != letter or (signs and number in found.doubtful)
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
        self._phrases = 0
        for phrase in phrases:
            every = [tuple(token.word for token in tokens(found)) for found in readings(phrase)]
            if not all(every):
                self.unusable.append(phrase)
                continue
            self._phrases += 1
            for words in every:
                self._add(words, phrase)
        self._longest = max(map(len, self._joined), default=0)
        self._lengths = sorted({len(words) for words in self._by_words}, reverse=True)
        self._folded_joined = {_folded(joined): phrase for joined, phrase in self._joined.items()}
        self._folded = {tuple(map(_folded, words)): phrase for words, phrase in self._by_words.items()}

    def _add(self, words: tuple[str, ...], phrase: str) -> None:
        self._by_words.setdefault(words, phrase)
        joined = "".join(words)
        if len(joined) >= LEAST_JOINED:
            self._joined.setdefault(joined, phrase)
        if any(map(_unspaced, joined)):
            self._unspaced.setdefault(joined, phrase)

    def __len__(self) -> int:
        return self._phrases

    def hits(self, text: str) -> list[Hit]:
        """Every phrase in the text, in the order of their places; one phrase at one place once."""
        every: set[Hit] = set()
        for found in readings(text):
            words = tokens(found)
            every.update(
                self._in(words, self._by_words), _spaced(words, self._joined, self._longest), self._without_spaces(found)
            )
            every.update(self._in_parts(words, text))
            odd = tokens(found, signs=True)
            if any(token.other for token in odd):
                folded = [token._replace(word=_folded(token.word)) for token in odd]
                every.update(self._in(folded, self._folded, other=True), _spaced(folded, self._folded_joined, self._longest))
                every.update(self._in_parts(folded, text, other=True))
        return sorted(every, key=lambda hit: (hit.start, -hit.end, hit.phrase))

    def _in(self, words: list[Token], known: Mapping[tuple[str, ...], str], *, other: bool = False) -> Iterator[Hit]:
        joined = self._folded_joined if other else self._joined
        for first in range(len(words)):
            for length in self._lengths:
                some = words[first : first + length]
                if len(some) < length or (other and not any(token.other for token in some)):
                    continue
                phrase = next((known[form] for form in _forms(tuple(token.word for token in some)) if form in known), None)
                if phrase is not None:
                    yield Hit(phrase, some[0].start, some[-1].end)
            word = words[first]
            phrase = next((joined[form] for (form,) in _forms((word.word,)) if form in joined), None)
            if phrase is not None and (word.other or not other):
                yield Hit(phrase, word.start, word.end)

    def _in_parts(self, words: list[Token], text: str, *, other: bool = False) -> Iterator[Hit]:
        """Phrases whose letters are parted by signs alone, without a space: mic-key, mick.ey."""
        known = self._folded_joined if other else self._joined
        for first in range(len(words)):
            joined = words[first].word
            for last in range(first + 1, len(words)):
                joined += words[last].word
                between = text[words[last - 1].end : words[last].start]
                if len(joined) > self._longest or any(sign.isspace() for sign in between):
                    break
                if joined in known and (not other or any(token.other for token in words[first : last + 1])):
                    yield Hit(known[joined], words[first].start, words[last].end)

    def _without_spaces(self, found: Plain) -> Iterator[Hit]:
        """Phrases inside longer words, and parted by signs that end no sentence (a middle dot)."""
        if not self._unspaced or not any(map(_unspaced, found.text)):
            return
        kept = [number for number, letter in enumerate(found.text) if _in_word(letter) or letter.isspace() or letter in _PARTS]
        text = "".join(found.text[number] for number in kept)
        for joined, phrase in self._unspaced.items():
            place = text.find(joined)
            while place >= 0:
                yield Hit(phrase, found.at[kept[place]], found.at[kept[place + len(joined) - 1]] + 1)
                place = text.find(joined, place + 1)


def _spaced(words: list[Token], known: Mapping[str, str], longest: int) -> Iterator[Hit]:
    """Phrases of at most so many letters among letters one by one: r e d, r.e.d."""
    run: list[Token] = []
    for token in (*words, Token("  ", 0, 0)):
        if len(token.word) == 1:
            run.append(token)
            continue
        if len(run) >= FEWEST_SPACED:
            text = "".join(one.word for one in run)
            for first in range(len(run)):
                for last in range(first + LEAST_JOINED, min(len(run), first + longest) + 1):
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
        while end < len(text) and _not_shown(text[end]):
            end += 1  # an accent of what goes
        text = text[:start] + instead + text[end:]
    return " ".join(text.split())


def _forms(words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The words, with the last one in the singular, and both without numbers that stand before or behind a word."""
    bare = tuple(word.strip(DIGITS) for word in words)
    for some in (words, bare) if bare != words and all(bare) else (words,):
        yield some
        last = some[-1]
        if last.endswith("s") and len(last) > LEAST_JOINED:
            yield (*some[:-1], last[:-1])
            if last.endswith("es"):
                yield (*some[:-1], last[:-2])


def _folded(word: str) -> str:
    """With signs and digits as letters, and i as l: both are written for 1."""
    return "".join(SIGNS.get(letter, letter) for letter in word).replace("i", "l")
