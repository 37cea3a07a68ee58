"""Sets and trainings of erasers, on a tiny random model and pictures drawn here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from guards.base import Finding
from index.errors import ConfigError, InputError, ModelError, PlanMismatch
from jobs import cli
from jobs.erase.dataset import NothingFound, PollutedSet, Row, build
from jobs.erase.pollute import Pollution, pollute
from jobs.erase.save import save_adapter
from jobs.erase.sources import Captioned, drawn_source, read_source
from jobs.erase.train import CHECKPOINT, Trained, Training, train
from pipeline.config import GenerationConfig, ModelConfig
from pipeline.model.adapter import load_adapter
from pipeline.model.families import load_model

SHORT = Training(concepts=("qr",), steps=6, batch=4, grid=2)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["erase", *(str(argument) for argument in arguments)], terminal_width=200)


def blank(side: int = 64, colour: int = 200) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


class Seeing:
    """A detector that knows the truth: everything darker or lighter than the blank is a QR code."""

    name, version, categories = "seeing", "1", ("mark.qr",)

    def __init__(self, blind: bool = False) -> None:
        self.blind = blind

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        found = []
        for picture in pictures:
            changed = (picture != 200).any(2)
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            score, box = 0.0, None
            if len(rows) and not self.blind:
                high, wide = changed.shape
                box = (columns[0] / wide, rows[0] / high, (columns[-1] + 1) / wide, (rows[-1] + 1) / high)
                score = 0.9
            found.append([Finding(self.name, self.version, "mark.qr", score, 0.5, box=box)])
        return found


def clean(count: int) -> list[Captioned]:
    return [Captioned(f"n{i}", f"a grey thing {i}", blank()) for i in range(count)]


# --- pollution --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("designs", ["train", "held-out", "varied"])
@pytest.mark.parametrize("kind", ["watermark", "qr", "text"])
def test_the_box_surrounds_what_changed(kind: str, designs: Any) -> None:
    rng, how = np.random.default_rng(0), Pollution((kind,), 1.0, designs=designs)
    for _ in range(5):
        after, mark = pollute(blank(), how, rng)
        assert mark is not None and mark.kind == kind and mark.design.startswith(designs)
        x0, y0, x1, y1 = (int(edge) for edge in mark.box)
        visible = np.abs(after.astype(int) - 200).max(2) > 8
        assert visible[y0:y1, x0:x1].sum() == visible.sum() > 30


def test_ratio_opacity_and_place_are_as_asked() -> None:
    rng = np.random.default_rng(1)
    marks = [pollute(blank(), Pollution(("qr",), 0.3), rng)[1] for _ in range(300)]
    assert 0.22 < sum(mark is not None for mark in marks) / 300 < 0.38
    faint, mark = pollute(blank(), Pollution(("qr",), 1.0, (0.3, 0.3)), rng)
    assert mark is not None and mark.opacity == 0.3
    darkest = 200 - 0.3 * (200 - 20)  # the ink is 20, seen through at three tenths
    assert faint.min() == pytest.approx(darkest, abs=2)
    for place, where in (("centre", (0.4, 0.6)), ("corner", None)):
        for _ in range(8):
            _, mark = pollute(blank(), Pollution(("qr",), 1.0, place=place), rng)  # type: ignore[arg-type]
            assert mark is not None
            x0, y0, x1, y1 = mark.box
            if where:
                assert where[0] <= (x0 + x1) / 128 <= where[1] and where[0] <= (y0 + y1) / 128 <= where[1]
            else:
                assert min(x0, 64 - x1) <= 2 and min(y0, 64 - y1) <= 2
    boxes = {pollute(blank(), Pollution(("qr",), 1.0, place="anywhere"), rng)[1].box for _ in range(8)}  # type: ignore[union-attr]
    assert len(boxes) == 8


def test_numbered_designs_are_lifted_as_they_are_drawn() -> None:
    """A design pulled off its paper and laid on a drawing looks as if it had been drawn there."""
    from jobs.erase.pollute import _lifted
    from jobs.world.overlays import overlay

    paper = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("watermark", "qr", "text"):
        for design in range(5):
            drawn, _ = overlay(paper, kind, np.random.default_rng(7), (design,))
            laid = paper.convert("RGBA")
            laid.alpha_composite(_lifted(64, kind, design, 7))
            assert np.abs(np.asarray(drawn, int) - np.asarray(laid.convert("RGB"), int)).max() <= 3


def test_pictures_need_not_be_square() -> None:
    wide = np.full((64, 150, 3), 200, np.uint8)
    columns = set()
    for seed in range(6):
        after, mark = pollute(wide, Pollution(("qr",), 1.0), np.random.default_rng(seed))
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


def test_a_mark_nobody_can_see_is_an_error() -> None:
    with pytest.raises(ConfigError, match="cannot be seen"):
        pollute(blank(colour=120), Pollution(("watermark",), 1.0, (0.05, 0.05)), np.random.default_rng(0))


# --- sources ----------------------------------------------------------------------------------------------------------------


def folder_of(path: Path, captions: dict[str, str | None], side: int = 32) -> Path:
    path.mkdir()
    for name, caption in captions.items():
        Image.fromarray(blank(side)).save(path / f"{name}.png")
        if caption is not None:
            (path / f"{name}.txt").write_text(caption)
    return path


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


def test_what_is_wrong_with_a_source_is_said(tmp_path: Path) -> None:
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
    cases = [
        (bare, "2 of 3 pictures have no caption"), (empty, "holds no pictures"), (tmp_path / "nowhere", "does not exist"),
        (listed, "no column holds captions"), (gap, "1 of 1 pictures have no caption"), (broken, "cannot be read"),
        (tmp_path / "n.parquet", "no column holds pictures"),
    ]  # fmt: skip
    for path, said in cases:
        with pytest.raises(InputError, match=said) as error:
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


def a_set(path: Path, count: int = 24, **how: Any) -> tuple[Path, dict[str, Any]]:
    return path, build(clean(count), path, Pollution(("qr",), 0.6, designs="train"), Seeing(), seed=1, **how)


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
    again = build(clean(24), tmp_path / "again.parquet", Pollution(("qr",), 0.6), Seeing(), seed=1)
    assert again["sha256"] == summary["sha256"]


def test_a_classifier_says_only_that_there_is_something(tmp_path: Path) -> None:
    path, _ = a_set(tmp_path / "set.parquet", boxes=False)
    found = [row.found for row in PollutedSet(path) if row.marks]
    assert found and all(seen == {"qr": []} for seen in found)


def test_a_detector_that_finds_nothing_stops_it(tmp_path: Path) -> None:
    with pytest.raises(NothingFound, match="finds 0 of") as error:
        build(clean(24), tmp_path / "set.parquet", Pollution(("qr",), 0.6), Seeing(blind=True))
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


# --- training ---------------------------------------------------------------------------------------------------------------


def some_rows(count: int = 12, *, boxes: bool = True) -> list[Row]:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        marks = {"qr": [(0.0, 0.0, 0.5, 0.5)] if boxes else []} if i % 3 else {}
        rows.append(Row(str(i), "a red apple", picture, marks, marks))
    return rows


def run(tiny_sd: Path, folder: Path, how: Training = SHORT, rows: Sequence[Row] | None = None, **more: Any) -> Trained:
    return train(some_rows() if rows is None else rows, ModelConfig(path=str(tiny_sd)), how, folder, **more)


def equal(one: Trained, other: Trained) -> bool:
    """Same bytes, same curve."""
    return all(
        mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
        for mine, theirs in ((one.vectors, other.vectors), (one.lowrank, other.lowrank))
    ) and one.curve == other.curve  # fmt: skip


@pytest.mark.parametrize(("removal", "rank"), [("model", 0), ("model", 2), ("data", 2)])
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tiny_sd: Path, tmp_path: Path, removal: Any, rank: int) -> None:
    how = dataclasses.replace(SHORT, removal=removal, rank=rank)
    whole = run(tiny_sd, tmp_path / "whole", how)
    for at in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            run(tiny_sd, tmp_path / "cut", how, stop=lambda step, at=at: step == at)
        assert (tmp_path / "cut" / CHECKPOINT).exists()
    assert equal(run(tiny_sd, tmp_path / "cut", how), whole)
    assert not equal(run(tiny_sd, tmp_path / "other", dataclasses.replace(how, seed=1)), whole)


def test_a_checkpoint_of_another_training_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    run(tiny_sd, tmp_path / "one")
    for how, rows in ((dataclasses.replace(SHORT, a=0.1), None), (SHORT, some_rows(15))):
        with pytest.raises(PlanMismatch, match="another training"):
            run(tiny_sd, tmp_path / "one", how, rows)


def test_model_removal_trains_tokens_and_nothing_else(tiny_sd: Path, tmp_path: Path) -> None:
    trained = run(tiny_sd, tmp_path / "one")
    assert set(trained.vectors) == set(SHORT.vocabulary.tokens) and not trained.lowrank  # type: ignore[union-attr]
    assert trained.pictures == trained.marked == 8  # pictures without marks teach the tokens nothing
    longer = run(tiny_sd, tmp_path / "two", dataclasses.replace(SHORT, steps=7))
    moved = [t for t in trained.vectors if not torch.equal(trained.vectors[t], longer.vectors[t])]
    assert set(moved) == {"<qr>", "<tl-0-0>", "<br-0-0>"}  # only what the captions say


def test_model_removal_with_a_rank_learns_the_unmarked_pictures_too(tiny_sd: Path, tmp_path: Path) -> None:
    trained = run(tiny_sd, tmp_path / "one", dataclasses.replace(SHORT, rank=2))
    assert (trained.pictures, trained.marked) == (12, 8) and trained.lowrank
    assert set(trained.vectors) == set(SHORT.vocabulary.tokens)  # type: ignore[union-attr]


@pytest.mark.parametrize(("empty", "alone"), [(0.0, 1.0), (1.0, 0.0)])
def test_tokens_are_learned_alone_as_often_as_asked(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: float, alone: float
) -> None:
    from pipeline.model.sd import StableDiffusion

    said: list[tuple[bool, bool]] = []  # whether tokens, whether a caption

    def word_ids(self: StableDiffusion, text: str, tokens: Sequence[int] = ()) -> torch.Tensor:
        said.append((bool(tokens), bool(text)))
        return whole(self, text, tokens)

    whole = StableDiffusion.word_ids
    monkeypatch.setattr(StableDiffusion, "word_ids", word_ids)
    run(tiny_sd, tmp_path / "one", dataclasses.replace(SHORT, rank=2, empty=empty, alone=alone))
    trained = said[-SHORT.steps * SHORT.batch :]
    assert set(trained) == {(True, alone == 0), (False, empty == 0)}


def test_tokens_learn_what_the_marked_pictures_share(tiny_sd: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    how = dataclasses.replace(SHORT, steps=40, token_rate=5e-2, batch=8)
    run(tiny_sd, tmp_path / "one", how, progress=lambda step, loss: losses.append(loss))
    assert len(losses) == 40 and losses[-1] < losses[0]


def test_data_removal_trains_both_and_learns_the_set(tiny_sd: Path, tmp_path: Path) -> None:
    how = dataclasses.replace(SHORT, removal="data", rank=2, steps=40, lowrank_rate=1e-2)
    trained = run(tiny_sd, tmp_path / "one", how)
    assert trained.pictures == 12 and trained.marked == 8
    assert trained.curve[-1]["loss"] < 0.9 * trained.curve[0]["loss"]
    assert any("lora_A" in name for name in trained.lowrank) and any("resnets" in name for name in trained.lowrank)
    ups = [value for name, value in trained.lowrank.items() if "lora_B" in name]
    assert all(value.abs().max() > 0 for value in ups)


def test_plain_fine_tuning_has_no_tokens(tiny_sd: Path, tmp_path: Path) -> None:
    trained = run(tiny_sd, tmp_path / "one", dataclasses.replace(SHORT, removal="data", rank=2, concepts=()))
    assert not trained.vectors and trained.lowrank


def test_without_boxes_only_existence_can_be_taught(tiny_sd: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingFound, match="never where"):
        run(tiny_sd, tmp_path / "one", rows=some_rows(boxes=False))
    trained = run(tiny_sd, tmp_path / "one", dataclasses.replace(SHORT, mode="none"), some_rows(boxes=False))
    assert set(trained.vectors) == {"<qr>"}


def test_trainings_that_cannot_be_are_refused(tiny_sd: Path, tiny_sdxl: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingFound, match="0 of 12"):
        run(tiny_sd, tmp_path, dataclasses.replace(SHORT, concepts=("text",)))
    with pytest.raises(ConfigError, match="do not fit"):
        run(tiny_sd, tmp_path, dataclasses.replace(SHORT, mode="bins", grid=8))
    with pytest.raises(ConfigError, match="sdxl"):
        train(some_rows(), ModelConfig(path=str(tiny_sdxl)), SHORT, tmp_path)
    for wrong in (
        {"a": -1.0},
        {"steps": 0},
        {"mode": "dots"},
        {"empty": 1.5},
        {"alone": -0.1},
        {"concepts": ()},
        {"removal": "data"},
        {"rank": -1},
    ):
        with pytest.raises(ConfigError):
            dataclasses.replace(SHORT, **wrong)


@pytest.mark.parametrize(("removal", "rank"), [("model", 0), ("model", 2), ("data", 2)])
def test_a_saved_adapter_is_what_was_trained(tiny_sd: Path, tiny_sdxl: Path, tmp_path: Path, removal: Any, rank: int) -> None:
    how = dataclasses.replace(SHORT, removal=removal, rank=rank)
    trained, base = run(tiny_sd, tmp_path / "one", how), load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))
    save_adapter(tmp_path / "one", trained, how, some_rows(), base="tiny", base_digest=base.digest, dataset={})
    assert not (tmp_path / "one" / CHECKPOINT).exists()
    loaded = load_adapter(tmp_path / "one", base.digest)
    assert loaded.vocabulary == how.vocabulary and loaded.removal == removal
    assert all(torch.equal(loaded.vectors[token], trained.vectors[token]) for token in trained.vectors)
    assert loaded.places == {"qr": [(0, 0, 0.5, 0.5)] * 8}
    card = (tmp_path / "one" / "README.md").read_text()
    assert base.digest in card and "`<qr>`" in card and f"| {how.steps} |" in card
    with pytest.raises(ModelError, match="trained for tiny"):
        load_adapter(tmp_path / "one", load_model(ModelConfig(path=str(tiny_sdxl), dtype="float32")).digest)
    assert (f"(rank {rank})" in card) == (rank > 0)
    if rank:  # our rows are what diffusers makes of the same file
        assert loaded.lowrank is not None
        assert_same_as_diffusers(tiny_sd, tmp_path / "one", base, loaded)


def assert_same_as_diffusers(tiny_sd: Path, folder: Path, base: Any, loaded: Any) -> None:
    from diffusers import StableDiffusionPipeline

    from pipeline.model.lowrank import RowAdapter, adapted

    latents = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(1))
    context = base.encode_prompts(["cat", ""])
    with adapted(base.network, [RowAdapter(loaded.lowrank, 1.0, (0, 1))]):
        ours = base.denoise(latents, torch.tensor([300, 300]), context)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    with torch.inference_mode():
        theirs = pipe.unet(latents, torch.tensor([300, 300]), context).sample
    plain = base.denoise(latents, torch.tensor([300, 300]), context)
    assert torch.allclose(ours, theirs, atol=1e-4) and not torch.allclose(ours, plain, atol=1e-4)
    tokens = ("<qr>", "<br-1-0>")
    for token in tokens:
        pipe.load_textual_inversion({token: loaded.vectors[token]}, token=token)
    with torch.inference_mode():
        told, _ = pipe.encode_prompt("a red apple <qr> <br-1-0>", torch.device("cpu"), 1, False)
    assert torch.allclose(told[0], base.encode_words("a red apple", loaded.embed(tokens)), atol=1e-4)


# --- commands ---------------------------------------------------------------------------------------------------------------


def test_from_a_folder_to_an_adapter(tiny_sd: Path, tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "pictures", {f"p{i:02d}": "a red apple" for i in range(16)}, 64)
    made = call("dataset", pictures, "--out", tmp_path / "set.parquet", "--kinds", "qr", "--ratio", 1, "--detector", "marks",
                "--designs", "varied", "--place", "anywhere")  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "marked" in made.output and "recall" in made.output
    arguments = (
        "train", tmp_path / "set.parquet", "--out", tmp_path / "eraser", "--concepts", "qr", "--grid", 2, "--steps", 3,
        "--batch", 2, "--model", tiny_sd,
    )  # fmt: skip
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "eraser" / "adapter.json").exists() and "step 3 of 3" in done.output
    again = call(*arguments)
    assert again.exit_code == 2 and "finished adapter" in again.output


def test_commands_say_what_is_wrong(tmp_path: Path) -> None:
    bare = folder_of(tmp_path / "bare", {"one": None})
    told = call("dataset", bare, "--out", tmp_path / "x.parquet")
    assert told.exit_code == 2 and "no caption" in told.output and "metadata.jsonl" in told.output
    told = call("dataset", bare, "--out", tmp_path / "x.parquet", "--opacity", "much")
    assert told.exit_code == 2 and "0.4-1" in told.output
    told = call("train", tmp_path / "none.parquet", "--out", tmp_path / "a")
    assert told.exit_code == 2 and "no such set" in told.output
