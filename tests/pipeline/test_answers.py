"""What a guard answers is held against what guards promise, and a guard cannot change the pictures that it is shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from guards.base import Finding
from pipeline.looking.study import Failed, Looker, Study, each_study

GOOD = Finding(guard="own", version="1", category="own.a", score=0.1, threshold=0.5)
OTHER = replace(GOOD, category="own.b")


class Own:
    """A guard of another package, which answers as a test wants it."""

    name, version, categories = "own", "1", ("own.a", "own.b")

    def __init__(self, answer: Callable[[np.ndarray], Any]) -> None:
        self.answer = answer

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        return self.answer(pictures)  # type: ignore[no-any-return]


def looks(answer: Callable[[np.ndarray], Any], values: tuple[int, ...] = (1, 2)) -> list[Study | Failed]:
    """Looks at pictures of one grey each, in one process, as a run without processes beside it does."""

    def decode(latents: Any) -> np.ndarray:
        return np.stack([np.full((4, 4, 3), int(latent[0, 0, 0]), np.uint8) for latent in latents])

    looker = Looker(decode, None, [Own(answer)])
    return each_study(looker, [np.full((4, 2, 2), value, np.float32) for value in values], [()] * len(values))


def a_finding(**changes: Any) -> Callable[[np.ndarray], Any]:
    return lambda pictures: [[replace(GOOD, **changes), OTHER] for _ in pictures]


def test_a_right_answer_is_taken_as_it_is() -> None:
    right = [GOOD, replace(GOOD, score=1.0, box=(0.0, 0.0, 1.0, 0.5), detail="é"), OTHER]  # two of one category may be
    found = looks(lambda pictures: [right for _ in pictures])
    assert [one.findings for one in found if isinstance(one, Study)] == [tuple(right)] * 2


WRONG = {
    "nothing": (lambda pictures: [[] for _ in pictures], "no finding of own.a, own.b"),
    "a category less": (lambda pictures: [[GOOD] for _ in pictures], "no finding of own.b"),
    "a category that is not declared": (a_finding(category="own.c"), "and the guard declares own.a, own.b"),
    "the name of another guard": (a_finding(guard="text"), "names the guard 'text'"),
    "another version": (a_finding(version="2"), "names the version '2'"),
    "half of a surrogate pair": (a_finding(detail="a\ud800"), "text that is not Unicode"),
    "bytes for text": (a_finding(detail=b"a"), "something else than text"),
    "confirmed by a word": (a_finding(confirmed="no"), "neither true nor false"),
    "half a box": (a_finding(box=(0, 1)), "not x0, y0, x1, y1"),
    "a box of words": (a_finding(box="abcd"), "not x0, y0, x1, y1"),
    "a box of pixels": (a_finding(box=(0, 0, 64, 64)), "as fractions of the picture"),
    "a box turned round": (a_finding(box=(0.5, 0.5, 0.2, 0.9)), "as fractions of the picture"),
    "a box of no numbers": (a_finding(box=(0, 0, float("nan"), 1)), "as fractions of the picture"),
    "a book as detail": (a_finding(detail="x" * 20_000), "a finding's detail has 20,000 signs"),
    "findings without end": (lambda pictures: [[GOOD] * 2000 for _ in pictures], "2,000 findings for a picture"),
    "no list": (lambda pictures: None, "NoneType for 1 pictures"),
    "one list too few": (lambda pictures: [[GOOD, OTHER] for _ in pictures[1:]], "0 lists for 1 pictures"),
    "dictionaries": (lambda pictures: [[{"score": 0.1}] for _ in pictures], "something else than a list of findings"),
    "an exit": (lambda pictures: sys.exit(3), "wants to end the process (3)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_answer_is_the_guards_error(kind: str) -> None:
    answer, message = WRONG[kind]
    for found in looks(answer):
        assert isinstance(found, Failed)
        assert found.error_class == "WrongAnswer" and found.message.startswith("guard own: ")
        assert message in found.message and "check_guard" in found.message


def test_a_wrong_answer_about_one_picture_ends_that_one_alone() -> None:
    found = looks(lambda pictures: [[GOOD, OTHER] if picture[0, 0, 0] == 1 else [GOOD] for picture in pictures])
    assert [type(one) for one in found] == [Study, Failed]


def test_a_guard_that_writes_into_its_pictures_fails() -> None:
    def writes(pictures: np.ndarray) -> Any:
        pictures[...] = 255 - pictures

    for found in looks(writes):
        assert isinstance(found, Failed) and "read-only" in found.message


def test_what_a_guard_makes_writable_is_its_own_copy() -> None:
    def forces(pictures: np.ndarray) -> Any:
        pictures.setflags(write=True)
        pictures[...] = 255 - pictures
        return [[GOOD, OTHER] for _ in pictures]

    assert [int(one.picture[0, 0, 0]) for one in looks(forces) if isinstance(one, Study)] == [1, 2]
