"""What a build remembers of works that come as pictures: bytes each, and their texts on disk."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index.errors import IntegrityError
from index.intake import Intake
from index.reference import NewReference
from index.spool import PENDING, TOGETHER, Places, SharedId, Spool
from index.store import ReferenceIndex

from .conftest import GridEmbedder, work

COUNT = int(os.environ.get("CLEARANCE_VECTORS", "6000"))
EMPTY = np.zeros((0, 0, 3), np.uint8)


class Blind(GridEmbedder):
    """An embedder that costs nothing, for works in great number."""

    def images(self, pictures: np.ndarray) -> np.ndarray:
        return np.tile(np.eye(1, self.dim, dtype=np.float32), (len(pictures), 1))


def made_up(count: int) -> Iterator[NewReference]:
    """Works with a picture each that no other has, and texts as long as those of a stock archive."""
    for number in range(count):
        picture = np.frombuffer(number.to_bytes(8, "little") * 6, np.uint8).reshape(4, 4, 3)
        where = f"archive/{number // 1000:04d}/photograph-{number:08d}.jpg"
        yield NewReference(
            title=f"photograph {number}", picture=picture, source_uri=f"https://example.com/{where}", origin=where
        )


def named(number: int, **columns: str) -> NewReference:
    return NewReference(title=f"work {number}", picture=EMPTY, origin=f"file-{number}.png", **columns)  # type: ignore[arg-type]


def digest(number: int, rest: str = "0") -> str:
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}{rest * 48}"


def test_memory_grows_by_some_bytes_a_work(tmp_path: Path) -> None:
    """Each of the second half takes less than 120 bytes, where Python objects took 650. ``CLEARANCE_VECTORS`` sets how many."""
    peaks = {}
    for rows in (64, COUNT // 2, COUNT):  # the first imports what is needed
        intake = Intake(tmp_path / str(rows), Blind(), lambda ref_id: None)
        tracemalloc.start()
        taken = intake.take(made_up(rows))
        tables = sum(table.num_rows for table in intake.tables())
        peaks[rows] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (len(taken.new), tables) == (rows, rows)
    grown = (peaks[COUNT] - peaks[COUNT // 2]) / (COUNT - COUNT // 2)
    print(json.dumps({"works": COUNT, "peaks": peaks, "bytes_each": grown}))
    assert grown < 120


@pytest.mark.parametrize("count", [1, TOGETHER, 2 * TOGETHER + 3])
def test_a_work_is_found_again_with_its_texts(tmp_path: Path, count: int) -> None:
    spool = Spool(tmp_path)
    assert [spool.add(digest(n), named(n, licence=f"L{n}")) for n in range(count)] == [*range(count)]
    for number in {0, count // 2, count - 1}:
        assert spool.find(digest(number)) == number
        assert (spool.place(number), spool.row(number)["licence"]) == (f"file-{number}.png", f"L{number}")
    assert spool.find(digest(count)) is None
    assert spool.several([digest(count - 1), digest(count)]).tolist() == [count - 1, -1]
    assert spool.ids() == [digest(n)[:16] for n in range(count)]


def test_the_stricter_work_takes_the_place_of_the_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for number in range(TOGETHER + 1):
        spool.add(digest(number), named(number, status="allowed"))
    for number in (0, TOGETHER):  # one on disk, one waiting
        spool.replace(number, named(9, status="active"))
        assert (spool.status(number), spool.place(number)) == ("active", "file-9.png")
    assert spool.status(1) == "allowed"


def test_places_are_given_anew_before_and_after_they_are_sorted() -> None:
    places = Places()
    for number in range(PENDING + 10):
        places.put(digest(number), number, new=True)
    for number in (3, PENDING + 3):
        places.put(digest(number), 7 * number, new=False)
        assert places.get(digest(number)) == 7 * number
    assert places.get(digest(4)) == 4


def test_two_digests_with_one_beginning_are_told_apart() -> None:
    places = Places()
    for number in range(PENDING):
        places.put(digest(number), number, new=True)
    with pytest.raises(SharedId):
        places.get(digest(5, rest="1"))


def test_a_build_refuses_two_pictures_that_share_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = iter([digest(5), *(digest(n) for n in range(6, 5 + PENDING)), digest(5, rest="1")])
    monkeypatch.setattr("index.intake.content_digest", lambda picture: next(digests))
    with pytest.raises(IntegrityError, match="two pictures share one reference id"):
        Intake(tmp_path / "i", Blind(), lambda ref_id: None).take(made_up(PENDING + 1))


def test_what_a_stopped_build_wrote_of_its_works_counts_no_more(tmp_path: Path) -> None:
    """Its vectors are used again; titles are those of the source as it is now."""
    embedder = GridEmbedder()

    def stopped() -> Iterator[NewReference]:
        yield from (work(n) for n in range(3))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ReferenceIndex.build(tmp_path / "i", stopped(), embedder)
    index = ReferenceIndex.build(tmp_path / "i", [replace(work(n), title=f"now {n}") for n in range(3)], embedder)
    assert sorted(one.title for one in index.references()) == ["now 0", "now 1", "now 2"]
    assert not (tmp_path / "i" / "building").exists()
