"""Sets for erasers: pollution, sources, what is kept of both; on pictures drawn here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from index.errors import ConfigError, InputError
from jobs.erase.captioned import read_source
from jobs.erase.dataset import NothingFound, PollutedSet, build
from jobs.erase.drawn import drawn_source
from jobs.erase.pollute import Pollution, pollute
from pipeline.config import GenerationConfig, ModelConfig

from .erasing import Seeing, a_set, blank, call, clean, folder_of, tar_of

# --- pollution --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("designs", ["train", "held-out", "varied"])
@pytest.mark.parametrize("kind", ["watermark", "qr", "text"])
def test_the_box_surrounds_what_changed(kind: str, designs: Any) -> None:
    rng, how = np.random.default_rng(0), Pollution(kinds=(kind,), ratio=1.0, designs=designs)
    for _ in range(5):
        after, mark = pollute(blank(), how, rng)
        assert mark is not None and mark.kind == kind and mark.design.startswith(designs)
        x0, y0, x1, y1 = (int(edge) for edge in mark.box)
        visible = np.abs(after.astype(int) - 200).max(2) > 8
        assert visible[y0:y1, x0:x1].sum() == visible.sum() > 30


def test_ratio_opacity_and_place_are_as_configured() -> None:
    rng = np.random.default_rng(1)
    marks = [pollute(blank(), Pollution(kinds=("qr",), ratio=0.3), rng)[1] for _ in range(300)]
    assert 0.22 < sum(mark is not None for mark in marks) / 300 < 0.38
    faint, mark = pollute(blank(), Pollution(kinds=("qr",), ratio=1.0, opacity=(0.3, 0.3)), rng)
    assert mark is not None and mark.opacity == 0.3
    darkest = 200 - 0.3 * (200 - 20)  # the ink is 20, seen through at three tenths
    assert faint.min() == pytest.approx(darkest, abs=2)
    for place, where in (("centre", (0.4, 0.6)), ("corner", None)):
        for _ in range(8):
            _, mark = pollute(blank(), Pollution(kinds=("qr",), ratio=1.0, place=place), rng)  # type: ignore[arg-type]
            assert mark is not None
            x0, y0, x1, y1 = mark.box
            if where:
                assert where[0] <= (x0 + x1) / 128 <= where[1] and where[0] <= (y0 + y1) / 128 <= where[1]
            else:
                assert min(x0, 64 - x1) <= 2 and min(y0, 64 - y1) <= 2
    boxes = {pollute(blank(), Pollution(kinds=("qr",), ratio=1.0, place="anywhere"), rng)[1].box for _ in range(8)}  # type: ignore[union-attr]
    assert len(boxes) == 8


def test_numbered_designs_are_lifted_as_they_are_drawn() -> None:
    """A design pulled off its paper and laid on a drawing looks as if it had been drawn there."""
    from jobs.erase.marks.overlays import overlay
    from jobs.erase.pollute import lifted

    paper = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("watermark", "qr", "text"):
        for design in range(5):
            drawn, _ = overlay(paper, kind, np.random.default_rng(7), (design,))
            laid = paper.convert("RGBA")
            laid.alpha_composite(lifted(64, kind, design, 7))
            assert np.abs(np.asarray(drawn, int) - np.asarray(laid.convert("RGB"), int)).max() <= 3


def test_pictures_need_not_be_square() -> None:
    wide = np.full((64, 150, 3), 200, np.uint8)
    columns = set()
    for seed in range(6):
        after, mark = pollute(wide, Pollution(kinds=("qr",), ratio=1.0), np.random.default_rng(seed))
        assert after.shape == wide.shape and mark is not None and mark.box[2] <= 150 and mark.box[3] <= 64
        columns.add(mark.box[0] > 64)
    assert columns == {True, False}


def test_the_same_seed_marks_the_same() -> None:
    one, other = (pollute(blank(), Pollution(ratio=1.0), np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(one[0], other[0]) and one[1] == other[1]


@pytest.mark.parametrize(
    "wrong",
    [{"kinds": ("logo",)}, {"kinds": ()}, {"ratio": 1.5}, {"opacity": (0.9, 0.2)}, {"place": "moon"}, {"designs": "mine"}],
)
def test_pollution_refuses_what_it_does_not_know(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        Pollution(**wrong)
    assert error.value.fix


def test_an_invisible_mark_is_an_error() -> None:
    with pytest.raises(ConfigError, match="cannot be seen"):
        pollute(blank(colour=120), Pollution(kinds=("watermark",), ratio=1.0, opacity=(0.05, 0.05)), np.random.default_rng(0))


# --- sources ----------------------------------------------------------------------------------------------------------------


def test_captions_beside_pictures_in_a_list_and_in_parquet(tmp_path: Path) -> None:
    texts = list(read_source(folder_of(tmp_path / "a", {"one": "a cat\n", "two": "a dog"})))
    assert [(c.name, c.caption) for c in texts] == [("one.png", "a cat"), ("two.png", "a dog")]
    assert texts[0].picture.shape == (32, 32, 3)
    listed = folder_of(tmp_path / "b", {"one": None, "two": None})
    (listed / "metadata.jsonl").write_text('{"file_name": "two.png", "text": "an owl"}\n')
    assert [c.caption for c in read_source(listed)] == ["an owl"]
    sheet = folder_of(tmp_path / "c", {"one": None})
    (sheet / "metadata.csv").write_text("file_name,caption\none.png,a fox\n")
    assert [c.caption for c in read_source(sheet)] == ["a fox"]
    stored = [{"bytes": (sheet / "one.png").read_bytes(), "path": "x.png"}]
    pq.write_table(pa.table({"image": stored, "caption": ["a hen"], "other": [1]}), tmp_path / "d.parquet")
    assert [(c.name, c.caption) for c in read_source(tmp_path / "d.parquet")] == [("x.png", "a hen")]
    pq.write_table(pa.table({"picture": [stored[0]["bytes"]], "prompt": ["a hen"]}), tmp_path / "e.parquet")
    assert next(iter(read_source(tmp_path / "e.parquet"))).picture.shape == (32, 32, 3)


def test_samples_of_a_tar_are_read_by_name(tmp_path: Path) -> None:
    png = (folder_of(tmp_path / "a", {"one": None}) / "one.png").read_bytes()
    folder = tmp_path / "shards"
    folder.mkdir()
    files = {"about.json": b'{"who": "me"}', "x/0001.png": png, "x/0001.txt": "a fèn\n".encode(), "x/0001.json": b"{}"}
    files |= {"x/0002.json": b'{"caption": " an owl", "width": 32}', "x/0002.seg.png": png}
    tar_of(folder / "0.tar", files)
    tar_of(folder / "1.tar.gz", files)  # not asked for
    tar_of(folder / "1.tar", {"0003.PNG": png, "0003.txt": b"a hen"})
    assert [(c.name, c.caption) for c in read_source(folder)] == [
        ("x/0001", "a fèn"), ("x/0002", "an owl"), ("0003", "a hen")
    ]  # fmt: skip
    assert next(iter(read_source(folder / "1.tar"))).picture.shape == (32, 32, 3)
    made = call("dataset", folder, "--out", tmp_path / "set.parquet", "--ratio", 1)
    assert made.exit_code == 0, made.output
    assert [row.caption for row in PollutedSet(tmp_path / "set.parquet")] == ["a fèn", "an owl", "a hen"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"1.png": None}, "1 of 1 pictures have no caption"),
        ({"1.png": None, "1.json": b'{"url": "x"}'}, "no column holds captions"),
        ({"1.png": None, "1.json": b'{"caption": 3}'}, "have no caption"),
        ({"1.png": None, "1.txt": b"\xff\xfe\x00"}, "cannot be read"),
        ({"1.png": b"no picture", "1.txt": b"a cat"}, "cannot be read"),
        ({"1.avif": b"new", "1.txt": b"a cat"}, "cannot be read"),  # a name that promises a picture is taken at its word
        ({"1.npy": b"new", "1.txt": b"a cat"}, "no picture among .npy, .txt"),
        ({"readme.txt": b"hello"}, "holds no pictures"),
        ({}, "holds no pictures"),
    ],
)
def test_what_is_wrong_with_a_tar_is_named(files: dict[str, bytes | None], reason: str, tmp_path: Path) -> None:
    png = (folder_of(tmp_path / "a", {"one": None}) / "one.png").read_bytes()
    tar_of(tmp_path / "s.tar", {name: data if data is not None else png for name, data in files.items()})
    with pytest.raises(InputError, match=reason) as error:
        list(read_source(tmp_path / "s.tar"))
    assert error.value.fix and "s.tar" in str(error.value)


def test_a_tar_that_was_cut_short_is_named(tmp_path: Path) -> None:
    png = (folder_of(tmp_path / "a", {"one": None}) / "one.png").read_bytes()
    tar_of(tmp_path / "s.tar", {f"{i}.{end}": png if end == "png" else b"a cat" for i in range(3) for end in ("png", "txt")})
    whole = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").write_bytes(whole[:1700])
    with pytest.raises(InputError, match="not a readable tar file, after 0 pictures"):
        list(read_source(tmp_path / "s.tar"))


def test_what_is_wrong_with_a_source_is_named(tmp_path: Path) -> None:
    bare = folder_of(tmp_path / "bare", {"one": "a cat", "two": None, "three": None})
    empty = tmp_path / "empty"
    empty.mkdir()
    listed = folder_of(tmp_path / "listed", {"one": None})
    (listed / "metadata.csv").write_text("file_name,colour\none.png,red\n")
    gap = folder_of(tmp_path / "gap", {"one": None})
    (gap / "metadata.jsonl").write_text('{"file_name": "one.png", "text": " "}\n')
    broken = folder_of(tmp_path / "broken", {"one": "a cat"})
    (broken / "one.png").write_bytes(b"no picture")
    pq.write_table(pa.table({"caption": ["a hen"]}), tmp_path / "n.parquet")
    sources = [
        (bare, "2 of 3 pictures have no caption"), (empty, "holds no pictures"), (tmp_path / "nowhere", "does not exist"),
        (listed, "no column holds captions"), (gap, "1 of 1 pictures have no caption"), (broken, "cannot be read"),
        (tmp_path / "n.parquet", "no column holds pictures"),
    ]  # fmt: skip
    for path, reason in sources:
        with pytest.raises(InputError, match=reason) as error:
            list(read_source(path))
        assert error.value.fix


def test_what_a_model_draws_is_a_source(tiny_sd: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("key,prompt\na,a red apple\nb,a blue house\n")
    model, how = ModelConfig(path=str(tiny_sd), dtype="float32"), GenerationConfig(steps=2, rows=4)
    drawn = list(drawn_source(prompts, model, how, pictures=2, seed=3))
    assert [one.caption for one in drawn] == ["a red apple"] * 2 + ["a blue house"] * 2 and len({o.name for o in drawn}) == 4
    assert len({one.picture.tobytes() for one in drawn}) == 4 and drawn[0].picture.dtype == np.uint8
    again = list(drawn_source(prompts, model, how, pictures=2, seed=3))
    assert all(np.array_equal(one.picture, other.picture) for one, other in zip(drawn, again, strict=True))
    made = call("dataset", f"drawn:{prompts}", "--out", tmp_path / "set.parquet", "--model", tiny_sd, "--variants", 3)
    assert made.exit_code == 0, made.output
    assert len(PollutedSet(tmp_path / "set.parquet")) == 6
    assert all(row.marks == {} for row in PollutedSet(tmp_path / "set.parquet"))  # nothing is put on what is drawn
    prompts.write_text('prompt\na red apple\n" "\n')
    with pytest.raises(InputError, match="empty_prompt") as error:
        drawn_source(prompts, model, how, pictures=1)
    assert error.value.fix


# --- sets -------------------------------------------------------------------------------------------------------------------


def test_a_set_keeps_truth_and_sight_apart(tmp_path: Path) -> None:
    path, summary = a_set(tmp_path / "set.parquet")
    rows = PollutedSet(path)
    marked = [row for row in rows if row.marks]
    assert summary["pictures"] == len(rows) == 24 and summary["marked"] == len(marked) == summary["kinds"]["qr"]
    assert summary["recall"] == 1.0 and summary["false_alarms"] == 0.0 and summary["mean_iou"] > 0.9
    assert all(np.allclose(row.marks["qr"], row.found["qr"], atol=0.04) for row in marked)
    assert all(row.marks == row.found == {} for row in rows if not row.marks)
    metadata = json.loads(pq.read_schema(path).metadata[b"huggingface"])
    assert metadata == {"info": {"features": {"image": {"_type": "Image"}}}}
    assert json.loads(path.with_suffix(".json").read_text()) == summary
    again = build(clean(24), tmp_path / "again.parquet", Pollution(kinds=("qr",), ratio=0.6), Seeing(), seed=1)
    assert again["sha256"] == summary["sha256"]


def test_a_classifier_gives_no_boxes(tmp_path: Path) -> None:
    path, _ = a_set(tmp_path / "set.parquet", boxes=False)
    found = [row.found for row in PollutedSet(path) if row.marks]
    assert found and all(seen == {"qr": []} for seen in found)


def test_a_detector_that_finds_nothing_stops_it(tmp_path: Path) -> None:
    with pytest.raises(NothingFound, match="finds 0 of") as error:
        build(clean(24), tmp_path / "set.parquet", Pollution(kinds=("qr",), ratio=0.6), Seeing(blind=True))
    assert "threshold" in error.value.fix and list(tmp_path.iterdir()) == []  # nothing half-done is left


def test_a_set_is_gone_through_and_not_held(tmp_path: Path) -> None:
    path, _ = a_set(tmp_path / "set.parquet", count=150)  # more than a batch
    rows = PollutedSet(path)
    first, second = list(rows), list(rows)
    assert [row.name for row in first] == [f"n{i}" for i in range(150)] == [row.name for row in second]
    assert not any(isinstance(row.stored, np.ndarray) for row in first)
    for row, once_more in zip(first[::10], second[::10], strict=True):
        assert np.array_equal(row.picture, once_more.picture) and (row.picture == 200).all() == (not row.marks)
    table = pq.read_table(path).to_pylist()
    table[7]["image"]["bytes"] = b"no picture"
    pq.write_table(pa.Table.from_pylist(table), path)
    with pytest.raises(InputError, match="cannot be read") as error:
        [row.picture for row in PollutedSet(path)]
    assert error.value.where.endswith("row 7")


def test_boxes_outside_the_picture_are_refused(tmp_path: Path) -> None:
    path, _ = a_set(tmp_path / "set.parquet")
    rows = pq.read_table(path).to_pylist()
    rows[3]["found"] = [{"concept": "qr", "score": 1.0, "box": [0.5, 0.5, 1.2, 1.0]}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(InputError, match="reaches outside") as error:
        PollutedSet(path)
    assert "row 3" in error.value.where and "fractions" in error.value.fix
    rows[3]["found"], rows[4]["caption"] = [], None
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(InputError, match="no caption"):
        PollutedSet(path)
    pq.write_table(pa.table({"caption": ["x"]}), path)
    with pytest.raises(InputError, match="no column 'image'"):
        PollutedSet(path)
