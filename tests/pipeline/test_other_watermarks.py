"""RivaGAN and TrustMark: what surrounds their networks, and RivaGAN itself where its files are installed."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from index.errors import IntegrityError, WatermarkUnavailable
from pipeline.marking import rivagan, trustmark
from pipeline.marking.conformance import check_watermark
from pipeline.marking.rivagan import RivaganWatermark, codeword
from pipeline.marking.trustmark import CAPACITY, TrustmarkWatermark, find_weights, message

from .pictures import flat, rough

KEY, OTHER = b"k" * 32, b"o" * 32
HERE = importlib.util.find_spec("imwatermark") is not None


# --- RivaGAN ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason="invisible-watermark is not installed")
def test_rivagan_conforms() -> None:
    check_watermark(RivaganWatermark(), [rough(1, 512, 512), rough(2, 576, 512)])


def test_the_least_agreement_keeps_the_stated_rate() -> None:
    chance = sum(math.comb(32, n) for n in range(rivagan.ENOUGH, 33)) / 2**32
    assert chance <= RivaganWatermark.false_alarm < 1e-3


def test_keys_have_codewords_of_their_own() -> None:
    assert codeword(KEY).shape == (32,) and codeword(KEY).dtype == bool
    assert 4 < (codeword(KEY) != codeword(OTHER)).sum() < 28


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "rivagan_encoder.onnx").write_bytes(b"x")
    with pytest.raises(WatermarkUnavailable, match=r"rivagan_decoder\.onnx is missing.*--no-deps invisible-watermark==0\.2\.0"):
        RivaganWatermark(tmp_path)


def test_another_file_is_refused(tmp_path: Path) -> None:
    for name in rivagan.FILES:
        (tmp_path / name).write_bytes(b"another network")
    with pytest.raises(IntegrityError, match=r"is not the file of invisible-watermark 0\.2\.0"):
        RivaganWatermark(tmp_path)


# --- TrustMark -------------------------------------------------------------------------------------------------------------


class Cells:
    """Writes 61 bits as the brightness of 64 cells, which any copy shows; ``flip`` bits are read wrongly in smaller copies."""

    def __init__(self, flip: int = 0, lost: bool = False) -> None:
        self.flip, self.lost = flip, lost

    def write(self, picture: np.ndarray, bits: str) -> np.ndarray:
        made = picture.copy()
        for cell, bit in enumerate(bits):
            self._cell(made, cell)[:] = 255 if bit == "1" else 0
        return made

    def read(self, picture: np.ndarray) -> str | None:
        bits = ["1" if self._cell(picture, cell).mean() > 128 else "0" for cell in range(CAPACITY)]
        if picture.shape[0] < 300:
            bits[: self.flip] = ["1" if bit == "0" else "0" for bit in bits[: self.flip]]
        return None if self.lost else "".join(bits)

    @staticmethod
    def _cell(picture: np.ndarray, cell: int) -> np.ndarray:
        high, wide = picture.shape[0] // 8, picture.shape[1] // 8
        y, x = divmod(cell, 8)
        return picture[y * high + 4 : (y + 1) * high - 4, x * wide + 4 : (x + 1) * wide - 4]


def test_a_message_needs_the_key() -> None:
    assert len(message(KEY, 7)) == CAPACITY == 61
    assert message(KEY, 7)[:32] == f"{7:032b}"
    assert message(KEY, 7)[32:] != message(OTHER, 7)[32:]
    assert message(KEY, 7)[32:] != message(KEY, 8)[32:]


def test_payload_and_key_are_read_again() -> None:
    mark = TrustmarkWatermark(Cells())
    marked = mark.embed(rough(1, 320, 320), KEY, 0x5A3C96E1)
    found = mark.look(marked, KEY)
    assert (found.found, found.payload) == (True, 0x5A3C96E1)
    assert not mark.look(marked, OTHER).found
    assert not mark.look(rough(1, 320, 320), KEY).found


def test_two_looks_that_differ_are_no_find() -> None:
    """Every raw hit on unmarked pictures was false: one look is not enough."""
    mark = TrustmarkWatermark(Cells(flip=1))
    assert not mark.look(mark.embed(flat(1, 320, 320), KEY, 9), KEY).found


def test_what_the_error_correction_rejects_is_no_find() -> None:
    mark = TrustmarkWatermark(Cells(lost=True))
    assert not mark.look(mark.embed(flat(1, 320, 320), KEY, 9), KEY).found


def test_weights_that_are_not_here_are_not_fetched_unless_allowed(tmp_path: Path) -> None:
    with pytest.raises(WatermarkUnavailable, match=r"trustmark_Q\.yaml is missing.*allow_download = true"):
        find_weights(tmp_path)


def test_weights_of_another_digest_are_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name in trustmark.FILES:
        (tmp_path / "models" / name).write_bytes(b"another network")
    with pytest.raises(IntegrityError, match=r"is not the file that trustmark 0\.9\.2 names"):
        find_weights(tmp_path)


def test_the_digests_are_md5_of_whole_files(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name in trustmark.FILES:
        (tmp_path / "models" / name).write_bytes(name.encode())
    digests = {name: hashlib.md5(name.encode(), usedforsecurity=False).hexdigest() for name in trustmark.FILES}
    find_weights(tmp_path, digests)
