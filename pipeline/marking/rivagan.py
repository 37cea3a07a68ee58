"""RivaGAN (arXiv 1909.01285) as a watermark: the two ONNX files of the package invisible-watermark 0.2.0, run by ONNX Runtime.

Nothing of the package is imported. Install it with `pip install --no-deps invisible-watermark==0.2.0`: among its requirements
is opencv-python, which would overwrite the files of opencv-python-headless.

The network writes 32 bits. All of them are the key's, so that an agreement of 26 or more counts as found, and there is no room
for a payload. The agreement of a fixed output with the bits of a random key is binomial (32, ½), whatever the picture shows;
for one key, pictures that look alike are not independent.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import IntegrityError, WatermarkUnavailable
from pipeline.marking.watermark import Found, require_picture

BITS = 32
ENOUGH = 26  # P(≥ 26 of 32) = 2.7e-4; on flat drawings it reads 25 to 31 of its own bits
ABOVE = 0.52  # the decoder's output from which a bit is 1: the package's own
WHERE = "watermark rivagan"
INSTALL = "Install it with `pip install --no-deps invisible-watermark==0.2.0`"
FILES = {
    "rivagan_encoder.onnx": "66bc7814fadac7d686105c8ab26c6cf2cc8e40deb83e67bb6ef5b9de9b8ece0d",
    "rivagan_decoder.onnx": "6b006690cf352fa50a91a0b6d6241dbcded0a9957969e2c0665cf9a7011b3880",
}


class RivaganWatermark:
    """RivaGAN. See the module. It takes about two seconds a picture of 512 pixels on one core, each way.

    Args:
        folder: with the two ONNX files; by default the installed package's.

    Raises:
        WatermarkUnavailable: a file is missing.
        IntegrityError: a file is not that of invisible-watermark 0.2.0.
    """

    name = "rivagan"
    version = "rivagan of invisible-watermark 0.2.0"
    licence = "MIT"
    least_side = 256
    false_alarm = 2.7e-4
    payload_bits = 0
    psnr_floor = 34.0

    @classmethod
    def probe(cls) -> str:
        paths(None)
        return cls.version

    @classmethod
    def open(cls, *, allow_download: bool = False) -> RivaganWatermark:
        return cls()

    def __init__(self, folder: Path | None = None) -> None:
        self._paths = paths(folder)
        for path in self._paths.values():
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != FILES[path.name]:
                raise IntegrityError("is not the file of invisible-watermark 0.2.0", where=str(path), fix=INSTALL)
        self._sessions: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sessions": {}}

    def embed(self, picture: np.ndarray, key: bytes, payload: int) -> np.ndarray:
        """See :class:`pipeline.marking.watermark.Watermark`. The payload is not written."""
        require_picture(picture, scheme=self.name, least_side=self.least_side)
        inputs = {"frame": _frame(picture), "data": codeword(key)[None].astype(np.float32)}
        out = self._session("rivagan_encoder.onnx").run(None, inputs)[0][0, :, 0]
        marked: np.ndarray = np.clip((out[::-1].transpose(1, 2, 0) + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
        return marked

    def look(self, picture: np.ndarray, key: bytes, *, size_hint: tuple[int, int] | None = None) -> Found:
        """See :class:`pipeline.marking.watermark.Watermark`. The score is the number of agreeing bits."""
        require_picture(picture, scheme=self.name)
        if min(picture.shape[:2]) < BITS:
            return Found(found=False, score=0.0, p_value=1.0)
        out = self._session("rivagan_decoder.onnx").run(None, {"frame": _frame(picture)})[0][0]
        agree = int(((out > ABOVE) == codeword(key)).sum())
        chance = sum(math.comb(BITS, n) for n in range(agree, BITS + 1)) / 2**BITS
        return Found(found=agree >= ENOUGH, score=float(agree), p_value=chance, aligned=agree >= ENOUGH)

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1  # results do not depend on the number of cores
            providers = ["CPUExecutionProvider"]
            self._sessions[name] = onnxruntime.InferenceSession(str(self._paths[name]), options, providers=providers)
        return self._sessions[name]


def paths(folder: Path | None) -> dict[str, Path]:
    """The two files by name, found without importing the package.

    Raises:
        WatermarkUnavailable: the package or a file is missing.
    """
    if folder is None:
        spec = importlib.util.find_spec("imwatermark")
        if spec is None or spec.origin is None:
            raise WatermarkUnavailable("the package invisible-watermark is not installed", where=WHERE, fix=INSTALL)
        folder = Path(spec.origin).parent
    found = {name: folder / name for name in FILES}
    for path in found.values():
        if not path.is_file():
            raise WatermarkUnavailable(f"{path.name} is missing", where=f"{WHERE}: {folder}", fix=INSTALL)
    return found


def codeword(key: bytes) -> np.ndarray:
    """The 32 bits of a key: bool (32,)."""
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(b"rivagan 1" + key).digest(BITS // 8), np.uint8))
    word: np.ndarray = bits.astype(bool)
    return word


def _frame(picture: np.ndarray) -> np.ndarray:
    """One frame of a film, as the network takes it: blue, green, red as float32 (1, 3, 1, H, W) from −1 to 1."""
    scaled: np.ndarray = (picture[..., ::-1].astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None, :, None]
    return scaled
