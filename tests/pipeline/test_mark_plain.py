"""The function for people who draw with diffusers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from index.errors import ClearanceError, ConfigError, InputError
from jobs.keys import c2pa_test_chain, new_keys
from pipeline.config import MarksConfig
from pipeline.keys import Keys
from pipeline.marking.c2pa import read_manifest
from pipeline.marking.detect import Detector
from pipeline.marking.encode import DIGITAL_SOURCE_TYPE, MEDIA_TYPES, decode
from pipeline.marking.plain import mark_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    new_keys(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_two_lines_mark_a_picture(keys: Path, image_format: Any) -> None:
    data = mark_picture(IMAGE, model="some model", version="3", keys=keys, image_format=image_format)
    found = read_manifest(data, MEDIA_TYPES[image_format], Keys(keys).anchors())
    assert (found.trusted, found.source_type) == (True, DIGITAL_SOURCE_TYPE)
    pixels, xmp = decode(data)
    assert b'AISystemUsed="some model"' in xmp and b'AISystemVersionUsed="3"' in xmp
    assert image_format == "jpeg" or np.array_equal(pixels, PIXELS)


def test_a_picture_that_is_large_enough_carries_the_watermark_of_the_deployment(keys: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    soft = np.clip((cv2.GaussianBlur(noise, (0, 0), 5).astype(int) - 128) * 6 + 128, 0, 255).astype(np.uint8)
    layers = {layer.name: layer for layer in Detector([Keys(keys)]).look(mark_picture(soft, model="some model", keys=keys))}
    assert {name: layer.state for name, layer in layers.items()} == {
        "XMP": "pass", "C2PA": "pass", "C2PA signer": "pass", "watermark tile": "pass"
    }  # fmt: skip
    assert layers["watermark tile"].facts["key_id"] == Keys(keys).ids()["watermark.key"]


def test_a_small_picture_without_keys_carries_xmp_alone() -> None:
    data = mark_picture(PIXELS, model="some model")
    assert not read_manifest(data, "image/webp").present and DIGITAL_SOURCE_TYPE.encode() in decode(data)[1]


def test_a_mark_that_is_required_is_required() -> None:
    with pytest.raises(ConfigError, match="a C2PA manifest is required"):
        mark_picture(IMAGE, model="some model", marks=MarksConfig(c2pa="required"))


def test_the_environment_names_keys(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARANCE_KEYS", str(keys))
    assert read_manifest(mark_picture(IMAGE, model="some model"), "image/webp", Keys(keys).anchors()).trusted


def test_renewed_keys_are_used_at_once(keys: Path) -> None:
    for _ in range(2):
        assert read_manifest(mark_picture(IMAGE, model="m", keys=keys), "image/webp", Keys(keys).anchors()).trusted
        for name, data in c2pa_test_chain().items():
            (keys / name).write_bytes(data)


def test_it_saves_what_it_returns(tmp_path: Path) -> None:
    for name, image_format in (("a.webp", "webp"), ("a.JPG", "jpeg"), ("a.jpeg", "jpeg"), ("a.png", "png")):
        data = mark_picture(IMAGE, model="m", save=tmp_path / name, image_format=image_format)  # type: ignore[arg-type]
        assert (tmp_path / name).read_bytes() == data


def test_an_ending_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not end like a webp file") as caught:
        mark_picture(IMAGE, model="m", save=tmp_path / "a.png")
    assert "a.webp" in caught.value.fix and not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("model", ["", "  ", "/srv/models/mine", "~/models/mine", "./mine", "C:\\models\\mine"])
def test_a_path_is_no_name(model: str) -> None:
    with pytest.raises(ConfigError):
        mark_picture(IMAGE, model=model)


@pytest.mark.parametrize("image", [PIXELS.astype(np.float32), PIXELS[..., 0], "a.png", None])
def test_what_is_no_picture_is_refused(image: Any) -> None:
    with pytest.raises(InputError, match="image"):
        mark_picture(image, model="m")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    pixels = decode(mark_picture(IMAGE.convert(mode), model="m"))[0]
    assert pixels.shape == PIXELS.shape


def test_a_folder_of_keys_that_is_not_there_is_no_silence(tmp_path: Path) -> None:
    with pytest.raises(ClearanceError, match="there is no such folder of keys"):
        mark_picture(IMAGE, model="m", keys=tmp_path / "absent")
