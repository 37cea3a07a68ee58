"""Make torchvision importable beside a CPU build of torch.

torchvision's Linux wheels are linked against CUDA. Beside a CPU build of torch (several GB smaller, so right for a machine
without a GPU) its compiled operators do not load. torchvision then registers a fake kernel for an undefined operator:
``import torchvision`` fails, and with it open_clip, transformers and diffusers. Nothing here needs those operators, except
a detector's non-maximum suppression.

``ensure()`` defines non-maximum suppression in plain torch, and the other operators' names, where the compiled ones are
absent. ``watch()`` arranges this for the first import of torchvision. The wheel also installs this file as
``clearance_torchvision.py``, beside a ``.pth`` file that calls ``watch()`` when Python starts, so that every interpreter of the
environment is covered; therefore the module has no imports at its top. Code that may run without being installed calls
``ensure()`` before its first import of open_clip, transformers or diffusers.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing itself is an import
if TYPE_CHECKING:
    from typing import Any

_library: Any = None  # kept alive: dropping a torch.library.Library undefines its operators


class TorchvisionWatch:
    """An import hook that runs :func:`ensure` just before torchvision's own code; other imports it leaves alone."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "torchvision":
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def prepared(module: Any) -> None:
            try:
                ensure()
            except Exception as error:  # torchvision's own error comes next, with more detail
                print(f"clearance: torchvision's operators cannot be replaced ({error})", file=sys.stderr)
            execute(module)

        spec.loader.exec_module = prepared  # type: ignore[method-assign]
        return spec


def watch() -> None:
    """Let torchvision be prepared when it is first imported, in whichever way. Costs nothing until then."""
    if "torchvision" not in sys.modules and not any(type(f).__name__ == TorchvisionWatch.__name__ for f in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionWatch())


def ensure() -> bool:
    """Define torchvision's operators when they are missing; returns whether the stand-in is in use."""
    global _library
    import importlib.util
    import re
    from pathlib import Path

    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    folder = Path(spec.origin).parent
    if not hasattr(torch.ops.torchvision, "nms"):
        for compiled in sorted(folder.glob("_C*.so")):
            try:
                torch.ops.load_library(str(compiled))
            except OSError:
                continue
    if hasattr(torch.ops.torchvision, "nms"):
        return not any(Path(loaded).parent == folder for loaded in torch.ops.loaded_libraries)
    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # The rest is never called: it only has to exist for torchvision to attach its fake kernels to it.
    fakes = (folder / "_meta_registrations.py").read_text(encoding="utf-8")
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
