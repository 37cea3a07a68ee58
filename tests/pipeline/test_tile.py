"""The keyed tile: bytes that every machine makes, and finds that survive what happens to pictures."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from index.errors import InputError
from pipeline.marking.conformance import check_watermark, psnr
from pipeline.marking.tile import ALIGNED, HIGH, LOW, SEARCHED, TILE, TileWatermark, strength, tile, turned, waves
from pipeline.marking.watermark import PUBLIC_KEY

from .pictures import flat, rough

KEY, OTHER = b"k" * 32, b"o" * 32
PAYLOAD = 0x5A3C96E1
MARK = TileWatermark()


def encoded(picture: np.ndarray, image_format: str, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, image_format, quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def resized(picture: np.ndarray, times: float) -> np.ndarray:
    size = (round(picture.shape[1] * times), round(picture.shape[0] * times))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def test_it_conforms() -> None:
    check_watermark(MARK, [flat(1, 300, 256), rough(2, 256, 320)])


def test_a_keys_table_is_the_same_on_every_machine() -> None:
    table = tile(PUBLIC_KEY, PAYLOAD)
    assert table.dtype == np.int32 and table.shape == (TILE, TILE)
    assert (
        hashlib.sha256(table.astype("<i4").tobytes()).hexdigest()
        == "19ea2d5ff1536772d0b4ef4b96f496b6af0482054425d850e7b867322cf9b15f"
    )


def test_a_marked_picture_is_the_same_on_every_machine() -> None:
    steps = np.kron(np.array([[0, 90, 255], [253, 128, 3]], np.uint8), np.ones((70, 60), np.uint8))
    made = MARK.embed(np.stack([steps, steps, 255 - steps], 2), PUBLIC_KEY, PAYLOAD)
    ramp = np.add.outer(np.arange(128) * 3, np.arange(200))[..., None] * np.array([1, 2, 5]) % 251
    ramped = MARK.embed(ramp.astype(np.uint8), PUBLIC_KEY, PAYLOAD)
    assert hashlib.sha256(made.tobytes()).hexdigest() == "fc2f074d93694941252509c115184fe5b518087fe66eb946813a4dd8fd82fe41"
    assert hashlib.sha256(ramped.tobytes()).hexdigest() == "b612857d51daf0349be370b3119d6d56c5c64dbae0227ffcddfeb0dacd2ad520"


def test_the_table_holds_no_frequency_outside_its_band() -> None:
    power = np.abs(np.fft.fft2(tile(KEY, PAYLOAD))) ** 2
    radius = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.fftfreq(TILE)[None])
    assert power[(radius < LOW) | (radius > HIGH)].sum() < 1e-3 * power.sum()


def test_the_numbers_that_the_table_is_rounded_from_are_far_from_a_tie() -> None:
    """Another machine's cosine may differ in its last bit; no entry is so near to a half that it would round otherwise."""
    exact = np.array([math.cos(2 * math.pi * step / 1024) * 16384 for step in range(1024)])
    assert np.abs(np.abs(exact - np.floor(exact)) - 0.5).min() > 1e-6


def test_every_bit_has_waves_of_all_frequencies() -> None:
    known = waves(KEY)
    radius = np.hypot(*known.k.T) / TILE
    counts = np.bincount(known.owner[known.owner >= 0], minlength=32)
    assert counts.min() >= 6 and counts.max() <= 7
    assert all(np.ptp(radius[known.owner == bit]) > 0.1 for bit in range(32))


def test_sync_waves_and_payload_differ_with_the_key() -> None:
    assert (waves(KEY).phase != waves(OTHER).phase).mean() > 0.95
    assert (waves(KEY).owner != waves(OTHER).owner).mean() > 0.3


@pytest.mark.parametrize("key", [b"", b"short"])
def test_a_key_that_is_too_short_is_refused(key: bytes) -> None:
    with pytest.raises(InputError, match="16 bytes or more"):
        MARK.look(flat(1, 128, 128), key)


@pytest.mark.parametrize("payload", [-1, 2**32])
def test_a_payload_that_does_not_fit_is_refused(payload: int) -> None:
    with pytest.raises(InputError, match="32 bits"):
        MARK.embed(flat(1, 128, 128), KEY, payload)


def test_only_the_luma_changes() -> None:
    picture = np.full((128, 128, 3), (90, 120, 150), np.uint8)
    change = MARK.embed(picture, KEY, PAYLOAD).astype(int) - picture
    assert (change == change[..., :1]).all() and change.any()


def test_it_is_stronger_where_the_picture_is_busy_and_not_beside_an_edge() -> None:
    picture = np.full((128, 128, 3), 120, np.uint8)
    picture[:, 64:] = rough(1, 64, 128)
    there = strength(picture)
    assert (there[:, :58] == 30).all()  # up to the edge
    assert np.median(there[:, 70:]) > 40


def test_quality_stays_between_38_and_48_decibels() -> None:
    for picture in (flat(1, 512, 512), rough(1, 512, 512), np.full((256, 256, 3), 255, np.uint8)):
        assert 38 <= psnr(picture, MARK.embed(picture, KEY, PAYLOAD)) <= 48


ATTACKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "JPEG 75": lambda p: encoded(p, "JPEG", 75),
    "half and back": lambda p: resized(resized(p, 0.5), 2),
    "half": lambda p: resized(p, 0.5),
    "three quarters": lambda p: resized(p, 0.75),
    "one and a half": lambda p: resized(p, 1.5),
    "an odd size": lambda p: resized(p, 0.873),
    "cropped": lambda p: p[31:-17, 23:-40].copy(),
    "mirrored": lambda p: p[:, ::-1].copy(),
    "turned": lambda p: np.rot90(p).copy(),
    "mirrored and cropped": lambda p: p[20:, 7:][:, ::-1].copy(),
    "darker": lambda p: (p * 0.8).astype(np.uint8),
    "screenshot": lambda p: encoded(resized(p, 0.8)[11:], "JPEG", 85),
}


FLAT = ("JPEG 75", "half", "an odd size", "cropped", "screenshot")  # the others change no value, or less than these


@pytest.mark.parametrize(("make", "attack"), [*((rough, attack) for attack in ATTACKS), *((flat, attack) for attack in FLAT)])
def test_it_survives(make: Callable[[int, int, int], np.ndarray], attack: str) -> None:
    found = MARK.look(ATTACKS[attack](MARK.embed(make(3, 384, 352), KEY, PAYLOAD)), KEY)
    assert found.found and found.payload == PAYLOAD
    assert found.p_value < 2e-4


def test_a_turn_of_a_few_degrees_hides_it() -> None:
    """A limit that documents state. A look that finds it would have to try turns too."""
    marked = Image.fromarray(MARK.embed(rough(3, 512, 512), KEY, PAYLOAD))
    assert not MARK.look(np.asarray(marked.rotate(5, Image.Resampling.BICUBIC)), KEY).found


def test_a_look_tells_how_the_picture_was_changed() -> None:
    marked = MARK.embed(rough(3, 384, 384), KEY, PAYLOAD)
    assert MARK.look(marked, KEY).aligned
    assert MARK.look(marked[:, ::-1], KEY).orientation == "mirrored"
    half = MARK.look(resized(marked, 0.5), KEY)
    assert not half.aligned and half.scale == pytest.approx(0.5, rel=0.01)
    turned_once = MARK.look(np.rot90(marked).copy(), KEY)
    assert turned_once.orientation in ("turned by 90°", "turned by 270°")


@pytest.mark.parametrize("orientation", range(8))
def test_every_orientation_is_undone(orientation: int) -> None:
    """The name of an orientation is what was done; turned() undoes it."""
    picture = np.arange(6).reshape(2, 3)
    seen = picture[:, ::-1] if orientation >= 4 else picture
    seen = np.rot90(seen, orientation % 4)
    assert np.array_equal(turned(seen, orientation), picture)


def test_a_known_size_finds_what_was_scaled_in_place() -> None:
    marked = MARK.embed(rough(4, 200, 160), KEY, PAYLOAD)
    squeezed = np.asarray(Image.fromarray(marked).resize((150, 140), Image.Resampling.BICUBIC))
    found = MARK.look(squeezed, KEY, size_hint=(200, 160))
    assert found.found and found.aligned
    assert not MARK.look(squeezed, KEY).found  # 25 % in width and 12.5 % in height: no scale of the ladder fits


def test_small_pictures_are_looked_at_in_place_only() -> None:
    marked = MARK.embed(rough(5, 128, 128), KEY, PAYLOAD)
    assert MARK.look(marked, KEY).found
    assert MARK.look(marked[3:, 5:], KEY).p_value == pytest.approx(
        min(1.0, 2 * math.exp(-(MARK.look(marked[3:, 5:], KEY).score ** 2) / 2)), rel=0.2
    )  # two comparisons, no search


def test_a_picture_that_is_one_colour_is_not_found() -> None:
    for value in (0, 128, 255):
        found = MARK.look(np.full((256, 256, 3), value, np.uint8), KEY)
        assert not found.found and found.score < ALIGNED


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), key=st.binary(min_size=16, max_size=40))
def test_unmarked_pictures_are_not_found_whatever_the_key(seed: int, key: bytes) -> None:
    make = flat if seed % 2 else rough
    found = MARK.look(make(seed, 144, 144), key)
    assert not found.found and found.score < SEARCHED


@pytest.mark.parametrize("make", [flat, rough])
def test_scores_without_a_mark_keep_to_the_bound(make: Callable[[int, int, int], np.ndarray]) -> None:
    """Over keys, one comparison exceeds z at most exp(−z²/2) of the time, whatever the picture shows."""
    picture = make(6, 160, 160)
    keys = [hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(400)]
    scores = np.array([MARK.look(picture, key, size_hint=(160, 160)).score for key in keys])
    for z in (1.5, 2.0, 2.5):  # the larger of two comparisons
        assert (scores >= z).mean() <= 2 * math.exp(-z * z / 2)
    assert 0.2 < np.median(scores) < 1.0  # that of the larger of two normal numbers is .54
