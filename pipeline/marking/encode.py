"""Encode an accepted picture and state inside the file that a model made it.

The first layer of marking: XMP with the IPTC digital source type. The order of the layers is in :mod:`pipeline.marking.mark`.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

import numpy as np

from index.errors import ConfigError, IntegrityError

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MEDIA_TYPES = {"webp": "image/webp", "png": "image/png", "jpeg": "image/jpeg"}
SUFFIXES = {"image/webp": "webp", "image/png": "png", "image/jpeg": "jpg"}
LOSSLESS = frozenset({"image/webp", "image/png"})  # what :func:`encode` writes losslessly: pixels can be verified


@dataclass(frozen=True)
class Encoded:
    """One encoded picture: the bytes of the file, its media type, and the digest of those bytes."""

    data: bytes
    media_type: str
    file_sha256: str


def xmp_packet(*, ai_system: str, ai_version: str, software: str) -> bytes:
    """The XMP packet of a generated picture (IPTC Photo Metadata 2025.1: source type, AI system and its version)."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f"xmp:CreatorTool={quoteattr(software)} "
        f"Iptc4xmpExt:DigitalSourceType={quoteattr(DIGITAL_SOURCE_TYPE)} "
        f"Iptc4xmpExt:AISystemUsed={quoteattr(ai_system)} "
        f"Iptc4xmpExt:AISystemVersionUsed={quoteattr(ai_version)}/>"
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def encode(picture: np.ndarray, image_format: str, xmp: bytes) -> Encoded:
    """Encode uint8 RGB (H, W, 3) as lossless WebP (``webp``), ``png`` or JPEG quality 95 (``jpeg``) with the XMP inside.

    Raises:
        ConfigError: unknown image format.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    image = Image.fromarray(np.ascontiguousarray(picture, dtype=np.uint8), "RGB") if picture.ndim == 3 else None
    if image is None:
        raise IntegrityError(f"a picture must be (H, W, 3), not {picture.shape}", fix="Pass one RGB picture")
    buffer = io.BytesIO()
    if image_format == "webp":
        image.save(buffer, "WEBP", lossless=True, method=0, xmp=xmp)
    elif image_format == "png":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        image.save(buffer, "PNG", pnginfo=info)
    elif image_format == "jpeg":
        image.save(buffer, "JPEG", quality=95, subsampling=0, xmp=xmp)
    else:
        known = ", ".join(MEDIA_TYPES)
        raise ConfigError(f"unknown image format {image_format!r}", where="image_format", fix=f"Use one of {known}")
    data = buffer.getvalue()
    return Encoded(data, MEDIA_TYPES[image_format], hashlib.sha256(data).hexdigest())


def decode(data: bytes) -> tuple[np.ndarray, bytes]:
    """Decode an encoded picture: uint8 RGB (H, W, 3) and its XMP packet (empty when it has none).

    Raises:
        IntegrityError: the bytes are not a picture.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            xmp = image.info.get("xmp", b"")
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # decoders of damaged bytes may raise anything, decompression bombs included
        text = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise IntegrityError(f"cannot be decoded ({text})", fix="Restore the file from a copy") from None
    return pixels, xmp if isinstance(xmp, bytes) else str(xmp).encode()


def thumbnail(picture: np.ndarray, side: int = 128) -> bytes:
    """A WebP of at most ``side`` pixels: small pictures are kept exactly (lossless), larger ones scaled at quality 85."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture, dtype=np.uint8))
    exact = max(image.size) <= side
    if not exact:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=exact, method=0, quality=75 if exact else 85)
    return buffer.getvalue()
