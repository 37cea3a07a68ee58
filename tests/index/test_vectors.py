"""Vectors made elsewhere: what they are held against, what becomes of them, how little memory they take."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from index import vectors as module
from index.collect import Reading
from index.errors import IndexMismatch, InputError, IntegrityError
from index.store import ReferenceIndex
from index.vectors import StoredVectors, holds_vectors

from .conftest import GridEmbedder, drawing, work

DIM = GridEmbedder.dim


def stored(path: Path, count: int, *, seed: int = 0, kind: str = "<f4") -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(count, DIM)).astype(kind)
    np.save(path, made)
    return made


def sheet(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def build(folder: Path, source: Path, how: Reading | None = None) -> ReferenceIndex:
    return ReferenceIndex.build_of_vectors(folder, StoredVectors(source, DIM, how), GridEmbedder())


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    """An index of it would protect nothing, and every picture would pass."""
    stored(tmp_path / "a.npy", 0)
    (tmp_path / "a.csv").write_text("file,title\n")
    with pytest.raises(InputError, match="holds no vectors"):
        build(tmp_path / "index", tmp_path / "a.npy")
    assert not (tmp_path / "index" / "CURRENT").exists()


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_a_sheet_beside_vectors_may_have_any_of_the_usual_signs(tmp_path: Path, sign: str) -> None:
    """With a semicolon all of it was one unknown column, and every status active."""
    stored(tmp_path / "v.npy", 2)
    (tmp_path / "v.csv").write_text(f"title{sign}status\nCat{sign} allowed \nOwl{sign}disputed\n")
    index = build(tmp_path / "i", tmp_path / "v.npy")
    assert sorted((one.title, one.status) for one in index.references()) == [("Cat", "allowed"), ("Owl", "disputed")]


@pytest.mark.parametrize(("header", "what"), [("Title,url", "did you mean 'title'"), ("caption,url", "has no column 'name'")])
def test_a_column_beside_vectors_that_is_misspelt_or_missing_is_refused(tmp_path: Path, header: str, what: str) -> None:
    stored(tmp_path / "v.npy", 1)
    (tmp_path / "v.csv").write_text(f"{header}\nCat,x\n")
    how = Reading(columns={"title": "name"}) if "name" in what else None
    with pytest.raises(InputError, match=what):
        build(tmp_path / "i", tmp_path / "v.npy", how)


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8"])
def test_vectors_are_found_again_at_unit_length(tmp_path: Path, kind: str) -> None:
    made = stored(tmp_path / "v.npy", 50, kind=kind).astype(np.float64)
    index = build(tmp_path / "i", tmp_path / "v.npy")
    unit = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    assert [match.title for [match] in index.search(unit, 1)] == [f"v-{n:09d}" for n in range(50)]
    index.verify()


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_metadata_give_the_columns(tmp_path: Path, ending: str) -> None:
    stored(tmp_path / "v.npy", 3)
    rows = [{"caption": f"work {n}", "licence": "MIT", "status": ["", "disputed", "allowed"][n]} for n in range(3)]
    if ending == "csv":
        sheet(tmp_path / "v.csv", rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "v.parquet")
    index = build(tmp_path / "i", tmp_path, Reading(columns={"title": "caption"}, rights_basis="registry"))
    found = sorted((r.title, r.licence, r.status, r.rights_basis) for r in index.references())
    wanted = [("work 0", "MIT", "active"), ("work 1", "MIT", "disputed"), ("work 2", "MIT", "allowed")]
    assert found == [(*row, "registry") for row in wanted]


def test_output_of_clip_retrieval_is_paired_by_number(tmp_path: Path) -> None:
    for folder in ("img_emb", "metadata"):
        (tmp_path / "e" / folder).mkdir(parents=True)
    for n in (2, 10):
        stored(tmp_path / "e" / "img_emb" / f"img_emb_{n}.npy", 4, seed=n, kind="<f2")
        pq.write_table(
            pa.table({"title": [f"{n}-{k}" for k in range(4)]}), tmp_path / "e" / "metadata" / f"metadata_{n}.parquet"
        )
    assert holds_vectors(tmp_path / "e")
    index = build(tmp_path / "i", tmp_path / "e")
    assert sorted(r.title for r in index.references()) == sorted(f"{n}-{k}" for n in (2, 10) for k in range(4))


def test_building_at_once_or_in_two_steps_gives_one_id(tmp_path: Path) -> None:
    made = stored(tmp_path / "all.npy", 40)
    np.save(tmp_path / "first.npy", made[:15])
    np.save(tmp_path / "rest.npy", made[10:])  # five come again
    once, twice = build(tmp_path / "a", tmp_path / "all.npy"), build(tmp_path / "b", tmp_path / "first.npy")
    sheet(tmp_path / "rest.csv", [{"title": f"all-{n:09d}"} for n in range(10, 40)])
    sheet(tmp_path / "first.csv", [{"title": f"all-{n:09d}"} for n in range(15)])
    twice = build(tmp_path / "c", tmp_path / "first.npy")
    twice.add_vectors(StoredVectors(tmp_path / "rest.npy", DIM), GridEmbedder())
    assert twice.index_id == once.index_id and len(twice.taken.known) == 5


@pytest.mark.parametrize("apart", [False, True])
def test_the_strictest_status_is_in_force(tmp_path: Path, apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 1 if apart else 4096)
    made = stored(tmp_path / "one.npy", 1)
    np.save(tmp_path / "v.npy", made.repeat(3, axis=0))
    sheet(tmp_path / "v.csv", [{"title": s, "status": s} for s in ("allowed", "active", "disputed")])
    index = build(tmp_path / "i", tmp_path / "v.npy")
    [reference] = index.references()
    assert (reference.title, reference.status) == ("active", "active")
    assert [c.kept for c in index.taken.conflicts] == ["active", "active"] and len(index.taken.duplicates) == 2


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (np.ones((2, DIM + 1), np.float32), "49 numbers, the embedder makes 48"),
        (np.ones((2, DIM), np.int64), "not a table of floating-point numbers"),
        (np.array([[1.0] * DIM, [0.0] * DIM], np.float32), "row 1: its vector is zero"),
        (np.array([[np.nan] * DIM], np.float32), "row 0: its vector is zero or not finite"),
    ],
)
def test_vectors_that_cannot_protect_are_refused(tmp_path: Path, made: np.ndarray, match: str) -> None:
    np.save(tmp_path / "v.npy", made)
    with pytest.raises(InputError, match=match):
        build(tmp_path / "i", tmp_path / "v.npy")
    assert not (tmp_path / "i" / "CURRENT").exists()


def test_metadata_of_another_length_are_refused(tmp_path: Path) -> None:
    stored(tmp_path / "v.npy", 3)
    sheet(tmp_path / "v.csv", [{"title": "a"}, {"title": "b"}])
    with pytest.raises(InputError, match=r"has 2 rows, and .*v\.npy has 3 vectors"):
        StoredVectors(tmp_path / "v.npy", DIM)


def test_an_unknown_status_is_refused_with_its_row(tmp_path: Path) -> None:
    stored(tmp_path / "v.npy", 3)
    sheet(tmp_path / "v.csv", [{"status": "active"}, {"status": "activ"}, {"status": ""}])
    with pytest.raises(InputError, match="row 1: status is 'activ'"):
        build(tmp_path / "i", tmp_path / "v.npy")


def test_vectors_of_another_embedder_are_found_by_the_pictures_beside_them(tmp_path: Path) -> None:
    embedder = GridEmbedder()
    for n in range(3):
        Image.fromarray(drawing(n)).save(tmp_path / f"{n}.png")
    sheet(tmp_path / "v.csv", [{"file": f"{n}.png"} for n in range(3)])
    np.save(tmp_path / "v.npy", embedder.images(np.stack([drawing(n) for n in range(3)])))
    assert StoredVectors(tmp_path / "v.npy", DIM).spot_check(embedder) == 3
    np.save(tmp_path / "v.npy", embedder.images(np.stack([drawing(n) for n in (0, 2, 1)])))
    with pytest.raises(IndexMismatch, match=r"v\.npy: row 1: is not what grid-1 makes of 1\.png"):
        StoredVectors(tmp_path / "v.npy", DIM).spot_check(embedder)


def spread(folder: Path, names: dict[int, int], total: int) -> Path:
    """Vectors whose metadata name a picture in some rows: row → seed of the drawing."""
    made = stored(folder / "v.npy", total)
    for row, seed in names.items():
        Image.fromarray(drawing(seed)).save(folder / f"{row}.png")
        made[row] = GridEmbedder().images(drawing(seed)[None])[0]
    np.save(folder / "v.npy", made)
    sheet(folder / "v.csv", [{"file": f"{row}.png" if row in names else ""} for row in range(total)])
    return folder / "v.npy"


def test_rows_after_a_block_without_pictures_are_held_against_their_own_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", 4)
    source = spread(tmp_path, {8: 0, 9: 1, 10: 2}, 12)
    assert StoredVectors(source, DIM).spot_check(GridEmbedder()) == 3


def test_pictures_that_the_stride_misses_are_looked_at(tmp_path: Path) -> None:
    source = spread(tmp_path, {5: 0, 33: 1}, 64)  # every fourth row is looked at
    assert StoredVectors(source, DIM).spot_check(GridEmbedder()) == 2
    np.save(source, np.roll(np.load(source), 1, axis=0))
    with pytest.raises(IndexMismatch, match=r"v\.npy: row 5: is not what grid-1 makes of 5\.png"):
        StoredVectors(source, DIM).spot_check(GridEmbedder())


BEGINS = "0123456789abcdef"
ALIKE = [  # as their 16 digits, though not in the end: at each of the other three words, and zero-padded numbers
    *((f"{BEGINS}{'0' * 48}", f"{BEGINS}{'0' * at}1{'0' * (47 - at)}") for at in (15, 31, 47)),
    (f"{1:064}", f"{2:064}"),
]


@pytest.mark.parametrize("digests", ALIKE)
@pytest.mark.parametrize("apart", [False, True])
def test_two_works_whose_digests_begin_alike_are_not_one(
    tmp_path: Path, digests: tuple[str, str], apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", 1 if apart else 4096)
    stored(tmp_path / "v.npy", 2)
    sheet(tmp_path / "v.csv", [{"content_sha256": digest} for digest in digests])
    with pytest.raises(IntegrityError, match="two pictures share one reference id") as caught:
        build(tmp_path / "i", tmp_path / "v.npy")
    assert caught.value.where == f"{tmp_path / 'v.csv'}: row 1" and "sha256" in caught.value.fix
    assert not (tmp_path / "i" / "CURRENT").exists()


def test_the_check_of_a_digest_outlives_merged_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 1)
    stored(tmp_path / "v.npy", 41)
    digests = [f"{n:016x}{'7' * 48}" for n in range(20)]
    sheet(tmp_path / "v.csv", [{"content_sha256": digest} for digest in [*digests, *digests, digests[3][:-1] + "8"]])
    with pytest.raises(IntegrityError, match=r"row 40: two pictures share one reference id"):
        build(tmp_path / "i", tmp_path / "v.npy")


def picture_at(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawing(seed)).save(path)


def bytes_of_drawings(path: Path) -> None:
    picture_at(path.parent / "of-it.png")
    pq.write_table(pa.table({"image": [(path.parent / "of-it.png").read_bytes()]}), path)
    (path.parent / "of-it.png").unlink()


def clip_retrieval(folder: Path) -> Path:
    for below in ("img_emb", "metadata", "text_emb"):
        (folder / below).mkdir(parents=True)
    stored(folder / "img_emb" / "img_emb_0.npy", 2)
    stored(folder / "text_emb" / "text_emb_0.npy", 2)
    pq.write_table(pa.table({"title": ["a", "b"]}), folder / "metadata" / "metadata_0.parquet")
    return folder


def stored_below(folder: Path) -> None:
    folder.mkdir()
    stored(folder / "b.npy", 1)


LEFT: dict[str, Callable[[Path], object]] = {
    "metadata.csv": lambda folder: sheet(folder / "metadata.csv", [{"file": "a.png"}]),
    "pictures.parquet": lambda folder: bytes_of_drawings(folder / "pictures.parquet"),
    "fox.png": lambda folder: picture_at(folder / "fox.png"),
    "pics/fox.png": lambda folder: picture_at(folder / "pics" / "fox.png"),
    "cut.png": lambda folder: (folder / "cut.png").write_bytes(b""),
    "deep/b.npy": lambda folder: stored_below(folder / "deep"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_belongs_to_no_vectors_is_refused_and_not_left_out(tmp_path: Path, name: str) -> None:
    """They were left out without a word: their works matched nothing."""
    flat, other = tmp_path / "flat", clip_retrieval(tmp_path / "clip")
    flat.mkdir()
    stored(flat / "a.npy", 3)
    for folder, fix in ((flat, r"Name a file of vectors \(a\.npy\)"), (other, "Move what belongs to no vectors")):
        LEFT[name](folder)
        assert holds_vectors(folder)
        with pytest.raises(InputError, match=f"works or metadata that belong to none: {name}") as refused:
            StoredVectors(folder, DIM)
        assert re.search(fix, refused.value.fix)
    assert StoredVectors(flat / "a.npy", DIM).total == 3, "a file that is named is read, whatever lies beside it"


def test_metadata_of_clip_retrieval_without_their_vectors_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"title": ["c"]}), clip_retrieval(tmp_path / "e") / "metadata" / "metadata_1.parquet")
    with pytest.raises(InputError, match=r"metadata/metadata_1\.parquet \(Parquet without vectors\)"):
        StoredVectors(tmp_path / "e", DIM)


def test_other_files_of_a_folder_of_vectors_are_named(tmp_path: Path) -> None:
    stored(tmp_path / "a.npy", 3)
    (tmp_path / "README.md").write_text("mine\n")
    (tmp_path / "a.json").write_text("{}\n")
    assert StoredVectors(tmp_path, DIM).others == [("README.md", "no picture"), ("a.json", "no picture")]
    others = StoredVectors(clip_retrieval(tmp_path / "e"), DIM).others
    assert others == [("text_emb/text_emb_0.npy", "vectors of texts")]


@pytest.mark.parametrize("ending", ["parquet", "csv"])
@pytest.mark.parametrize("name", ["title", "file"])
def test_a_column_beside_vectors_that_stands_twice_is_refused(tmp_path: Path, ending: str, name: str) -> None:
    stored(tmp_path / "v.npy", 1)
    if ending == "csv":
        (tmp_path / "v.csv").write_text(f"{name},{name},size,size\na,b,1,2\n")
    else:
        pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=[name, name]), tmp_path / "v.parquet")
    with pytest.raises(InputError, match=f"has the column '{name}' twice"):
        source = StoredVectors(tmp_path / "v.npy", DIM)
        source.spot_check(GridEmbedder())
        list(source)


def test_memory_grows_by_some_bytes_a_vector(tmp_path: Path) -> None:
    """Each of the second half takes less than 100 bytes; a vector alone has 192. ``CLEARANCE_VECTORS`` sets how many."""
    count = int(os.environ.get("CLEARANCE_VECTORS", "16000"))
    stored(tmp_path / "v.npy", count)
    peaks = []
    np.save(tmp_path / "few.npy", np.load(tmp_path / "v.npy", mmap_mode="r")[:64])
    build(tmp_path / "few", tmp_path / "few.npy")  # what is imported on the way is no memory of a vector
    for rows in (count // 2, count):
        np.save(tmp_path / f"{rows}.npy", np.load(tmp_path / "v.npy", mmap_mode="r")[:rows])
        tracemalloc.start()
        index = ReferenceIndex.build_of_vectors(
            tmp_path / f"i{rows}", StoredVectors(tmp_path / f"{rows}.npy", DIM), GridEmbedder(), flat_limit=10**9
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(index) == rows
    grown = (peaks[1] - peaks[0]) / (count - count // 2)
    print(json.dumps({"vectors": count, "peaks": peaks, "max_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
    assert grown < 100


# --- older forms ----------------------------------------------------------------------------------------------------------


def test_what_an_earlier_version_wrote_is_written_anew_with_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from index import ann

    index = ReferenceIndex.build(tmp_path / "i", [work(n) for n in range(30)], GridEmbedder())
    before = index.index_id
    assert index.renew() == []
    monkeypatch.setattr(ann, "FLAT_LIMIT", 20)  # then the segment's flat file is of another form than it should be
    assert f"clearance index renew {tmp_path / 'i'}" in index.searched()
    [name] = index.renew()
    assert index.renew() == [] and index.index_id == before and index._segments[0].folder.name != name
    assert "ranked exactly" in index.searched() and index.history()[-1]["event"] == "renewed"
    [[found]] = index.search(GridEmbedder().images(work(7).picture[None]), 1)
    assert found.title == "work 7"


def test_references_are_counted_as_amended(tmp_path: Path) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [work(n) for n in range(6)], GridEmbedder())
    first, second, *_ = index.ids()
    index.retire([first])
    index.set_status(second, "disputed", "asked")
    assert index.counts("status") == {"active": 4, "disputed": 1, "retired": 1}
    assert index.counts("rights_basis") == {"claim": 6}


def test_beginnings_of_ids_are_found_where_they_lie(tmp_path: Path) -> None:
    index = ReferenceIndex.build(tmp_path / "i", [work(n) for n in range(40)], GridEmbedder())
    ids = [*index.ids()]
    assert len(ids) == 40 and [index.full_id(ref_id[:9].upper()) for ref_id in ids] == ids
    for wrong in ("zzzz", "0", "12345678901234567890"):
        with pytest.raises(InputError):
            index.full_id(wrong)


def test_many_rows_have_the_texts_that_each_has_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order they are asked for, however many parts the table lies in."""
    from index import segment_writer

    monkeypatch.setattr(module, "ROWS", 8)
    monkeypatch.setattr(segment_writer, "TOGETHER", 16)
    stored(tmp_path / "v.npy", 50)
    sheet(
        tmp_path / "v.csv",
        [{"title": f"work {n}", "rights_basis": ("claim", "licensed", "registry")[n % 3]} for n in range(50)],
    )
    segment = build(tmp_path / "index", tmp_path / "v.npy")._segments[0]
    names, rows = ("title", "rights_basis", "ref_id"), np.random.default_rng(2).integers(0, 50, 120)
    assert len(segment._parts) > 2
    assert segment.texts(rows, names) == [tuple(segment.values(row, names)) for row in rows.tolist()]
    assert segment.texts(rows[:2], names) == segment.texts(rows, names)[:2] and segment.texts(rows[:0], names) == []
