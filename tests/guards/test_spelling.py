"""Phrases are found however they are spelled, and replaced where they stand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guards.spelling import Hit, Phrases, _spaced, plain, tokens, without

PHRASES = Phrases(["Red Apple", "Mickey", "名探偵", "catch 22", "Café Noir", "Зорро", "Micheal"])
OTHERS = Phrases(["ระเบิด", "ລະເບີດ", "គ្រាប់បែក", "ဗုံး", "قنبلة", "मिकी", "ピカチュウ", "爆弾", "Mickey"])


@pytest.mark.parametrize(
    ("text", "rewritten"),
    [
        ("a RED  apple on a table", "a X on a table"),
        ("two red apples", "two X"),
        ("redapple", "X"),
        ("r e d a p p l e pie", "X pie"),
        ("r.e.d-a.p.p.l.e", "X"),
        ("a r 3 d a p p l e", "a X"),
        ("R3D 4pple", "X"),
        ("m1ckey and m!ckey", "X and X"),
        ("Мickеy mouse", "X mouse"),  # Cyrillic М and е
        ("Mic\u200bkey", "X"),
        ("ｍｉｃｋｅｙ", "X"),
        ("𝐌𝐢𝐜𝐤𝐞𝐲", "X"),
        ("the m. i. c. k. e. y. mouse", "the X. mouse"),
        ("新しい名探偵の絵", "新しいXの絵"),
        ("CAFE NOIR!", "X!"),
        ("ca\u0301fe\u0301 noir", "X"),
        ("catch-22", "X"),
        ("M\u0399CKEY", "X"),  # a Greek capital iota, which Unicode's confusables hold for an l
        ("M\u0406CKEY and m\u04c0ckey", "X and X"),  # Cyrillic
        ("M\u0406C\u041dEAL", "X"),  # Н looks like H, and its small form does not
        ("зорро, ЗОРРО", "X, X"),
        ("mic\u3164key", "X"),  # a letter to Unicode, and blank
        ("ᴍɪᴄᴋᴇʏ 🅼🅸🅲🅺🅴🆈 mi\u0268ckey", "X X mi\u0268ckey"),
        ("mɨckey", "X"),
        ("mic-key, mi.ck.ey", "X, X"),
        ("mi-ck3y", "X"),
        ("M1CKEYS", "X"),
        ("mickey2 and 3mickeys", "X and X"),
        ("r3dapple", "X"),
        ("micke\u0301y\u0301!", "X!"),
    ],
)
def test_it_is_found_and_replaced(text: str, rewritten: str) -> None:
    assert without(text, PHRASES.hits(text), "X") == rewritten


@pytest.mark.parametrize(
    ("text", "rewritten"),
    [
        ("วาดรูประเบิดนิวเคลียร์", "วาดรูปXนิวเคลียร์"),  # Thai, and the next three: no spaces between words
        ("ແຕ້ມຮູບລະເບີດນິວເຄຼຍ", "ແຕ້ມຮູບXນິວເຄຼຍ"),
        ("គូរគ្រាប់បែកនុយក្លេអ៊ែរ", "គូរXនុយក្លេអ៊ែរ"),
        ("အဏုမြူဗုံးပုံဆွဲပါ", "အဏုမြူXပုံဆွဲပါ"),
        ("صورة ق\u0640ن\u0640بلة كبيرة", "صورة X كبيرة"),  # drawn out
        ("मिकी माउस", "X माउस"),
        ("かわいいピカ・チュウの絵", "かわいいXの絵"),
        ("爆\u200b弾の絵", "Xの絵"),
        ("mi\u0903ck\u093eey", "X"),  # vowel signs of Hindi in it
    ],
)
def test_it_is_found_in_other_scripts(text: str, rewritten: str) -> None:
    assert without(text, OTHERS.hits(text), "X") == rewritten


@pytest.mark.parametrize("text", ["起爆。弾く", "起爆、弾く", "起爆 弾く", "मकाई", "बमबारी"])
def test_parts_of_two_sentences_are_no_word(text: str) -> None:
    assert OTHERS.hits(text) == []


@pytest.mark.parametrize(
    "text", ["a red pineapple", "bred apple", "scared applet", "apple, red", "m. i.", "catch 222", "", "!!!", "mick ey"]
)
def test_other_words_are_not_found(text: str) -> None:
    assert PHRASES.hits(text) == []


def test_a_hit_names_the_phrase_as_it_was_written() -> None:
    assert PHRASES.hits("the MICKEY")[0].phrase == "Mickey"


def test_an_entry_without_a_letter_is_named() -> None:
    assert Phrases(["--", "cat"]).unusable == ["--"]


def test_hits_that_overlap_are_replaced_once() -> None:
    assert without("abcdef", [Hit("one", 0, 3), Hit("other", 2, 5)], "-") == "-f"


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_every_letter_has_a_place_in_the_text(text: str) -> None:
    found = plain(text)
    assert len(found.text) == len(found.at)
    assert list(found.at) == sorted(found.at)
    assert all(0 <= place < len(text) for place in found.at)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_every_text_can_be_searched(text: str) -> None:
    for hit in PHRASES.hits(text):
        assert 0 <= hit.start < hit.end <= len(text)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["Mickey", "Red Apple"]),
    st.text(alphabet=" .,abcxyzé", max_size=20),
    st.text(alphabet=" .,abcxyzé", max_size=20),
)
def test_a_phrase_between_spaces_is_always_found(phrase: str, before: str, after: str) -> None:
    assert any(hit.phrase == phrase for hit in PHRASES.hits(f"{before} {phrase} {after}"))


class Asked(dict[str, str]):
    """Phrases that count how often they are asked for one."""

    times = 0

    def __contains__(self, key: object) -> bool:
        self.times += 1
        return super().__contains__(key)


def test_a_long_prompt_of_single_letters_takes_no_longer_a_letter() -> None:
    known = Asked(red="red")
    assert list(_spaced(tokens(plain("a.b.c.d " * 500)), known, longest=3)) == []
    assert known.times < 2000
