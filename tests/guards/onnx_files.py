"""A small ONNX classifier, written byte by byte: mean colour of the picture, times a matrix. No package for ONNX is needed."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

FLOAT, HALF, UINT8 = 1, 10, 2  # kinds of numbers


def _number(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _field(tag: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _number(tag << 3) + _number(value)
    data = value.encode() if isinstance(value, str) else value
    return _number(tag << 3 | 2) + _number(len(data)) + data


def _node(kind: str, inputs: list[str], output: str, attribute: bytes = b"") -> bytes:
    named = b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(3, output) + _field(4, kind)
    return named + (_field(5, attribute) if attribute else b"")


def _whole(name: str, value: int) -> bytes:
    return _field(1, name) + _field(3, value) + _field(20, 2)


def _several(name: str, values: tuple[int, ...]) -> bytes:
    return _field(1, name) + b"".join(_field(8, value) for value in values) + _field(20, 7)


def _value(name: str, shape: list[int | str], kind: int = FLOAT) -> bytes:
    dims = b"".join(_field(1, _field(1, side) if isinstance(side, int) else _field(2, side)) for side in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims)))


def _tensor(name: str, values: np.ndarray) -> bytes:
    dims = b"".join(_field(1, side) for side in values.shape)
    return dims + _field(2, FLOAT) + _field(8, name) + _field(9, struct.pack(f"<{values.size}f", *values.ravel().tolist()))


def _elsewhere(name: str, values: np.ndarray, location: str, backwards: bool) -> bytes:
    """A tensor whose values lie in another file, and its entry written backwards, as protobuf allows."""
    key, value = _field(1, "location"), _field(2, location)
    dims = b"".join(_field(1, side) for side in values.shape)
    entry = _field(13, value + key if backwards else key + value)
    return dims + _field(2, FLOAT) + _field(8, name) + entry + _field(14, 1)


def write_onnx(
    folder: Path, labels: list[str], weight: np.ndarray, *, rows: int | str = "batch", several: bool = False,
    location: str = "", backwards: bool = False, ending: tuple[str, ...] = (), side: int | str = 32,
    channels_last: bool = False, kind: int = FLOAT, pooled: bool = True,
) -> Path:  # fmt: skip
    """A folder with ``model.onnx``, ``config.json`` and ``preprocessor_config.json``; ``weight``: (3, labels), in the file
    or, with ``location``, in another, which is not written. ``ending``: operators behind the logits. ``kind``: of the numbers
    that enter. Without ``pooled`` the picture itself is the output."""
    folder.mkdir(parents=True, exist_ok=True)
    shape: list[int | str] = [rows, side, side, 3] if channels_last else [rows, 3, side, side]
    first = (
        _node("Transpose", ["wide"], "first", _several("perm", (0, 3, 1, 2)))
        if channels_last
        else _node("Identity", ["wide"], "first")
    )
    chain = [f"behind {number}" for number in range(len(ending))]
    graph = b"".join(
        [
            _field(1, _node("Cast", ["pixel_values"], "wide", _whole("to", FLOAT))),
            _field(1, first),
            _field(1, _node("GlobalAveragePool", ["first"], "mean")),
            _field(1, _node("Flatten", ["mean"], "flat")),
            _field(1, _node("Gemm", ["flat", "weight"], "logits" if not ending else "numbers")),
            *(_field(1, _node(one, [before], name))
              for one, before, name in zip(ending, ["numbers", *chain], chain, strict=False)),
            _field(2, "colours"),
            _field(5, _elsewhere("weight", weight, location, backwards) if location
                   else _tensor("weight", weight.astype(np.float32))),
            _field(11, _value("pixel_values", shape, kind)),
            _field(12, _value(chain[-1] if chain else "logits", [rows, len(labels)]) if pooled else _value("first", shape)),
        ]
    )  # fmt: skip
    (folder / "model.onnx").write_bytes(_field(1, 9) + _field(7, graph) + _field(8, _field(2, 17)))
    write_cards(folder, labels, several=several)
    return folder / "model.onnx"


def write_cards(folder: Path, labels: list[str], *, several: bool = False) -> None:
    """The two configurations beside an ONNX file."""
    config = {"model_type": "vit", "id2label": {str(n): label for n, label in enumerate(labels)}}
    config |= {"problem_type": "multi_label_classification"} if several else {}
    (folder / "config.json").write_text(json.dumps(config))
    processor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 32, "width": 32}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
