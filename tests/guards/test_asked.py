"""The marks that a prompt asks for: mentions, quotation marks, negations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.asked import CATEGORIES, NAMES, WORDS, asked_for
from pipeline.steer.erase_tokens import CONCEPTS, name_token


@pytest.mark.parametrize(
    ("prompt", "kinds"),
    [
        ("a taco with a QR code", "qr"),
        ("two qr-codes on a wall without windows", "qr"),
        ("a poster with a DATA MATRIX", "qr"),
        ("a photograph under a watermark", "watermark"),
        ("a watermarked photograph", "watermark"),
        ("a sign with text", "text"),
        ('a sign "OPEN"', "text"),
        ("a sign that says open", "text"),
        ("a shop sign 'OPEN' over a door", "text"),
        ("a shop sign \u2018OPEN\u2019 over a door", "text"),
        ("ein Schild mit \u201coffen\u201d", "text"),
        ('the words "NO ENTRY" over a QR code', "text qr"),
        ('the word "QR code"', "text"),  # what is quoted is written, not drawn
        ("a street without people, with a QR code on a door", "qr"),
        ("no people but a QR code", "qr"),
        ("No people. A QR code on a wall", "qr"),
        ("a QR code, no text, no watermark", "qr"),
        ('a mug with the text "Joe", no other text', "text"),
    ],
)
def test_what_is_asked_for(prompt: str, kinds: str) -> None:
    assert asked_for(prompt) == set(kinds.split())


@pytest.mark.parametrize(
    "prompt",
    [
        "a red apple",
        "a textbook, a texture, a watermelon in context",
        "no watermark",
        "a cat without text",
        "no people, text, watermark, QR code",
        "no visible text or watermark",
        "a cat --no text",
        "text-free",
        "a watermark free picture",
        "a picture, text removed",
        "the QR code is not shown",
        "the watermark should be avoided",
        "there isn't a QR code",
        "don\u2019t draw text",
        "avoid: text, watermark",
        "a non-watermarked picture",
        'without the text "SALE"',
        'a 5" phone and a 6" tablet',
        "the dogs' bones and the cats' toys",
        "rock 'n' roll",
        '"?!"',
        "",
    ],
)
def test_what_is_not_asked_for(prompt: str) -> None:
    assert not asked_for(prompt)


def test_a_negative_prompt_takes_back_what_it_names() -> None:
    assert asked_for("a QR code and text", "watermark, no text") == {"qr"}
    assert asked_for("a QR code", "blurry") == {"qr"}


def test_an_erasers_own_tokens_ask_for_its_mark_and_every_kind_but_logos_is_erased() -> None:
    for kind in CATEGORIES:
        assert asked_for(f"a taco {name_token(kind)} <tl-2-1>") == {kind}
    erased = {category: kind for kind, some in CATEGORIES.items() for category in some if kind != "logo"}
    assert erased == CONCEPTS
    assert CATEGORIES.keys() == WORDS.keys() == NAMES.keys()


words = st.sampled_from([word for some in WORDS.values() for word in some])
others = st.lists(st.sampled_from(["a cat", "two dogs", "on a wall", "red", "of"]), max_size=3).map(" ".join)


@given(st.sampled_from(["no", "without", "never any", "remove the", "do not draw a"]), others, words)
def test_a_mention_behind_a_negation_is_never_asked_for(negation: str, other: str, word: str) -> None:
    assert asked_for(f"{negation} {word}") == asked_for(f"{negation} {other}, {word}") == frozenset()


@given(st.text(max_size=80))
def test_any_text_can_be_read(text: str) -> None:
    assert asked_for(text) <= WORDS.keys() and asked_for(text, text) <= asked_for(text)
