"""A model folder's digest: other weights, other digest, wherever the weights lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from index.errors import ModelError
from index.shipped import STICKERS
from pipeline.model.folder.digest import folder_digest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "mine"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "config.json").write_text("{}")
    (folder / "unet" / "weights.safetensors").write_bytes(b"weights")
    return folder


def link_part(model: Path) -> Path:
    """The part lies elsewhere, and a link leads there."""
    elsewhere = Path(shutil.move(model / "unet", model.parent / "unet-elsewhere"))
    (model / "unet").symlink_to(elsewhere)
    return elsewhere


def link_file(model: Path) -> Path:
    """As in the cache of a hub: each file is a link to a blob."""
    blobs = model.parent / "blobs"
    blobs.mkdir()
    blob = Path(shutil.move(model / "unet" / "weights.safetensors", blobs / "5ac3"))
    (model / "unet" / "weights.safetensors").symlink_to(blob)
    return blobs


@pytest.mark.parametrize("link", [link_part, link_file])
def test_links_are_followed(model: Path, link: Callable[[Path], Path]) -> None:
    plain = folder_digest(model)
    elsewhere = link(model)
    assert folder_digest(model) == plain, "the same files, the same digest"
    weights = next(path for path in elsewhere.iterdir() if path.suffix in (".safetensors", ""))
    weights.write_bytes(b"other weights")
    assert folder_digest(model) != plain


def test_two_links_to_one_folder_are_both_counted(model: Path) -> None:
    once = folder_digest(model)
    (model / "unet_2").symlink_to(model / "unet")
    twice = folder_digest(model)
    assert twice != once
    (model / "unet_2").unlink()
    shutil.copytree(model / "unet", model / "unet_2")
    assert folder_digest(model) == twice


@pytest.mark.parametrize("target", [".", "..", "../unet", "../../mine"])
def test_a_link_in_a_circle_ends(model: Path, target: str) -> None:
    plain = folder_digest(model)
    (model / "unet" / "again").symlink_to(target)
    assert folder_digest(model) == plain


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.ckpt", "unet/weights.pt", "model.onnx", "spiece.model", "merges.txt"]
)
def test_weights_of_other_formats_count(model: Path, name: str) -> None:
    plain = folder_digest(model)
    (model / name).write_bytes(b"one")
    one = folder_digest(model)
    (model / name).write_bytes(b"two")
    assert len({plain, one, folder_digest(model)}) == 3


def test_what_is_no_part_of_the_model_does_not_count(model: Path) -> None:
    plain = folder_digest(model)
    (model / "README.md").write_text("words")
    (model / "sample.png").write_bytes(b"picture")
    (model / "gone.safetensors").symlink_to("nowhere")
    assert folder_digest(model) == plain


def test_a_folder_without_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no model files"):
        folder_digest(tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        folder_digest(tmp_path / "absent")


def test_the_shipped_model_has_the_digest_its_adapters_are_bound_to() -> None:
    import json

    cards = [json.loads(path.read_text()) for path in (STICKERS / "adapters").glob("*/adapter.json")]
    assert cards and {card["base_digest"] for card in cards} == {folder_digest(STICKERS / "model")}
