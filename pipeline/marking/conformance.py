"""The conformance suite: what every watermark must hold, one that ships or one of another package."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from index.errors import InputError
from pipeline.marking.watermark import PAYLOAD_BITS, Found, Watermark, WatermarkClass

KEY, OTHER_KEY = bytes(range(32)), bytes(range(32, 64))
PAYLOADS = (0x5A3C96E1, 0, 2**PAYLOAD_BITS - 1)
CHILD = (
    "import hashlib, pickle, sys\n"
    "mark, picture, key, payload = pickle.load(sys.stdin.buffer)\n"
    "made = mark.embed(picture, key, payload)\n"
    "print(hashlib.sha256(made.tobytes()).hexdigest(), mark.look(made, key))\n"
)


def check_watermark(mark: Watermark, pictures: Sequence[np.ndarray]) -> None:
    """Check an opened scheme against the protocol with real pictures; use it in the tests of your scheme.

    Args:
        mark: the scheme; it can be pickled, because workers are processes.
        pictures: at least two different ones, uint8 RGB (H, W, 3), with a shorter side of twice ``least_side`` or more.

    Raises:
        AssertionError: naming the promise that the scheme breaks.
    """
    cls = cast(WatermarkClass, type(mark))
    _require(len({picture.tobytes() for picture in pictures}) >= 2, "give two different pictures")
    _require(all(min(p.shape[:2]) >= 2 * mark.least_side for p in pictures), "the pictures are twice as large as least_side")
    _require(isinstance(mark, Watermark), "it has name, version, least_side, embed() and look()")
    _require(all(isinstance(text, str) and text for text in (mark.name, mark.version, cls.licence)), "its names are texts")
    _require(cls.probe() == mark.version, "probe() states the version of the opened scheme")
    for picture in pictures:
        _check_marking(mark, cls, picture)
    _check_refusals(mark, pictures[0])
    _check_processes(mark, pictures[0])


def _check_marking(mark: Watermark, cls: WatermarkClass, picture: np.ndarray) -> None:
    before = picture.copy()
    frozen = picture.copy()
    frozen.setflags(write=False)
    made = {payload: mark.embed(frozen, KEY, payload) for payload in PAYLOADS}
    _require(np.array_equal(before, frozen), "embed() does not modify its input")
    again = mark.embed(picture.copy(), KEY, PAYLOADS[0])
    _require(np.array_equal(again, made[PAYLOADS[0]]), "embed() is deterministic and takes read-only pictures")
    for payload, marked in made.items():
        _require(marked.dtype == np.uint8 and marked.shape == picture.shape, "embed() keeps form and type")
        _require(psnr(picture, marked) >= cls.psnr_floor, f"a marked picture keeps {cls.psnr_floor} dB to the picture")
        seen = _look(mark, marked, KEY)
        _require(seen.found, "a mark is found with its key")
        _require(seen == _look(mark, marked, KEY), "look() is deterministic")
        _require(
            _look(mark, marked, KEY, (picture.shape[1], picture.shape[0])).found, "a mark is found where its size is known"
        )
        _require(not cls.payload_bits or seen.payload == payload, "the payload is read as it was written")
        _require(not _look(mark, marked, OTHER_KEY).found, "a mark is not found with another key")
    if cls.payload_bits:
        _require(len({marked.tobytes() for marked in made.values()}) == len(PAYLOADS), "payloads differ in the picture")
    unmarked = _look(mark, picture, KEY)
    _require(not unmarked.found and unmarked.payload is None, "a picture without the mark is not found")


def _check_refusals(mark: Watermark, picture: np.ndarray) -> None:
    side = mark.least_side
    least = np.ascontiguousarray(picture[:side, : side + 3])
    _require(mark.embed(least, KEY, 1).shape == least.shape, "a picture of least_side can be marked")
    wrong: list[tuple[Any, str]] = [
        (picture[: side - 1], "too small a picture"),
        (picture.astype(np.float32) / 255, "a floating-point picture"),
        (picture[..., 0], "a grayscale picture"),
        (picture[None], "a stack of pictures"),
    ]
    for given, what in wrong:
        try:
            mark.embed(given, KEY, 1)
        except InputError as error:
            _require(bool(error.fix), f"the error about {what} names what to do")
        else:
            raise AssertionError(f"broken promise: embed() refuses {what} with InputError")
    for size in ((1, 1), (1, 64), (64, 1), (side - 1, side - 1)):
        _require(not _look(mark, np.full((*size, 3), 9, np.uint8), KEY).found, "look() takes pictures of any size")


def _check_processes(mark: Watermark, picture: np.ndarray) -> None:
    """The same bytes and the same find in another process, with another seed for hashes."""
    made = mark.embed(picture, KEY, PAYLOADS[0])
    here = f"{hashlib.sha256(made.tobytes()).hexdigest()} {mark.look(made, KEY)}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=pickle.dumps((mark, picture, KEY, PAYLOADS[0])), capture_output=True,
        env=environment, check=False,
    )  # fmt: skip
    there = done.stdout.decode().strip()
    _require(there == here, f"another process makes and finds the same; it gave {there or done.stderr.decode()[-300:]!r}")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB; infinite where they are equal."""
    error = float(((a.astype(np.float64) - b) ** 2).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def _look(mark: Watermark, picture: np.ndarray, key: bytes, size_hint: tuple[int, int] | None = None) -> Found:
    before = picture.copy()
    seen = mark.look(picture, key, size_hint=size_hint)
    _require(np.array_equal(before, picture), "look() does not modify its input")
    plain = type(seen.found) is bool and type(seen.score) is float and type(seen.p_value) is float
    _require(plain and math.isfinite(seen.score) and 0 <= seen.p_value <= 1, "a find has plain, finite numbers")
    _require(seen.payload is None or 0 <= seen.payload < 2**PAYLOAD_BITS, "a payload is a number of 32 bits")
    return seen


def _require(holds: bool, promise: str) -> None:
    # Not an assert statement: the suite must also work under `python -O`.
    if not holds:
        raise AssertionError(f"broken promise: {promise}")
