"""Which words are text, and which readings are of one word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guards.words import Word, counts, merged, signs


def word(text: str, score: float = 1.0, box: tuple[float, float, float, float] = (0, 0, 10, 10)) -> Word:
    return Word(text=text, score=score, box=box)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("ab1", 3), ("$5", 3), ("50%", 4), ("\u51fa\u53e3", 3), ("\ucd9c", 1.5), ("-- !", 0), ("\u20ac1,5", 4)],
)
def test_signs(text: str, expected: float) -> None:
    assert signs(text) == expected


@pytest.mark.parametrize(
    "text", ["$12.99", "50%", "\u00a31,299", "2024", "42", "777", "11.11.", "\u51fa\u53e3", "\ucd9c\uad6c", "B12"]
)
def test_prices_numbers_and_short_chinese_words_count_when_they_are_sure(text: str) -> None:
    assert counts(word(text, 0.96))
    assert not counts(word(text, 0.5))


@pytest.mark.parametrize("text", ["A8", "OK", "\u738b", "000", "1111", "8", "V\u5143", "||", "\u2764"])
def test_what_drawings_are_read_as_does_not_count(text: str) -> None:
    assert not counts(word(text, 0.94))


@given(st.text(min_size=3), st.floats(0, 1))
def test_three_letters_always_count(text: str, score: float) -> None:
    if sum(letter.isalpha() for letter in text) >= 3:
        assert counts(word(text, score))


@pytest.mark.parametrize("text", ["\u56de\u56de", "\u56de", "\u56de\u56d7\u56de", "\u53e3 \u53e3"])
def test_the_corners_of_a_code_are_no_text(text: str) -> None:
    assert not counts(word(text, 1.0))


@pytest.mark.parametrize("text", ["\u51fa\u53e3", "\u4eba\u53e3", "\u56de\u5bb6", "\u53e3\u7ea2"])
def test_words_with_such_a_sign_are(text: str) -> None:
    assert counts(word(text, 0.96))


def test_readings_of_one_word_become_one() -> None:
    tiles = [word("SALE", 0.9, (10, 10, 50, 20)), word("SALE", 0.8, (11, 10, 51, 21)), word("SAL", 0.99, (10, 10, 40, 20))]
    assert merged(tiles) == [word("SALE", 0.99, (10, 10, 51, 21))]


def test_a_word_that_was_cut_is_put_together() -> None:
    left, right = word("WATERMA", 0.9, (10, 10, 80, 20)), word("ERMARK", 0.95, (40, 10, 100, 20))
    assert merged([right, left]) == [word("WATERMARK", 0.95, (10, 10, 100, 20))]


def test_readings_that_share_no_letters_both_stay() -> None:
    assert {w.text for w in merged([word("SALE"), word("7")])} == {"SALE", "7"}


def test_words_are_in_reading_order() -> None:
    lines = [word("c", box=(0, 30, 9, 40)), word("b", box=(20, 1, 29, 11)), word("a", box=(0, 0, 9, 10))]
    assert [w.text for w in merged(lines)] == ["a", "b", "c"]


boxes = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 20), st.integers(1, 20))
words = st.builds(
    lambda text, score, at: word(text, score, (at[0], at[1], at[0] + at[2], at[1] + at[3])),
    st.text(alphabet="abc12", min_size=1, max_size=6),
    st.floats(0, 1),
    boxes,
)


@given(st.lists(words, max_size=8))
def test_merging_loses_no_sign_and_no_score(found: list[Word]) -> None:
    kept = merged(found)
    assert all(any(one.text in other.text for other in kept) for one in found)
    assert max((w.score for w in kept), default=0) == max((w.score for w in found), default=0)
    assert any(counts(w) for w in kept) >= any(counts(w) for w in found if sum(map(str.isalpha, w.text)) >= 3)
    for one in found:
        assert any(k.box[0] <= one.box[0] and k.box[2] >= one.box[2] for k in kept)
