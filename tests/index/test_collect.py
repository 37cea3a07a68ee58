"""Every file that is seen ends as a work, or is named with its reason."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from index.collect import Reading, Works, read_references
from index.errors import InputError
from index.reference import NewReference

from .conftest import drawing
from .test_picture import animation, blank, bomb


def png(seed: int, name: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(drawing(seed)).save(stream, name)
    return stream.getvalue()


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(path: Path, **how: Any) -> tuple[list[NewReference], Works]:
    works = Works(path, Reading(**how))
    return list(works), works


def titles(path: Path, **how: Any) -> list[str]:
    return [work.title for work in read(path, **how)[0]]


# --- folders ----------------------------------------------------------------------------------------------------------------


def test_every_file_ends_as_a_work_or_is_named(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "a.png": png(1), "b.AVIF": png(2, "AVIF"), "c.jfif": png(3, "JPEG"), "d.jpe": png(4, "JPEG"), "e": png(5, "WEBP"),
            "deep/er/f.TGA": png(6, "TGA"), "g.png": png(7, "JPEG2000"), "README.md": b"# hi", "x/notes.txt": b"text",
            "movie.gif": animation([blank(), drawing(8, 96), drawing(9, 96)]),
            "half.png": png(10)[:100], "bomb.png": bomb(30_000), "phone.heic": b"\x00\x00\x00\x18ftypheic0000",
        },
    )  # fmt: skip
    works, source = read(tmp_path, leave_out=True)
    seen = source.seen
    assert sorted(work.origin for work in works) == [
        "a.png", "b.AVIF", "c.jfif", "d.jpe", "deep/er/f.TGA", "e", "g.png", "movie.gif", "movie.gif (frame 3)",
    ]  # fmt: skip
    assert sorted(name for name, _ in seen.left_out) == ["bomb.png", "half.png", "phone.heic"]
    assert sorted(name for name, _ in seen.others) == ["README.md", "x/notes.txt"]
    assert (seen.pictures, seen.frames) == (11, 1)
    assert seen.pictures + seen.frames == len(works) + len(seen.left_out)
    assert sum(len(files) for _, _, files in os.walk(tmp_path)) == seen.pictures + len(seen.others)


def test_all_that_cannot_be_read_is_named_at_once(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": png(1), "half.png": png(2)[:-40], "empty.jpg": b"", "bomb.png": bomb(30_000)})
    with pytest.raises(InputError, match="3 of 4 pictures cannot be read") as refused:
        read_references(tmp_path)
    for name in ("half.png", "empty.jpg", "bomb.png"):
        assert name in refused.value.what
    assert refused.value.fix == "Save them again as PNG or JPEG", "an option is named where there is one"
    with pytest.raises(InputError) as refused:
        list(Works(tmp_path, Reading(option="--leave-out")))
    assert "or leave them out (--leave-out)" in refused.value.fix


def test_a_picture_that_fails_late_stops_what_takes_the_works(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": png(1), "half.png": png(2)[:-40]})
    works = iter(Works(tmp_path))
    assert next(works).title == "a"
    with pytest.raises(InputError, match=r"1 of 2 pictures cannot be read: half\.png"):
        next(works)


def test_where_nothing_can_be_read_nothing_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, {"bomb.png": bomb(30_000)})
    with pytest.raises(InputError, match="1 of 1 pictures cannot be read"):
        read(tmp_path, leave_out=True)


def test_a_folder_without_pictures_is_refused_with_its_content(tmp_path: Path) -> None:
    put(tmp_path, {"a.txt": b"text", "b.zip": b"PK\x03\x04"})
    with pytest.raises(InputError, match=r"holds no pictures, only a\.txt \(no picture\), b\.zip"):
        Works(tmp_path)


def test_linked_folders_and_pictures_are_read_and_circles_end(tmp_path: Path) -> None:
    put(tmp_path / "store", {"fox.png": png(2), "owl.png": png(3)})
    put(tmp_path / "lib", {"own/cat.png": png(1)})
    (tmp_path / "lib" / "partner").symlink_to("../store")
    (tmp_path / "lib" / "own" / "up").symlink_to("..")
    (tmp_path / "lib" / "own" / "self").symlink_to("self")
    (tmp_path / "lib" / "linked.png").symlink_to("own/cat.png")
    os.mkfifo(tmp_path / "lib" / "pipe")  # opening it would wait for ever
    works, source = read(tmp_path / "lib", leave_out=True)
    assert sorted(work.origin for work in works) == ["linked.png", "own/cat.png", "partner/fox.png", "partner/owl.png"]
    assert source.seen.left_out == [
        ("pipe", "cannot be read (it is not a file)"), ("own/self", "cannot be read (a link to nothing)")
    ]  # fmt: skip


def test_a_linked_folder_that_is_gone_is_no_silence(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": png(1)})
    (tmp_path / "partner").symlink_to("unmounted")
    with pytest.raises(InputError, match=r"partner \(a link to nothing\)"):
        read_references(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, {"locked/a.png": png(1)})
    real = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refusing)  # the tests may run as root, to whom nothing is locked
    with pytest.raises(InputError, match=r"locked: cannot be listed \(Permission denied\)"):
        Works(tmp_path)


def test_a_picture_that_may_not_be_read_is_not_to_be_saved_again(tmp_path: Path) -> None:
    works = Works(put(tmp_path, {"a.png": png(1)}))
    works.seen.left_out.append(("b.png", "cannot be read (Permission denied)"))
    with pytest.raises(InputError) as caught:
        list(works)
    assert caught.value.fix == "Give this user the right to read them"


def test_names_that_are_no_text_are_read_and_shown(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(png(1))
    [work] = read_references(tmp_path)
    assert work.title == "caf\ufffd"
    work.title.encode()


def test_one_picture_of_any_name_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_bytes(png(1))
    assert titles(tmp_path / "cat.txt") == ["cat"]
    (tmp_path / "notes.txt").write_bytes(b"text")
    with pytest.raises(InputError, match="holds no pictures"):
        read_references(tmp_path / "notes.txt")


def test_pictures_of_one_colour_are_named(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": png(1)})
    Image.new("RGB", (400, 300), (250, 250, 250)).save(tmp_path / "white.png")
    _, source = read(tmp_path)
    assert source.seen.one_colour == ["white.png"]


@pytest.mark.parametrize(
    ("how", "basis", "keep"),
    [({}, "claim", False), ({"rights_basis": "licensed"}, "licensed", True), ({"keep_pictures": True}, "claim", True),
     ({"rights_basis": "licensed", "keep_pictures": False}, "licensed", False)],
)  # fmt: skip
def test_basis_and_keeping_of_works_that_state_nothing(tmp_path: Path, how: dict[str, Any], basis: str, keep: bool) -> None:
    put(tmp_path, {"a.png": png(1)})
    [work] = read(tmp_path, **how)[0]
    assert (work.rights_basis, work.keep_picture) == (basis, keep)


@pytest.mark.parametrize("how", [{"rights_basis": "mine"}, {"columns": {"colour": "x"}}])
def test_reading_that_cannot_be_is_refused(how: dict[str, Any]) -> None:
    with pytest.raises(InputError) as refused:
        Reading(**how)
    assert refused.value.fix


# --- metadata.csv -----------------------------------------------------------------------------------------------------------

HEADER = "file,title,status,rights_basis,claim_id"


def sheet(folder: Path, *lines: str, header: str = HEADER) -> Path:
    (folder / "metadata.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return folder


def test_pictures_that_the_sheet_does_not_list_are_claims_and_named(tmp_path: Path) -> None:
    sheet(put(tmp_path, {"a.png": png(1), "b.png": png(2), "sub/c.png": png(3)}), "a.png,Cat,allowed,licensed,")
    works, source = read(tmp_path)
    assert [(w.title, w.status, w.rights_basis) for w in works] == [
        ("Cat", "allowed", "licensed"), ("b", "active", "claim"), ("c", "active", "claim"),
    ]  # fmt: skip
    assert source.seen.unlisted == ["b.png", "sub/c.png"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a.png,Cat, sitting,active,claim,C-1", "line 3: has 6 columns, the header has 5"),
        ("a.png,Cat,active", "line 3: has 3 columns, the header has 5"),
        ("a.png,Cat,Active,claim,", r"line 3: status is 'Active' \(did you mean 'active'\?\)"),
        ("a.png,Cat,active,licenced,", r"line 3: rights_basis is 'licenced' \(did you mean 'licensed'\?\)"),
        (",Cat,active,claim,", "line 3: names no file"),
    ],
)
def test_a_line_that_means_something_else_is_refused_with_its_number(tmp_path: Path, line: str, reason: str) -> None:
    put(tmp_path, {"a.png": png(1)})
    sheet(tmp_path, '"a.png","One, two",active,claim,', line)
    with pytest.raises(InputError, match=reason):
        Works(tmp_path)


def test_line_numbers_count_lines_of_the_file(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": png(1)})
    sheet(tmp_path, '"a.png","a title\nof three\nlines",active,claim,', "", "b.png,too,many,,,,")
    with pytest.raises(InputError, match=r"metadata\.csv, line 6: has 7 columns"):
        Works(tmp_path)


@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_a_sheet_may_be_saved_with_other_delimiters_and_empty_lines(tmp_path: Path, between: str) -> None:
    put(tmp_path, {"a.png": png(1)})
    row = ["a.png", "Cat", "disputed", "claim", "C-1"]
    sheet(tmp_path, between.join(row), between * 4, "", header=HEADER.replace(",", between))
    [work] = read_references(tmp_path)
    assert (work.title, work.status, work.claim_id) == ("Cat", "disputed", "C-1")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("file,Title", r"unknown columns: Title \(did you mean 'title'\?\)"),
        ("file,title,title", "has the column 'title' twice"),
        ("name,title", "unknown columns: name"),
        ("title", "has no column 'file'"),
        ("file,file_name", "has both 'file' and 'file_name'"),
    ],
)
def test_an_unknown_header_is_refused(tmp_path: Path, header: str, reason: str) -> None:
    sheet(put(tmp_path, {"a.png": png(1)}), header=header)
    with pytest.raises(InputError, match=reason):
        Works(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfef\x00i\x00l\x00e\x00", b"file\n\xe9.png\n", b"file\n" + b"x" * 200_000])
def test_a_sheet_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, {"a.png": png(1), "metadata.csv": content})
    with pytest.raises(InputError, match=r"metadata\.csv.*cannot be read|has no column|unknown columns"):
        read_references(tmp_path)


@pytest.mark.parametrize(
    ("content", "place", "fix"),
    [
        (b'file,title,status\na.png,"A cat,\nb.png,B,allowed\n', "line 2", "Close the double quote that opens in line 2"),
        (b'file,title\na.png,x\nb.png,"A" cat\n', "line 3", "Close the double quote that opens in line 3"),
        (b"file,title\na.png,x\nb.png,M\xfcll\n", "line 3", "CSV UTF-8"),
    ],
)
def test_a_quote_or_a_letter_that_spoils_a_sheet_is_named_by_its_line(
    tmp_path: Path, content: bytes, place: str, fix: str
) -> None:
    put(tmp_path, {"a.png": png(1), "b.png": png(2), "metadata.csv": content})
    with pytest.raises(InputError) as caught:
        Works(tmp_path)
    assert caught.value.where.endswith(place) and fix in caught.value.fix


def test_a_folder_in_the_place_of_the_sheet_is_refused(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": png(1), "metadata.csv/x.txt": b""})
    with pytest.raises(InputError, match=r"metadata\.csv: cannot be read"):
        Works(tmp_path)


def test_files_that_are_listed_and_missing_are_named_with_what_may_be_meant(tmp_path: Path) -> None:
    sheet(put(tmp_path, {"Cat.png": png(1)}), "cat.png,Cat,active,claim,")
    with pytest.raises(InputError, match=r"cat\.png \(it does not exist; did you mean Cat\.png\?\)") as caught:
        read_references(tmp_path)
    assert caught.value.fix == "Restore what does not exist, or correct its name in metadata.csv"


def test_advice_follows_from_what_is_wrong(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": png(1)[:40], "b.png": png(2)})
    (tmp_path / "c.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError) as caught:
        read_references(tmp_path)
    assert caught.value.fix.startswith("Save them again as PNG or JPEG. Restore what does not exist, or correct its name")


@pytest.mark.parametrize("name", ["Metadata.csv", "metadata.jsonl", "metadata.xlsx", "more/metadata.csv"])
def test_a_sheet_of_another_name_or_place_is_named_as_not_read(tmp_path: Path, name: str) -> None:
    works = Works(put(tmp_path, {"a.png": png(1), name: b"file,status\na.png,allowed\n"}))
    assert works.seen.others == [(name, "not read: a sheet is metadata.csv, in the folder itself")]


def test_a_file_is_found_however_its_accents_and_slashes_are_written(tmp_path: Path) -> None:
    put(tmp_path, {"sub/cafe\u0301.png": png(1)})
    sheet(tmp_path, "sub\\caf\u00e9.png,Café,allowed,licensed,")
    works, source = read(tmp_path)
    assert [(w.title, w.status) for w in works] == [("Café", "allowed")]
    assert source.seen.unlisted == []


def test_a_file_that_is_listed_twice_is_two_works_with_origins_of_their_own(tmp_path: Path) -> None:
    sheet(put(tmp_path, {"a.png": png(1)}), "a.png,Cat,allowed,licensed,", "a.png,Cat,active,claim,C-1")
    works, _ = read(tmp_path)
    assert [(w.origin, w.status) for w in works] == [("a.png", "allowed"), ("a.png (line 3)", "active")]


def test_a_text_that_is_listed_as_a_picture_is_named(tmp_path: Path) -> None:
    sheet(put(tmp_path, {"a.txt": b"text"}), "a.txt,Cat,active,claim,")
    with pytest.raises(InputError, match=r"a\.txt \(no picture\)"):
        read_references(tmp_path)


def test_columns_of_a_sheet_may_have_other_names(tmp_path: Path) -> None:
    sheet(put(tmp_path, {"a.png": png(1)}), "a.png,Cat,active", header="file_name,caption,state")
    [work] = read(tmp_path, columns={"title": "caption", "status": "state"})[0]
    assert (work.title, work.status) == ("Cat", "active")
    with pytest.raises(InputError, match="has no column 'words'"):
        read(tmp_path, columns={"title": "words", "status": "state", "licence": "caption"})


# --- Parquet ----------------------------------------------------------------------------------------------------------------


def parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_of_bytes_and_of_structs(tmp_path: Path) -> None:
    stored = [{"bytes": png(seed), "path": f"work-{seed}.png"} for seed in (1, 2)]
    path = parquet(tmp_path / "a.parquet", {"image": stored, "status": ["allowed", None], "url": ["x", "y"]})
    works, source = read(path)
    assert [(w.title, w.status) for w in works] == [("work-1", "allowed"), ("work-2", "active")]
    assert (source.total, source.seen.pictures) == (2, 2)
    assert np.array_equal(works[0].picture, drawing(1))
    path = parquet(tmp_path / "b.parquet", {"picture": [png(1)], "keep_picture": [True], "title": ["Cat"]})
    [work] = read_references(path)
    assert (work.title, work.keep_picture, work.origin) == ("Cat", True, "b.parquet: row 0")


def test_parquet_columns_may_have_other_names(tmp_path: Path) -> None:
    columns = {"id": [b"1", b"2"], "img": [png(1), png(2)], "caption": ["Cat", "Fox"], "year": [1999, 2001]}
    path = parquet(tmp_path / "a.parquet", columns)
    works, _ = read(path, picture_column="img", columns={"title": "caption", "claim_id": "year"})
    assert [(w.title, w.claim_id) for w in works] == [("Cat", "1999"), ("Fox", "2001")]
    with pytest.raises(InputError, match=r"has no column 'jpg'"):
        read(path, picture_column="jpg")
    with pytest.raises(InputError, match=r"the column 'caption' holds no pictures"):
        read(path, picture_column="caption")


def test_parquet_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"image": pa.array([], pa.binary()), "title": pa.array([], pa.string())}), tmp_path / "works.parquet"
    )
    for place in (tmp_path, tmp_path / "works.parquet"):
        with pytest.raises(InputError, match="holds no pictures"):
            read_references(place)


def test_rows_without_a_picture_are_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"image": [png(1), None, b"no picture"]})
    with pytest.raises(InputError, match=r"2 of 3 pictures .*row 1 \(holds no picture\), .*row 2 \(no picture"):
        read_references(path)
    works, source = read(path, leave_out=True)
    assert (len(works), len(source.seen.left_out)) == (1, 2)


def test_a_row_with_an_unknown_status_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"image": [png(1)], "status": ["free"]})
    with pytest.raises(InputError, match=r"row 0: status is 'free'"):
        read_references(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.tar", "a.tar.gz"])
def test_a_name_that_promises_many_pictures_is_taken_at_its_word(tmp_path: Path, name: str) -> None:
    put(tmp_path, {"b.png": png(1), name: b"nothing of the kind"})
    with pytest.raises(InputError, match=rf"{name}: not a readable (Parquet|tar) file"):
        read_references(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "no pictures"])
def test_parquet_that_cannot_be_used_is_refused(tmp_path: Path, damage: str) -> None:
    path = parquet(tmp_path / "a.parquet", {"image" if damage == "cut" else "text": ["x"] if damage != "cut" else [png(1)]})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="not a readable Parquet file" if damage == "cut" else "no column holds pictures"):
        read_references(path)


# --- tar --------------------------------------------------------------------------------------------------------------------


def tar(path: Path, files: dict[str, bytes], kind: str = "w") -> Path:
    with tarfile.open(path, kind, format=tarfile.USTAR_FORMAT) as file:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def test_samples_of_a_webdataset(tmp_path: Path) -> None:
    about = json.dumps({"status": "disputed", "title": "Cat", "width": 64}).encode()
    files = {"a/1.jpg": png(1), "a/1.json": about, "a/2.png": png(2), "a/2.txt": "a füchs".encode(), "about.txt": b"set"}
    works, source = read(tar(tmp_path / "s.tar", files))
    assert [(w.title, w.status, w.origin) for w in works] == [
        ("Cat", "disputed", "s.tar: a/1"), ("a/2", "active", "s.tar: a/2")
    ]  # fmt: skip
    assert source.seen.pictures == 2
    assert titles(tmp_path / "s.tar", columns={"title": "txt"}) == ["a/1", "a füchs"]


def test_every_picture_of_a_sample_is_a_work(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", {"1.png": png(1), "1.mask.png": png(2), "1.json": b'{"status": "allowed"}'})
    assert [(w.title, w.status) for w in read_references(path)] == [("1", "allowed"), ("1.mask", "allowed")]


def spoilt(data: bytes, how: str) -> bytes:
    """A tar of four pictures of which some are no longer to be found by who reads it front to back."""
    second = data.index(b"2.png")
    return {
        "a header is changed": data[: second + 120] + b"x" + data[second + 121 :],
        "cut in a header": data[: second + 100],
        "cut before a header": data[:second],
        "two of them": data + data,
    }[how]


@pytest.mark.parametrize("how", ["a header is changed", "cut in a header", "cut before a header", "two of them"])
def test_a_damaged_tar_is_not_taken_for_a_short_one(tmp_path: Path, how: str) -> None:
    """Python's reader takes a damaged header for the end: what stands behind it would not be protected."""
    path = tar(tmp_path / "s.tar", {f"{number}.png": png(number) for number in range(1, 5)})
    assert len(read(path)[0]) == 4
    path.write_bytes(spoilt(path.read_bytes(), how))
    with pytest.raises(InputError, match=r"s\.tar: not a readable tar file, after [0-3] pictures"):
        read(path)


def test_a_column_that_is_named_must_be_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [png(1)], "caption": ["Cat"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="has no column 'captoin'"):
        titles(tmp_path / "a.parquet", columns={"title": "captoin"})
    assert titles(tmp_path / "a.parquet", columns={"title": "caption"}) == ["Cat"]


@pytest.mark.parametrize(("beside", "there"), [({"1.txt": b"Fox"}, "they have: txt"), ({}, "they have: nothing but pictures")])
def test_a_column_that_no_sample_of_a_tar_has_is_refused(tmp_path: Path, beside: dict[str, bytes], there: str) -> None:
    path = tar(tmp_path / "s.tar", {"1.png": png(1), **beside, "2.png": png(2)})
    with pytest.raises(InputError, match=r"s\.tar: no sample has 'rights_status'") as caught:
        read(path, columns={"status": "rights_status"})
    assert there in caught.value.fix
    if beside:  # one sample that has it is enough: the others state nothing
        assert titles(path, columns={"title": "txt"}) == ["Fox", "2"]


def test_a_compressed_tar_is_read_too(tmp_path: Path) -> None:
    works, source = read(tar(tmp_path / "s.tar.gz", {"1.png": png(1), "2.png": png(2)}, "w:gz"))
    assert (len(works), source.total) == (2, None)


@pytest.mark.parametrize("about", [b'{"status": "allo', b'{"status": "disputed", "status": "allowed"}'])
def test_a_sample_whose_json_cannot_be_read_is_not_taken_for_one_without(tmp_path: Path, about: bytes) -> None:
    path = tar(tmp_path / "s.tar", {"1.png": png(1), "1.json": about, "2.png": png(2)})
    with pytest.raises(InputError, match=r"1 of 2 pictures .*s\.tar: 1 \(its \.json cannot be read"):
        read_references(path)


def test_files_of_many_pictures_in_a_folder_are_read_as_well(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": png(1)})
    parquet(tmp_path / "b.parquet", {"image": [png(2)]})
    tar(tmp_path / "c.tar", {"x.png": png(3)})
    works, source = read(tmp_path)
    assert [w.origin for w in works] == ["a.png", "b.parquet: row 0", "c.tar: x"]
    assert source.total == 3
    assert source.seen.others == []
