"""Fingerprints of a picture: digests of its pixels, which any change alters; PDQ and ISCC, which small changes hardly alter."""

from __future__ import annotations

import base64
import hashlib

import numpy as np


def pixel_digest(picture: np.ndarray) -> str:
    """sha256 of a uint8 RGB picture's bytes (H, W, 3) in C order: the same whatever file format stores it."""
    return hashlib.sha256(np.ascontiguousarray(picture, dtype=np.uint8).tobytes()).hexdigest()


def content_digest(picture: np.ndarray) -> str:
    """sha256 over a picture's size and RGB bytes, whatever file it came in; its first 16 digits are the reference's id."""
    header = f"{picture.shape[0]}x{picture.shape[1]} RGB\n".encode()
    return hashlib.sha256(header + np.ascontiguousarray(picture).tobytes()).hexdigest()


def pdq(picture: np.ndarray) -> tuple[np.ndarray, int]:
    """Meta's PDQ perceptual hash of uint8 RGB (H, W, 3): its 256 bits as uint8, and its own quality, 0-100."""
    import pdqhash

    bits, quality = pdqhash.compute(np.ascontiguousarray(picture))
    return np.asarray(bits, np.uint8), int(quality)


def pdq_hex(bits: np.ndarray) -> str:
    """The 256 bits of a PDQ hash as 64 hexadecimal digits."""
    return np.packbits(bits).tobytes().hex()


def iscc(picture: np.ndarray) -> str:
    """The ISCC Content-Code Image (ISO 24138, 256 bits) of uint8 RGB (H, W, 3), as its URI ``ISCC:EED…``.

    The picture is normalised as the standard prescribes: grey, scaled to 32×32 bicubically.
    """
    from iscc_core import gen_image_code_v0
    from PIL import Image

    grey = (
        Image.fromarray(np.ascontiguousarray(picture, dtype=np.uint8)).convert("L").resize((32, 32), Image.Resampling.BICUBIC)
    )
    return str(gen_image_code_v0(np.asarray(grey).reshape(-1).tolist(), bits=256)["iscc"])


def iscc_bytes(code: str) -> bytes:
    """The 256 bits of an image code of :func:`iscc` as 32 bytes.

    Raises:
        ValueError: it is no such code.
    """
    digits = code.removeprefix("ISCC:")
    if not (digits.startswith("EED") and len(digits) == 55):  # two bytes of header: content code, image, version 0, 256 bits
        raise ValueError(f"{code!r} is no image code of 256 bits")
    return base64.b32decode(digits + "=")[2:]
