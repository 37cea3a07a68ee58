from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from index.edits import edit, foregrounds
from index.errors import InputError
from index.pairs import COPY, NEAR_MISS, OTHER, make_pairs, measure, read_pairs
from index.store import ReferenceIndex

from .conftest import GridEmbedder, drawing, work


@pytest.fixture
def index(tmp_path: Path, embedder: GridEmbedder) -> ReferenceIndex:
    return ReferenceIndex.build(tmp_path / "index", [work(1), work(2), work(3, keep_picture=False)], embedder)


def sheet(folder: Path, rows: list[tuple[str, str, str]], header: tuple[str, ...] = ("picture", "reference", "label")) -> Path:
    path = folder / "pairs.csv"
    with path.open("w", newline="") as out:
        csv.writer(out).writerows([header, *rows])
    return path


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (201, 130)])
def test_an_edited_copy_keeps_size_and_follows_its_generator(shape: tuple[int, int]) -> None:
    picture = np.asarray(Image.fromarray(drawing(5)).resize(shape[::-1]))
    inside = foregrounds(picture[None])[0]
    copies = [edit(picture, inside, np.random.default_rng(seed)) for seed in range(30)]
    assert all(copy.shape == picture.shape and copy.dtype == np.uint8 for copy in copies)
    assert len({copy.tobytes() for copy in copies}) == 30
    assert np.array_equal(copies[7], edit(picture, inside, np.random.default_rng(7)))


def test_marks_are_drawn_only_where_a_marker_is_given() -> None:
    picture, seen = drawing(5), []

    def mark(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        seen.append(x.shape)
        return x

    inside = foregrounds(picture[None])[0]
    for seed in range(60):
        edit(picture, inside, np.random.default_rng(seed), mark=mark)
    assert 3 <= len(seen) <= 25  # one in five


def test_foreground_leaves_out_the_white_that_touches_the_border_only() -> None:
    picture = np.full((1, 64, 64, 3), 255, np.uint8)
    picture[0, 16:48, 16:48] = (200, 30, 30)
    picture[0, 28:36, 28:36] = 255  # white inside the drawing belongs to it
    inside = foregrounds(picture)[0]
    assert inside[2, 2] == 0 and inside[20, 20] == 1 and inside[32, 32] == 1


def test_pairs_are_made_of_every_kept_picture(index: ReferenceIndex, embedder: GridEmbedder) -> None:
    pairs = list(make_pairs(index, embedder, [work(8), work(9)], copies=3))
    count = {label: sum(p.label == label for p in pairs) for label in (COPY, OTHER, NEAR_MISS)}
    assert count == {COPY: 6, OTHER: 6, NEAR_MISS: 4}  # two kept pictures; two harmless ones, plain and edited
    measured = measure(pairs, embedder, {"alignment": lambda picture, reference: 0.25})
    assert measured.copy.sum() == 6 and np.isfinite(measured.cosine).all()
    assert measured.cosine[measured.copy].mean() > measured.cosine[~measured.copy].mean()
    kept = [pair.reference is not None for pair in pairs]
    assert np.array_equal(
        ~np.isnan(measured.looks["alignment"]), kept
    )  # no second look where the reference's picture is not kept
    assert set(measured.looks["alignment"][kept]) == {0.25}
    again = list(make_pairs(index, embedder, [work(8), work(9)], copies=3))
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(pairs, again, strict=True))


def test_a_copy_that_the_search_misses_counts_as_what_is_found(
    index: ReferenceIndex, embedder: GridEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [pair for pair in make_pairs(index, embedder, copies=3) if pair.label == COPY]
    lost, search = plain[0].of, index.search
    monkeypatch.setattr(
        index, "search", lambda vectors, k: [[m for m in found if m.ref_id != lost] for found in search(vectors, k + 1)]
    )
    missed = [pair for pair in make_pairs(index, embedder, copies=3) if pair.label == COPY]
    for before, after in zip(plain, missed, strict=True):
        assert before.of == after.of and before.cosine is not None and after.cosine is not None
        assert after.cosine < before.cosine if after.of == lost else after.cosine == before.cosine
    index.set_status(lost, "allowed")  # it is not to be found
    allowed = [pair.cosine for pair in make_pairs(index, embedder, copies=3) if pair.label == COPY and pair.of == lost]
    assert allowed == [pair.cosine for pair in plain if pair.of == lost]


def test_an_index_without_pictures_cannot_make_copies(tmp_path: Path, embedder: GridEmbedder) -> None:
    bare = ReferenceIndex.build(tmp_path / "bare", [work(1, keep_picture=False)], embedder)
    with pytest.raises(InputError, match="keeps no pictures"):
        list(make_pairs(bare, embedder))


def test_labelled_pairs_name_files_or_references(index: ReferenceIndex, embedder: GridEmbedder, tmp_path: Path) -> None:
    Image.fromarray(drawing(1)).save(tmp_path / "a.png")
    kept = next(r.ref_id for r in index.references() if r.title == "work 1")
    pairs = read_pairs(sheet(tmp_path, [("a.png", kept, COPY), ("a.png", "a.png", OTHER)]), index)
    measured = measure(pairs, embedder, {"alignment": lambda picture, reference: 1.0})
    assert measured.cosine == pytest.approx([1.0, 1.0], abs=1e-6) and measured.label.tolist() == [COPY, OTHER]


@pytest.mark.parametrize(
    ("rows", "header", "told"),
    [
        ([("a.png", "a.png", "maybe")], ("picture", "reference", "label"), "line 2: unknown label 'maybe'"),
        ([("gone.png", "a.png", "copy")], ("picture", "reference", "label"), "cannot be read"),
        ([("a.png", "a.png")], ("picture", "reference"), "no column 'label'"),
    ],
)
def test_bad_sheets_are_refused(
    index: ReferenceIndex, tmp_path: Path, rows: list[tuple[str, str, str]], header: tuple[str, ...], told: str
) -> None:
    Image.fromarray(drawing(1)).save(tmp_path / "a.png")
    with pytest.raises(InputError) as caught:
        read_pairs(sheet(tmp_path, rows, header), index)
    assert told in f"{caught.value.where}: {caught.value.what}"


def test_a_reference_whose_picture_is_not_kept_cannot_be_named(index: ReferenceIndex, tmp_path: Path) -> None:
    Image.fromarray(drawing(1)).save(tmp_path / "a.png")
    bare = next(r.ref_id for r in index.references() if r.title == "work 3")
    with pytest.raises(InputError, match="keeps no picture"):
        read_pairs(sheet(tmp_path, [("a.png", bare, COPY)]), index)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("a.png;;copy", "names no picture, or no reference"), (";a.png;copy", "names no picture"),
        ("a.png;a.png;copy;more", "has more cells than the header"),
    ],
)  # fmt: skip
def test_a_sheet_of_pairs_may_have_semicolons_and_slips_in_it_are_named(
    index: ReferenceIndex, tmp_path: Path, line: str, what: str
) -> None:
    Image.fromarray(drawing(1)).save(tmp_path / "a.png")
    path = tmp_path / "pairs.csv"
    path.write_text("picture;reference;label\na.png;a.png;other\n")
    assert [pair.label for pair in read_pairs(path, index)] == [OTHER]
    path.write_text(f"picture;reference;label\n{line}\n")
    with pytest.raises(InputError, match=rf"line 2: {what}"):
        read_pairs(path, index)
