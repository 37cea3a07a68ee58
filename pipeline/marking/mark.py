"""Mark an accepted picture: its pixels become a file that names its origin, and what the file carries is read back from it.

The order is fixed: pixels, encoding with XMP in the same save, the C2PA manifest; nothing touches the bytes afterwards. A
watermark would come before the encoding; none is made yet, and the result records it.
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
from pipeline.marking.markers import Markers


@dataclass(frozen=True)
class Origin:
    """What a picture's marks name: the AI system, its version, and the software that ran it."""

    ai_system: str
    ai_version: str
    software: str


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
        watermark_scheme: the watermark in its pixels; empty: none. watermark_score: how surely it was found again.
        watermark_key_id: of its key. watermark_reason: why there is none.
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
    signer = markers.signer if markers is not None else None
    packet = xmp_packet(ai_system=origin.ai_system, ai_version=origin.ai_version, software=origin.software)
    stored = save(picture, image_format, packet)
    code = iscc(picture) if signer is not None else ""
    if signer is not None:
        stored = _signed(stored, signer, origin, [SoftBinding(ISCC_BINDING, code)])
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
    )


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
