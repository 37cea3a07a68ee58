"""Watermarks by name, one of another package among them, and what the conformance suite catches."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.errors import ConfigError, InputError, WatermarkUnavailable
from pipeline.marking.conformance import check_watermark
from pipeline.marking.tile import TileWatermark
from pipeline.marking.watermark import (
    PUBLIC_KEY,
    Found,
    chosen,
    describe_watermarks,
    key_id,
    require_picture,
    run_tag,
    watermark_class,
)

from .pictures import flat, rough

TOY = '''
from __future__ import annotations

import hashlib

import numpy as np

from pipeline.marking.watermark import Found, require_picture


class Corner:
    """The key's digest and the payload in the last bits of the first row. It survives nothing."""

    name = "corner"
    version = "corner 1"
    licence = "MIT"
    least_side = 96
    false_alarm = 1e-9
    payload_bits = 32
    psnr_floor = 50.0

    @classmethod
    def probe(cls):
        return cls.version

    @classmethod
    def open(cls, *, allow_download=False):
        return cls()

    def _bits(self, data):
        return np.unpackbits(np.frombuffer(data, np.uint8))

    def embed(self, picture, key, payload):
        require_picture(picture, scheme=self.name, least_side=self.least_side)
        made = picture.copy()
        bits = self._bits(hashlib.sha256(key).digest()[:8] + payload.to_bytes(4, "big"))
        made[0, :96, 0] = made[0, :96, 0] & 254 | bits
        return made

    def look(self, picture, key, *, size_hint=None):
        require_picture(picture, scheme=self.name)
        read = np.packbits(picture[0, :96, 0] & 1).tobytes()
        if read[:8] != hashlib.sha256(key).digest()[:8]:
            return Found(found=False, score=0.0, p_value=1.0)
        payload = int.from_bytes(read[8:12], "big")
        return Found(found=True, score=1.0, p_value=2.0**-64, payload=payload, payload_sure=1.0, aligned=True)
'''

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a module with a scheme beside the product: the module and what a package manager writes about it."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    for module in ("toy_mark", "other_mark"):
        monkeypatch.delitem(sys.modules, module, raising=False)

    def write(source: str = TOY, *, entry: str = "corner = toy_mark:Corner", name: str = "toy-mark") -> None:
        (folder / f"{name.replace('-', '_')}.py").write_text(source, encoding="utf-8")
        about = folder / f"{name.replace('-', '_')}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
        (about / "entry_points.txt").write_text(f"[clearance.watermarks]\n{entry}\n", encoding="utf-8")
        importlib.invalidate_caches()

    return write


def test_a_scheme_of_another_package_conforms(install: Install) -> None:
    install()
    check_watermark(watermark_class("corner").open(), [flat(1, 192, 192), rough(2, 200, 192)])


def test_auto_is_the_tile_and_off_is_none() -> None:
    assert (chosen("auto"), chosen("off"), chosen("corner")) == ("tile", "", "corner")


def test_doctor_lists_every_scheme_with_its_licence(install: Install) -> None:
    install()
    lines = {line.name: line for line in describe_watermarks()}
    assert lines["tile"].available and lines["tile"].licence == "Apache-2.0" and lines["tile"].least_side == 128
    assert (lines["corner"].version, lines["corner"].licence, lines["corner"].available) == ("corner 1", "MIT", True)


def test_doctor_names_the_reason_why_one_is_missing(install: Install) -> None:
    install("import a_package_that_is_not_here\n")
    (line,) = [line for line in describe_watermarks() if line.name == "corner"]
    assert not line.available and "cannot be imported" in line.reason


def test_a_name_that_nobody_brings_is_refused_and_the_likely_slip_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown watermark 'tiles'\. Did you mean 'tile'\?"):
        watermark_class("tiles")


def test_a_package_that_cannot_be_imported_is_an_error(install: Install) -> None:
    install("import a_package_that_is_not_here\n")
    with pytest.raises(WatermarkUnavailable, match="toy_mark:Corner of toy-mark cannot be imported"):
        watermark_class("corner")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('name = "corner"', 'name = "edge"'), "calls itself 'edge'"),
        (('licence = "MIT"', 'licence = ""'), "no licence"),
        (('version = "corner 1"', 'version = ""'), "no version"),
        (("least_side = 96", "least_side = 0"), "no least_side"),
        (("false_alarm = 1e-9", "false_alarm = 2.0"), "no false_alarm"),
        (("payload_bits = 32", "payload_bits = 8"), "no payload_bits"),
        (("psnr_floor = 50.0", "psnr_floor = None"), "no psnr_floor"),
        (("def look", "def see"), r"no look\(\)"),
    ],
    ids=lambda value: str(value[1]) if isinstance(value, tuple) else None,
)
def test_a_class_that_declares_too_little_is_refused(install: Install, change: tuple[str, str], message: str) -> None:
    install(TOY.replace(*change))
    with pytest.raises(ConfigError, match=message):
        watermark_class("corner")


@pytest.mark.parametrize("name", ["tile", "auto", "off"])
def test_a_package_cannot_take_a_name_of_ours(install: Install, name: str) -> None:
    install(entry=f"{name} = toy_mark:Corner")
    with pytest.raises(ConfigError, match=f"two watermarks called '{name}'.*toy-mark"):
        describe_watermarks()


def test_two_packages_cannot_bring_one_name(install: Install) -> None:
    install()
    install(entry="corner = other_mark:Corner", name="other-mark")
    with pytest.raises(ConfigError, match="two watermarks called 'corner'"):
        watermark_class("corner")


def test_the_published_key_is_recognised_and_others_have_names_that_do_not_reveal_them() -> None:
    assert key_id(PUBLIC_KEY) == "public"
    assert len(PUBLIC_KEY) == 32
    own = key_id(b"k" * 32)
    assert len(own) == 16 and own != key_id(b"l" * 32)


def test_the_payload_of_a_run_leads_to_its_plan() -> None:
    assert run_tag("5a3c96e1" + "0" * 56) == 0x5A3C96E1
    with pytest.raises(InputError, match="no digest"):
        run_tag("run-0")


class Broken(TileWatermark):
    """A scheme that breaks one promise at a time."""

    def __init__(self, promise: str = "") -> None:
        self.promise = promise

    def embed(self, picture: np.ndarray, key: bytes, payload: int) -> np.ndarray:
        if self.promise == "it takes what is too small":
            require_picture(picture, scheme=self.name, least_side=1)
            return TileWatermark().embed(np.resize(picture, (128, 128, 3)), key, payload) if picture.shape[0] < 128 else picture
        made = super().embed(picture, b"one key for all." if self.promise == "it forgets the key" else key, payload)
        if self.promise == "it is loud":
            made = (made // 32 * 32).astype(np.uint8)
        if self.promise == "it loses the payload":
            made = super().embed(picture, key, 7)
        if self.promise == "it differs from call to call":
            made[0, 0] = np.random.default_rng().integers(0, 256, 3)
        return made

    def look(self, picture: np.ndarray, key: bytes, *, size_hint: tuple[int, int] | None = None) -> Found:
        if self.promise == "it finds everything":
            return Found(found=True, score=9.0, p_value=0.0, payload=0x5A3C96E1)
        if self.promise == "it forgets the key":
            key = b"one key for all."
        return super().look(picture, key, size_hint=size_hint)


@pytest.mark.parametrize(
    ("promise", "named"),
    [
        ("it is loud", "keeps 38.0 dB"),
        ("it forgets the key", "another key"),
        ("it loses the payload", "payload is read as it was written"),
        ("it differs from call to call", "deterministic"),
        ("it finds everything", "payload is read|not found"),
        ("it takes what is too small", "found with its key|refuses too small"),
    ],
)
def test_the_suite_catches_a_broken_promise(promise: str, named: str) -> None:
    with pytest.raises(AssertionError, match=named):
        check_watermark(Broken(promise), [flat(1, 256, 256), rough(2, 256, 256)])


class PerProcess(TileWatermark):
    def embed(self, picture: np.ndarray, key: bytes, payload: int) -> np.ndarray:
        made = super().embed(picture, key, payload)
        if picture.shape[0] >= self.least_side:
            made[0, 0] = [hash(channel) % 256 for channel in "rgb"]
        return made


def test_the_suite_catches_bytes_that_differ_between_processes() -> None:
    with pytest.raises(AssertionError, match=r"another process makes and finds the same; it gave \W[0-9a-f]{64} Found"):
        check_watermark(PerProcess(), [flat(1, 256, 256), rough(2, 256, 256)])


def test_pictures_of_another_form_are_refused() -> None:
    wrong: list[Any] = [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), [1]]
    for picture in wrong:
        with pytest.raises(InputError, match="must be uint8"):
            require_picture(picture, scheme="tile")
