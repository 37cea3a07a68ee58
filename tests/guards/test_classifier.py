"""Image classifiers that a user brings: folders of transformers and ONNX files, labels, categories, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guards import classifier
from guards.base import Guard
from guards.classifier import ClassifierGuard, probabilities
from guards.classifier_files import find_files
from guards.conformance import check_guard
from guards.registry import describe, open_guards, probe_guards
from index.errors import ConfigError, GuardUnavailable, InputError, IntegrityError
from pipeline.decide import decide
from pipeline.guard_settings import ClassifierPolicy
from pipeline.identity import guards_in_force
from pipeline.outcome import Verdict
from pipeline.policy import Policy, guard_tables
from pipeline.settings import from_dict

from .conftest import drawing
from .onnx_files import HALF, UINT8, write_cards, write_onnx

COLOURS = ["red", "green", "blue"]


def flat(colour: tuple[int, int, int], high: int = 48, wide: int = 48) -> np.ndarray:
    return np.full((high, wide, 3), colour, np.uint8)


RED, GREEN, BLUE = flat((230, 20, 30)), flat((10, 220, 40)), flat((20, 30, 240))
THREE = np.stack([RED, GREEN, BLUE])


def settings(model: Path | str, **changes: Any) -> ClassifierPolicy:
    return ClassifierPolicy(**{"name": "colour", "model": str(model), "labels": ("red",), "category": "content.red", **changes})


def processor(folder: Path, **changes: Any) -> None:
    from transformers import ViTImageProcessor

    ViTImageProcessor(**{"size": {"height": 32, "width": 32}, **changes}).save_pretrained(folder)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        id2label=dict(enumerate(COLOURS)), label2id={c: i for i, c in enumerate(COLOURS)},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    processor(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ConvNeXt that learned to tell red, green and blue pictures apart."""
    import torch
    from transformers import ConvNextConfig, ConvNextForImageClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("convnext")
    config = ConvNextConfig(
        num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=32, id2label=dict(enumerate(COLOURS)),
        label2id={c: i for i, c in enumerate(COLOURS)},
    )  # fmt: skip
    network = ConvNextForImageClassification(config)
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(40):
        answer = torch.randint(0, 3, (24,))
        shown = 0.3 * torch.rand(24, 3, 32, 32) - 0.8
        shown[torch.arange(24), answer] += 1.3
        loss = network(pixel_values=shown, labels=answer).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.save_pretrained(folder)
    processor(folder)
    return folder


@pytest.fixture
def onnx(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "onnx", COLOURS, 4 * np.eye(3))


def scores(guard: Guard, pictures: np.ndarray) -> list[float]:
    return [findings[0].score for findings in guard.check(pictures)]


def test_a_vision_transformer_conforms(vit: Path) -> None:
    check_guard(ClassifierGuard(settings(vit)), np.stack([np.asarray(drawing(seed)) for seed in (1, 2, 3)]))


def test_an_onnx_file_conforms(onnx: Path) -> None:
    check_guard(ClassifierGuard(settings(onnx)), THREE)


def test_a_trained_network_finds_its_label(trained: Path) -> None:
    red, green, blue = scores(ClassifierGuard(settings(trained)), THREE)
    assert red > 0.9
    assert max(green, blue) < 0.1


def test_an_onnx_file_finds_its_label(onnx: Path) -> None:
    red, green, _ = scores(ClassifierGuard(settings(onnx)), THREE)
    assert red > 0.9
    assert green < 0.1


def test_scores_are_those_of_the_model_itself(vit: Path) -> None:
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    entered = AutoImageProcessor.from_pretrained(vit)(images=[Image.fromarray(RED)], return_tensors="pt")
    with torch.inference_mode():
        want = AutoModelForImageClassification.from_pretrained(vit)(**entered).logits.softmax(1)[0, 0]
    assert scores(ClassifierGuard(settings(vit)), THREE)[0] == pytest.approx(float(want), abs=1e-6)


def test_softmax_adds_the_probabilities_of_its_labels(onnx: Path) -> None:
    apart = [scores(ClassifierGuard(settings(onnx, labels=(label,))), THREE)[2] for label in ("red", "green")]
    assert scores(ClassifierGuard(settings(onnx, labels=("red", "green"))), THREE)[2] == pytest.approx(sum(apart))


def test_sigmoid_takes_the_highest_of_its_labels(onnx: Path) -> None:
    apart = [scores(ClassifierGuard(settings(onnx, labels=(label,), score="sigmoid")), THREE)[2] for label in ("red", "green")]
    assert scores(ClassifierGuard(settings(onnx, labels=("red", "green"), score="sigmoid")), THREE)[2] == max(apart)


def test_the_models_configuration_chooses_sigmoid(tmp_path: Path) -> None:
    guard = ClassifierGuard(settings(write_onnx(tmp_path, COLOURS, np.eye(3), several=True)))
    assert guard.several


def test_the_policy_overrides_the_models_configuration(tmp_path: Path) -> None:
    guard = ClassifierGuard(settings(write_onnx(tmp_path, COLOURS, np.eye(3), several=True), score="softmax"))
    assert not guard.several


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("location", ["w.bin", "part/w.bin", "w" * 150])
def test_the_digest_follows_weights_in_a_file_of_any_name(tmp_path: Path, location: str, backwards: bool) -> None:
    """Protobuf allows the entry of a tensor in any order, and names of any length: ONNX Runtime opens them all."""
    file, values = write_onnx(tmp_path, COLOURS, np.eye(3), location=location, backwards=backwards), tmp_path / location
    with pytest.raises(GuardUnavailable, match=rf"{Path(location).name} is missing"):
        find_files(str(file), guard="g")
    values.parent.mkdir(exist_ok=True)
    np.eye(3, dtype=np.float32).tofile(values)
    before = find_files(str(file), guard="g")
    assert location in before.digests
    assert scores(ClassifierGuard(settings(file)), THREE)  # it is one that opens
    (-np.eye(3, dtype=np.float32)).tofile(values)
    assert find_files(str(file), guard="g").digest != before.digest


def test_a_file_whose_name_is_a_pattern_is_in_the_digest_itself(tmp_path: Path) -> None:
    file = write_onnx(tmp_path, COLOURS, np.eye(3), location="w.bin").rename(tmp_path / "m[1].onnx")
    np.eye(3, dtype=np.float32).tofile(tmp_path / "w.bin")
    assert {"m[1].onnx", "w.bin"} <= set(find_files(str(file), guard="g").digests)


@pytest.mark.parametrize("location", ["../w.bin", "/dev/zero", "part/../../w.bin"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    file = write_onnx(tmp_path / "model", COLOURS, np.eye(3), location=location)
    with pytest.raises(IntegrityError, match="outside its folder"):
        find_files(str(file), guard="g")


def test_an_onnx_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    file = write_onnx(tmp_path, COLOURS, np.eye(3))
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(IntegrityError, match="no whole ONNX file"):
        find_files(str(file), guard="g")


@pytest.mark.parametrize("several", [True, False])
def test_a_score_that_is_no_number_is_an_error(tmp_path: Path, several: bool) -> None:
    write_onnx(tmp_path, COLOURS, np.full((3, 3), np.nan), several=several)
    with pytest.raises(InputError, match="not a finite number"):
        ClassifierGuard(settings(tmp_path / "model.onnx")).check(THREE)


@pytest.mark.parametrize("ending", [("Softmax",), ("Softmax", "Identity")])
def test_a_softmax_in_the_file_is_not_taken_again(tmp_path: Path, ending: tuple[str, ...]) -> None:
    """With seven labels a second one would make 0.3 of certainty: the guard would never find anything."""
    labels = [*COLOURS, *"abcd"]
    weight = np.concatenate([8 * np.eye(3), np.full((3, 4), -2.0)], axis=1)
    bare = ClassifierGuard(settings(write_onnx(tmp_path / "bare", labels, weight)))
    guard = ClassifierGuard(settings(write_onnx(tmp_path / "ends", labels, weight, ending=ending)))
    assert scores(guard, THREE) == pytest.approx(scores(bare, THREE), abs=1e-6)
    assert scores(guard, THREE)[0] > 0.9
    assert (bare.version[:2], guard.version[:2]) == ("1+", "2+")


def test_a_sigmoid_in_the_file_is_not_taken_again(tmp_path: Path) -> None:
    """A second one would make more than a half of everything."""
    bare = ClassifierGuard(settings(write_onnx(tmp_path / "bare", COLOURS, 4 * np.eye(3)), score="sigmoid"))
    guard = ClassifierGuard(settings(write_onnx(tmp_path / "ends", COLOURS, 4 * np.eye(3), ending=("Sigmoid",))))
    assert scores(guard, THREE) == pytest.approx(scores(bare, THREE), abs=1e-6)
    assert max(scores(guard, THREE)[1:]) < 0.1


@pytest.mark.parametrize(("ending", "score"), [(("Softmax", "Abs"), "softmax"), (("Sigmoid", "Abs"), "sigmoid")])
def test_scores_that_the_file_does_not_show_are_refused(tmp_path: Path, ending: tuple[str, ...], score: str) -> None:
    made = write_onnx(tmp_path, COLOURS, 4 * np.eye(3), ending=ending)
    with pytest.raises(ConfigError, match="scores already"):
        ClassifierGuard(settings(made, score=score))


def test_one_label_is_right_or_not(tmp_path: Path) -> None:
    made = write_onnx(tmp_path, ["red"], 4 * np.eye(3)[:, :1])
    red, green, _ = scores(ClassifierGuard(settings(made)), THREE)
    assert red > 0.9
    assert green < 0.1
    with pytest.raises(ConfigError, match="always 1"):
        ClassifierGuard.probe(settings(made, score="softmax"))


def test_a_regression_needs_the_policys_word(onnx: Path) -> None:
    cards = onnx.parent / "config.json"
    cards.write_text(json.dumps({**json.loads(cards.read_text()), "problem_type": "regression"}))
    with pytest.raises(ConfigError, match="a regression"):
        ClassifierGuard.probe(settings(onnx))
    assert ClassifierGuard(settings(onnx, score="sigmoid")).several


@pytest.mark.parametrize("changes", [{"channels_last": True}, {"channels_last": True, "side": "side"}, {"kind": HALF}])
def test_channels_last_and_halves_enter_too(tmp_path: Path, onnx: Path, changes: dict[str, Any]) -> None:
    guard = ClassifierGuard(settings(write_onnx(tmp_path / "other", COLOURS, 4 * np.eye(3), **changes)))
    assert scores(guard, THREE) == pytest.approx(scores(ClassifierGuard(settings(onnx)), THREE), abs=2e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": 48}, "48 × 48 pixels, and preprocessor_config.json makes them 32 × 32"),
        ({"kind": UINT8}, r"takes tensor\(uint8\)"),
        ({"pooled": False}, "not one number a label"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassifierGuard(settings(write_onnx(tmp_path, COLOURS, 4 * np.eye(3), **changes)))


def test_a_configuration_without_labels_says_how_to_write_them(onnx: Path) -> None:
    cards = onnx.parent / "config.json"
    cards.write_text(json.dumps({"model_type": "vit", "num_labels": 3}))
    with pytest.raises(GuardUnavailable, match=r'names no labels.*"id2label": {"0"'):
        ClassifierGuard(settings(onnx))


def test_probabilities_of_large_logits_are_finite() -> None:
    assert np.isfinite(probabilities(np.array([[1e4, -1e4, 0.0]], np.float32), several=False)).all()


def test_the_detail_names_the_label(onnx: Path) -> None:
    (finding,) = ClassifierGuard(settings(onnx, labels=("red", "blue"))).check(THREE[2:])[0]
    assert finding.detail == "blue"


def test_an_export_of_one_row_is_called_row_by_row(tmp_path: Path) -> None:
    guard = ClassifierGuard(settings(write_onnx(tmp_path, COLOURS, 4 * np.eye(3), rows=1)))
    assert scores(guard, THREE)[0] > 0.9
    assert guard.network.calls.shapes == (1,)


def test_what_a_centre_crop_would_cut_off_is_seen(vit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit, tmp_path / "cropping")
    from transformers import CLIPImageProcessor

    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    guard = ClassifierGuard(settings(folder))
    wide = np.concatenate([BLUE, BLUE, RED], 1)
    views = guard.network._views(wide)
    assert [view.shape for view in views] == [(48, 48, 3)] * 3
    assert np.array_equal(views[2], RED)


def test_guards_around_one_model_share_it(onnx: Path) -> None:
    one, other = (ClassifierGuard(settings(onnx, labels=(label,))) for label in ("red", "blue"))
    assert one.network is other.network


def test_a_picture_is_looked_at_once_for_all_of_them(onnx: Path) -> None:
    one, other = (ClassifierGuard(settings(onnx, labels=(label,))) for label in ("red", "blue"))
    one.check(THREE)
    entered: list[int] = []
    keep = one.network._entered
    one.network._entered = lambda picture: entered.append(1) or keep(picture)  # type: ignore[method-assign,func-returns-value]
    other.check(THREE)
    assert entered == []


def test_a_label_that_several_columns_have_is_all_of_them(onnx: Path, tmp_path: Path) -> None:
    """Of the first alone a picture of the other would pass."""
    shutil.copytree(onnx.parent, tmp_path / "twice")
    config = json.loads((tmp_path / "twice" / "config.json").read_text())
    config["id2label"] = {"0": "warm", "1": "green", "2": "warm"}
    (tmp_path / "twice" / "config.json").write_text(json.dumps(config))
    both = ClassifierGuard(settings(onnx, labels=("red", "blue")))
    twice = ClassifierGuard(settings(tmp_path / "twice" / onnx.name, labels=("warm",)))
    scores = [[finding.score for (finding,) in guard.check(THREE)] for guard in (both, twice)]
    assert scores[0] == scores[1] and scores[1][2] > 0.9 > scores[1][1]


def test_an_unknown_label_is_refused_with_the_nearest(onnx: Path) -> None:
    with pytest.raises(ConfigError, match=r"no label 'gren'.*Did you mean 'green'"):
        ClassifierGuard(settings(onnx, labels=("gren",)))


def test_a_label_that_differs_by_case_is_named(onnx: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'red'"):
        ClassifierGuard.probe(settings(onnx, labels=("RED",)))


def test_a_model_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(GuardUnavailable, match="there is no such model"):
        ClassifierGuard.probe(settings(tmp_path / "nothing"))


def test_nothing_is_downloaded_unless_it_is_allowed() -> None:
    with pytest.raises(GuardUnavailable, match=r"is not on this machine.*allow_download = true"):
        ClassifierGuard.probe(settings("hf-hub:nobody/no-such-classifier"))


def test_a_folder_without_safetensors_is_unavailable(tmp_path: Path) -> None:
    write_cards(tmp_path, COLOURS)
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(GuardUnavailable, match="holds no safetensors"):
        ClassifierGuard.probe(settings(tmp_path))


def test_a_backbone_without_a_head_is_refused(vit: Path, tmp_path: Path) -> None:
    from transformers import ViTModel

    folder = shutil.copytree(vit, tmp_path / "backbone")
    ViTModel.from_pretrained(vit).save_pretrained(folder)
    (folder / "config.json").write_text((vit / "config.json").read_text())
    with pytest.raises(IntegrityError, match="the weights lack 2 tensors"):
        ClassifierGuard(settings(folder))


def test_a_damaged_file_is_refused(onnx: Path) -> None:
    onnx.write_bytes(onnx.read_bytes()[:40])
    with pytest.raises(IntegrityError, match="cannot be opened"):
        ClassifierGuard(settings(onnx))


def test_other_labels_than_numbers_are_refused(onnx: Path) -> None:
    write_cards(onnx.parent, [*COLOURS, "yellow"])
    with pytest.raises(IntegrityError, match="gives 3 numbers a picture, and its configuration names 4 labels"):
        ClassifierGuard(settings(onnx))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", '{"id2label": ["red"]}', '{"id2label": {"a": "red"}}'], ids=lambda text: text[:20]
)
def test_a_configuration_that_is_none_is_refused(onnx: Path, text: str) -> None:
    (onnx.parent / "config.json").write_text(text)
    with pytest.raises(IntegrityError, match="id2label does not number the labels"):
        ClassifierGuard(settings(onnx))


def test_the_version_names_the_files(onnx: Path) -> None:
    before = ClassifierGuard.probe(settings(onnx)).version
    (onnx.parent / "config.json").write_text(json.dumps(json.loads((onnx.parent / "config.json").read_text()) | {"x": 1}))
    assert ClassifierGuard.probe(settings(onnx)).version != before


def test_the_digest_follows_whatever_prepares_the_pictures(vit: Path, tmp_path: Path) -> None:
    """transformers reads the image processor of processor_config.json first, where there is one."""
    folder = Path(shutil.copytree(vit, tmp_path / "copy"))
    before = ClassifierGuard(settings(folder))
    prepared = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": {**prepared, "image_mean": [0.9, 0.1, 0.1]}}))
    after = ClassifierGuard(settings(folder))
    assert scores(after, THREE) != scores(before, THREE)
    assert after.version != before.version
    (folder / "preprocessor_config.json").unlink()
    assert scores(ClassifierGuard(settings(folder)), THREE) == scores(after, THREE)


def test_the_digest_follows_the_list_of_shards(vit: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    AutoModelForImageClassification.from_pretrained(vit).save_pretrained(tmp_path, max_shard_size="5KB")
    processor(tmp_path)
    guard = ClassifierGuard(settings(tmp_path))
    assert scores(guard, THREE) == pytest.approx(scores(ClassifierGuard(settings(vit)), THREE), abs=1e-6)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps(json.loads(index.read_text()), indent=1))
    assert ClassifierGuard.probe(settings(tmp_path)).version != guard.version


def test_probing_loads_nothing(onnx: Path) -> None:
    before = dict(classifier._networks)
    probe = ClassifierGuard.probe(settings(onnx))
    assert classifier._networks == before
    assert set(probe.weights) == {"config.json", "preprocessor_config.json", "model.onnx"}


def test_hub_weights_beside_are_found_by_name(vit: Path) -> None:
    assert set(find_files(str(vit), guard="x").digests) == {"config.json", "preprocessor_config.json", "model.safetensors"}


def test_the_strength_of_an_adapter_beside_the_weights_is_part_of_the_digest(vit: Path, tmp_path: Path) -> None:
    """transformers merges it without a word, and its strength stands in its configuration alone."""
    folder, found = tmp_path / "model", []
    shutil.copytree(vit, folder)
    for strength in (1, 64):
        adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": strength, "target_modules": ["query"]}
        (folder / "adapter_config.json").write_text(json.dumps(adapter))
        found.append(find_files(str(folder), guard="x").digest)
    assert len({*found, find_files(str(vit), guard="x").digest}) == 3


def written(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | value if file.exists() else value))


@pytest.mark.parametrize("named", ["part/w.safetensors", "../w.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("by", ["config.json", "model.safetensors.index.json"])
def test_weights_of_which_no_digest_is_taken_are_refused(vit: Path, tmp_path: Path, by: str, named: str) -> None:
    """transformers loads them, in place of those that lie in the folder."""
    folder = tmp_path / "model"
    shutil.copytree(vit, folder)
    value = {"transformers_weights": named} if by == "config.json" else {"weight_map": {"classifier.bias": named}}
    written(folder / by, value)
    with pytest.raises(IntegrityError, match="not safetensors in its own folder"):
        find_files(str(folder), guard="x")


def test_what_says_which_weights_are_taken_is_part_of_the_digest(vit: Path, tmp_path: Path) -> None:
    folder, found = tmp_path / "model", []
    shutil.copytree(vit, folder)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    shutil.copyfile(folder / "a.safetensors", folder / "b.safetensors")
    for name in ("a", "b"):
        written(folder / "model.safetensors.index.json", {"weight_map": {"classifier.bias": f"{name}.safetensors"}})
        found.append(find_files(str(folder), guard="x").digest)
    assert len(set(found)) == 2
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"index\.json cannot be read"):
        find_files(str(folder), guard="x")


def test_an_adapter_beside_the_weights_hides_no_tensor_that_they_lack(vit: Path, tmp_path: Path) -> None:
    """transformers reports what the adapter lacks in place of it, and draws the head of the network at random."""
    from safetensors.numpy import load_file, save_file

    folder, place = tmp_path / "model", "base_model.model.vit.layers.0.attention.q_proj"
    shutil.copytree(vit, folder)
    written(folder / "adapter_config.json", {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]})
    sides = {f"{place}.lora_A.weight": np.ones((2, 16), "f4"), f"{place}.lora_B.weight": np.ones((16, 2), "f4")}
    save_file(sides, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    assert scores(ClassifierGuard(settings(folder)), THREE)
    weights = folder / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if not name.startswith("classifier.")}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(IntegrityError, match="lack 2 tensors of the network, the first classifier"):
        ClassifierGuard(settings(folder))


# --- in a policy -----------------------------------------------------------------------------------------------------------


def a_policy(model: Path | str, **changes: Any) -> Policy:
    red = {"name": "red", "model": str(model), "labels": "red", "category": "content.red", "action": "reject"}
    warm = {"name": "warm", "model": str(model), "labels": ["red", "green"], "action": "review", "threshold": 0.4}
    off = {name: {"enabled": False} for name in ("marks", "codes", "text", "unsafe")}
    return from_dict(Policy, {**off, "classifiers": [red | changes, warm]}, where="policy.toml")


def test_several_classifiers_stand_in_one_policy(onnx: Path) -> None:
    guards, _ = open_guards(guard_tables(a_policy(onnx)))
    assert [(guard.name, guard.categories) for guard in guards] == [
        ("classifier:red", ("content.red",)), ("classifier:warm", ("classifier.warm",)),
    ]  # fmt: skip


def decided(policy: Policy, picture: np.ndarray) -> Verdict:
    guards, _ = open_guards(guard_tables(policy))
    return decide([f for guard in guards for f in guard.check(picture[None])[0]], 0, policy).verdict


def test_each_has_its_action(onnx: Path) -> None:
    verdicts = [decided(a_policy(onnx), picture) for picture in THREE]
    assert verdicts == [Verdict.REJECT, Verdict.REVIEW, Verdict.ACCEPT]


def test_relative_paths_start_from_the_run_file(onnx: Path) -> None:
    policy = a_policy("onnx/model.onnx")
    assert set(probe_guards(guard_tables(policy, onnx.parents[1]))[0]) == {"classifier:red", "classifier:warm"}


def test_a_run_binds_the_models_digest(onnx: Path) -> None:
    from pipeline.config import RunConfig

    guards = {g.name: g for g in guards_in_force(RunConfig(prompts="-"), a_policy(onnx), "d", "")}
    assert guards["classifier:red"].parts()["guard.classifier:red.version"].startswith("1+")
    assert guards["classifier:red"].action == "reject"


def test_an_optional_one_that_is_missing_is_left_out_by_name(tmp_path: Path) -> None:
    policy = a_policy(tmp_path / "gone", required=False)
    missing = replace(policy, classifiers=policy.classifiers[:1])
    assert open_guards(guard_tables(missing))[1][0].startswith("classifier:red: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category": "copy.mine"}, "belong to guards that ship"),
        ({"category": "Nudity"}, "is no category"),
        ({"name": "Not a name"}, "is no name"),
        ({"labels": []}, "labels"),
        ({"labels": ["red", "red"]}, "stands there twice"),
        ({"threshold": 50}, "threshold"),
        ({"name": "warm"}, "'warm' stands there twice"),
    ],
)
def test_a_slip_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        a_policy("model.onnx", **changes)


def test_doctor_lists_it() -> None:
    (line,) = [guard for guard in describe() if guard.name == "classifier"]
    assert line.available
    assert line.version.startswith("transformers ")


def test_code_that_lies_beside_a_classifier_is_refused_and_nobody_is_asked(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ran = tmp_path / "own", tmp_path / "ran"
    shutil.copytree(vit, folder)
    path = folder / "preprocessor_config.json"
    stated = json.loads(path.read_text(encoding="utf-8"))
    stated |= {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}
    path.write_text(json.dumps(stated), encoding="utf-8")
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\n\n\nclass Own: ...\n", encoding="utf-8")
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "y")
    with pytest.raises(IntegrityError, match="custom code") as refused:
        ClassifierGuard.open(settings(folder))
    assert "never run" in refused.value.fix
    assert not asked and not ran.exists()
