"""Works go in one by one: full calls, little memory, nothing lost when it is stopped, nothing half in force."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from index import storage
from index.embed import OpenCLIPEmbedder
from index.errors import IndexMismatch, InputError, RunStopped
from index.fingerprint import content_digest
from index.intake import BLOCK
from index.reference import NewReference
from index.store import ReferenceIndex

from .conftest import GridEmbedder, drawing, work


class Counting(GridEmbedder):
    """Remembers how many pictures each call had."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def images(self, pictures: np.ndarray) -> np.ndarray:
        self.calls.append(len(pictures))
        return super().images(pictures)


class Stopped(Exception):
    pass


def stream(seeds: range, stop_at: int | None = None) -> Iterator[NewReference]:
    for seed in seeds:
        if seed == stop_at:
            raise Stopped
        yield work(seed)


def test_pictures_are_embedded_a_block_at_a_time(tmp_path: Path) -> None:
    counting = Counting()
    ReferenceIndex.build(tmp_path / "i", stream(range(2 * BLOCK + 5)), counting)
    assert counting.calls == [BLOCK, BLOCK, 5]


def test_pictures_of_different_sizes_share_calls_where_the_embedder_fits_them() -> None:
    shipped = OpenCLIPEmbedder.open("stickers")
    for side in (40, 64, 90):
        wide = np.tile(drawing(3, side), (1, 2, 1))
        assert np.array_equal(shipped.images(shipped.fitted(wide)[None]), shipped.images(wide[None]))


def test_in_full_calls_every_vector_has_the_bytes_it_has_alone(tmp_path: Path) -> None:
    shipped = OpenCLIPEmbedder.open("stickers")
    works = [
        NewReference(title=str(n), picture=drawing(n, side))
        for n, side in enumerate([64, 64, 48, 64, 100, 64, 64, 64, 64, 70, 64])
    ]
    index = ReferenceIndex.build(tmp_path / "i", works, shipped)
    for item in works:
        alone = shipped.images(item.picture[None])[0]
        assert index.embedding(content_digest(item.picture)[:16]).tobytes() == alone.tobytes()


def test_no_more_than_a_block_of_pictures_is_in_memory(tmp_path: Path, embedder: GridEmbedder) -> None:
    import gc
    import weakref

    living: set[int] = set()
    most = 0

    class Watched(np.ndarray):
        pass

    def counted() -> Iterator[NewReference]:
        nonlocal most
        for seed in range(3 * BLOCK):
            picture = drawing(seed).view(Watched)
            living.add(id(picture))
            weakref.finalize(picture, living.discard, id(picture))
            yield NewReference(title=str(seed), picture=picture, keep_picture=True)
            del picture
            if seed % 16 == 0:
                gc.collect()
            most = max(most, len(living))

    gc.freeze()  # what the tests before left behind is not looked through again and again
    try:
        ReferenceIndex.build(tmp_path / "i", counted(), embedder)
    finally:
        gc.unfreeze()
    assert 0 < most <= BLOCK + 16


def test_a_stopped_build_leaves_no_index_and_is_not_done_twice(tmp_path: Path) -> None:
    first, second, whole = Counting(), Counting(), Counting()
    with pytest.raises(Stopped):
        ReferenceIndex.build(tmp_path / "i", stream(range(3 * BLOCK), stop_at=2 * BLOCK + 3), first)
    with pytest.raises(InputError, match="is not a reference index"):
        ReferenceIndex.open(tmp_path / "i")
    index = ReferenceIndex.build(tmp_path / "i", stream(range(3 * BLOCK)), second)
    assert (sum(first.calls), sum(second.calls)) == (2 * BLOCK, BLOCK)
    assert index.index_id == ReferenceIndex.build(tmp_path / "j", stream(range(3 * BLOCK)), whole).index_id
    assert not (tmp_path / "i" / "building").exists()
    index.verify()


def test_a_stopped_addition_leaves_the_index_as_it_was(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = ReferenceIndex.build(tmp_path / "i", stream(range(3)), embedder)
    before = index.index_id
    with pytest.raises(Stopped):
        index.add(stream(range(100, 200), stop_at=170), embedder)
    assert ReferenceIndex.open(tmp_path / "i").index_id == before
    index.add(stream(range(100, 200)), embedder)
    assert len(ReferenceIndex.open(tmp_path / "i")) == 103


def test_slow_works_are_kept_before_a_block_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from index import intake

    monkeypatch.setattr(intake, "SAVE_EVERY", 0.0)
    first, second = Counting(), Counting()
    with pytest.raises(Stopped):
        ReferenceIndex.build(tmp_path / "i", stream(range(9), stop_at=5), first)
    ReferenceIndex.build(tmp_path / "i", stream(range(9)), second)
    assert (sum(first.calls), sum(second.calls)) == (5, 4)


def test_what_another_embedder_left_is_not_used(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    second.embedder_id = "grid-2"
    with pytest.raises(Stopped):
        ReferenceIndex.build(tmp_path / "i", stream(range(BLOCK + 1), stop_at=BLOCK), first)
    ReferenceIndex.build(tmp_path / "i", stream(range(BLOCK)), second)
    assert sum(second.calls) == BLOCK


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"\x00" * 100])
def test_a_damaged_block_is_made_again(tmp_path: Path, damage: bytes) -> None:
    first, second = Counting(), Counting()
    with pytest.raises(Stopped):
        ReferenceIndex.build(tmp_path / "i", stream(range(BLOCK + 1), stop_at=BLOCK), first)
    [block] = (tmp_path / "i" / "building").iterdir()
    block.write_bytes(damage)
    index = ReferenceIndex.build(tmp_path / "i", stream(range(BLOCK)), second)
    assert sum(second.calls) == BLOCK
    index.verify()


def test_what_lies_elsewhere_is_not_touched(tmp_path: Path, embedder: GridEmbedder) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / f"{'0' * 64}.parquet").write_bytes(b"somebody's data")
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "building").symlink_to("../elsewhere")
    with pytest.raises(InputError, match="is a link"):
        ReferenceIndex.build(tmp_path / "i", [work(1)], embedder)
    assert (tmp_path / "elsewhere" / f"{'0' * 64}.parquet").read_bytes() == b"somebody's data"


def test_files_of_others_in_the_building_folder_stay_until_the_index_is_there(tmp_path: Path, embedder: GridEmbedder) -> None:
    (tmp_path / "i" / "building").mkdir(parents=True)
    (tmp_path / "i" / "building" / "mine.parquet").write_bytes(b"no block")
    with pytest.raises(Stopped):
        ReferenceIndex.build(tmp_path / "i", stream(range(BLOCK + 1), stop_at=BLOCK), embedder)
    assert (tmp_path / "i" / "building" / "mine.parquet").exists()


def test_what_a_killed_build_was_writing_is_removed(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [work(1)], embedder)
    (tmp_path / "i" / "segments" / ".tmp-abc").write_bytes(b"half")
    index.add([work(2)], embedder)
    assert not list((tmp_path / "i" / "segments").glob(".tmp-*"))


def test_pictures_that_may_now_be_kept_are_kept(tmp_path: Path, embedder: GridEmbedder) -> None:
    with pytest.raises(Stopped):
        ReferenceIndex.build(tmp_path / "i", _unkept_then_stop(), embedder)
    index = ReferenceIndex.build(tmp_path / "i", stream(range(BLOCK)), embedder)
    assert [index.picture(ref_id) is not None for ref_id in index.ids()] == [True] * BLOCK


def _unkept_then_stop() -> Iterator[NewReference]:
    for seed in range(BLOCK):
        yield work(seed, keep_picture=False)
    raise Stopped


def test_duplicates_are_named_with_what_they_repeat(tmp_path: Path, embedder: GridEmbedder) -> None:
    works = [work(1, origin="a.png"), work(2, origin="b.png"), work(1, origin="c.png"), work(1, origin="d.png")]
    index = ReferenceIndex.build(tmp_path / "i", works, embedder)
    assert index.taken.duplicates == [("c.png", "a.png"), ("d.png", "a.png")]
    assert len(index.taken.new) == 2
    index.add([work(2, origin="e.png"), work(3, origin="f.png")], embedder)
    assert index.taken.known == [("e.png", content_digest(drawing(2))[:16])]
    assert index.taken.new == [content_digest(drawing(3))[:16]]


def test_a_folder_that_holds_something_else_is_not_taken(tmp_path: Path, embedder: GridEmbedder) -> None:
    (tmp_path / "works").mkdir()
    (tmp_path / "works" / "cat.png").touch()
    with pytest.raises(InputError, match=r"is not empty \(cat\.png\)"):
        ReferenceIndex.build(tmp_path / "works", [work(1)], embedder)
    assert [path.name for path in (tmp_path / "works").iterdir()] == ["cat.png"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path, embedder: GridEmbedder) -> None:
    (tmp_path / "i").touch()
    with pytest.raises(InputError, match="cannot become an index"):
        ReferenceIndex.build(tmp_path / "i", [work(1)], embedder)


def test_two_processes_do_not_change_one_index_at_once(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [work(1)], embedder)
    other = os.open(tmp_path / "i", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(IndexMismatch, match="another process"):
        index.add([work(2)], embedder)
    os.close(other)
    index.add([work(2)], embedder)
    assert len(index) == 2


class Full(storage.Disk):
    """A disk that is full from its n-th file on."""

    def __init__(self, number: int, error: int) -> None:
        self.number, self.error, self.files = number, error, 0

    def fsync(self, handle: int) -> None:
        self.files += 1
        if self.files >= self.number:
            raise OSError(self.error, os.strerror(self.error))


@pytest.mark.parametrize(("error", "what"), [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk quota is used up")])
@pytest.mark.parametrize("number", [1, 2, 4, 7])
def test_a_build_on_a_full_disk_is_a_sentence_and_goes_on(tmp_path: Path, error: int, what: str, number: int) -> None:
    works = [NewReference(title=f"w{one}", picture=drawing(one)) for one in range(3)]
    with storage.using(Full(number, error)), pytest.raises(RunStopped, match=what) as caught:
        ReferenceIndex.build(tmp_path / "i", works, GridEmbedder())
    assert caught.value.where == str(tmp_path / "i") and "then repeat the command" in caught.value.fix
    index = ReferenceIndex.build(tmp_path / "i", works, GridEmbedder())
    assert len(index) == 3
    with storage.using(Full(1, error)), pytest.raises(RunStopped, match=what):
        index.add([NewReference(title="w9", picture=drawing(9))], GridEmbedder())
    assert len(ReferenceIndex.open(tmp_path / "i")) == 3
