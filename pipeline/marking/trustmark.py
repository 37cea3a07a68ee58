"""TrustMark (arXiv 2311.18297) as a watermark: the package `trustmark` 0.9.2, variant Q, with weights that are on this machine.

The package fetches its weights at first use. Here it may do so only where the run file allows it; otherwise the three files of
variant Q must lie in its folder `models`, with the digests that the package itself names.

The 61 bits hold the payload and 29 bits that only the key can make. Every hit of the raw decoder on 1,343 unmarked pictures
was false, so a find needs three things: the decoder's own check, the key's 29 bits, and the same answer to the picture at
nine tenths of its size.

Nobody has run this module with the weights yet: they were not to be had where it was written. What is tested is everything
around the networks.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from index.errors import IntegrityError, WatermarkUnavailable
from pipeline.marking.watermark import PAYLOAD_BITS, Found, require_picture

WHERE = "watermark trustmark"
PACKAGE = "0.9.2"
INSTALL = "Install it with `pip install 'clearance[trustmark]'`"
OWN_BITS = 29  # of 61, by the key
CAPACITY = PAYLOAD_BITS + OWN_BITS  # of its schema BCH_5, which corrects five of 96 bits
FILES = {  # md5, as the package 0.9.2 names them; weights: their origin is known by nothing better
    "trustmark_Q.yaml": "fe40df84a7feeebfceb7a7678d7e6ec6",
    "encoder_Q.ckpt": "700328b8754db934b2f6cb5e5185d81f",
    "decoder_Q.ckpt": "4ced90e9cfe13e3295ad082887fe9187",
}
AGAIN = 0.9  # the size at which the second look is taken


class Networks(Protocol):
    """Encoder and decoder: what :class:`TrustmarkWatermark` needs of the package."""

    def write(self, picture: np.ndarray, bits: str) -> np.ndarray:
        """The picture, uint8 RGB (H, W, 3), with 61 bits in it."""
        ...

    def read(self, picture: np.ndarray) -> str | None:
        """The 61 bits; None where the error correction found none."""
        ...


class TrustmarkWatermark:
    """TrustMark, variant Q. See the module.

    Args:
        networks: encoder and decoder; by default the installed package's.
    """

    name = "trustmark"
    version = f"trustmark {PACKAGE} Q"
    licence = "MIT"
    least_side = 300
    false_alarm = 2.0**-OWN_BITS
    payload_bits = PAYLOAD_BITS
    psnr_floor = 34.0

    @classmethod
    def probe(cls) -> str:
        find_weights(package_folder())
        return cls.version

    @classmethod
    def open(cls, *, allow_download: bool = False) -> TrustmarkWatermark:
        return cls(_Package.open(allow_download=allow_download))

    def __init__(self, networks: Networks) -> None:
        self.networks = networks

    def embed(self, picture: np.ndarray, key: bytes, payload: int) -> np.ndarray:
        """See :class:`pipeline.marking.watermark.Watermark`."""
        require_picture(picture, scheme=self.name, least_side=self.least_side)
        return self.networks.write(picture, message(key, payload))

    def look(self, picture: np.ndarray, key: bytes, *, size_hint: tuple[int, int] | None = None) -> Found:
        """See :class:`pipeline.marking.watermark.Watermark`. Two looks must read the same, and the key must agree."""
        from PIL import Image

        require_picture(picture, scheme=self.name)
        nothing = Found(found=False, score=0.0, p_value=1.0)
        bits = self.networks.read(picture)
        if bits is None or len(bits) != CAPACITY:
            return nothing
        payload = int(bits[:PAYLOAD_BITS], 2)
        if not hmac.compare_digest(bits, message(key, payload)):
            return nothing
        size = (max(1, round(picture.shape[1] * AGAIN)), max(1, round(picture.shape[0] * AGAIN)))
        smaller = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
        if self.networks.read(smaller) != bits:
            return nothing
        return Found(found=True, score=2.0, p_value=self.false_alarm, payload=payload, payload_sure=1 - 2.0**-OWN_BITS)


def message(key: bytes, payload: int) -> str:
    """The 61 bits as text: the payload and the key's digest of it."""
    own = hmac.digest(key, b"trustmark 1" + payload.to_bytes(4, "big"), "sha256")
    return f"{payload:0{PAYLOAD_BITS}b}" + f"{int.from_bytes(own[:4], 'big') >> (32 - OWN_BITS):0{OWN_BITS}b}"


def package_folder() -> Path:
    """The folder of the installed package, found without importing it.

    Raises:
        WatermarkUnavailable: it is not installed, or in another version.
    """
    spec = importlib.util.find_spec("trustmark")
    if spec is None or spec.origin is None:
        raise WatermarkUnavailable("the package trustmark is not installed", where=WHERE, fix=INSTALL)
    version = importlib.metadata.version("trustmark")
    if version != PACKAGE:
        what = f"trustmark {version} is installed, and the digests of the weights are those of {PACKAGE}"
        raise WatermarkUnavailable(what, where=WHERE, fix=f"pip install trustmark=={PACKAGE}")
    return Path(spec.origin).parent


def find_weights(package: Path, digests: Mapping[str, str] = FILES) -> None:
    """Check the weights in a package's folder against their md5 digests.

    Raises:
        WatermarkUnavailable: a file is missing.
        IntegrityError: a file is another one.
    """
    for name, expected in digests.items():
        path = package / "models" / name
        if not path.is_file():
            fix = f"Put {', '.join(FILES)} there, or set `allow_download = true` below [marks]"
            raise WatermarkUnavailable(f"{name} is missing", where=f"{WHERE}: {path.parent}", fix=fix)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != expected:
            fix = "Remove it, and fetch it again"
            raise IntegrityError(f"is not the file that trustmark {PACKAGE} names", where=f"{WHERE}: {path}", fix=fix)


class _Package:
    """The installed package's networks."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def open(cls, *, allow_download: bool) -> _Package:
        folder = package_folder()
        try:
            find_weights(folder)
        except WatermarkUnavailable:
            if not allow_download:
                raise
        package = importlib.import_module("trustmark")
        schema = package.TrustMark.Encoding.BCH_5
        model = package.TrustMark(verbose=False, model_type="Q", encoding_type=schema, device="cpu", loadRemover=False)
        find_weights(folder)  # what was fetched, too
        return cls(model)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, ()

    def write(self, picture: np.ndarray, bits: str) -> np.ndarray:
        from PIL import Image

        return np.asarray(self._model.encode(Image.fromarray(picture), bits, MODE="binary"))

    def read(self, picture: np.ndarray) -> str | None:
        from PIL import Image

        bits, present, schema = self._model.decode(Image.fromarray(picture), MODE="binary")
        return str(bits) if present and schema == 1 else None  # 1: BCH_5


def _reopened() -> _Package:
    return _Package.open(allow_download=False)
