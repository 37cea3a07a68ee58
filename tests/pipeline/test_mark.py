from __future__ import annotations

import hashlib

import numpy as np
import pytest

from index.errors import ConfigError
from index.fingerprint import pixel_digest
from pipeline.audit.schema import ATTEMPT_COLUMNS, SAMPLE_COLUMNS, STRUCTS, Store, stored_as
from pipeline.marking.encode import DIGITAL_SOURCE_TYPE, Encoded, decode, encode
from pipeline.marking.mark import Origin, mark

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
