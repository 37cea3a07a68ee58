from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.set_hash import SetHash

MEMBERS = st.lists(st.binary(min_size=32, max_size=32), unique=True, max_size=8)


@given(MEMBERS, st.randoms())
def test_the_order_does_not_matter(members: list[bytes], random: object) -> None:
    shuffled = list(members)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert SetHash().add(members).hex() == SetHash().add(shuffled).hex()


@given(MEMBERS, MEMBERS)
def test_what_is_taken_out_was_never_in(stay: list[bytes], go: list[bytes]) -> None:
    assert SetHash().add(stay).add(go).remove(go).hex() == SetHash().add(stay).hex()


@given(MEMBERS, MEMBERS)
def test_parts_are_joined(one: list[bytes], other: list[bytes]) -> None:
    assert SetHash().add(one).join(SetHash().add(other)).hex() == SetHash().add(one + other).hex()


def test_another_member_gives_another_hash() -> None:
    found = {SetHash().add([hashlib.sha256(bytes([n])).digest()]).hex() for n in range(200)}
    assert len(found) == 200


def test_it_goes_through_text() -> None:
    sums = SetHash().add([b"a" * 32])
    assert SetHash(sums.hex()).add([b"b" * 32]).hex() == SetHash().add([b"b" * 32, b"a" * 32]).hex()


def test_a_text_that_is_no_hash_is_refused() -> None:
    with pytest.raises(ValueError, match="2048 bytes"):
        SetHash("00")
