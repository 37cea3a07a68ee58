"""Indexes on object stores: built, opened, changed and read by several machines; what is fetched is whole or not there."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import at_uri, journal, storage
from index.errors import IndexMismatch, InputError, IntegrityError
from index.places import schemes
from index.places.cache import cache_folder, local_copy, named_as
from index.places.objects import ObjectStore
from index.places.schemes import backend_of
from index.storage import ObjectFolder
from index.store import ReferenceIndex
from tests.object_stores import Dying, Killed

from .conftest import GridEmbedder, drawing, work


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an empty cache."""
    monkeypatch.setenv("CLEARANCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["memory", "s3"])
def place(request: pytest.FixtureRequest) -> Path:
    return storage.place(request.getfixturevalue(request.param)) / "index"


@pytest.fixture
def in_memory(memory: str) -> Path:
    return storage.place(memory) / "index"


def build(folder: Path, seeds: list[int], embedder: GridEmbedder) -> ReferenceIndex:
    return ReferenceIndex.build(folder, [work(seed) for seed in seeds], embedder)


def best(index: ReferenceIndex, embedder: GridEmbedder, seed: int) -> str:
    return index.search(embedder.images(drawing(seed)[None]), 1)[0][0].title


def another_machine(cache: Path) -> None:
    shutil.rmtree(cache)


def requests(place: Path) -> Counter[str]:
    store = backend_of(place.store)  # type: ignore[attr-defined]
    assert isinstance(store, ObjectStore)
    return store.requests


def test_it_is_the_index_that_a_local_folder_has(place: Path, tmp_path: Path, cache: Path, embedder: GridEmbedder) -> None:
    here = build(tmp_path / "i", list(range(6)), embedder)
    build(place, list(range(6)), embedder)
    another_machine(cache)
    there = ReferenceIndex.open(place, embedder.embedder_id)
    assert there.index_id == here.index_id
    assert [best(there, embedder, seed) for seed in range(6)] == [f"work {seed}" for seed in range(6)]
    kept = there.picture(there.references()[0].ref_id)
    assert kept is not None and np.array_equal(kept, here.picture(here.references()[0].ref_id))
    assert [event["event"] for event in there.history()] == ["built"]
    there.verify()


def test_changes_are_seen_by_another_machine(place: Path, cache: Path, embedder: GridEmbedder) -> None:
    index = build(place, [0, 1, 2], embedder)
    index = ReferenceIndex.open(place)
    index.retire([index.references()[0].ref_id], reason="withdrawn")
    index.add([work(3)], embedder)
    another_machine(cache)
    there = ReferenceIndex.open(place)
    assert there.index_id == index.index_id and len(there) == 4 and there.matching == 3
    assert [event["event"] for event in there.history()] == ["built", "retired", "added"]
    assert best(there, embedder, 3) == "work 3"
    there.verify()


def test_of_two_that_change_it_one_is_refused(place: Path, embedder: GridEmbedder) -> None:
    build(place, [0, 1, 2], embedder)
    one, other = ReferenceIndex.open(place), ReferenceIndex.open(place)
    first, second = (reference.ref_id for reference in one.references()[:2])
    one.retire([first])
    with pytest.raises(IndexMismatch, match="changed"):
        other.retire([second])
    assert ReferenceIndex.open(place).matching == 2


def test_a_pointer_that_moves_while_a_change_is_written_stays(
    in_memory: Path, embedder: GridEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(in_memory, [0, 1, 2], embedder)
    index = ReferenceIndex.open(in_memory)
    before, moved = at_uri.in_force(in_memory), f"{'0' * 64}\n".encode()
    seen = storage.read_tagged(in_memory, "CURRENT")
    assert seen is not None
    storage.write_file(in_memory, "CURRENT", moved)
    with pytest.raises(IndexMismatch, match="another process changed the index"):
        at_uri.publish(in_memory, index.folder, before, {"segments": [], "journal": _last(index)}, before)
    assert storage.read_file(in_memory, "CURRENT") == moved


def _last(index: ReferenceIndex) -> str:
    return next((index.folder / "journal").iterdir()).stem


def test_segments_are_fetched_once(place: Path, cache: Path, embedder: GridEmbedder) -> None:
    build(place, list(range(4)), embedder)
    another_machine(cache)
    ReferenceIndex.open(place)
    count = requests(place)
    count.clear()
    ReferenceIndex.open(place)
    assert dict(count) == {"get": 1}, "the pointer alone"
    changed = ReferenceIndex.open(place)
    changed.retire([changed.references()[0].ref_id])
    count.clear()
    ReferenceIndex.open(place)
    assert dict(count) == {"get": 3}, "the pointer, the snapshot and its leaf"


def test_two_processes_that_fetch_at_once_do_no_harm(place: Path, cache: Path, embedder: GridEmbedder) -> None:
    build(place, list(range(4)), embedder)
    another_machine(cache)
    found: list[str] = []
    begin = threading.Barrier(4)

    def fetch() -> None:
        begin.wait()
        found.append(ReferenceIndex.open(place).index_id)

    threads = [threading.Thread(target=copy_context().run, args=(fetch,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [ReferenceIndex.open(place).index_id] * 4
    assert not list(cache.rglob(f"{storage.TEMPORARY}*"))


@pytest.mark.parametrize("kind", ["snapshots", "segments", "journal"])
def test_a_changed_byte_on_the_store_is_named_and_not_kept(
    in_memory: Path, cache: Path, embedder: GridEmbedder, kind: str
) -> None:
    build(in_memory, [0, 1], embedder)
    another_machine(cache)
    name = kind
    while (entry := storage.entries(in_memory, name)[0]).kind == "folder":
        name = f"{name}/{entry.name}"
    name = f"{name}/{entry.name}"
    whole = storage.read_file(in_memory, name)
    storage.write_file(in_memory, name, bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(IntegrityError, match="recorded sha256") as caught:
        ReferenceIndex.open(in_memory)
    assert caught.value.where == f"{in_memory}/{name}"
    storage.write_file(in_memory, name, whole)
    assert len(ReferenceIndex.open(in_memory)) == 2


def flip(place: Path, name: str) -> None:
    whole = storage.read_file(place, name)
    storage.write_file(place, name, bytes([whole[0] ^ 1]) + whole[1:])


def names_below(place: Path, name: str) -> set[str]:
    found = {f"{name}/{entry.name}": entry.kind for entry in storage.entries(place, name)}
    return {path for path, kind in found.items() if kind == "file"}.union(
        *(names_below(place, path) for path, kind in found.items() if kind == "folder")
    )


@pytest.mark.parametrize("kind", ["snapshots", "segments", "journal"])
def test_the_objects_of_the_store_are_verified_not_their_copies(in_memory: Path, embedder: GridEmbedder, kind: str) -> None:
    build(in_memory, [0, 1], embedder)
    index = ReferenceIndex.open(in_memory)
    for name in names_below(in_memory, kind):
        index.verify()
        flip(in_memory, name)
        with pytest.raises(IntegrityError, match="recorded sha256") as caught:
            index.verify()
        assert caught.value.where == f"{in_memory}/{name}"
        flip(in_memory, name)


@pytest.mark.parametrize("kind", ["snapshots", "segments", "journal"])
def test_what_this_process_has_added_is_verified_too(in_memory: Path, embedder: GridEmbedder, kind: str) -> None:
    build(in_memory, [0, 1], embedder)
    index = ReferenceIndex.open(in_memory)
    before = names_below(in_memory, kind)
    index.add([work(2)], embedder)
    index.verify()
    name = (names_below(in_memory, kind) - before).pop()
    storage.remove(in_memory, name)
    with pytest.raises(IntegrityError, match="is missing") as caught:
        index.verify()
    assert caught.value.where == f"{in_memory}/{name}"


def test_a_change_that_never_came_into_force_is_no_part_of_what_is_verified(in_memory: Path, embedder: GridEmbedder) -> None:
    build(in_memory, [0, 1], embedder)
    index = ReferenceIndex.open(in_memory)
    event = {"at": 1.0, "event": "retired", "ref_ids": [], "reason": "", "index_id": index.index_id}
    leaf = journal.append(index.folder, _last(index), [event])  # it did not reach the store
    assert storage.entry_of(in_memory, f"journal/{leaf}.json") is None
    index.verify()


def test_a_cache_from_which_files_were_purged_is_fetched_again(in_memory: Path, cache: Path, embedder: GridEmbedder) -> None:
    build(in_memory, [0, 1, 2], embedder)
    view = ReferenceIndex.open(in_memory).folder
    for path in [*(cache / "segments").glob("*/*"), *(path for path in view.rglob("*") if path.is_file())]:
        path.unlink()
        assert best(ReferenceIndex.open(in_memory), embedder, 2) == "work 2", path
        assert path.is_file() and not list(cache.rglob(f"{storage.TEMPORARY}*"))


def test_a_view_whose_segment_was_purged_is_fetched_again(in_memory: Path, cache: Path, embedder: GridEmbedder) -> None:
    build(in_memory, [0, 1, 2], embedder)
    ReferenceIndex.open(in_memory)
    shutil.rmtree(cache / "segments")
    assert best(ReferenceIndex.open(in_memory), embedder, 2) == "work 2"


@pytest.mark.parametrize("content", [None, "", "memory://tests/another/index"])
def test_a_change_is_refused_where_the_note_of_the_place_is_lost(
    in_memory: Path, embedder: GridEmbedder, content: str | None
) -> None:
    build(in_memory, [0, 1], embedder)
    index = ReferenceIndex.open(in_memory)
    note = index.folder.parent / "uri"
    note.unlink()
    if content is not None:
        note.write_text(content)
    with pytest.raises(InputError, match=r"cannot be read|names another place") as caught:
        index.retire([index.references()[0].ref_id])
    assert caught.value.where == str(note)
    again = ReferenceIndex.open(in_memory)
    again.retire([again.references()[0].ref_id])
    assert ReferenceIndex.open(in_memory).matching == 1


def test_a_note_that_cannot_be_read_makes_no_local_index(in_memory: Path, embedder: GridEmbedder) -> None:
    build(in_memory, [0], embedder)
    folder = ReferenceIndex.open(in_memory).folder
    (folder.parent / "uri").unlink()
    (folder.parent / "uri").mkdir()
    with pytest.raises(InputError, match="cannot be read, so where the index lies is not known"):
        at_uri.origin(folder)


def test_a_folder_that_is_no_view_has_no_origin(tmp_path: Path, cache: Path) -> None:
    assert at_uri.origin(tmp_path / "index") is None
    assert at_uri.origin(cache / "indexes" / "mine" / "index") is None


def test_what_is_no_index_is_a_sentence(in_memory: Path, embedder: GridEmbedder) -> None:
    with pytest.raises(InputError, match="is not a reference index") as caught:
        ReferenceIndex.open(in_memory)
    assert caught.value.where == str(in_memory)
    storage.write_file(in_memory, "years-of-work.txt", b"x")
    with pytest.raises(InputError, match=r"is not empty \(years-of-work.txt\)"):
        build(in_memory, [0], embedder)


def test_an_index_is_not_built_over_another(in_memory: Path, embedder: GridEmbedder) -> None:
    build(in_memory, [0], embedder)
    with pytest.raises(InputError, match="already holds an index"):
        build(in_memory, [1], embedder)


def test_a_build_that_was_stopped_is_continued(in_memory: Path, embedder: GridEmbedder) -> None:
    def stopping() -> object:
        yield work(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ReferenceIndex.build(in_memory, stopping(), embedder)  # type: ignore[arg-type]
    assert storage.entries(in_memory) == []
    assert len(build(in_memory, [0, 1], embedder)) == 2
    assert len(ReferenceIndex.open(in_memory)) == 2


# --- copies of anything ----------------------------------------------------------------------------------------------------


def test_a_folder_is_copied_once_and_again_when_it_changed(place: Path) -> None:
    storage.write_file(place, "unet/config.json", b"{}")
    storage.write_file(place, "model_index.json", b"1")
    copy = local_copy(place)
    assert copy.name == place.name and (copy / "unet/config.json").read_bytes() == b"{}"
    assert local_copy(place) == copy
    storage.write_file(place, "model_index.json", b"2")
    again = local_copy(place)
    assert again != copy and (again / "model_index.json").read_bytes() == b"2"
    assert (copy / "model_index.json").read_bytes() == b"1", "whoever has it open keeps it"


def test_a_file_is_copied(place: Path) -> None:
    storage.write_file(place, "prompts.csv", b"prompt\ncat\n")
    assert local_copy(place / "prompts.csv").read_bytes() == b"prompt\ncat\n"


def test_a_local_path_is_its_own_copy(tmp_path: Path) -> None:
    assert local_copy(tmp_path / "x") == tmp_path / "x"


def test_a_copy_of_nothing_is_a_sentence(in_memory: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder") as caught:
        local_copy(in_memory / "none")
    assert caught.value.where == f"{in_memory}/none"


def test_a_half_fetched_copy_is_never_used(cache: Path) -> None:
    store, place = Dying("dying://store"), ObjectFolder("dying://store", "model")
    with schemes.using({"dying": lambda _: store}):
        for name in ("a", "b"):
            storage.write_file(place, name, b"x")
        store.revive()
        local_copy(place)
        requests, store.dies_at = store.count, store.count - 1
        shutil.rmtree(cache)
        store.count = 0
        with pytest.raises(Killed):
            local_copy(place)
        assert not list((cache / "copies").iterdir())
        store.revive()
        assert sorted(path.name for path in local_copy(place).iterdir()) == ["a", "b"]
        assert store.count == requests


@pytest.mark.parametrize("purged", ["a", "deep/b"])
def test_a_copy_from_which_a_file_was_purged_is_fetched_again(in_memory: Path, purged: str) -> None:
    storage.write_file(in_memory, "a", b"one")
    storage.write_file(in_memory, "deep/b", b"two")
    copy = local_copy(in_memory)
    (copy / purged).unlink()
    assert local_copy(in_memory) == copy and (copy / "a").read_bytes() + (copy / "deep/b").read_bytes() == b"onetwo"
    (copy / purged).write_bytes(b"x")
    assert local_copy(in_memory) == copy and (copy / "a").read_bytes() + (copy / "deep/b").read_bytes() == b"onetwo"


class Changing(ObjectStore):
    """A store in memory that has another version of everything once one object was read."""

    def __init__(self, root: str) -> None:
        from obstore.store import MemoryStore

        super().__init__(root, MemoryStore())
        self.next: list[str] = []

    def request(self, kind: str, key: str, do: Callable[[], Any], *, writing: bool = False) -> Any:
        done = super().request(kind, key, do, writing=writing)
        while kind == "get" and self.next:
            self.put(self.next.pop(), b"2")
        return done


@pytest.mark.parametrize("changed", ["model/a", "model/b", "model/c"])
def test_a_folder_that_changes_while_it_is_fetched_is_refused(cache: Path, changed: str) -> None:
    store, place = Changing("changing://store"), ObjectFolder("changing://store", "model")
    with schemes.using({"changing": lambda _: store}):
        for name in ("a", "b"):
            storage.write_file(place, name, b"1")
        store.next = [changed]
        with pytest.raises(InputError, match="changed while it was fetched") as caught:
            local_copy(place)
        assert (caught.value.where, caught.value.fix) == (str(place), "Try again")
        assert not list((cache / "copies").iterdir())
        copy = local_copy(place)
        assert (copy / changed.removeprefix("model/")).read_bytes() == b"2"


def test_a_cache_that_cannot_be_written_names_the_way_out(
    in_memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_file(in_memory, "a", b"x")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CLEARANCE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be kept on this machine") as caught:
        local_copy(in_memory)
    assert "CLEARANCE_CACHE" in caught.value.fix and str(cache_folder()) in caught.value.fix


def test_an_error_about_a_copy_names_the_place(in_memory: Path) -> None:
    storage.write_file(in_memory, "policy.toml", b"x")
    place = in_memory / "policy.toml"
    copy = local_copy(place)
    with pytest.raises(InputError) as caught, named_as(place, copy):
        raise InputError("has an unknown key", where=f"{copy}: copies")
    assert caught.value.where == f"{place}: copies" and str(caught.value).startswith(str(place))
