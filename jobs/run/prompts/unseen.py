"""Characters that cannot be seen: at the ends of a key, and in keys that look the same."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping

from pipeline.notes import Note

INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})  # Unicode's categories of controls, format characters and spaces
BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # letters and signs that are drawn as nothing
FLAGS = range(0xE0020, 0xE0080)  # format characters that end the flags of England, Scotland and Wales
SHOWN = 3  # pairs that a note names


def unseen(end: str) -> bool:
    """Whether a character cannot be seen at the end of a text: a space of any kind, a control or format character."""
    if end.isalnum() and end not in BLANK:
        return False
    return end in BLANK or (unicodedata.category(end) in INVISIBLE and ord(end) not in FLAGS)


def look_alikes(places: Mapping[str, str]) -> list[Note]:
    """A note on keys that are different and look the same: composed in another way, or with something unseen inside.

    No error: between some letters and signs a character that cannot be seen changes what is.

    Args:
        places: where each key stands, by key.
    """
    odd = defaultdict(list)  # keys that are not what they look like, by that; of keys that look the same one alone may be it
    for key in places:
        if not (key.isascii() and key.isprintable() and "  " not in key) and (looks := _looks(key)) != key:
            odd[looks].append(key)
    groups = [[looks, *keys] if looks in places else keys for looks, keys in odd.items()]
    pairs = [keys for keys in groups if len(keys) > 1]
    if not pairs:
        return []
    named = "; ".join(" and ".join(f"{_spelt(key)} ({places[key]})" for key in keys) for keys in pairs[:SHOWN])
    more = f"; and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    return [Note("prompts", f"keys look the same and are different: {named}{more}. Each is a request of its own")]


def _looks(key: str) -> str:
    """What is seen of a key: composed, with plain single spaces, without what cannot be seen."""
    spaced = "".join(" " if letter.isspace() else letter for letter in unicodedata.normalize("NFC", key))
    return " ".join("".join(letter for letter in spaced if letter == " " or not unseen(letter)).split())


def _spelt(key: str) -> str:
    """A key with escapes in place of what cannot be told apart by eye."""
    return ascii(key) if len(key) <= 60 else ascii(key[:60]) + "…"
