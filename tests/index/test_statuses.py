"""A claimed work is protected, even where another source calls it free, in any order and through any command."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path

import pytest

from index import storage
from index.errors import IndexMismatch, InputError
from index.fingerprint import content_digest
from index.intake import Conflict
from index.reference import NewReference, the_id
from index.store import ReferenceIndex

from .conftest import GridEmbedder, drawing, work

CLAIM = {"title": "Claimed cat", "rights_basis": "claim", "claim_id": "C-17", "origin": "b_claim.png", "keep_picture": False}
STOCK = {"title": "Stock cat", "rights_basis": "licensed", "origin": "a_stock.png", "keep_picture": False}
REF = content_digest(drawing(1))[:16]


def named(status: str, **columns: object) -> NewReference:
    return NewReference(picture=drawing(1), status=status, **columns)  # type: ignore[arg-type]


def found(index: ReferenceIndex, embedder: GridEmbedder) -> bool:
    return REF in [match.ref_id for match in index.search(embedder.images(drawing(1)[None]), 5)[0]]


class Waiting(storage.Disk):
    """A disk on which the pointer is about to move, until it may."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def replace(self, old: str, new: str, *, at: int) -> None:
        if new == "CURRENT":
            self.reached.set()
            assert self.go_on.wait(20)
        super().replace(old, new, at=at)


CHANGES: dict[str, Callable[[ReferenceIndex, str], object]] = {
    "retire": lambda index, ref_id: index.retire([ref_id]),
    "set_status": lambda index, ref_id: index.set_status(ref_id, "retired"),
}


@pytest.mark.parametrize("second", CHANGES)
@pytest.mark.parametrize("first", CHANGES)
def test_of_two_changes_at_once_none_is_lost(tmp_path: Path, embedder: GridEmbedder, first: str, second: str) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [work(n) for n in range(3)], embedder)
    one, other, _ = index.ids()
    late, disk = ReferenceIndex.open(tmp_path / "i"), Waiting()
    with storage.using(disk):
        changing = threading.Thread(target=copy_context().run, args=(CHANGES[first], index, one))
        changing.start()
    try:
        assert disk.reached.wait(20)
        with pytest.raises(IndexMismatch, match="another process is changing this index"):
            CHANGES[second](late, other)
    finally:
        disk.go_on.set()
        changing.join()
    with pytest.raises(IndexMismatch, match="changed on disk since it was opened"):
        CHANGES[second](late, one)
    now = ReferenceIndex.open(tmp_path / "i")
    assert {reference.ref_id for reference in now.references() if reference.status == "retired"} == {one}


def test_a_change_of_an_index_that_is_gone_is_a_sentence(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [work(0)], embedder)
    (tmp_path / "i").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="cannot be opened"):
        index.retire([*index.ids()])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_in_one_build_the_claim_counts(tmp_path: Path, embedder: GridEmbedder, order: tuple[int, int]) -> None:
    both = [named("allowed", **STOCK), named("active", **CLAIM)]
    index = ReferenceIndex.build(tmp_path / "i", [both[place] for place in order], embedder)
    [reference] = index.references()
    assert (reference.status, reference.title, reference.claim_id) == ("active", "Claimed cat", "C-17")
    assert found(index, embedder)
    [conflict] = index.taken.conflicts
    assert conflict.kept == "active"
    assert {conflict.stated, conflict.before} == {"active", "allowed"}


@pytest.mark.parametrize(
    ("first", "then", "kept"),
    [("allowed", "active", "active"), ("active", "allowed", "active"), ("allowed", "disputed", "disputed"),
     ("disputed", "allowed", "disputed"), ("disputed", "active", "active"), ("allowed", "allowed", "allowed")],
)  # fmt: skip
def test_a_later_addition_can_make_it_stricter_only(
    tmp_path: Path, embedder: GridEmbedder, first: str, then: str, kept: str
) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [named(first, **STOCK), work(2)], embedder)
    index.add([named(then, **CLAIM)], embedder)
    for seen in (index, ReferenceIndex.open(tmp_path / "i")):
        [reference] = [r for r in seen.references() if r.ref_id == REF]
        assert reference.status == kept
        assert found(seen, embedder) is (kept != "allowed")
    assert index.taken.conflicts == ([Conflict(REF, "b_claim.png", then, first)] if first != then else [])
    index.verify()


def test_two_steps_give_the_statuses_of_one_build(tmp_path: Path, embedder: GridEmbedder) -> None:
    both = [named("allowed", **STOCK), named("active", **CLAIM)]
    at_once = ReferenceIndex.build(tmp_path / "a", both, embedder)
    in_steps = ReferenceIndex.build(tmp_path / "b", both[:1], embedder)
    in_steps.add(both[1:], embedder)
    assert in_steps.index_id == at_once.index_id


def test_what_became_stricter_is_in_the_history(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [named("allowed", **STOCK)], embedder)
    index.add([named("active", **CLAIM)], embedder)
    assert index.history()[-1]["reason"] == f"stricter now: {REF} allowed → active"
    assert index.history()[-1]["ref_ids"] == [REF]


def test_a_status_can_be_corrected_and_set_back(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [named("active", **CLAIM), work(2)], embedder)
    before = index.index_id
    assert index.set_status(REF, "allowed", "licence bought") == "active"
    reopened = ReferenceIndex.open(tmp_path / "i")
    assert not found(reopened, embedder)
    assert reopened.index_id != before
    assert {k: reopened.history()[-1][k] for k in ("event", "change", "reason", "ref_ids")} == {
        "event": "status", "change": "active → allowed", "reason": "licence bought", "ref_ids": [REF],
    }  # fmt: skip
    reopened.verify()
    assert reopened.set_status(REF, "active", "a mistake") == "allowed"
    assert reopened.index_id == before
    assert found(reopened, embedder)
    assert len(reopened.history()) == 3


def test_a_retired_reference_can_be_set_active_again(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [named("active", **CLAIM)], embedder)
    before = index.index_id
    index.set_status(REF, "retired", "claim withdrawn")
    assert not found(index, embedder)
    assert index.references()[0].retired_at is not None
    index.set_status(REF, "active", "claim renewed")
    assert index.index_id == before
    assert found(index, embedder)


def test_a_retired_work_that_is_claimed_again_matches(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [named("allowed", **STOCK)], embedder)
    index.retire([REF])
    index.add([named("active", **CLAIM)], embedder)
    assert found(index, embedder)
    assert index.references()[0].claim_id == "C-17"


def test_setting_the_same_status_changes_nothing(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [named("active", **CLAIM)], embedder)
    assert index.set_status(REF, "active") == "active"
    assert len(index.history()) == 1


@pytest.mark.parametrize("status", ["Active", "", "free"])
def test_an_unknown_status_is_refused(tmp_path: Path, embedder: GridEmbedder, status: str) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [named("active", **CLAIM)], embedder)
    with pytest.raises(InputError, match="status is") as refused:
        index.set_status(REF, status)
    assert "active, disputed, allowed, retired" in refused.value.fix


def test_amendments_outlive_a_merge_of_segments(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [named("allowed", **STOCK)], embedder)
    index.set_status(REF, "disputed", "a claim came in")
    for seed in range(10, 20):
        index.add([work(seed)], embedder)
    [reference] = [r for r in ReferenceIndex.open(tmp_path / "i").references() if r.ref_id == REF]
    assert reference.status == "disputed"
    ReferenceIndex.open(tmp_path / "i").verify()


def test_a_picture_is_kept_only_if_the_work_in_force_allows_it(tmp_path: Path, embedder: GridEmbedder) -> None:
    kept, not_kept = {**STOCK, "keep_picture": True}, CLAIM
    index = ReferenceIndex.build(tmp_path / "i", [named("allowed", **kept), named("active", **not_kept)], embedder)
    assert index.picture(REF) is None
    other = ReferenceIndex.build(tmp_path / "j", [named("allowed", **not_kept), named("active", **kept)], embedder)
    assert other.picture(REF) is not None


@pytest.mark.parametrize(
    ("first", "then", "not_kept", "still_kept"),
    [
        (("active", False), [("active", True)], [REF], []),
        (("active", True), [("active", False)], [], []),  # the first work is in force, as in one build
        (("allowed", True), [("active", False)], [], [REF]),
        (("allowed", False), [("active", True)], [REF], []),
        (("allowed", True), [("active", True)], [], []),
        (("allowed", True), [("disputed", True), ("active", False), ("allowed", True)], [], [REF]),
        (("allowed", True), [("disputed", False), ("active", True)], [], []),
    ],
)
def test_an_addition_leaves_pictures_as_they_are_and_says_so(
    tmp_path: Path, embedder: GridEmbedder, first: tuple[str, bool], then: list[tuple[str, bool]], not_kept: list[str],
    still_kept: list[str],
) -> None:  # fmt: skip
    index = ReferenceIndex.build(tmp_path / "i", [named(first[0], title="a", keep_picture=first[1])], embedder)
    index.add([named(status, title="b", keep_picture=keep) for status, keep in then], embedder)
    assert (index.taken.not_kept, index.taken.still_kept) == (not_kept, still_kept)
    assert index.keeps(REF) is first[1]


def test_an_id_can_be_shortened_as_long_as_it_is_one_alone(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [work(1), work(2)], embedder)
    assert index.full_id(REF[:6]) == index.full_id(REF[:4].upper()) == index.full_id(REF) == REF
    with pytest.raises(InputError, match="too short"):
        index.full_id(REF[:3])
    with pytest.raises(InputError, match="no such reference"):
        index.full_id("zzzz")


def test_a_beginning_that_several_share_is_refused() -> None:
    with pytest.raises(InputError, match="beginning of 2 ids"):
        the_id("0123", ["0123aaaa", "0123bbbb", REF], where="index")
