"""Trainings of erasers on a tiny random model, and the commands."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from index.errors import ConfigError, InputError, ModelError, PlanMismatch
from jobs.erase.dataset import NothingFound
from jobs.erase.save import save_adapter
from jobs.erase.train import CHECKPOINT, prepare, train
from pipeline.config import ModelConfig
from pipeline.model.load import load_model
from pipeline.steer.erase_adapter import load_adapter
from pipeline.steer.erase_tokens import box_mask

from .erasing import SHORT, a_set, call, equal, folder_of, run, some_rows


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
def test_tokens_are_learned_alone_as_often_as_configured(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: float, alone: float
) -> None:
    from pipeline.model.families.sd import StableDiffusion

    used: list[tuple[bool, bool]] = []  # whether tokens, whether a caption

    def word_ids(self: StableDiffusion, text: str, tokens: Sequence[int] = ()) -> torch.Tensor:
        used.append((bool(tokens), bool(text)))
        return whole(self, text, tokens)

    whole = StableDiffusion.word_ids
    monkeypatch.setattr(StableDiffusion, "word_ids", word_ids)
    run(tiny_sd, tmp_path / "one", dataclasses.replace(SHORT, rank=2, empty=empty, alone=alone))
    trained = used[-SHORT.steps * SHORT.batch :]
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


def test_hidden_marks_have_no_loss_and_no_tokens(tiny_sd: Path, tmp_path: Path) -> None:
    how = dataclasses.replace(SHORT, removal="data", rank=2, hidden=1.0)
    rows = some_rows()
    base = load_model(ModelConfig(path=str(tiny_sd), dtype="float32"))
    examples = prepare(rows, base, how)
    high, wide = examples.outside.shape[1:]
    for row, outside in zip(rows, examples.outside, strict=True):
        assert float(outside.sum()) == pytest.approx(high * wide)
        for box in (box for boxes in row.found.values() for box in boxes):
            assert not outside[box_mask([box], (1, 1), (high, wide))].any()
        assert bool((outside == 1).all()) == (not row.found)
    wider = prepare(rows, base, dataclasses.replace(how, around=0.25)).outside
    for row, some, fewer in zip(rows, examples.outside > 0, wider > 0, strict=True):
        assert bool((fewer <= some).all()) and (int(fewer.sum()) < int(some.sum())) == bool(row.found)
    assert how.vocabulary is None and not any(examples.tokens)
    trained = run(tiny_sd, tmp_path / "one", how)
    assert not trained.vectors and trained.lowrank and trained.marked == 8
    half = run(tiny_sd, tmp_path / "two", dataclasses.replace(how, hidden=0.5))
    assert set(half.vectors) == set(SHORT.vocabulary.tokens)  # type: ignore[union-attr]


def test_pictures_whose_marks_could_be_anywhere_are_left_out(tiny_sd: Path, tmp_path: Path) -> None:
    how = dataclasses.replace(SHORT, removal="data", rank=2, hidden=1.0)
    assert run(tiny_sd, tmp_path / "one", how, some_rows(boxes=False)).pictures == 4  # those without marks
    everywhere = [dataclasses.replace(row, found={"qr": [(0.0, 0.0, 1.0, 1.0)]}) for row in some_rows()]
    with pytest.raises(InputError, match="no picture to learn from"):
        run(tiny_sd, tmp_path / "two", how, everywhere)


def test_without_boxes_only_existence_can_be_learned(tiny_sd: Path, tmp_path: Path) -> None:
    with pytest.raises(NothingFound, match="never gives their boxes"):
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
        {"hidden": 1.0},
        {"hidden": 2.0, "rank": 2},
        {"hidden": 1.0, "rank": 2, "removal": "data", "concepts": ()},
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

    from pipeline.model.adapters.lowrank import RowAdapter, adapted

    latents = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(1))
    context = base.encode_prompts(["cat", ""])
    with adapted(base.network, [RowAdapter(loaded.lowrank, 1.0, (0, 1))]):
        ours = base.denoise(latents, torch.tensor([300, 300]), context)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    with torch.inference_mode():
        theirs = pipe.unet(latents, torch.tensor([300, 300]), context.tokens).sample
    plain = base.denoise(latents, torch.tensor([300, 300]), context)
    assert torch.allclose(ours, theirs, atol=1e-4) and not torch.allclose(ours, plain, atol=1e-4)
    tokens = ("<qr>", "<br-1-0>")
    for token in tokens:
        pipe.load_textual_inversion({token: loaded.vectors[token]}, token=token)
    with torch.inference_mode():
        result, _ = pipe.encode_prompt("a red apple <qr> <br-1-0>", torch.device("cpu"), 1, False)
    assert torch.allclose(result[0], base.encode_words("a red apple", loaded.embed(tokens)).tokens, atol=1e-4)


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
    settings = json.loads((tmp_path / "eraser" / "adapter.json").read_text())
    assert "step 3 of 3" in done.output and settings["training"]["hidden"] == 1 and settings["training"]["rank"] == 16
    spoken = call(*arguments[:3], tmp_path / "spoken", *arguments[4:], "--tokens", "corners")
    assert spoken.exit_code == 0, spoken.output
    settings = json.loads((tmp_path / "spoken" / "adapter.json").read_text())
    assert settings["vocabulary"] is not None and settings["training"]["rank"] == 0
    again = call(*arguments)
    assert again.exit_code == 2 and "finished adapter" in again.output
    hidden = [*arguments[:3], tmp_path / "hidden", *arguments[4:], "--removal", "data", "--rank", 2]
    for tokens in ((), ("--tokens", "corners")):  # with --tokens an adapter has tokens; else marks are hidden
        folder = hidden[3].with_name(f"hidden{len(tokens)}")
        done = call(*hidden[:3], folder, *hidden[4:], *tokens)
        assert done.exit_code == 0, done.output
        settings = json.loads((folder / "adapter.json").read_text())
        assert (settings["vocabulary"] is None, settings["training"]["hidden"]) == (not tokens, 0 if tokens else 1)
        assert ("no loss where the detector found" in (folder / "README.md").read_text()) == (not tokens)
    both = call(*hidden[:3], tmp_path / "both", *hidden[4:], "--tokens", "corners", "--hide", 1)
    assert both.exit_code == 2 and "there are no tokens" in both.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_training_with_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    from jobs.erase import train as module

    def ended(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr(module, "train", ended)
    a_set(tmp_path / "set.parquet", 4)
    before = signal.signal(number, signal.default_int_handler)  # under nohup SIGHUP would be ignored, as it should
    try:
        result = call("train", tmp_path / "set.parquet", "--out", tmp_path / "eraser")
    finally:
        signal.signal(number, before)
    assert result.exit_code == 128 + number
    assert f"stopped by {signal.Signals(number).name}" in result.output
    assert f"The same command continues in {tmp_path / 'eraser'}" in result.output


def test_commands_name_what_is_wrong(tmp_path: Path) -> None:
    bare = folder_of(tmp_path / "bare", {"one": None})
    result = call("dataset", bare, "--out", tmp_path / "x.parquet")
    assert result.exit_code == 2 and "no caption" in result.output and "metadata.jsonl" in result.output
    result = call("dataset", bare, "--out", tmp_path / "x.parquet", "--opacity", "much")
    assert result.exit_code == 2 and "0.4-1" in result.output
    result = call("train", tmp_path / "none.parquet", "--out", tmp_path / "a")
    assert result.exit_code == 2 and "no such set" in result.output
