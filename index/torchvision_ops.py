"""Make torchvision importable beside a CPU build of torch.

torchvision's Linux wheels are linked against CUDA. Beside a CPU build of torch (which a machine without a GPU
rightly prefers, several GB smaller) its compiled operators do not load, and since torchvision then registers a fake
kernel for an operator nobody defined, even ``import torchvision`` fails, and with it open_clip, transformers and
diffusers. Nothing here needs those operators, except a detector's non-maximum suppression.

``ensure()`` defines non-maximum suppression in plain torch (and the others' names), and only when the compiled ones
are really absent. Call it before the first import of open_clip, transformers or diffusers.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

_library: Any = None  # kept alive: dropping a torch.library.Library undefines its operators


def ensure() -> bool:
    """Define torchvision's operators when they are missing; returns whether the stand-in is in use."""
    global _library
    import torch

    if _library is not None:
        return True
    if hasattr(torch.ops.torchvision, "nms"):
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for compiled in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(compiled))
        except OSError:
            continue
        if hasattr(torch.ops.torchvision, "nms"):
            return False
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # The rest is never called: it only has to exist for torchvision to attach its fake kernels to it.
    fakes = (Path(spec.origin).parent / "_meta_registrations.py").read_text(encoding="utf-8")
    for name in sorted(set(re.findall(r"torchvision::(\w+)|register_meta\(\"(\w+)\"", fakes))):
        operator = name[0] or name[1]
        if operator != "nms":
            _library.define(f"{operator}(Tensor unavailable) -> Tensor")
    _library.impl("nms", _nms, "CPU")
    return True


def _nms(dets: Any, scores: Any, iou_threshold: float) -> Any:
    """Greedy non-maximum suppression: boxes (N, 4) as x0, y0, x1, y1 and scores (N,) → kept indices, best first."""
    import torch

    order = scores.argsort(descending=True, stable=True)
    area = (dets[:, 2] - dets[:, 0]) * (dets[:, 3] - dets[:, 1])
    kept = []
    while order.numel():
        best, rest = order[0], order[1:]
        kept.append(best)
        corner = torch.maximum(dets[best, :2], dets[rest, :2])
        extent = (torch.minimum(dets[best, 2:], dets[rest, 2:]) - corner).clamp(min=0)
        overlap = extent[:, 0] * extent[:, 1]
        order = rest[overlap / (area[best] + area[rest] - overlap) <= iou_threshold]
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.long)
