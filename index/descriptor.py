"""A second look by a copy descriptor of one's own: a network in one file that turns a picture into a vector.

Descriptors that were trained to find copies (SSCD, ISC, DINO and their kin) are published as TorchScript or convert to ONNX.
The file is opened as it is: TorchScript runs code of its own, so take it from a source that you trust. How pictures enter
stands in ``NAME.json`` beside it; where there is none, as those networks usually take them (:data:`ENTERING`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import InputError, ModelError
from index.keypoints import Shown
from index.onnx_data import weight_files
from index.padding import first_line

TORCHSCRIPT, ONNX = (".pt", ".ts", ".torchscript"), (".onnx",)
SUFFIXES = (*TORCHSCRIPT, *ONNX)
VERSION = 1  # raise it when anything below changes a score


@dataclass(frozen=True, kw_only=True)
class Entering:
    """How a picture enters a descriptor: squashed to ``size`` × ``size`` pixels, then (value / 255 − mean) / std by channel."""

    size: int = 288
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


ENTERING = Entering()  # SSCD's


def descriptor_id(file: Path) -> str:
    """Digest of everything that decides a score: the file, those that hold its weights, how pictures enter, and this code.

    Raises:
        ModelError: it cannot be read, or is neither TorchScript nor ONNX by its name.
    """
    if file.suffix.lower() not in SUFFIXES:
        fix = f"Name a file that ends with one of: {', '.join(SUFFIXES)}"
        raise ModelError("is neither TorchScript nor ONNX by its name", where=f"second look: {file}", fix=fix)
    try:
        beside = weight_files(file) if file.suffix.lower() in ONNX else []
        weights, *others = [_file_sha256(part) for part in (file, *beside)]
        more = [[part.name, digest] for part, digest in zip(beside, others, strict=True)]
    except OSError as error:
        fix = "Name the file where it lies now: copies.second_look of the policy, --second-look of clearance index calibrate"
        raise ModelError(f"cannot be read ({error.strerror or error})", where=f"second look: {file}", fix=fix) from None
    content = json.dumps(["descriptor", VERSION, weights, asdict(entering(file)), *([more] if more else [])], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _file_sha256(file: Path) -> str:
    """Raises OSError: there is no such file, or something else than one: a device or a pipe would never end."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file.name}")
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def entering(file: Path) -> Entering:
    """How pictures enter the descriptor in a file: what ``NAME.json`` beside it states, and :data:`ENTERING` for the rest.

    Raises:
        InputError: the JSON states something else, or values out of range.
    """
    beside = file.with_suffix(".json")
    if not beside.is_file():
        return ENTERING
    try:
        stated = json.loads(beside.read_text(encoding="utf-8"))
        if not isinstance(stated, Mapping) or (unknown := sorted(set(stated) - {field.name for field in fields(Entering)})):
            raise ValueError(f"{unknown[0]!r} is none of size, mean, std" if isinstance(stated, Mapping) else "no object")
        values: dict[str, Any] = {name: int(v) if name == "size" else tuple(float(x) for x in v) for name, v in stated.items()}
        found = Entering(**values)
        if not 8 <= found.size <= 2048 or len(found.mean) != 3 or len(found.std) != 3 or min(found.std) <= 0:
            raise ValueError("size must lie within 8 and 2048, mean and std are three numbers, and std is above 0")
        return found
    except (OSError, ValueError, TypeError, RecursionError) as error:
        fix = 'Write, for example: {"size": 288, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}'
        raise InputError(f"does not state how pictures enter a descriptor ({error})", where=str(beside), fix=fix) from None


class Descriptor:
    """The look: (picture, reference) → the cosine of their vectors in [0, 1], the better of the reference and its mirror image.

    Every picture is a call of its own, of one row, so that a score does not depend on what else is looked at.

    Args:
        file: the network, TorchScript or ONNX: float32, or float16, (1, 3, size, size) → float (1, D).
        device: torch device of a TorchScript file; ONNX runs on the processor.

    Raises:
        ModelError: it cannot be opened.
    """

    def __init__(self, file: Path, device: str = "cpu") -> None:
        self.look_id = descriptor_id(file)
        self._where, self._how = f"second look: {file}", entering(file)
        self._run = _onnx(file) if file.suffix.lower() in ONNX else _torchscript(file, device)
        self._kept = lru_cache(maxsize=256)(self.vector)

    def __call__(self, picture: np.ndarray, reference: np.ndarray) -> float:
        seen = self.vector(Shown(picture))
        sides = (reference, np.ascontiguousarray(reference[:, ::-1]))
        return max(0.0, min(1.0, max(float(seen @ self._kept(Shown(side))) for side in sides)))

    def vector(self, shown: Shown) -> np.ndarray:
        """Unit vector float64 (D,).

        Raises:
            ModelError: the network fails on the picture, or its vector has no direction.
        """
        from PIL import Image

        side = self._how.size
        small = np.asarray(Image.fromarray(shown.picture).resize((side, side), Image.Resampling.BILINEAR), np.float32)
        entered = (small / 255 - np.array(self._how.mean, np.float32)) / np.array(self._how.std, np.float32)
        try:
            row = self._run(np.ascontiguousarray(entered.transpose(2, 0, 1)[None], np.float32))
        except Exception as error:  # the runtimes raise types of their own
            what = f"fails on a picture of {side}×{side} pixels ({first_line(error)})"
            fix = f"Check that it takes float32 (1, 3, {side}, {side}); a JSON file beside it may state another size"
            raise ModelError(what, where=self._where, fix=fix) from error
        vector = np.asarray(row, np.float64).ravel()
        length = float(np.sqrt(vector @ vector))
        if not np.isfinite(length) or length == 0:  # it would agree with nothing, and a copy would pass
            raise ModelError("a vector has no direction: it is zero or not finite", where=self._where, fix="Use other weights")
        return vector / length


def _torchscript(file: Path, device: str) -> Callable[[np.ndarray], Any]:
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch recommends torch.export; the published files are these
            network = torch.jit.load(str(file), map_location=device).eval().float()  # float16 ones are published, too
    except Exception as error:
        raise _unfit(file, error) from None

    def run(entered: np.ndarray) -> Any:
        with torch.inference_mode():
            return _first(network(torch.from_numpy(entered).to(device))).float().cpu().numpy()

    return run


def _onnx(file: Path) -> Callable[[np.ndarray], Any]:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _unfit(file, error) from None
    first = session.get_inputs()[0]
    number = {"tensor(float16)": np.float16, "tensor(double)": np.float64}.get(first.type, np.float32)
    return lambda entered: session.run(None, {first.name: entered.astype(number)})[0]


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) else output


def _unfit(file: Path, error: Exception) -> ModelError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    kind = "ONNX" if file.suffix.lower() in ONNX else "TorchScript"
    return ModelError(f"cannot be opened ({line})", where=f"second look: {file}", fix=f"Name a file that {kind} can load")
