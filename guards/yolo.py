"""A second guard for marks: watermark, QR code and text with boxes, by an ultralytics YOLO detector.

ultralytics, and every weight file trained with it, is licensed AGPL-3.0: whoever ships them or offers them over a network
must offer their source too. The guard is therefore an optional extra, never the default; nothing here imports
ultralytics before a guard is made. The weights are safetensors beside a ``config.json`` that holds the network's own
description: no pickle is loaded, and nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from guards.base import Defaults, Finding, Probe, import_package, require_package, require_pictures
from guards.mark_network import SIDE
from guards.mark_weights import WEIGHTS, MarkWeights
from guards.marks import LESS, inside, sigmoid, squeeze
from guards.own_label import without_own_label
from index.errors import IntegrityError
from index.padding import PaddedCalls

BATCH = 8  # rows of every call of the network: a kernel chosen by batch size never changes a score; fewer when memory runs out
INSTALL = (
    "Install the extra with `pip install 'clearance[yolo]'` (AGPL-3.0: read pipeline/weights/stickers/yolo/LICENSE first), "
    "or use the marks guard that ships"
)


def _weights(folder: str | Path) -> MarkWeights:
    require_package("ultralytics", "ultralytics", guard="yolo", install=INSTALL)
    return MarkWeights.find(folder, guard="yolo", architecture="yolo", needs={"network": dict, "input_pixels": int})


@contextmanager
def _pictures_read_as_before() -> Iterator[None]:
    """An import of ultralytics replaces PIL.Image.open for the whole process with one that wants a further package where a file
    is no picture; the rest of the process relies on PIL's own."""
    from PIL import Image

    genuine = Image.open
    try:
        yield
    finally:
        Image.open = genuine


def make_detector(description: dict[str, Any] | str, kinds: int) -> Any:
    """Build an untrained ultralytics ``DetectionModel`` for a number of kinds of marks.

    Args:
        description: the network as ultralytics describes it (a dictionary), or the name of one of its YAML files.
        kinds: how many kinds of marks it tells apart.
    """
    os.environ.setdefault("YOLO_VERBOSE", "false")  # its logger writes to stdout, which is for results
    os.environ.setdefault("YOLO_OFFLINE", "true")  # no request to a server about connectivity or new releases
    from index.torchvision_ops import ensure

    ensure()
    with _pictures_read_as_before():
        from ultralytics.nn.tasks import DetectionModel, yaml_model_load
    network = yaml_model_load(description) if isinstance(description, str) else dict(description)  # type: ignore[no-untyped-call]
    return DetectionModel({**network, "nc": kinds}, ch=3, nc=kinds, verbose=False)  # type: ignore[no-untyped-call]


def enlarge(x: Any, pixels: int) -> Any:
    """A 64-pixel batch, float (N, 3, 64, 64) in [0, 1], at the size the detector was trained with."""
    from torch.nn import functional

    return functional.interpolate(x, size=pixels, mode="bilinear", align_corners=False)


def strongest(network: Any, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """The surest box of each kind in each picture.

    Args:
        network: a :func:`make_detector` in evaluation mode.
        x: float (N, 3, P, P) in [0, 1].

    Returns:
        Logits, float32 (N, kinds), and boxes, float32 (N, kinds, 4), as x0, y0, x1, y1 in fractions of the picture.
    """
    import torch

    with torch.inference_mode():
        decoded, raw = network(x)
        logits, anchor = raw["scores"].float().max(2)
        centre_size = decoded[:, :4].float().gather(2, anchor[:, None].expand(-1, 4, -1)).permute(0, 2, 1) / x.shape[-1]
        middle, half = centre_size[..., :2], centre_size[..., 2:] / 2
        return logits.cpu().numpy(), torch.cat([middle - half, middle + half], 2).cpu().numpy()


class YoloMarksGuard:
    """Watermarks, QR codes and text by a YOLO detector; one finding per picture and kind, with the surest box.

    Args:
        folder: "stickers" or a folder with ``model.safetensors`` and ``config.json``.
        threshold: the operating point for every kind; None: 0.5, the calibrated one.

    Raises:
        GuardUnavailable: the extra or the weights are missing.
        IntegrityError: weights are not the ones the configuration was written for, or do not fit its network.

    Attributes:
        calls: of the network; ``calls.shapes`` counts their rows. The last bits of a score belong to the shape.
    """

    name: str = "yolo"
    categories: tuple[str, ...] = ("mark.watermark", "mark.qr", "mark.text")  # of the weights that ship
    licence: str = "AGPL-3.0"
    defaults = Defaults()

    @classmethod
    def probe(cls, settings: Any) -> Probe:
        return _weights("stickers").probe()

    @classmethod
    def open(cls, settings: Any) -> YoloMarksGuard:
        return cls("stickers", settings.threshold)

    def __init__(self, folder: str | Path = "stickers", threshold: float | None = None) -> None:
        weights = _weights(folder)
        tensors = weights.load()
        self.version, self.categories = weights.version, weights.categories
        self.threshold = 0.5 if threshold is None else threshold
        self._pixels = int(weights.card["input_pixels"])
        self._shift = np.array(weights.operating_logits, np.float32)
        self.calls = PaddedCalls(BATCH, "guard yolo", LESS)
        self._device = "cpu"
        with _pictures_read_as_before():
            import_package("ultralytics", guard=self.name, install=INSTALL)
        try:
            self.network = make_detector(weights.card["network"], len(weights.kinds))
            fill(self.network, tensors)
        except Exception as error:  # another release of ultralytics may build another network, or none from this description
            trained = weights.card.get("ultralytics", "see config.json")
            fix = f"Install the ultralytics it was trained with ({trained}), or train it again"
            what = f"the weights do not fit the network that the installed ultralytics builds: {str(error).splitlines()[0]}"
            raise IntegrityError(what, where=str(weights.folder / WEIGHTS), fix=fix) from None

    def to(self, device: str) -> None:
        """Run the network on that torch device from now on."""
        self.network.to(device)
        self._device = device

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        """Check uint8 RGB (N, H, W, 3): a finding of each kind per picture; a box where a mark is found. Our own label is none.

        Raises:
            OutOfMemory: not even one picture fits into memory.
        """
        import torch

        require_pictures(pictures, guard=self.name)
        if not len(pictures):
            return []
        small = np.stack([squeeze(picture, SIDE) for picture in without_own_label(pictures)])

        def run(rows: list[int]) -> torch.Tensor:
            x = torch.from_numpy(small[rows]).permute(0, 3, 1, 2).float() / 255
            logits, boxes = strongest(self.network, enlarge(x, self._pixels).to(self._device))
            scores = sigmoid(logits - self._shift)
            return torch.from_numpy(np.concatenate([scores[:, :, None], boxes], 2))

        found = self.calls.run(run, len(pictures)).numpy()  # (N, kinds, 1 + 4)
        return [[self._finding(k, float(row[k, 0]), row[k, 1:]) for k in range(len(row))] for row in found]

    def _finding(self, kind: int, score: float, edges: np.ndarray) -> Finding:
        box = inside(edges) if score >= self.threshold else None
        category = self.categories[kind]
        return Finding(guard=self.name, version=self.version, category=category, score=score, threshold=self.threshold, box=box)


def fill(network: Any, tensors: dict[str, Any]) -> None:
    """Load fp16 tensors into the network as fp32 and make it ready to judge.

    Raises:
        RuntimeError: a tensor is missing, superfluous or of another shape.
    """
    kept = {key: value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    network.load_state_dict({key: value.float() for key, value in tensors.items()} | kept)
    network.eval().requires_grad_(False)
