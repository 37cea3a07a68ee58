"""The reference index: its life on disk, its identity, its searches, and what it refuses."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from index import ann
from index.collect import read_references
from index.errors import IndexMismatch, InputError, IntegrityError
from index.fingerprint import content_digest
from index.inverted import Inverted
from index.reference import NewReference
from index.segment import FILES
from index.set_hash import SetHash
from index.store import MAX_SEGMENTS, ReferenceIndex

from .conftest import GridEmbedder, drawing, work


def build(folder: Path, seeds: list[int], embedder: GridEmbedder, **settings: int) -> ReferenceIndex:
    return ReferenceIndex.build(folder, [work(seed) for seed in seeds], embedder, **settings)


def near(index: ReferenceIndex, embedder: GridEmbedder, seed: int, k: int = 3) -> list[tuple[str, float]]:
    [matches] = index.search(embedder.images(drawing(seed)[None]), k)
    return [(match.title, match.similarity) for match in matches]


# --- life ----------------------------------------------------------------------------------------------------------


def test_one_reference_can_be_read_alone(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = build(tmp_path / "i", [1, 2, 3], embedder)
    (query,) = embedder.images(drawing(7)[None])
    for match in index.search(query[None], 3)[0]:
        assert index.compare(query, match.ref_id) == match
    with pytest.raises(InputError):
        index.compare(query, "0" * 16)


def test_what_was_built_is_found_again(tmp_path: Path, embedder: GridEmbedder) -> None:
    built = build(tmp_path / "i", list(range(12)), embedder)
    index = ReferenceIndex.open(tmp_path / "i", embedder.embedder_id)
    assert index.index_id == built.index_id and len(index) == 12 and index.dim == 48
    for seed in range(12):
        title, cosine = near(index, embedder, seed)[0]
        assert title == f"work {seed}" and cosine == pytest.approx(1, abs=1e-6)
    [reference] = [r for r in index.references() if r.title == "work 3"]
    assert reference.content_sha256 == content_digest(drawing(3)) and reference.ref_id == reference.content_sha256[:16]
    assert len(reference.pdq) == 64 and reference.added_at > 0 and reference.status == "active"
    kept = index.picture(reference.ref_id)
    assert kept is not None and np.array_equal(kept, drawing(3))
    assert np.array_equal(index.embedding(reference.ref_id), embedder.images(drawing(3)[None])[0])
    index.verify()


def test_matches_are_exact_ordered_and_independent_of_their_neighbours(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = build(tmp_path / "i", list(range(40)), embedder)
    queries = embedder.images(np.stack([drawing(seed) for seed in range(100, 130)]))
    together = index.search(queries, 7)
    vectors = {r.ref_id: index.embedding(r.ref_id).astype(np.float64) for r in index.references()}
    for query, matches in zip(queries, together, strict=True):
        exact = sorted(((-float(np.sum(v * query.astype(np.float64))), ref_id) for ref_id, v in vectors.items()))[:7]
        assert [(m.ref_id, m.similarity) for m in matches] == [(ref_id, -minus) for minus, ref_id in exact]
        assert index.search(query[None], 7) == [matches]


def test_an_empty_index_finds_nothing(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [], embedder)
    assert index.search(embedder.images(drawing(1)[None]), 3) == [[]] and index.references() == []
    reopened = ReferenceIndex.open(tmp_path / "i", embedder.embedder_id)
    reopened.verify()
    reopened.add([work(1)], embedder)
    assert near(reopened, embedder, 1)[0][0] == "work 1"


def test_a_retired_reference_matches_no_more_and_stays_on_record(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = build(tmp_path / "i", [1, 2, 3], embedder)
    before, ref_id = index.index_id, content_digest(drawing(2))[:16]
    index.retire([ref_id], reason="claim withdrawn")
    assert index.index_id != before
    for seen in (index, ReferenceIndex.open(tmp_path / "i")):
        assert {title for title, _ in near(seen, embedder, 2, k=5)} == {"work 1", "work 3"}
        [reference] = [r for r in seen.references() if r.ref_id == ref_id]
        assert reference.status == "retired" and reference.retired_at is not None
        assert seen.history()[-1]["reason"] == "claim withdrawn" and seen.history()[-1]["ref_ids"] == [ref_id]
    after = index.index_id
    index.retire([ref_id])
    assert index.index_id == after and len(index.history()) == 2
    index.add([work(2)], embedder)
    assert index.index_id == before and near(index, embedder, 2)[0][0] == "work 2"


def test_retiring_an_unknown_reference_retires_nothing(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = build(tmp_path / "i", [1, 2], embedder)
    before = index.index_id
    with pytest.raises(InputError, match="no such reference"):
        index.retire([content_digest(drawing(1))[:16], "0" * 16])
    assert index.index_id == before and all(r.status == "active" for r in index.references())


@pytest.mark.parametrize("ref_id", [content_digest(drawing(1)), "f" * 17, "f" * 40, "9" * 5000])
def test_more_digits_than_an_id_has_are_no_id(tmp_path: Path, embedder: GridEmbedder, ref_id: str) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [work(1)], embedder)
    assert not index.has([ref_id]).any() and index.get(ref_id) is None
    with pytest.raises(InputError, match="no such reference"):
        index.retire([ref_id])


@pytest.mark.parametrize(("status", "found"), [("allowed", False), ("disputed", True)])
def test_allowed_references_are_kept_but_do_not_match(tmp_path: Path, embedder: GridEmbedder, status: str, found: bool) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [work(1, status=status), work(2)], embedder)
    assert ("work 1" in [title for title, _ in near(index, embedder, 1)]) is found
    assert {r.status for r in index.references()} == {status, "active"}


def test_a_picture_that_may_not_be_kept_is_not_kept(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [work(1, keep_picture=False)], embedder)
    assert index.picture(content_digest(drawing(1))[:16]) is None
    assert near(index, embedder, 1)[0][1] == pytest.approx(1, abs=1e-6)
    index.verify()


# --- identity ------------------------------------------------------------------------------------------------------


def test_the_id_is_the_content_not_the_way_it_was_stored(tmp_path: Path, embedder: GridEmbedder) -> None:
    at_once = build(tmp_path / "a", [1, 2, 3, 4], embedder)
    in_steps = build(tmp_path / "b", [4, 2], embedder)
    smaller = in_steps.index_id
    in_steps.add([work(3), work(1)], embedder)
    assert at_once.index_id == in_steps.index_id != smaller
    assert build(tmp_path / "c", [1, 2, 3], embedder).index_id != at_once.index_id
    assert build(tmp_path / "d", [1, 2, 3, 4], GridEmbedder("grid-2")).index_id != at_once.index_id
    retitled = ReferenceIndex.build(tmp_path / "e", [work(s, licence="MIT") for s in (1, 2, 3, 4)], embedder)
    assert retitled.index_id != at_once.index_id


def test_identical_pictures_are_one_reference(tmp_path: Path, embedder: GridEmbedder) -> None:
    twice = NewReference(title="another title", picture=drawing(1), keep_picture=True)
    index = ReferenceIndex.build(tmp_path / "i", [work(1), twice, work(2)], embedder)
    assert [r.title for r in index.references() if r.content_sha256 == content_digest(drawing(1))] == ["work 1"]
    before = index.index_id
    assert index.add([twice], embedder) == [content_digest(drawing(1))[:16]]
    assert index.index_id == before and len(index) == 2


def test_many_small_additions_are_merged_without_changing_the_content(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = build(tmp_path / "i", [0], embedder)
    for seed in range(1, MAX_SEGMENTS + 2):
        index.add([work(seed)], embedder)
    snapshot = json.loads(
        (tmp_path / "i" / "snapshots" / f"{(tmp_path / 'i' / 'CURRENT').read_text().strip()}.json").read_text()
    )
    assert len(snapshot["segments"]) == 2
    assert index.index_id == build(tmp_path / "j", list(range(MAX_SEGMENTS + 2)), embedder).index_id
    assert [near(index, embedder, seed)[0][0] for seed in range(10)] == [f"work {seed}" for seed in range(10)]
    assert all(r.added_at > 0 for r in index.references())
    index.verify()


# --- refusals ------------------------------------------------------------------------------------------------------


def test_another_embedder_is_refused_and_both_are_named(tmp_path: Path, embedder: GridEmbedder) -> None:
    build(tmp_path / "i", [1], embedder)
    with pytest.raises(IndexMismatch, match=r"grid-1.*other-7"):
        ReferenceIndex.open(tmp_path / "i", "other-7")
    with pytest.raises(IndexMismatch, match=r"grid-1.*other-7"):
        ReferenceIndex.open(tmp_path / "i").add([work(2)], GridEmbedder("other-7"))
    with pytest.raises(IndexMismatch, match="48 dimensions"):
        ReferenceIndex.open(tmp_path / "i").search(np.zeros((1, 12), np.float32), 1)


def test_vectors_that_are_not_finite_are_refused(
    tmp_path: Path, embedder: GridEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are near to nothing: such a picture would pass as unlike everything, such a reference would protect nothing."""
    index = build(tmp_path / "i", [1], embedder)
    nothing = np.full((1, 48), np.nan, np.float32)
    with pytest.raises(InputError, match="not finite"):
        index.search(nothing, 1)
    monkeypatch.setattr(embedder, "images", lambda pictures: nothing)
    with pytest.raises(InputError, match=r"work 2.*not finite"):
        index.add([work(2)], embedder)
    assert len(ReferenceIndex.open(tmp_path / "i")) == 1


def test_any_changed_byte_is_found_and_its_file_named(tmp_path: Path, embedder: GridEmbedder) -> None:
    build(tmp_path / "i", [1, 2, 3], embedder)
    for path in sorted(p for p in (tmp_path / "i").rglob("*") if p.is_file()):
        if path.name == "CURRENT" or (path.stem not in (tmp_path / "i" / "CURRENT").read_text() and path.suffix == ".json"):
            continue
        content = path.read_bytes()
        for at in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            with pytest.raises(IntegrityError) as refused:
                ReferenceIndex.open(tmp_path / "i")
            assert str(path) in str(refused.value)
        path.unlink()
        with pytest.raises(IntegrityError):
            ReferenceIndex.open(tmp_path / "i")
        path.write_bytes(content)
    ReferenceIndex.open(tmp_path / "i").verify()


def test_a_change_under_an_open_index_is_found_by_verify(tmp_path: Path, embedder: GridEmbedder) -> None:
    index = build(tmp_path / "i", [1, 2], embedder)
    [path] = (tmp_path / "i").rglob("vectors.faiss")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"vectors\.faiss"):
        index.verify()


def test_digests_that_were_recomputed_do_not_hide_a_swapped_picture(tmp_path: Path, embedder: GridEmbedder) -> None:
    """Whoever rewrites files and their digests still has to keep picture, row and index id consistent."""
    index = build(tmp_path / "i", [1], embedder)
    build(tmp_path / "j", [2], embedder)
    ours, theirs = (next((tmp_path / n / "segments").iterdir()) for n in ("i", "j"))
    for name in FILES:
        (ours / name).write_bytes((theirs / name).read_bytes())
    current = tmp_path / "i" / "CURRENT"
    snapshot = json.loads((tmp_path / "i" / "snapshots" / f"{current.read_text().strip()}.json").read_text())
    snapshot["segments"][0]["files"] = {n: hashlib.sha256((ours / n).read_bytes()).hexdigest() for n in FILES}
    sums = SetHash().add([(theirs / "digests.bin").read_bytes()]).hex()
    snapshot["set_hash"] = snapshot["segments"][0]["set_hash"] = sums
    content = json.dumps(snapshot).encode()
    (tmp_path / "i" / "snapshots" / f"{hashlib.sha256(content).hexdigest()}.json").write_bytes(content)
    current.write_text(hashlib.sha256(content).hexdigest())
    with pytest.raises(IntegrityError, match=r"names index-.*its content is index-"):
        index.verify()


def test_two_writers_do_not_overwrite_each_other(tmp_path: Path, embedder: GridEmbedder) -> None:
    mine = build(tmp_path / "i", [1], embedder)
    ReferenceIndex.open(tmp_path / "i").add([work(2)], embedder)
    with pytest.raises(IndexMismatch, match="changed on disk"):
        mine.add([work(3)], embedder)
    assert len(ReferenceIndex.open(tmp_path / "i")) == 2


def test_an_index_is_not_built_over_another(tmp_path: Path, embedder: GridEmbedder) -> None:
    build(tmp_path / "i", [1], embedder)
    with pytest.raises(InputError, match="already holds an index"):
        build(tmp_path / "i", [2], embedder)
    with pytest.raises(InputError, match="is not a reference index"):
        ReferenceIndex.open(tmp_path / "nowhere")


def test_a_crash_before_the_pointer_moves_leaves_the_old_index(
    tmp_path: Path, embedder: GridEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    import index.snapshot as snapshot

    index = build(tmp_path / "i", [1], embedder)
    before, write = index.index_id, snapshot.write_whole

    def failing(path: Path, content: bytes) -> None:
        if path.name == "CURRENT":
            raise OSError("disk full")
        write(path, content)

    monkeypatch.setattr(snapshot, "write_whole", failing)
    with pytest.raises(OSError, match="disk full"):
        index.add([work(2)], embedder)
    assert index.index_id == before
    reopened = ReferenceIndex.open(tmp_path / "i")
    assert reopened.index_id == before and len(reopened) == 1


@pytest.mark.parametrize(("said", "match"), [({"rights_basis": "mine"}, "rights_basis"), ({"status": "retired"}, "status")])
def test_unknown_words_are_refused(tmp_path: Path, embedder: GridEmbedder, said: dict[str, str], match: str) -> None:
    with pytest.raises(InputError, match=match):
        ReferenceIndex.build(tmp_path / "i", [work(1, **said)], embedder)
    grey = NewReference(title="grey", picture=np.zeros((8, 8), np.uint8))
    with pytest.raises(InputError, match="uint8"):
        ReferenceIndex.build(tmp_path / "j", [grey], embedder)


# --- large indexes -------------------------------------------------------------------------------------------------


def test_the_approximate_path_agrees_with_brute_force(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ann.write(vectors, tmp_path / "a", flat_limit=100)
    index = ann.mapped(tmp_path / "a")
    assert isinstance(index, Inverted)
    copies = vectors[::10] + 0.03 * rng.normal(size=(300, 32)).astype(np.float32)
    allowed = np.ones(3000, bool)
    allowed[::30] = False
    everything = ann.candidates(index, copies, 3)
    assert all(row in found for row, found in zip(range(0, 3000, 10), everything, strict=True))
    some = ann.candidates(index, copies, 3, ann.bits(allowed))
    assert allowed[some[some >= 0]].all() and all(
        row in found for row, found in zip(range(0, 3000, 10), some, strict=True) if row % 30
    )


def test_the_same_vectors_give_the_same_index(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(900, 16)).astype(np.float32)
    for name in "ab":
        ann.write(vectors, tmp_path / name, flat_limit=100)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_index_over_the_flat_limit_finds_the_same_copies(tmp_path: Path, embedder: GridEmbedder) -> None:
    seeds = list(range(150))
    flat = build(tmp_path / "flat", seeds, embedder)
    large = build(tmp_path / "large", seeds, embedder, flat_limit=50)
    assert large.index_id == flat.index_id
    for index in (flat, large):
        index.retire([content_digest(drawing(seed))[:16] for seed in range(0, 150, 7)])
    noise = np.random.default_rng(0).integers(-9, 10, (40, 64, 64, 3))
    copies = np.stack([np.clip(drawing(s).astype(int) + n, 0, 255) for s, n in zip(range(40), noise, strict=True)])
    queries = embedder.images(copies.astype(np.uint8))
    for wanted, got in zip(flat.search(queries, 1), large.search(queries, 1), strict=True):
        assert wanted == got


# --- reading references --------------------------------------------------------------------------------------------


def save(folder: Path, seeds: list[int]) -> None:
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        Image.fromarray(drawing(seed)).save(folder / f"drawing-{seed}.png")


def sheet(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_plain_folder_of_pictures(tmp_path: Path) -> None:
    save(tmp_path, [1, 2])
    works = read_references(tmp_path)
    assert [(w.title, w.rights_basis, w.keep_picture) for w in works] == [
        ("drawing-1", "claim", False),
        ("drawing-2", "claim", False),
    ]
    assert np.array_equal(works[1].picture, drawing(2))
    assert [w.title for w in read_references(tmp_path / "drawing-2.png")] == ["drawing-2"]


def test_metadata_gives_the_rest(tmp_path: Path) -> None:
    save(tmp_path, [1, 2, 3])
    columns = {"title": "One", "rightsholder": "Ada", "source_uri": "https://example.org/1", "licence": "MIT"}
    blank = dict.fromkeys(columns, "")
    sheet(
        tmp_path,
        [
            {"file": "drawing-1.png", **columns, "rights_basis": "licensed", "keep_picture": ""},
            {"file": "drawing-2.png", **blank, "rights_basis": "", "keep_picture": "yes"},
            {"file": "drawing-3.png", **blank, "rights_basis": "own_mark", "keep_picture": "no"},
        ],
    )
    one, two, three = read_references(tmp_path)
    assert (one.title, one.rightsholder, one.source_uri, one.licence) == tuple(columns.values())
    assert (one.rights_basis, one.keep_picture) == ("licensed", True)
    assert (two.title, two.rights_basis, two.keep_picture) == ("drawing-2", "claim", True)
    assert (three.rights_basis, three.keep_picture) == ("own_mark", False)


def test_every_unreadable_picture_is_named(tmp_path: Path) -> None:
    save(tmp_path, [1])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "half.jpg").write_bytes(b"")
    with pytest.raises(InputError) as refused:
        read_references(tmp_path)
    assert "broken.png" in str(refused.value) and "half.jpg" in str(refused.value) and "2 of 3" in str(refused.value)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"title": "x"}], "no column 'file'"),
        ([{"file": "drawing-1.png", "colour": "x"}], "colour"),
        ([{"file": ""}], "line 2"),
        ([{"file": "missing.png"}], r"missing\.png"),
        ([{"file": "drawing-1.png", "rights_basis": "mine"}], "mine"),
        ([{"file": "drawing-1.png", "keep_picture": "perhaps"}], "perhaps"),
    ],
)
def test_a_bad_sheet_is_refused(tmp_path: Path, rows: list[dict[str, str]], match: str) -> None:
    save(tmp_path, [1])
    sheet(tmp_path, rows)
    with pytest.raises(InputError, match=match):
        read_references(tmp_path)


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no pictures"):
        read_references(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_references(tmp_path / "nowhere")
