"""Text that can be read: RapidOCR with the weights its wheel ships. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from guards.base import Box, Finding, require_package, require_pictures
from index.errors import GuardUnavailable

LEAST_LETTERS = 3  # ornaments are often read as one or two letters
SHORT_SIDE = 256  # pixels; smaller pictures are enlarged to it
DETAIL = 80  # characters of recognised words kept in a finding
MODELS = {
    "Det": "PP-OCRv6_det_small.onnx",
    "Cls": "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
    "Rec": "PP-OCRv6_rec_small.onnx",
}


def model_paths() -> dict[str, Path]:
    """The three weight files inside the installed wheel, found without importing it.

    Raises:
        GuardUnavailable: RapidOCR is missing, or this release ships other weights.
    """
    import importlib.util

    require_package("rapidocr", "rapidocr", guard="text", install="Install it with `pip install 'rapidocr>=3.10' onnxruntime`")
    require_package("onnxruntime", "onnxruntime", guard="text", install="Install it with `pip install onnxruntime`")
    spec = importlib.util.find_spec("rapidocr")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "models"
    paths = {part: folder / name for part, name in MODELS.items()}
    for path in paths.values():
        if not path.is_file():
            fix = "Install rapidocr 3.10, whose wheel holds it; this guard never downloads weights"
            raise GuardUnavailable(f"{path.name} is not in the installed package", where="guard text", fix=fix)
    return paths


class TextGuard:
    """Readable text; category ``text.ocr``, score = confidence of the surest word of three letters or more, else 0.

    The recogniser is loaded at the first check and runs on one thread, so that results do not depend on the machine's
    number of cores. It is not shipped to other processes: a pickled guard loads its own.
    """

    name = "text"
    categories: tuple[str, ...] = ("text.ocr",)

    def __init__(self, threshold: float = 0.5) -> None:
        import importlib.metadata

        self._paths = model_paths()
        self.version = f"rapidocr {importlib.metadata.version('rapidocr')} PP-OCRv6-small"
        self.threshold = threshold
        self._engine: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None}

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        """Check uint8 RGB (N, H, W, 3): one finding per picture, with the words and the box around them."""
        require_pictures(pictures, guard=self.name)
        return [[self._one(picture)] for picture in pictures]

    def _one(self, picture: np.ndarray) -> Finding:
        from PIL import Image

        high, wide = picture.shape[:2]
        scale = max(1.0, SHORT_SIDE / min(high, wide))
        shown = picture
        if scale > 1:
            size = (round(wide * scale), round(high * scale))
            shown = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
        out = self._load()(np.ascontiguousarray(shown[..., ::-1]))  # the recogniser wants BGR
        words = [] if out.txts is None else list(zip(out.txts, out.scores, out.boxes, strict=True))
        words = [(text, float(score), box) for text, score, box in words if sum(c.isalpha() for c in text) >= LEAST_LETTERS]
        if not words:
            return self._finding(0.0)
        x, y = (np.concatenate([np.asarray(box, np.float64)[:, axis] for _, _, box in words]) for axis in (0, 1))
        x, y = np.clip(x / shown.shape[1], 0, 1), np.clip(y / shown.shape[0], 0, 1)
        box: Box = (float(x.min()), float(y.min()), float(x.max()), float(y.max()))
        detail = " ".join(text for text, _, _ in words)[:DETAIL]
        score = min(1.0, max(score for _, score, _ in words))
        return self._finding(score, box, detail)

    def _finding(self, score: float, box: Box | None = None, detail: str = "") -> Finding:
        return Finding(
            guard=self.name, version=self.version, category="text.ocr", score=score, threshold=self.threshold, box=box,
            detail=detail,
        )  # fmt: skip

    def _load(self) -> Any:
        if self._engine is None:
            from rapidocr import RapidOCR

            params: dict[str, Any] = {f"{part}.model_path": str(path) for part, path in self._paths.items()}
            params |= {
                "Global.log_level": "critical",
                "Global.text_score": 0.0,  # the policy's threshold decides, not the library's
                "Det.limit_side_len": SHORT_SIDE,
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
            self._engine = RapidOCR(params=params)
        return self._engine
