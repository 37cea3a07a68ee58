from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from guards.own_label import own_label
from index.errors import ConfigError
from index.fingerprint import pixel_digest
from pipeline.audit.schema import ATTEMPT_COLUMNS, SAMPLE_COLUMNS, STRUCTS, Store, stored_as
from pipeline.config import MarksConfig
from pipeline.keys import Keys
from pipeline.marking.encode import DIGITAL_SOURCE_TYPE, Encoded, decode, encode
from pipeline.marking.mark import Origin, mark
from pipeline.marking.markers import Markers, marks_parts, open_markers
from pipeline.marking.tile import TileWatermark
from pipeline.marking.watermark import PUBLIC_KEY, key_id

from .pictures import flat, rough

ORIGIN = Origin("some model", "3", "Clearance 9")
PICTURE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(("image_format", "suffix"), [("webp", "webp"), ("png", "png"), ("jpeg", "jpg")])
def test_a_marked_file_names_its_origin(image_format: str, suffix: str) -> None:
    file = mark(PICTURE, image_format, ORIGIN)
    xmp = decode(file.data)[1]
    assert b'AISystemUsed="some model"' in xmp and b'AISystemVersionUsed="3"' in xmp and b'CreatorTool="Clearance 9"' in xmp
    assert file.xmp_present and file.suffix == suffix


def test_digests_before_and_after_marking() -> None:
    file = mark(PICTURE, "png", ORIGIN)
    assert file.pixel_sha256 == pixel_digest(PICTURE) == pixel_digest(decode(file.data)[0])
    assert file.file_sha256 == hashlib.sha256(file.data).hexdigest()


def test_marks_that_are_not_made_are_absent() -> None:
    file = mark(PICTURE, "webp", ORIGIN)
    assert (file.c2pa_present, file.watermark_scheme, file.watermark_score) == (False, "", None)


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_the_digest_of_the_stored_pixels_is_read_from_the_file(image_format: str) -> None:
    def darkens(picture: np.ndarray, image_format: str, xmp: bytes) -> Encoded:
        return encode(picture // 2, image_format, xmp)

    file = mark(PICTURE, image_format, ORIGIN, save=darkens)
    assert (file.stored_pixel_sha256, file.pixel_sha256) == (pixel_digest(PICTURE // 2), pixel_digest(PICTURE))


def test_stored_pixels_of_a_lossy_file_have_no_digest() -> None:
    assert mark(PICTURE, "jpeg", ORIGIN).stored_pixel_sha256 is None


def test_metadata_that_a_library_dropped_is_not_recorded_as_present() -> None:
    def drops(picture: np.ndarray, image_format: str, xmp: bytes) -> Encoded:
        assert DIGITAL_SOURCE_TYPE.encode() in xmp
        return encode(picture, image_format, b"")

    assert not mark(PICTURE, "webp", ORIGIN, save=drops).xmp_present


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown image format 'bmp'"):
        mark(PICTURE, "bmp", ORIGIN)


@pytest.mark.parametrize("how", [Store.DICTIONARY, Store.PLAIN])
def test_one_name_is_stored_one_way_in_every_table_and_struct(how: Store) -> None:
    """Parquet is told by a leaf's name: two columns of one name cannot differ."""
    every = [column for columns in (SAMPLE_COLUMNS, ATTEMPT_COLUMNS, *STRUCTS.values()) for column in columns]
    plain = [column for column in every if column.type not in STRUCTS and not column.type.startswith("list of ")]
    assert {column.name for column in plain if how not in column.store} & stored_as(how) == set()


KEY = b"k" * 32
TILE = Markers(watermark=TileWatermark(), watermark_key=KEY)
TAGGED = Origin("some model", "3", "Clearance 9", 0x5A3C96E1)


@pytest.mark.parametrize("image_format", ["webp", "png", "jpeg"])
@pytest.mark.parametrize("make", [flat, rough])
def test_the_watermark_is_found_again_in_the_finished_file(
    make: Callable[[int, int, int], np.ndarray], image_format: str
) -> None:
    picture = make(1, 256, 256)
    file = mark(picture, image_format, TAGGED, TILE)
    assert (file.watermark_scheme, file.watermark_reason) == ("tile", "")
    assert file.watermark_key_id == key_id(KEY) != "public"
    seen = TileWatermark().look(decode(file.data)[0], KEY)
    assert (seen.found, seen.payload, seen.score) == (True, 0x5A3C96E1, file.watermark_score)


def test_digests_are_of_the_picture_before_and_of_the_pixels_after_the_watermark() -> None:
    picture = flat(1, 256, 256)
    file = mark(picture, "png", TAGGED, TILE)
    assert file.pixel_sha256 == pixel_digest(picture) != file.stored_pixel_sha256
    assert file.stored_pixel_sha256 == pixel_digest(decode(file.data)[0])


def test_the_same_marks_give_the_same_file() -> None:
    first, second = (mark(rough(1, 200, 256), "webp", TAGGED, TILE) for _ in range(2))
    assert first == second


def test_a_picture_that_is_too_small_keeps_every_pixel() -> None:
    file = mark(flat(1, 127, 300), "png", TAGGED, TILE)
    assert (file.watermark_scheme, file.watermark_score, file.watermark_key_id) == ("", None, "")
    assert file.watermark_reason == "too_small"
    assert file.stored_pixel_sha256 == file.pixel_sha256


def test_a_watermark_that_the_encoder_lost_is_not_claimed() -> None:
    def crushed(picture: np.ndarray, image_format: str, xmp: bytes) -> Encoded:
        return encode(picture // 64 * 64, image_format, xmp)

    file = mark(flat(1, 256, 256), "png", TAGGED, TILE, save=crushed)
    assert (file.watermark_scheme, file.watermark_score, file.watermark_key_id) == ("", None, "")
    assert file.watermark_reason == "not_found_after_encoding"


def test_a_watermark_that_is_switched_off_is_recorded_so() -> None:
    file = mark(flat(1, 256, 256), "png", TAGGED, open_markers(MarksConfig(watermark="off"), Keys()))
    assert (file.watermark_scheme, file.watermark_reason) == ("", "off")
    assert file.stored_pixel_sha256 == file.pixel_sha256


def test_without_a_key_the_published_one_is_used_and_recorded() -> None:
    file = mark(flat(1, 256, 256), "png", TAGGED, open_markers(MarksConfig(), Keys()))
    assert (file.watermark_scheme, file.watermark_key_id) == ("tile", "public")
    assert TileWatermark().look(decode(file.data)[0], PUBLIC_KEY).found


def test_the_deployments_key_is_used_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "watermark.key").write_text(KEY.hex())
    markers = open_markers(MarksConfig(), Keys(tmp_path))
    assert markers.parts["marks.watermark_key"] == key_id(KEY)
    assert KEY.hex() not in repr(markers) and str(KEY) not in repr(markers)
    assert mark(flat(1, 256, 256), "png", TAGGED, markers).watermark_key_id == key_id(KEY)


def test_a_plan_binds_scheme_and_key(tmp_path: Path) -> None:
    assert marks_parts(MarksConfig(), Keys()) == {"marks.watermark": "tile 1", "marks.watermark_key": "public"}
    assert marks_parts(MarksConfig(watermark="off"), Keys()) == {}
    with pytest.raises(ConfigError, match=r"unknown watermark 'tiel'\. Did you mean 'tile'\?"):
        marks_parts(MarksConfig(watermark="tiel"), Keys())


def test_the_label_is_drawn_before_the_watermark_and_both_are_there() -> None:
    picture = rough(1, 320, 256)
    markers = Markers(watermark=TileWatermark(), watermark_key=KEY, label="AI generated")
    file = mark(picture, "jpeg", TAGGED, markers)
    pixels = decode(file.data)[0]
    assert file.visible_label and file.watermark_scheme == "tile"
    assert own_label(pixels) is not None and own_label(picture) is None
    assert file.pixel_sha256 == pixel_digest(picture)


def test_a_label_nobody_could_read_is_not_drawn_and_not_claimed() -> None:
    file = mark(flat(1, 63, 80), "png", TAGGED, Markers(label="AI generated"))
    assert not file.visible_label and file.stored_pixel_sha256 == file.pixel_sha256
