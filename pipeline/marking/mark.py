"""Mark an accepted picture: its pixels become a file that names its origin, and what the file carries is read back from it.

The order is fixed: pixels, visible label, watermark, encoding with XMP in the same save, the C2PA manifest; nothing touches the
bytes afterwards. A watermark that the file does not show any more is not claimed: its reason is recorded in its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from index.errors import IntegrityError
from index.fingerprint import iscc, pixel_digest
from pipeline.marking.c2pa import ISCC_BINDING, C2paSigner, Manifest, SoftBinding, read_manifest
from pipeline.marking.encode import DIGITAL_SOURCE_TYPE, LOSSLESS, SUFFIXES, Encoded, decode, encode, xmp_packet
from pipeline.marking.label import labelled
from pipeline.marking.markers import Markers
from pipeline.marking.watermark import key_id

TOO_SMALL, LOST = "too_small", "not_found_after_encoding"


@dataclass(frozen=True)
class Origin:
    """What a picture's marks name: the AI system, its version, the software that ran it, and the 32 bits of the watermark."""

    ai_system: str
    ai_version: str
    software: str
    tag: int = 0


@dataclass(frozen=True, kw_only=True)
class MarkedPicture:
    """The file of an accepted picture and the marks it carries.

    Attributes:
        data: the file. media_type: of the file.
        pixel_sha256: digest of the RGB bytes before any mark. file_sha256: digest of the file.
        stored_pixel_sha256: digest of the RGB bytes in the file; None for a lossy format, whose pixels depend on the decoder.
        digital_source_type: the IPTC term that was written.
        xmp_present: the finished file carries XMP with that term.
        c2pa_present: a C2PA manifest was read back from the finished file, intact. c2pa_key_id: of the certificate that signed
            it; empty: none.
        iscc: the ISCC image code that the manifest names; empty: there is no manifest.
        watermark_scheme: the watermark that was found again in the file; empty: none. watermark_score: how surely; None: none.
        watermark_key_id: of its key; ``public``: the published one. watermark_reason: why there is none: ``off``,
            ``too_small``, ``not_found_after_encoding`` (flat pictures; the pixels carry it, and no look finds it).
        visible_label: a label that names it as made by a model is drawn into it.
    """

    data: bytes
    media_type: str
    pixel_sha256: str
    file_sha256: str
    digital_source_type: str
    xmp_present: bool
    c2pa_present: bool = False
    watermark_scheme: str = ""
    watermark_score: float | None = None
    stored_pixel_sha256: str | None = None
    watermark_key_id: str = ""
    watermark_reason: str = ""
    visible_label: bool = False
    c2pa_key_id: str = ""
    iscc: str = ""

    @property
    def suffix(self) -> str:
        """Ending of a file name for the media type, without a dot."""
        return SUFFIXES[self.media_type]


def mark(
    picture: np.ndarray,
    image_format: str,
    origin: Origin,
    markers: Markers | None = None,
    *,
    save: Callable[[np.ndarray, str, bytes], Encoded] = encode,
) -> MarkedPicture:
    """Mark uint8 RGB (H, W, 3) and store it as ``webp``, ``png`` or ``jpeg``.

    Args:
        picture: the pixels.
        image_format: of the file.
        origin: what its marks name.
        markers: what it is marked with beside XMP; by default nothing.
        save: writes the file, given pixels, format and XMP packet.

    Raises:
        ConfigError: unknown image format.
        IntegrityError: the picture is not (H, W, 3), or the finished file cannot be read, or not as it was signed.
        RunStopped: the manifest could not be signed.
    """
    markers = markers or Markers()
    packet = xmp_packet(ai_system=origin.ai_system, ai_version=origin.ai_version, software=origin.software)
    shown, has_label = labelled(picture, markers.label)
    made, reason = _watermarked(shown, markers, origin.tag)
    stored = save(made, image_format, packet)
    watermark = InFile(reason=reason) if reason or markers.watermark is None else _found_again(stored, markers)
    signer, code = markers.signer, ""
    if signer is not None:
        code = iscc(picture)
        bindings = [SoftBinding(ISCC_BINDING, code)]
        if watermark.scheme:
            bindings.append(SoftBinding(f"clearance.{watermark.scheme}", f"{origin.tag:08x}", in_pixels=True))
        stored = _signed(stored, signer, origin, bindings)
    manifest = _read_back(stored, signer)
    pixels, xmp = decode(stored.data)  # a library may drop metadata silently
    return MarkedPicture(
        data=stored.data,
        media_type=stored.media_type,
        pixel_sha256=pixel_digest(picture),
        file_sha256=stored.file_sha256,
        stored_pixel_sha256=pixel_digest(pixels) if stored.media_type in LOSSLESS else None,
        digital_source_type=DIGITAL_SOURCE_TYPE,
        xmp_present=DIGITAL_SOURCE_TYPE.encode() in xmp,
        c2pa_present=manifest.intact,
        c2pa_key_id=signer.key.key_id if signer is not None and signer.signed(manifest) else "",
        iscc=code,
        watermark_scheme=watermark.scheme,
        watermark_score=watermark.score,
        watermark_key_id=watermark.key_id,
        watermark_reason=watermark.reason,
        visible_label=has_label,
    )


@dataclass(frozen=True)
class InFile:
    """The watermark that a file shows: scheme, score and id of the key; or the reason why it shows none."""

    scheme: str = ""
    score: float | None = None
    key_id: str = ""
    reason: str = ""


def _watermarked(picture: np.ndarray, markers: Markers, tag: int) -> tuple[np.ndarray, str]:
    """The picture with the watermark, and the reason where it gets none."""
    if markers.watermark is None:
        return picture, markers.without
    if min(picture.shape[:2]) < markers.watermark.least_side:
        return picture, TOO_SMALL
    return markers.watermark.embed(picture, markers.watermark_key, tag), ""


def _found_again(file: Encoded, markers: Markers) -> InFile:
    """What a look at the finished pixels finds. A manifest is put into the file without decoding it, and changes none."""
    assert markers.watermark is not None
    pixels, _ = decode(file.data)
    seen = markers.watermark.look(pixels, markers.watermark_key, size_hint=(pixels.shape[1], pixels.shape[0]))
    if not seen.found:
        return InFile(reason=LOST)
    return InFile(markers.watermark.name, seen.score, key_id(markers.watermark_key))


def _signed(file: Encoded, signer: C2paSigner, origin: Origin, bindings: list[SoftBinding]) -> Encoded:
    drawn_by = f"{origin.ai_system} {origin.ai_version}".strip()
    data = signer.sign(file, software=origin.software, drawn_by=drawn_by, bindings=bindings)
    return Encoded(data, file.media_type, hashlib.sha256(data).hexdigest())


def _read_back(file: Encoded, signer: C2paSigner | None) -> Manifest:
    """The manifest that a reader finds in the finished file."""
    if signer is None:
        return Manifest()
    found = read_manifest(file.data, file.media_type)
    if not signer.signed(found):
        why = ", ".join(found.problems) or found.unreadable or "there is none"
        fix = 'Report this, and set marks.c2pa = "off" meanwhile'
        raise IntegrityError(f"the C2PA manifest that was just signed cannot be read back ({why})", where="marks", fix=fix)
    return found
