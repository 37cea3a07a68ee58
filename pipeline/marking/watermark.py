"""Imperceptible watermarks: the protocol, what is installed, and what a look at a picture found.

A watermark is a label, never a proof: whoever wants to remove one can. A scheme of another package is found by its entry point
in the group ``clearance.watermarks``: the entry point's name is the scheme's, and its object the scheme's class
(:class:`WatermarkClass`). It is used by runs whose run file names it, and by no others.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from index.entry_points import entries, load, origin
from index.errors import ClearanceError, ConfigError, InputError, WatermarkUnavailable
from index.meant import meant
from pipeline.keys import key_id as id_of_key

GROUP = "clearance.watermarks"
SHIPPED = {
    "tile": "pipeline.marking.tile:TileWatermark",
    "rivagan": "pipeline.marking.rivagan:RivaganWatermark",
    "trustmark": "pipeline.marking.trustmark:TrustmarkWatermark",
}
DEFAULT = "tile"  # what `watermark = "auto"` means
NO_NAME = ("", "auto", "off")
PAYLOAD_BITS = 32
# Everybody can find a mark made with this key, and imitate it: it stands here. A deployment has a key of its own.
PUBLIC_KEY = hashlib.sha256(b"Clearance, published watermark key 1").digest()
PUBLIC = "public"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What one look at one picture found.

    Attributes:
        found: the mark is there, at the scheme's own threshold.
        score: how surely, in the scheme's own measure (standard deviations for ``tile``, agreeing bits for ``rivagan``).
        p_value: an upper bound of the probability that a picture without the mark looks like this, over all places that the
            look tried.
        payload: the bits that were read; None when nothing was found, or the scheme carries none.
        payload_sure: estimated probability that every bit of the payload is right.
        aligned: found where the mark stands in a picture that was neither cropped nor turned.
        orientation: how the picture was turned since; empty: it was not.
        scale: of the picture against the size in which it was marked.
    """

    found: bool
    score: float
    p_value: float
    payload: int | None = None
    payload_sure: float = 0.0
    aligned: bool = False
    orientation: str = ""
    scale: float = 1.0


@runtime_checkable
class Watermark(Protocol):
    """A scheme that is opened. Both methods are deterministic, and change nothing of what they are given."""

    name: str
    version: str
    least_side: int

    def embed(self, picture: np.ndarray, key: bytes, payload: int) -> np.ndarray:
        """The picture, uint8 RGB (H, W, 3), with the mark in it; ``payload`` has 32 bits.

        Raises:
            InputError: the shorter side is below ``least_side``, or the picture is of another form.
        """
        ...

    def look(self, picture: np.ndarray, key: bytes, *, size_hint: tuple[int, int] | None = None) -> Found:
        """Look for the mark in uint8 RGB (H, W, 3).

        Args:
            picture: of any size.
            key: the key it would have been made with.
            size_hint: width and height in which the picture was marked, where they are known. A picture that has this size is
                looked at in place only.

        Raises:
            InputError: the picture is of another form.
        """
        ...


class WatermarkClass(Protocol):
    """What a scheme's class declares: all that registry, documents, reports and ``clearance doctor`` take from it.

    Attributes:
        name: its name in the run file and in rows. version: of its code and weights.
        licence: of code and weights.
        least_side: pixels of the shorter side from which a picture is marked.
        false_alarm: stated rate at which a look finds the mark in pictures that do not carry it.
        payload_bits: 32, or 0 for a scheme that carries no payload.
        psnr_floor: dB that the marked picture keeps to the picture, at least.
    """

    name: str
    version: str
    licence: str
    least_side: int
    false_alarm: float
    payload_bits: int
    psnr_floor: float

    @classmethod
    def probe(cls) -> str:
        """Check that it can run here, without loading anything; returns its version.

        Raises:
            WatermarkUnavailable: a package or its weights are missing.
        """
        ...

    @classmethod
    def open(cls, *, allow_download: bool = False) -> Watermark:
        """Load it.

        Args:
            allow_download: a scheme that can fetch its weights may do so.

        Raises:
            WatermarkUnavailable: a package or its weights are missing.
            IntegrityError: its weights are damaged.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class WatermarkInfo:
    """One line of ``clearance doctor``. ``reason`` is why a scheme is not available, and what to do."""

    name: str
    version: str
    licence: str
    least_side: int
    available: bool
    reason: str = ""


def key_id(key: bytes) -> str:
    """The name of a key in rows and reports: ``public`` for the published one, else :func:`pipeline.keys.key_id`."""
    return PUBLIC if key == PUBLIC_KEY else id_of_key("watermark", key)


def run_tag(plan_sha256: str) -> int:
    """The payload of a run: the first 32 bits of its plan's digest, so that a payload read from a picture leads to the plan.

    Two runs of one plan have one tag, because they make the same pictures.
    """
    if not re.fullmatch(r"[0-9a-f]{8,}", plan_sha256):
        raise InputError(f"{plan_sha256!r} is no digest", where="watermark payload", fix="Pass the plan's sha256 in hex")
    return int(plan_sha256[:8], 16)


def outside_watermarks() -> dict[str, EntryPoint]:
    """The schemes of other packages, by name.

    Raises:
        ConfigError: two packages have a scheme of one name, or a package has one of ours.
    """
    return entries(GROUP, taken={*SHIPPED, *NO_NAME}, called="watermarks")


def watermark_class(name: str) -> WatermarkClass:
    """The class of a scheme by its name.

    Raises:
        ConfigError: there is no such scheme, or its class does not declare what a scheme declares.
        WatermarkUnavailable: its package cannot be imported.
    """
    if name in SHIPPED:
        module, _, cls_name = SHIPPED[name].partition(":")
        return cast(WatermarkClass, getattr(importlib.import_module(module), cls_name))
    others = outside_watermarks()
    if name not in others:
        known = ["auto", "off", *SHIPPED, *others]
        fix = meant(name, known, otherwise=f"Known: {', '.join(known)}")
        raise ConfigError(f"unknown watermark {name!r}", where="marks.watermark", fix=fix)
    entry = others[name]
    cls = load(entry, where=f"watermark {name}", error=WatermarkUnavailable)
    if lacks := _undeclared(name, cls):
        what, fix = f"{origin(entry)} {lacks}", "See pipeline/marking/watermark.py: WatermarkClass"
        raise ConfigError(what, where=f"watermark {name}", fix=fix)
    return cast(WatermarkClass, cls)


def chosen(setting: str) -> str:
    """The scheme that ``[marks] watermark`` names: ``auto`` is the tile; empty for ``off``."""
    return {"auto": DEFAULT, "off": ""}.get(setting, setting)


def describe_watermarks() -> list[WatermarkInfo]:
    """Every scheme with version, licence and whether it could run here; loads no weights."""
    lines = []
    for name in (*SHIPPED, *outside_watermarks()):
        version = licence = reason = ""
        least_side = 0
        try:
            cls = watermark_class(name)
            licence, least_side = cls.licence, cls.least_side
            version = cls.probe()
        except ClearanceError as error:
            reason = str(error)
        info = WatermarkInfo(
            name=name, version=version, licence=licence, least_side=least_side, available=not reason, reason=reason
        )
        lines.append(info)
    return lines


def require_picture(picture: np.ndarray, *, scheme: str, least_side: int = 1) -> None:
    """Refuse anything but uint8 RGB (H, W, 3) with a shorter side of at least ``least_side``.

    Raises:
        InputError: with what was given instead.
    """
    where = f"watermark {scheme}"
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        form = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise InputError(f"a picture must be uint8 (H, W, 3), not {form}", where=where, fix="Convert it to 8-bit RGB first")
    if min(picture.shape[:2]) < least_side:
        size = f"{picture.shape[1]}×{picture.shape[0]}"
        fix = f"Mark pictures whose shorter side has {least_side} pixels or more"
        raise InputError(f"{size} pixels are too few for this watermark", where=where, fix=fix)


def _undeclared(name: str, cls: Any) -> str:
    """What the class of another package lacks to be a scheme's; empty when nothing is missing."""
    if getattr(cls, "name", None) != name:
        return f"calls itself {getattr(cls, 'name', None)!r} and not {name!r}"
    if not isinstance(getattr(cls, "licence", None), str) or not cls.licence:
        return "states no licence"
    if not isinstance(getattr(cls, "version", None), str) or not cls.version:
        return "states no version"
    if type(getattr(cls, "least_side", None)) is not int or cls.least_side < 1:
        return "states no least_side: pixels of the shorter side, 1 or more"
    rate = getattr(cls, "false_alarm", None)
    if not isinstance(rate, float) or not 0 <= rate <= 1:
        return "states no false_alarm: a rate from 0.0 to 1.0"
    if getattr(cls, "payload_bits", None) not in (0, PAYLOAD_BITS):
        return f"states no payload_bits: 0 or {PAYLOAD_BITS}"
    if not isinstance(getattr(cls, "psnr_floor", None), float):
        return "states no psnr_floor: a number of dB"
    absent = [method for method in ("probe", "open", "embed", "look") if not callable(getattr(cls, method, None))]
    return f"has no {absent[0]}()" if absent else ""
